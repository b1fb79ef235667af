"""Judges, and their verdicts against the human reply.

A judge is anything with `verdicts(prompts, first, second) -> list of "A" | "B" | "C"` (A: the first
reply is better, C: a tie), the papers' answer format (DoRA App. C.4), or UNANSWERED where it said
nothing of the kind. `RewardJudge` is one, `EndpointJudge`, a language model that reads the papers'
prompts, another; any function is, as a `FunctionJudge`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any, Protocol

import numpy as np
import pandas as pd
from scipy.special import expit

from robustpo_kit.encoders import Learned
from robustpo_kit.records import digest, stream
from robustpo_kit.rewards import Rewards

SCORES = {"win": 1.0, "tie": 0.5, "lose": 0.0}
UNANSWERED = "-"  # in the place of A, B or C: a refusal, or an answer that says none of them
OTHER_WAY_ROUND = {"A": "B", "B": "A", "C": "C"}


class Judge(Protocol):
    """Compares two replies to each prompt.

    A judge may have a `fingerprint`, a text that changes when its verdicts may, and `learned`,
    what it learned from (`encoders.Learned`), which it is not asked about.
    """

    @property
    def name(self) -> str:
        """What tables and errors call the judge; without a fingerprint, an audit is of a name."""
        ...

    def verdicts(
        self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
    ) -> list[str]:
        """A (first is better), B (second is better), C (tie) or UNANSWERED for each prompt."""
        ...


@dataclass(frozen=True, eq=False)
class RewardJudge:
    """A reward model as judge: a tie where the preference probability lies close to one half.

    `bias` is that of `Rewards.score`; `bias=-model.length_slope` takes out the model's own
    liking of length.
    """

    model: Rewards
    tie_band: float = 0.05  # |sigmoid(score difference) - 1/2| <= tie_band is a tie
    bias: float = 0.0
    name: str = "reward judge"

    def __post_init__(self) -> None:
        if not 0 <= self.tie_band < 0.5:
            raise ValueError(f"tie_band = {self.tie_band}: a value in [0, 0.5) is expected")

    @property
    def fingerprint(self) -> str:
        """Digest of the model and of how it judges."""
        return digest(self.model.fingerprint(), self.tie_band, self.bias, length=16)

    @property
    def learned(self) -> Learned:
        """What the model learned from."""
        return self.model.learned

    def preference(
        self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
    ) -> np.ndarray:
        """[N] probability that the first reply is preferred (Bradley-Terry)."""
        first_scores = self.model.score(prompts, first, bias=self.bias)
        difference = first_scores - self.model.score(prompts, second, bias=self.bias)
        return expit(difference)

    def verdicts(
        self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
    ) -> list[str]:
        """A, B or C for each prompt."""
        lean = self.preference(prompts, first, second) - 0.5
        return np.select([np.abs(lean) <= self.tie_band, lean > 0], ["C", "A"], "B").tolist()


@dataclass(frozen=True)
class FunctionJudge:
    """A function, such as one that asks an endpoint, as judge."""

    name: str
    ask: Callable[[Sequence[str], Sequence[str], Sequence[str]], list[str]]
    version: str = ""  # of what it asks: model, prompt, settings

    @property
    def fingerprint(self) -> str:
        """Digest of the name, the version and the function's code; not of what that calls."""
        code = getattr(self.ask, "__code__", None)
        return digest(self.name, self.version, _spelled(code) if code else "", length=16)

    def verdicts(
        self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
    ) -> list[str]:
        """A, B or C for each prompt, as the function answers."""
        return self.ask(prompts, first, second)


def _spelled(code: CodeType) -> list[Any]:
    """Instructions, names and constants of a function and of those inside it."""
    parts: list[Any] = [code.co_code.hex(), *code.co_names]
    for value in code.co_consts:
        if isinstance(value, CodeType):
            parts.append(_spelled(value))
        else:  # a set has no order of its own
            parts.append(sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value))
    return parts


def compare(
    judge: Judge,
    prompts: Sequence[str],
    replies: Mapping[str, Sequence[str]],
    against: Sequence[str],
    *,
    seed: int,
    prompt_ids: Sequence[str] | None = None,
    row_ids: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Verdicts of each policy's replies against the human replies.

    The order of the two replies is drawn at random for each prompt (DoRA App. C.4), the same for
    every policy. An empty reply loses.

    Args:
        judge: is asked once a policy.
        prompts: [N]; several replies a prompt: repeat the prompt.
        replies: the replies [N] of each policy.
        against: [N] the human replies.
        seed: of the order in which the judge sees two replies.
        prompt_ids: [N] the unit that intervals are taken over (default: the text of the prompt).
        row_ids: [N] the rows that prompts and human replies come from; a judge that learned from
            one refuses.

    Returns:
        A row a policy and prompt: policy, prompt_id, verdict (of the policy: win | tie | lose |
        unanswered), swapped, judge (its name), fingerprint (`fingerprint_of`).

    Raises:
        ValueError: where lengths differ, naming the argument or the policy, where there is no
            policy or a reply is no text, where the judge learned from a row, or answers anything
            but A, B, C or UNANSWERED.
    """
    prompt_ids = list(prompts if prompt_ids is None else prompt_ids)
    _check_lengths(prompts, {"against": against, "prompt_ids": prompt_ids})
    _check_replies(prompts, replies)
    _check_unseen(judge, prompts, against, row_ids)
    parts = []
    for policy, texts in replies.items():
        # one seed for all policies: they are judged in the same order on the same prompt
        swapped = stream(seed, "order of replies").random(len(prompts)) < 0.5
        first, second = _in_order(texts, against, swapped)
        answers = judge.verdicts(prompts, first, second)
        _check_answers(answers, len(prompts), judge)
        verdicts = [
            _verdict(answer, swap, text)
            for answer, swap, text in zip(answers, swapped, texts, strict=True)
        ]
        columns = {"prompt_id": prompt_ids, "verdict": verdicts, "swapped": swapped}
        parts.append(pd.DataFrame({"policy": policy} | columns))
    table = pd.concat(parts, ignore_index=True)
    return table.assign(judge=judge.name, fingerprint=fingerprint_of(judge))


def fingerprint_of(judge: Judge) -> str:
    """What an audit is of: the judge's fingerprint, or its name where it has none."""
    return getattr(judge, "fingerprint", judge.name)


def _in_order(
    replies: Sequence[str], against: Sequence[str], swapped: np.ndarray
) -> tuple[list[str], list[str]]:
    """The texts that the judge reads first and second: where swapped, the human reply first."""
    first, second = list(replies), list(against)
    for place in np.flatnonzero(swapped):
        first[place], second[place] = second[place], first[place]
    return first, second


def _verdict(answer: str, swapped: bool, reply: str) -> str:
    """The policy's verdict; an empty reply loses, whatever the judge makes of it."""
    if not reply.strip():
        return "lose"
    if answer in ("C", UNANSWERED):
        return "tie" if answer == "C" else "unanswered"
    return "win" if (answer == "A") != swapped else "lose"


def _check_answers(answers: Sequence[str], count: int, judge: Judge) -> None:
    unknown = sorted(set(answers) - {"A", "B", "C", UNANSWERED})
    if unknown or len(answers) != count:
        raise ValueError(
            f"judge '{judge.name}': {len(answers)} answers for {count} prompts, "
            f"unknown: {unknown}; A, B, C"
        )


def _check_unseen(
    judge: Judge, prompts: Sequence[str], against: Sequence[str], row_ids: Sequence[str] | None
) -> None:
    learned: Learned = getattr(judge, "learned", Learned())
    seen = learned.rows_among(prompts, against, row_ids)
    if seen:
        refusal = learned.refusal(seen)
        raise ValueError(f"judge '{judge.name}': {refusal} judge rows of another split")


def _check_replies(prompts: Sequence[str], replies: Mapping[str, Sequence[str]]) -> None:
    """One text a prompt of each policy."""
    if not replies:
        raise ValueError("replies: no policy; give one with its replies")
    _check_lengths(prompts, replies)
    for policy, texts in replies.items():
        for place, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValueError(f"replies, policy '{policy}', reply {place}: {text!r} is no text")


def _check_lengths(prompts: Sequence[str], others: Mapping[str, Sequence[Any]]) -> None:
    for name, values in others.items():
        if len(values) != len(prompts):
            raise ValueError(
                f"{name}: {len(values)} values for {len(prompts)} prompts; one each is expected"
            )
