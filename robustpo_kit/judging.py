"""Judging: win, tie and lose against the human reply, with intervals over prompts, and what the text looks like.

A judge is anything with `verdicts(prompts, first, second) -> list of "A" | "B" | "C"` (A: the first reply is better,
C: a tie), the papers' answer format (DoRA App. C.4). `RewardJudge` is one; an LLM reading the papers' prompts fits too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd

from robustpo_kit import intervals
from robustpo_kit.rewards import RewardModel

VERDICTS = ("win", "tie", "lose")
_VALUE = {"win": 1.0, "tie": 0.5, "lose": 0.0}


class Judge(Protocol):
    """Compares two replies to each prompt."""

    name: str

    def verdicts(
        self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
    ) -> list[str]:
        """A (first is better), B (second is better) or C (tie) for each prompt."""
        ...


@dataclass(frozen=True, eq=False)
class RewardJudge:
    """A reward model as judge: a tie when the preference probability lies within `tie_band` of one half.

    `bias` is that of `RewardModel.score`; `bias=-model.length_slope` takes out the model's own liking of length.
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
        difference = self.model.score(prompts, first, bias=self.bias) - self.model.score(
            prompts, second, bias=self.bias
        )
        return 0.5 * (1 + np.tanh(difference / 2))

    def verdicts(
        self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
    ) -> list[str]:
        """A, B or C for each prompt."""
        lean = self.preference(prompts, first, second) - 0.5
        return ["C" if abs(x) <= self.tie_band else "A" if x > 0 else "B" for x in lean]


def compare(
    judge: Judge,
    prompts: Sequence[str],
    replies: Mapping[str, Sequence[str]],
    against: Sequence[str],
    *,
    seed: int,
    prompt_ids: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Verdicts of each policy's replies against `against` (the human replies): a row a policy and prompt.

    The order of the two replies is drawn at random for each prompt (App. C.4). Several replies a prompt: repeat the
    prompt, and give `prompt_ids` (default: the prompt's text), the unit that intervals are taken over.
    Columns: policy, prompt_id, verdict (win | tie | lose, of the policy), swapped. Raises ValueError on lengths.
    """
    prompt_ids = list(prompts if prompt_ids is None else prompt_ids)
    _same_length(prompts, against=against, prompt_ids=prompt_ids, **replies)
    parts = []
    for policy, texts in replies.items():
        # one seed for all policies: they are judged in the same order on the same prompt
        swapped = np.random.default_rng(seed).random(len(prompts)) < 0.5
        first = [b if s else a for a, b, s in zip(texts, against, swapped, strict=True)]
        second = [a if s else b for a, b, s in zip(texts, against, swapped, strict=True)]
        answers = judge.verdicts(prompts, first, second)
        _check_answers(answers, len(prompts), judge)
        verdicts = [_unswap(answer, s) for answer, s in zip(answers, swapped, strict=True)]
        parts.append(
            pd.DataFrame(
                {"policy": policy, "prompt_id": prompt_ids, "verdict": verdicts, "swapped": swapped}
            )
        )
    return pd.concat(parts, ignore_index=True)


def _unswap(answer: str, swapped: bool) -> str:
    if answer == "C":
        return "tie"
    return "win" if (answer == "A") != swapped else "lose"


def _check_answers(answers: Sequence[str], count: int, judge: Judge) -> None:
    wrong = sorted(set(answers) - {"A", "B", "C"})
    if wrong or len(answers) != count:
        raise ValueError(
            f"judge '{judge.name}': {len(answers)} answers for {count} prompts, unknown: {wrong}; A, B, C"
        )


def _same_length(prompts: Sequence[str], **others: Sequence[Any]) -> None:
    for name, values in others.items():
        if len(values) != len(prompts):
            raise ValueError(
                f"{name}: {len(values)} values for {len(prompts)} prompts; one each is expected"
            )


# ---- tables ----------------------------------------------------------------------------------------------------


def win_table(
    verdicts: pd.DataFrame, *, draws: int = 2000, level: float = 0.95, seed: int = 0
) -> pd.DataFrame:
    """Shares by policy: win, tie, lose, and score = win + tie/2, each with a prompt-level bootstrap interval.

    Columns: policy, prompts, replies, then NAME, NAME_low, NAME_high for win, tie, lose, score.
    """
    rows = []
    for policy, part in verdicts.groupby("policy", sort=False):
        row = {"policy": policy, "prompts": part["prompt_id"].nunique(), "replies": len(part)}
        columns = {name: (part["verdict"] == name).astype(float) for name in VERDICTS}
        columns["score"] = part["verdict"].map(_VALUE)
        for name, values in columns.items():
            row |= _with_bounds(name, values, part["prompt_id"], draws, level, seed)
        rows.append(row)
    return pd.DataFrame(rows)


def difference_table(
    verdicts: pd.DataFrame, baseline: str, *, draws: int = 2000, level: float = 0.95, seed: int = 0
) -> pd.DataFrame:
    """Each policy minus `baseline`, paired by prompt: differences of win, lose and score with intervals.

    An interval that leaves out 0 is a difference at that level. Raises ValueError for an unknown baseline.
    """
    table = verdicts.assign(score=verdicts["verdict"].map(_VALUE))
    for name in ("win", "lose"):
        table[name] = (table["verdict"] == name).astype(float)
    means = table.groupby(["policy", "prompt_id"], sort=False)[["win", "lose", "score"]].mean()
    policies = list(dict.fromkeys(verdicts["policy"]))
    if baseline not in policies:
        raise ValueError(f"baseline = '{baseline}': not among the policies {', '.join(policies)}")
    rows = []
    for policy in policies:
        if policy == baseline:
            continue
        difference = (means.loc[policy] - means.loc[baseline]).dropna()
        row = {"policy": policy, "baseline": baseline, "prompts": len(difference)}
        for name in ("win", "lose", "score"):
            row |= _with_bounds(name, difference[name], None, draws, level, seed)
        rows.append(row)
    return pd.DataFrame(rows)


def mean_table(
    table: pd.DataFrame,
    values: Sequence[str],
    *,
    by: str = "policy",
    cluster: str = "prompt_id",
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Means of columns by policy with intervals over prompts: for rewards, confidences, words, KL."""
    rows = []
    for name, part in table.groupby(by, sort=False):
        row = {by: name, "prompts": part[cluster].nunique(), "n": len(part)}
        for value in values:
            row |= _with_bounds(value, part[value], part[cluster], draws, level, seed)
        rows.append(row)
    return pd.DataFrame(rows)


def _with_bounds(
    name: str, values: Any, clusters: Any, draws: int, level: float, seed: int
) -> dict[str, float]:
    clusters = None if clusters is None else np.asarray(clusters).astype(str)
    estimate = intervals.bootstrap_mean(values, clusters, draws=draws, level=level, seed=seed)
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


# ---- text and distance from the reference ----------------------------------------------------------------------


def text_table(replies: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """By policy: replies, mean and median words, distinct-1, distinct-2 (share of different n-grams), duplicates."""
    rows = []
    for policy, texts in replies.items():
        words = [len(text.split()) for text in texts]
        rows.append(
            {
                "policy": policy,
                "replies": len(texts),
                "mean_words": float(np.mean(words)) if words else np.nan,
                "median_words": float(np.median(words)) if words else np.nan,
                "distinct_1": distinct_n(texts, 1),
                "distinct_2": distinct_n(texts, 2),
                "duplicates": len(texts) - len(set(texts)),
            }
        )
    return pd.DataFrame(rows)


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Different n-grams of lower-cased words over all n-grams of all texts (Li et al. 2016); NaN without any."""
    grams = [
        tuple(words[i : i + n])
        for words in (t.lower().split() for t in texts)
        for i in range(len(words) - n + 1)
    ]
    return len(set(grams)) / len(grams) if grams else float("nan")


def kl_to_reference(
    logps: Any,
    ref_logps: Any,
    prompt_ids: Sequence[str] | None = None,
    *,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """KL(policy || reference) in nats a reply, from replies sampled by the policy (untruncated, temperature 1).

    logps, ref_logps [N]: summed log-probabilities. Two estimators with prompt-level intervals: k1 = log ratio
    (unbiased), k3 = ratio' - 1 - log ratio' with ratio' = reference/policy (unbiased, never negative; Schulman 2020).
    With top-k, top-p or another temperature the replies are not the policy's own, and both are only indicative.
    """
    logps, ref_logps = np.asarray(logps, dtype=float), np.asarray(ref_logps, dtype=float)
    if (
        logps.shape != ref_logps.shape
        or logps.ndim != 1
        or not np.isfinite(logps - ref_logps).all()
    ):
        raise ValueError("logps, ref_logps: two equal vectors of finite numbers are expected")
    ratio = logps - ref_logps
    rows = []
    for name, values in (("k1", ratio), ("k3", np.expm1(-ratio) + ratio)):
        clusters = None if prompt_ids is None else np.asarray(prompt_ids).astype(str)
        estimate = intervals.bootstrap_mean(values, clusters, draws=draws, level=level, seed=seed)
        rows.append(
            {"estimator": name, "kl": estimate.value, "low": estimate.low, "high": estimate.high}
        )
    return pd.DataFrame(rows)
