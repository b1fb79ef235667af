"""Replies that a policy samples, with what only the policy itself can tell of them."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robustpo_kit import training
from robustpo_kit.data import Preference, PreferenceSet
from robustpo_kit.errors import KitError
from robustpo_kit.experiments.keeping import Step
from robustpo_kit.experiments.supervised import SftStep
from robustpo_kit.policies import Policy, Reply, SamplingConfig, drawn_tokens, sample
from robustpo_kit.records import write_json

RECORD = "record.json"  # of the training run
SAMPLED = "sampled.json"  # what `sampled_replies` gives


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class StartRepliesStep(Step):
    """Replies of the SFT policy, where every method starts, or of the base model before it."""

    sft: SftStep
    base: bool
    prompts: PreferenceSet
    sampling: SamplingConfig
    sampling_seed: int

    def make(self, folder: Path) -> None:
        policy, start = self.sft.load(), None
        if self.base:
            policy, start = self.sft.start(), self.sft.load  # the log ratio is to SFT, as ever
        replies = sampled_replies(
            policy, self.prompts, self.sampling, seed=self.sampling_seed, start=start
        )
        write_json(folder / SAMPLED, replies)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class GoldenRepliesStep(Step):
    """The human replies that policies are judged against, as if a policy had given them."""

    prompts: PreferenceSet

    def make(self, folder: Path) -> None:
        write_json(folder / SAMPLED, [_as_reply(row) for row in self.prompts])


def _as_reply(row: Preference) -> dict[str, Any]:
    return {
        "row_id": row.row_id,
        "reply": golden_reply(row),
        "finished": True,
        "log_ratio": None,
    }


def golden_reply(row: Preference) -> str:
    """The reply that is claimed to be golden; raises KitError naming a row without one."""
    if row.golden is None:
        raise KitError(f"row '{row.row_id}', field golden: none; replies are judged against it")
    return row.responses[row.golden]


def sampled_replies(
    policy: Policy,
    prompts: PreferenceSet,
    config: SamplingConfig,
    *,
    seed: int,
    start: Callable[[], Policy] | None = None,
) -> list[dict[str, Any]]:
    """Replies to the prompts under the policy's own template, one entry a reply, empty ones too.

    An entry has row_id, reply, finished and log_ratio = log pi(y|x) - log pi_ref(y|x) in nats, of
    the tokens as drawn, the end token among them where the policy ended the reply. Its mean over
    replies that are drawn from pi itself estimates KL(pi || pi_ref) up to the token limit; other
    decoding (temperature, top-k, top-p, a penalty) weighs replies otherwise.
    `start` gives the reference of a policy without an adapter, which was trained in full; without
    it such a policy is its own reference.
    """
    texts = [row.prompt for row in prompts]
    sampled = sample(policy, texts, config, seed=seed, purpose="evaluation", desc="replies")
    answered: list[tuple[Preference, Reply]] = []
    for row, replies in zip(prompts, sampled, strict=True):
        answered += [(row, reply) for reply in replies]
    asked = [row.prompt for row, _ in answered]
    log_ratios = _log_ratios(policy, asked, [reply for _, reply in answered], start)
    return [
        {
            "row_id": row.row_id,
            "reply": reply.text,
            "finished": reply.finished,
            "log_ratio": float(log_ratio),
        }
        for (row, reply), log_ratio in zip(answered, log_ratios, strict=True)
    ]


def _log_ratios(
    policy: Policy,
    prompts: Sequence[str],
    replies: Sequence[Reply],
    start: Callable[[], Policy] | None,
) -> np.ndarray:
    """[N] log pi - log pi_ref of each reply, nats; 0 where the policy is its own reference."""
    if not policy.has_adapter and start is None:
        return np.zeros(len(replies))
    tokens = drawn_tokens(policy, prompts, replies)
    own = training.score_tokens(policy, tokens)
    if policy.has_adapter:
        with policy.reference():
            reference = training.score_tokens(policy, tokens)
    elif start is not None:
        reference = training.score_tokens(start(), tokens)
    return (own - reference)[:, 0].double().cpu().numpy()
