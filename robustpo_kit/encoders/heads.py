"""Heads on encoders: a linear head on frozen embeddings, or the whole encoder fine-tuned."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from robustpo_kit.encoders.encoder import Encoder, masked_mean
from robustpo_kit.records import progress

FEATURES = ("frozen", "fine_tuned")


Pair = tuple[str, str]  # prompt, response


@dataclass(frozen=True, eq=False)
class LinearScorer:
    """features [N, F] @ weight [F] + bias."""

    weight: np.ndarray
    bias: float = 0.0

    def __call__(self, features: np.ndarray) -> np.ndarray:
        return features @ self.weight + self.bias

    def trained_state(self) -> dict[str, Tensor]:
        """Weight and bias as float64 tensors."""
        return {
            "weight": torch.tensor(self.weight),
            "bias": torch.tensor([self.bias], dtype=torch.float64),
        }


def response_features(encoder: Encoder, pairs: Sequence[Pair]) -> np.ndarray:
    """[N, D + 1] for telling sources: the response's embedding and its cosine to the prompt, scaled to about unit."""
    prompt, response = _embedded(encoder, pairs)
    cosine = (prompt * response).sum(1, keepdims=True)
    return np.hstack([response * np.sqrt(encoder.width), 3 * cosine])


def relevance_features(encoder: Encoder, pairs: Sequence[Pair]) -> np.ndarray:
    """[N, D + 1] for relevance: cosine of prompt and response, and its D summands, scaled to about unit."""
    prompt, response = _embedded(encoder, pairs)
    product = prompt * response
    return np.hstack([10 * product.sum(1, keepdims=True), product * encoder.width])


def _embedded(encoder: Encoder, pairs: Sequence[Pair]) -> tuple[np.ndarray, np.ndarray]:
    prompts = encoder.embed([prompt for prompt, _ in pairs]).double().numpy()
    return prompts, encoder.embed([response for _, response in pairs]).double().numpy()


def fit_logistic(
    features: np.ndarray, labels: np.ndarray, penalty: float, *, intercept: bool = True
) -> LinearScorer:
    """Minimise sum log(1 + exp(-y (x.w + b))) + penalty/2 |w|^2, y = +-1; the intercept goes unpunished.

    `labels` are 0 or 1. Without intercept and with differences of features as `features` it is Bradley-Terry.
    """
    if penalty <= 0:
        raise ValueError(f"penalty = {penalty}: a positive number is expected")
    signs = np.where(np.asarray(labels) == 1, 1.0, -1.0)
    design = np.hstack([features, np.ones((len(features), 1))]) if intercept else features
    ridge = np.full(design.shape[1], float(penalty))
    if intercept:
        ridge[-1] = 0.0

    def objective(weight: np.ndarray) -> tuple[float, np.ndarray]:
        margin = signs * (design @ weight)
        slope = -signs * 0.5 * (1 - np.tanh(margin / 2))
        value = np.logaddexp(0, -margin).sum() + 0.5 * ridge @ weight**2
        return value, design.T @ slope + ridge * weight

    start = np.zeros(design.shape[1])
    found = minimize(
        objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 500, "gtol": 1e-6}
    )
    return LinearScorer(found.x[:-1], float(found.x[-1])) if intercept else LinearScorer(found.x)


@dataclass(frozen=True)
class FineTune:
    """How a pair scorer is fine-tuned. The paper's BERT base: 2e-5, 3 epochs (DoRA, App. C.3)."""

    learning_rate: float = (
        1e-4  # MiniLM is four times narrower than BERT base; 2e-5 leaves it untrained on 1,000 rows
    )
    head_learning_rate: float = 1e-3  # the head starts at zero
    epochs: int = 2
    batch_size: int = 16  # examples an optimizer step
    warmup: float = 0.1  # share of the steps, then linear decay to zero
    weight_decay: float = 0.01
    frozen_layers: int = (
        3  # the embeddings and this many lower layers stay as they are; 0 trains everything
    )
    max_length: int = 128  # tokens of a pair

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1 or self.frozen_layers < 0:
            raise ValueError(
                "fine-tuning: epochs and batch_size must be at least 1, frozen_layers at least 0"
            )


DEFAULT_FINE_TUNE = FineTune()


class PairScorer(nn.Module):
    """[CLS] prompt [SEP] response [SEP] -> one number: masked mean of the BERT, then a linear head from zero."""

    def __init__(self, encoder: Encoder, frozen_layers: int, max_length: int):
        super().__init__()
        self.max_length = min(max_length, encoder.max_length)  # tokens of a pair
        self.body = copy.deepcopy(encoder.model)
        self.head = nn.Linear(encoder.width, 1).to(encoder.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        layers = self.body.encoder.layer
        for part in (self.body.embeddings, *layers[:frozen_layers]) if frozen_layers else ():
            part.requires_grad_(False)

    def forward(self, tokens: dict[str, Tensor]) -> Tensor:
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
    """Train a scorer with `loss(scores [B, width], targets [B]) -> scalar`; an example holds `width` pairs.

    The caller's global random state is left as it was. Raises ValueError on examples of unequal width.
    """
    widths = {len(example) for example in examples}
    if len(widths) != 1 or len(examples) != len(targets):
        raise ValueError(
            f"examples: equal width and one target each expected; widths {widths}, {len(targets)} targets"
        )
    lengths = [
        sum(len(prompt) + len(response) for prompt, response in example) for example in examples
    ]
    rng = np.random.default_rng(seed)
    batches = [
        batch
        for _ in range(config.epochs)
        for batch in length_bucketed(lengths, config.batch_size, rng)
    ]
    devices = [encoder.device] if encoder.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        scorer = PairScorer(encoder, config.frozen_layers, config.max_length).train()
        optimizer, schedule = _optimizer(scorer, config, len(batches))
        for batch in progress(batches, desc):
            pairs = [pair for i in batch for pair in examples[i]]
            goal = torch.tensor(
                [targets[i] for i in batch], dtype=torch.float32, device=encoder.device
            )
            with torch.autocast(
                encoder.device.type, encoder.dtype, enabled=encoder.dtype != torch.float32
            ):
                scores = scorer(_tokens(encoder, pairs, scorer.max_length))
            loss(scores.float().view(len(batch), -1), goal).backward()
            nn.utils.clip_grad_norm_(scorer.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return scorer.eval()


def _optimizer(scorer: PairScorer, config: FineTune, steps: int) -> tuple[Any, Any]:
    body = [parameter for parameter in scorer.body.parameters() if parameter.requires_grad]
    groups = [
        {"params": body, "lr": config.learning_rate},
        {"params": list(scorer.head.parameters()), "lr": config.head_learning_rate},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
    warm = max(1, round(config.warmup * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (steps - step) / max(1, steps - warm), 1.0)
    )
    return optimizer, schedule


def length_bucketed(
    lengths: Sequence[int], batch_size: int, rng: np.random.Generator
) -> list[list[int]]:
    """Shuffled batches of similar length: shuffle, sort within windows of eight batches, shuffle the batches."""
    order = rng.permutation(len(lengths))
    window = 8 * batch_size
    batches = []
    for start in range(0, len(order), window):
        chunk = sorted(order[start : start + window].tolist(), key=lambda i: lengths[i])
        batches += [chunk[i : i + batch_size] for i in range(0, len(chunk), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


@torch.inference_mode()
def score_pairs(
    scorer: PairScorer, encoder: Encoder, pairs: Sequence[Pair], *, batch_size: int = 32
) -> np.ndarray:
    """[N] scores of (prompt, response) pairs, float64; a pair that comes twice is computed once."""
    scorer.eval()
    distinct = sorted(set(pairs), key=lambda pair: (len(pair[0]) + len(pair[1]), pair))
    scores: dict[Pair, float] = {}
    for start in range(0, len(distinct), batch_size):
        batch = distinct[start : start + batch_size]
        with torch.autocast(
            encoder.device.type, encoder.dtype, enabled=encoder.dtype != torch.float32
        ):
            values = scorer(_tokens(encoder, batch, scorer.max_length))
        scores.update(zip(batch, values.double().tolist(), strict=True))
    return np.array([scores[pair] for pair in pairs], dtype=float)


def _tokens(encoder: Encoder, pairs: Sequence[Pair], max_length: int) -> dict[str, Tensor]:
    """Sequence pairs; the longer text of a pair gives way when both do not fit."""
    prompts, responses = [prompt for prompt, _ in pairs], [response for _, response in pairs]
    tokens = encoder.tokenizer(
        prompts,
        responses,
        padding=True,
        truncation="longest_first",
        max_length=max_length,
        return_tensors="pt",
    )
    return {name: value.to(encoder.device) for name, value in tokens.items()}
