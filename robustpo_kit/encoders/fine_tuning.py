"""An encoder fine-tuned into a scorer of (prompt, response) pairs."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BertModel

from robustpo_kit.encoders.encoder import Encoder, masked_mean
from robustpo_kit.encoders.linear import Pair
from robustpo_kit.records import progress, stream, stream_seed

SORTED_BATCHES = 8  # so many batches are sorted by length together


@dataclass(frozen=True)
class FineTune:
    """How a pair scorer is fine-tuned. The paper's BERT base: 2e-5, 3 epochs (DoRA, App. C.3)."""

    learning_rate: float = 1e-4  # at 2e-5 MiniLM, a quarter of BERT's width, hardly learns
    head_learning_rate: float = 1e-3  # the head starts at zero
    epochs: int = 2
    batch_size: int = 16  # examples an optimizer step
    warmup: float = 0.1  # share of the steps, then linear decay to zero
    weight_decay: float = 0.01
    frozen_layers: int = 3  # so many lower layers, and the embeddings, stay; 0 trains everything
    max_length: int = 128  # tokens of a pair

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1 or self.frozen_layers < 0:
            raise ValueError(
                "fine-tuning: epochs and batch_size must be at least 1, frozen_layers at least 0"
            )


DEFAULT_FINE_TUNE = FineTune()


class PairScorer(nn.Module):
    """[CLS] prompt [SEP] response [SEP] -> one number: masked mean of the BERT, then a linear head.

    The head starts at zero.
    """

    def __init__(self, encoder: Encoder, frozen_layers: int, max_length: int):
        super().__init__()
        self.max_length = min(max_length, encoder.max_length)  # tokens of a pair
        self.body = copy.deepcopy(encoder.model)
        self.head = nn.Linear(encoder.width, 1).to(encoder.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        if frozen_layers:
            body = cast(BertModel, self.body)
            for part in (body.embeddings, *body.encoder.layer[:frozen_layers]):
                part.requires_grad_(False)

    def forward(self, tokens: dict[str, Tensor]) -> Tensor:
        """Scores [N] of N tokenised pairs."""
        hidden = self.body(**tokens).last_hidden_state
        return self.head(masked_mean(hidden.float(), tokens["attention_mask"])).squeeze(-1)

    def trained_state(self) -> dict[str, Tensor]:
        """The tensors that training may have changed; the others are the encoder's own."""
        names = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {
            name: value.detach().cpu().contiguous()
            for name, value in self.state_dict().items()
            if name in names
        }


def fine_tune(
    encoder: Encoder,
    examples: Sequence[Sequence[Pair]],
    targets: Sequence[float],
    loss: Callable[[Tensor, Tensor], Tensor],
    config: FineTune,
    *,
    seed: int,
    desc: str = "fine-tune",
) -> PairScorer:
    """A scorer trained on examples that hold `width` pairs each.

    The caller's global random state is left as it was.

    Args:
        encoder: the start; it stays as it is.
        examples: [N][width] pairs.
        targets: [N].
        loss: of scores [B, width] and targets [B].
        config: how it is trained.
        seed: of the batches and of dropout.
        desc: what the progress bar says.

    Raises:
        ValueError: on examples of unequal width, or not one target each.
    """
    widths = {len(example) for example in examples}
    if len(widths) != 1 or len(examples) != len(targets):
        raise ValueError(
            f"examples: equal width and one target each expected; widths {widths}, "
            f"{len(targets)} targets"
        )
    lengths = [sum(map(_characters, example)) for example in examples]
    rng = stream(seed, "fine-tuning", "batches")
    batches: list[list[int]] = []
    for _ in range(config.epochs):
        batches += length_bucketed(lengths, config.batch_size, rng)
    devices = [encoder.device] if encoder.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(stream_seed(seed, "fine-tuning", "dropout"))
        scorer = PairScorer(encoder, config.frozen_layers, config.max_length).train()
        optimizer, schedule = _optimizer(scorer, config, len(batches))
        for batch in progress(batches, desc):
            pairs = list(chain.from_iterable(examples[i] for i in batch))
            scores = _scores(scorer, encoder, pairs).float().view(len(batch), -1)
            goals = torch.tensor([float(targets[i]) for i in batch], device=encoder.device)
            loss(scores, goals).backward()
            nn.utils.clip_grad_norm_(scorer.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return scorer.eval()


def _optimizer(
    scorer: PairScorer, config: FineTune, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW with a rate for the head of its own; linear warm-up, then linear decay to zero."""
    body = [parameter for parameter in scorer.body.parameters() if parameter.requires_grad]
    groups = [
        {"params": body, "lr": config.learning_rate},
        {"params": list(scorer.head.parameters()), "lr": config.head_learning_rate},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
    warm = max(1, round(config.warmup * steps))

    def share(step: int) -> float:
        return min((step + 1) / warm, (steps - step) / max(1, steps - warm), 1.0)

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, share)


def _characters(pair: Pair) -> int:
    return len(pair[0]) + len(pair[1])


def length_bucketed(
    lengths: Sequence[int], batch_size: int, rng: np.random.Generator
) -> list[list[int]]:
    """Shuffled batches of similar length: shuffle, sort within windows, shuffle the batches."""
    order = rng.permutation(len(lengths)).tolist()
    window = SORTED_BATCHES * batch_size
    batches: list[list[int]] = []
    for start in range(0, len(order), window):
        members = sorted(order[start : start + window], key=lengths.__getitem__)
        batches += [members[i : i + batch_size] for i in range(0, len(members), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


@torch.inference_mode()
def score_pairs(
    scorer: PairScorer, encoder: Encoder, pairs: Sequence[Pair], *, batch_size: int = 32
) -> np.ndarray:
    """[N] scores of (prompt, response) pairs, float64; a pair that comes twice is computed once."""
    scorer.eval()
    distinct = sorted(set(pairs), key=lambda pair: (_characters(pair), pair))
    scores: dict[Pair, float] = {}
    for start in range(0, len(distinct), batch_size):
        batch = distinct[start : start + batch_size]
        values = _scores(scorer, encoder, batch)
        scores.update(zip(batch, values.double().tolist(), strict=True))
    return np.array([scores[pair] for pair in pairs], dtype=float)


def _scores(scorer: PairScorer, encoder: Encoder, pairs: Sequence[Pair]) -> Tensor:
    """Scores [N]; the longer text of a pair gives way when both do not fit."""
    tokens = encoder.tokenizer(
        [prompt for prompt, _ in pairs],
        [response for _, response in pairs],
        padding=True,
        truncation="longest_first",
        max_length=scorer.max_length,
        return_tensors="pt",
    ).to(encoder.device)
    half = encoder.dtype != torch.float32
    with torch.autocast(encoder.device.type, encoder.dtype, enabled=half):
        return scorer(dict(tokens))
