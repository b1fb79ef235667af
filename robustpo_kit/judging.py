"""Judging: win, tie and lose against the human reply, and what the text looks like.

A judge is anything with `verdicts(prompts, first, second) -> list of "A" | "B" | "C"` (A: the first
reply is better, C: a tie), the papers' answer format (DoRA App. C.4). `RewardJudge` is one; an LLM
reading the papers' prompts fits too. Intervals are over prompts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
from scipy.special import expit

from robustpo_kit.intervals import column_means, mean_by_group
from robustpo_kit.records import stream
from robustpo_kit.rewards import RewardModel

SCORES = {"win": 1.0, "tie": 0.5, "lose": 0.0}
VERDICTS = tuple(SCORES)


class Judge(Protocol):
    """Compares two replies to each prompt."""

    @property
    def name(self) -> str:
        """What errors call the judge."""
        ...

    def verdicts(
        self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
    ) -> list[str]:
        """A (first is better), B (second is better) or C (tie) for each prompt."""
        ...


@dataclass(frozen=True, eq=False)
class RewardJudge:
    """A reward model as judge: a tie where the preference probability lies close to one half.

    `bias` is that of `RewardModel.score`; `bias=-model.length_slope` takes out the model's own
    liking of length.
    """

    model: RewardModel
    tie_band: float = 0.05  # |sigmoid(score difference) - 1/2| <= tie_band is a tie
    bias: float = 0.0
    name: str = "reward judge"

    def __post_init__(self) -> None:
        if not 0 <= self.tie_band < 0.5:
            raise ValueError(f"tie_band = {self.tie_band}: a value in [0, 0.5) is expected")

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


def compare(
    judge: Judge,
    prompts: Sequence[str],
    replies: Mapping[str, Sequence[str]],
    against: Sequence[str],
    *,
    seed: int,
    prompt_ids: Sequence[str] | None = None,
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

    Returns:
        A row a policy and prompt: policy, prompt_id, verdict (of the policy: win | tie | lose),
        swapped.

    Raises:
        ValueError: where lengths differ, naming the argument or the policy, or where the judge
            answers anything but A, B or C.
    """
    prompt_ids = list(prompts if prompt_ids is None else prompt_ids)
    _check_lengths(prompts, {"against": against, "prompt_ids": prompt_ids})
    _check_lengths(prompts, replies)
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
    return pd.concat(parts, ignore_index=True)


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
    if answer == "C":
        return "tie"
    return "win" if (answer == "A") != swapped else "lose"


def _check_answers(answers: Sequence[str], count: int, judge: Judge) -> None:
    unknown = sorted(set(answers) - {"A", "B", "C"})
    if unknown or len(answers) != count:
        raise ValueError(
            f"judge '{judge.name}': {len(answers)} answers for {count} prompts, "
            f"unknown: {unknown}; A, B, C"
        )


def _check_lengths(prompts: Sequence[str], others: Mapping[str, Sequence[Any]]) -> None:
    for name, values in others.items():
        if len(values) != len(prompts):
            raise ValueError(
                f"{name}: {len(values)} values for {len(prompts)} prompts; one each is expected"
            )


# ---- tables ------------------------------------------------------------------------------------


def win_table(verdicts: pd.DataFrame, *, draws: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Shares of win, tie and lose by policy, and score = win + tie/2, with bootstrap intervals.

    Args:
        verdicts: a row a reply, with the columns policy, prompt_id, verdict (of `compare`).
        draws, seed: of the bootstrap over prompts, whose intervals are at 95 %.

    Returns:
        A row a policy: policy, prompts, replies, then NAME, NAME_low, NAME_high for win, tie, lose,
        score.
    """
    outcomes = [*VERDICTS, "score"]
    table = mean_by_group(
        _with_outcomes(verdicts),
        "policy",
        outcomes,
        cluster="prompt_id",
        draws=draws,
        seed=seed,
    )
    return table.rename(columns={"clusters": "prompts", "n": "replies"})


def difference_table(
    verdicts: pd.DataFrame, baseline: str, *, draws: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Each policy minus a baseline, paired by prompt: differences of win, lose and score.

    An interval that leaves out 0 is a difference at that level.

    Args:
        verdicts: a row a reply, with the columns policy, prompt_id, verdict (of `compare`).
        baseline: name of the policy that is subtracted.
        draws, seed: of the bootstrap over prompts, whose intervals are at 95 %.

    Returns:
        A row a policy other than the baseline: policy, baseline, prompts (answered by both), then
        NAME, NAME_low, NAME_high for win, lose, score.

    Raises:
        ValueError: the baseline is not among the policies.
    """
    outcomes = ["win", "lose", "score"]
    by_prompt = _with_outcomes(verdicts).groupby(["policy", "prompt_id"], sort=False)
    means = by_prompt[outcomes].mean()
    policies = list(dict.fromkeys(verdicts["policy"]))
    if baseline not in policies:
        raise ValueError(f"baseline = '{baseline}': not among the policies {', '.join(policies)}")
    rows = []
    for policy in policies:
        if policy == baseline:
            continue
        paired = (means.loc[policy] - means.loc[baseline]).dropna()
        row = {"policy": policy, "baseline": baseline, "prompts": len(paired)}
        rows.append(row | column_means(paired, outcomes, draws=draws, seed=seed))
    return pd.DataFrame(rows)


def _with_outcomes(verdicts: pd.DataFrame) -> pd.DataFrame:
    """`verdicts` with a column 0 or 1 for each of win, tie, lose, and the score."""
    columns = {name: (verdicts["verdict"] == name).astype(float) for name in VERDICTS}
    return verdicts.assign(**columns, score=verdicts["verdict"].map(SCORES))


# ---- text --------------------------------------------------------------------------------------


def text_table(replies: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """What the replies of each policy look like.

    Returns:
        A row a policy: policy, replies, mean_words, median_words, distinct_1, distinct_2 (share of
        different n-grams), duplicates (replies that another one equals).
    """
    rows = []
    for policy, texts in replies.items():
        words = pd.Series([len(text.split()) for text in texts], dtype=float)
        rows.append(
            {
                "policy": policy,
                "replies": len(texts),
                "mean_words": words.mean(),
                "median_words": words.median(),
                "distinct_1": distinct_n(texts, 1),
                "distinct_2": distinct_n(texts, 2),
                "duplicates": len(texts) - len(set(texts)),
            }
        )
    return pd.DataFrame(rows)


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Different n-grams of lower-cased words over all n-grams of all texts; NaN without any.

    Source: Li et al. 2016, A Diversity-Promoting Objective Function for Neural Conversation Models.
    """
    grams: list[tuple[str, ...]] = []
    for text in texts:
        words = text.lower().split()
        grams += [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    if not grams:
        return float("nan")
    return len(set(grams)) / len(grams)
