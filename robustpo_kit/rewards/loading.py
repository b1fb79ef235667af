"""A reward model by its name: one of the kit's own, or a sequence classifier of transformers."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from robustpo_kit import assets
from robustpo_kit.encoders import Learned, Pair
from robustpo_kit.errors import KitError
from robustpo_kit.records import digest, progress
from robustpo_kit.rewards.models import RewardModel, Rewards

LIMIT = 2048  # tokens of prompt and reply, unless the model takes fewer
BATCH = 8


def load(name: str) -> Rewards:
    """The reward model `name`.

    Args:
        name: a folder that `RewardModel.save` wrote; or the Hub id or folder of a sequence
            classifier with one output, as reward models are published.

    Raises:
        KitError: where it is neither.
    """
    if (Path(name) / "reward.json").exists():
        return RewardModel.load(name)
    folder = assets.resolve(name)
    try:
        with assets.quiet_transformers():
            model = AutoModelForSequenceClassification.from_pretrained(folder, dtype="auto")
            tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise KitError(f"reward model '{name}': cannot be loaded ({reason})") from None
    if model.config.num_labels != 1:
        raise KitError(
            f"reward model '{name}': has {model.config.num_labels} outputs; a reward model has one"
        )
    where = "cuda" if torch.cuda.is_available() else "cpu"
    return SequenceReward(name, model.to(where).eval(), tokenizer)


@dataclasses.dataclass(eq=False)
class SequenceReward(Rewards):
    """A sequence classifier's one output; prompt and reply by its chat template, else as a pair."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def __post_init__(self) -> None:
        self.learned = Learned()  # what others trained it on, the kit cannot tell

    def fingerprint(self) -> str:
        """Of the weights."""
        return digest(self.name, dict(self.model.state_dict()))

    @torch.inference_mode()
    def _scores(self, pairs: Sequence[Pair], bias: float) -> np.ndarray:
        if bias:
            raise ValueError("bias: a length bias is added to the kit's own reward models alone")
        scores = np.empty(len(pairs))
        by_length = sorted(range(len(pairs)), key=lambda place: sum(map(len, pairs[place])))
        batches = [by_length[i : i + BATCH] for i in range(0, len(pairs), BATCH)]
        for places in progress(batches, f"rewards by {self.name}"):
            rows = [self._tokens(*pairs[place]) for place in places]
            batch = self.tokenizer.pad(rows, return_tensors="pt")
            logits = self.model(**batch.to(self.model.device)).logits
            scores[places] = logits[:, 0].double().cpu().numpy()
        return scores

    def _tokens(self, prompt: str, reply: str) -> dict[str, list[int]]:
        """A prompt with its reply; where they are too long, the beginning of a dialogue goes."""
        limit = min(LIMIT, getattr(self.model.config, "max_position_embeddings", LIMIT))
        if not getattr(self.tokenizer, "chat_template", None):
            return dict(self.tokenizer(prompt, reply, truncation=True, max_length=limit))
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]
        text = self.tokenizer.apply_chat_template(turns, tokenize=False)
        return {"input_ids": self.tokenizer(text, add_special_tokens=False)["input_ids"][-limit:]}
