"""Measures without sampling: what a policy makes of fixed candidates to held-out prompts.

The candidates of a row are scored once a policy; nothing is drawn, so hundreds of rows take seconds
and differ by the policy alone. g = log pi(y|x) - log pi_ref(y|x), the implicit reward over beta.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import softmax
from scipy.stats import kendalltau

OUTCOMES = ("implicit_accuracy", "gold_tau", "expected_gold", "golden_logp")


@dataclass(frozen=True, eq=False)
class Candidates:
    """N held-out rows of K candidates, column 0 the golden one, and what is known of them."""

    row_ids: Sequence[str]
    gold: np.ndarray  # [N, K] gold reward
    reference_logps: np.ndarray  # [N, K] summed, nats
    lengths: np.ndarray  # [N, K] tokens
    rivals: Sequence[int]  # columns that the golden reply is held against

    def __post_init__(self) -> None:
        for name in ("gold", "reference_logps", "lengths"):
            values = np.asarray(getattr(self, name), dtype=float)
            rows = np.flatnonzero(~np.isfinite(values).all(axis=1))
            if len(rows):
                raise ValueError(
                    f"{name}, row '{self.row_ids[rows[0]]}': finite numbers are expected"
                )

    def outcomes(self, logps: np.ndarray) -> pd.DataFrame:
        """The outcomes of a policy, row by row.

        Args:
            logps: [N, K] summed log-probabilities of the candidates under the policy, nats.

        Returns:
            A row a candidate row and outcome: row_id, outcome (one of OUTCOMES), value.

        Raises:
            ValueError: the shape is another one, or a value is not finite.
        """
        logps = np.asarray(logps, dtype=float)
        if logps.shape != self.gold.shape or not np.isfinite(logps).all():
            raise ValueError(
                f"logps: shape {logps.shape}, finite: {np.isfinite(logps).all()}; finite "
                f"{list(self.gold.shape)} are expected"
            )
        gain = logps - self.reference_logps
        values = {
            "implicit_accuracy": implicit_accuracy(gain, self.rivals),
            "gold_tau": gold_tau(gain, self.gold),
            "expected_gold": expected_gold(gain, self.gold),
            "golden_logp": logps[:, 0] / self.lengths[:, 0],
        }
        return tidy(self.row_ids, values)

    def best_possible(self) -> pd.DataFrame:
        """Expected gold of a policy that always gives the golden reply, as `outcomes`."""
        return tidy(self.row_ids, {"expected_gold": self.gold[:, 0]})


def implicit_accuracy(gain: np.ndarray, rivals: Sequence[int]) -> np.ndarray:
    """[N] share of the rivals whose implicit reward is below that of column 0; ties count half.

    Args:
        gain: g, [N, K].
        rivals: columns.
    """
    difference = gain[:, :1] - gain[:, list(rivals)]
    return ((1 + np.sign(difference)) / 2).mean(axis=1)


def gold_tau(gain: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """[N] Kendall's tau-b of implicit and gold reward over a row's candidates; 0 where one ties.

    Args:
        gain: g, [N, K].
        gold: [N, K].
    """
    taus = [kendalltau(g, value).statistic for g, value in zip(gain, gold, strict=True)]
    return np.nan_to_num(taus)


def expected_gold(gain: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """[N] self-normalised importance estimate of the gold reward, sum of softmax(g)_k gold_k.

    Exact in the limit of many candidates drawn from the reference; over fixed ones it is the gold
    reward of the candidate that the policy has moved towards.

    Args:
        gain: g, [N, K].
        gold: [N, K].
    """
    return (softmax(gain, axis=1) * gold).sum(axis=1)


def tidy(row_ids: Sequence[str], values: dict[str, np.ndarray]) -> pd.DataFrame:
    """Outcomes [N] by name as a table: row_id, outcome, value."""
    parts = [
        pd.DataFrame({"row_id": row_ids, "outcome": name, "value": column})
        for name, column in values.items()
    ]
    return pd.concat(parts, ignore_index=True)
