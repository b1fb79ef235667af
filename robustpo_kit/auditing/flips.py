"""How many labels are turned round, which ones, and how well either can be known.

A label that disagrees with a model is a flip, or a pair that the model gets wrong. Scores alone
cannot tell: labels flipped by lot at a rate r turn P(label) into r + (1 - 2 r) P(true label), and a
weak model of clean labels looks like a good one of noisy labels. So two numbers are given:

bound    Nowhere can labels disagree less often than they are flipped. Among the pairs where the
         model is most certain, the share that disagrees is r, plus what the model gets wrong
         there: its upper confidence limit bounds r, whatever the model is worth (the anchor points
         of Liu and Tao, 2016, arXiv:1411.7718, taken as a bound).
trusted  On pairs whose labels are known to be right, the same model agrees by its own worth alone.
         The mean of m = 2 sigmoid(score) - 1 over the file is 1 - 2 r times that over them.

The counts of confident learning (Northcutt et al., 2021, arXiv:1911.00068, Eq. 1-3) are given
beside them, as they are often asked for; they take all errors of a model for flips.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats
from sklearn.metrics import average_precision_score

from robustpo_kit.auditing.scores import Scored, cross_fit, label_odds
from robustpo_kit.auditing.views import Features
from robustpo_kit.intervals import Interval, t_interval
from robustpo_kit.records import stream

CERTAIN = (0.1, 0.2, 0.5)  # shares of pairs, the most certain ones, at which the bound is read
RATES = np.linspace(0, 0.5, 501)  # at which a rate is tried
EPS = 1e-6
MOST = 0.49  # beyond it a label says nothing
TOP = 0.1  # share of the pairs that a reader looks at first


def flip_bound(scores: ArrayLike, level: float = 0.95) -> Interval:
    """At most so many labels are flipped: the value is the share that disagrees where it is least.

    The upper limits (Clopper and Pearson) at the shares of CERTAIN hold together, by Bonferroni;
    the lower bound is 0, since all of it may be the model's fault.

    Args:
        scores: [N] cross-fitted, above 0 where the model agrees with the label.
        level: with which the bound holds.
    """
    scores = np.asarray(scores, dtype=float)
    order = np.argsort(-np.abs(scores), kind="stable")
    found = []
    for share in CERTAIN:
        certain = scores[order[: max(1, round(share * len(scores)))]]
        against = (certain < 0).sum() + 0.5 * (certain == 0).sum()
        tail = 1 - (1 - level) / len(CERTAIN)
        limit = stats.beta.ppf(tail, against + 1, max(len(certain) - against, 1e-9))
        found.append((float(limit), float(against / len(certain))))
    limit, value = min(found)
    return Interval(min(value, 0.5), 0.0, min(limit, 0.5), len(scores))


def trusted_rate(
    scores: ArrayLike,
    groups: Sequence[str],
    trusted: ArrayLike,
    trusted_groups: Sequence[str],
    level: float = 0.95,
) -> Interval:
    """The flip rate of a file, from the scores of pairs whose labels are right.

    Every rate is kept that a test of mean m(file) = (1 - 2 rate) mean m(trusted) does not refuse
    (Fieller's interval, with errors by group), so that a model that knows nothing gives [0, 0.5].

    Args:
        scores: [N] of the file, cross-fitted.
        groups: [N].
        trusted: [M] by the same models.
        trusted_groups: [M].
        level: of the interval.
    """
    mean, error = _mean_and_error(label_odds(scores), groups)
    known, known_error = _mean_and_error(label_odds(trusted), trusted_groups)
    kept = 1 - 2 * RATES
    most = stats.norm.ppf((1 + level) / 2) * np.sqrt(error**2 + (kept * known_error) ** 2)
    inside = RATES[np.abs(mean - kept * known) <= most]
    if not len(inside):  # the file agrees better than the trusted pairs: no flip is seen
        inside = RATES[:1]
    value = np.nan
    if known > 0:
        value = float(np.clip((1 - mean / known) / 2, 0, 0.5))
    return Interval(value, float(inside.min()), float(inside.max()), len(set(trusted_groups)))


def _mean_and_error(values: np.ndarray, groups: Sequence[str]) -> tuple[float, float]:
    """Mean, and its standard error with rows of a group taken as one observation."""
    mean = float(values.mean())
    sums = pd.Series(values - mean).groupby(np.asarray(groups).astype(str)).sum()
    count = max(len(sums), 2)
    return mean, float(np.sqrt((sums**2).sum() * count / (count - 1)) / len(values))


def confident_rate(scores: ArrayLike) -> float:
    """The share of flips that confident learning counts (Northcutt et al., 2021).

    With pairs in random order both classes have the threshold t, the mean probability of the label:
    counted are pairs of a label at least as probable as t, and those whose opposite is.
    """
    agree = (1 + label_odds(scores)) / 2
    threshold = agree.mean()
    kept = (agree >= threshold) & (agree >= 0.5)
    turned = (1 - agree >= threshold) & (agree < 0.5)
    return float(turned.sum() / max(1, turned.sum() + kept.sum()))


def flip_probabilities(agreement: ArrayLike, rate: float) -> np.ndarray:
    """[N] probability that a label is flipped, if so many are.

    With P = r + (1 - 2 r) eta, eta the probability of the label before it was perhaps flipped, that
    of a flip is r (1 - eta) / P.

    Args:
        agreement: [N] P, the probability of the label as given.
        rate: r.
    """
    rate = min(max(rate, 0.0), MOST)
    agree = np.clip(np.asarray(agreement, dtype=float), max(rate, EPS), 1 - max(rate, EPS))
    true = np.clip((agree - rate) / (1 - 2 * rate), 0, 1)
    return rate * (1 - true) / agree


def injected(count: int, rate: float, seed: int) -> np.ndarray:
    """[N] which labels are turned round, exactly a share `rate` of them."""
    flipped = np.zeros(count, dtype=bool)
    flipped[stream(seed, "audit", "injected").permutation(count)[: round(rate * count)]] = True
    return flipped


def found_among(flipped: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """How well scores [N] find the flips: average precision, and the share of flips in the top."""
    first = np.argsort(scores, kind="stable")[: max(1, round(TOP * len(scores)))]
    precision = float(average_precision_score(flipped, -scores))
    return {"average_precision": precision, "precision_top": float(flipped[first].mean())}


def detectability(
    features: Mapping[str, Features],
    scored: Scored,
    *,
    seed: int,
    rates: Sequence[float] = (0.1, 0.2, 0.3),
    draws: int = 5,
) -> pd.DataFrame:
    """How well flips that we put into this very file are found by the way that its own are sought.

    Labels are turned round by lot, models fitted anew, scores ranked. What the file has of its own
    counts as not flipped, so that the truth is at least this good.

    Args:
        features: [N, F] by view: the chosen one's, and those of length, which is a baseline.
        scored: scores of the chosen view, of which view and penalty are taken.
        seed: of the draws.
        rates: injected.
        draws: of each; intervals are Student's t over them.

    Returns:
        A row a rate: rate (which is what chance gives), draws, lift (average precision over
        chance), precision_top, length_lift (of a model of length alone), each with _low and _high.
    """
    rows = []
    for rate in rates:
        found = [_found_again(features, scored, rate, seed + draw) for draw in range(draws)]
        row: dict[str, float] = {"rate": rate, "draws": draws}
        for name, values in pd.DataFrame(found).items():
            row |= t_interval(values).columns(str(name))
        rows.append(row)
    return pd.DataFrame(rows)


def _found_again(
    features: Mapping[str, Features], scored: Scored, rate: float, seed: int
) -> dict[str, float]:
    """One draw of `detectability`."""
    flipped = injected(len(scored.scores), rate, seed)
    row: dict[str, float] = {}
    for view, prefix in ((scored.view, ""), ("length", "length_")):
        again = cross_fit(
            features[view],
            scored.fold,
            view=view,
            strength=scored.strength,
            seed=seed,
            flipped=flipped,
        )
        found = found_among(flipped, again.scores)
        row[f"{prefix}lift"] = found["average_precision"] / rate
        if not prefix:
            row["precision_top"] = found["precision_top"]
    return row
