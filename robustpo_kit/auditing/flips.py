"""How many labels are turned round, which ones, and how well either can be known.

A label that disagrees with a model is a flip, or a pair that the model gets wrong. Scores alone
cannot tell: labels flipped by lot at a rate r turn P(label) into r + (1 - 2 r) P(true label), and a
weak model of clean labels looks like a good one of noisy labels. So these numbers are given:

bound    If fewer than half are flipped, and by lot, labels nowhere disagree less often than that.
         Among the pairs where the model is most certain, the share that disagrees is r, plus what
         the model gets wrong there: its upper confidence limit bounds r, whatever the model is
         worth (the anchor points of Liu and Tao, 2016, arXiv:1411.7718, taken as a bound).
trusted  On pairs whose labels are known to be right, the same model agrees by its own worth alone.
         The mean of m = 2 sigmoid(score) - 1 over the file is 1 - 2 r times that over them: r may
         be anything from 0 to 1, where all columns are swapped.
checked  Where trusted pairs are the file's own, drawn by lot, the share of other labels is r.

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
RATES = np.linspace(0, 1, 1001)  # at which a rate is tried
LEAST_GROUPS = 10  # below which no interval is given
MISFIT = 0.999  # level at which no rate fits the file and the trusted pairs
EPS = 1e-6
NEAR_HALF = 0.01  # of a rate of a half, at which a label says nothing
TOP = 0.1  # share of the pairs that a reader looks at first


def flip_bound(scores: ArrayLike, groups: Sequence[str], level: float = 0.95) -> Interval:
    """At most so many labels are flipped: the value is the share that disagrees where it is least.

    One pair a group counts, the surest: repeats of a pair have one label. The upper limits (Clopper
    and Pearson) at the shares of CERTAIN hold together, by Bonferroni; the lower bound is 0, since
    all of it may be the model's fault.

    Args:
        scores: [N] cross-fitted, above 0 where the model agrees with the label.
        groups: [N].
        level: with which the bound holds.
    """
    ordered = pd.Series(scores, dtype=float).sort_values(
        key=lambda values: -values.abs(), kind="stable"
    )
    scores = ordered[~pd.Series(groups)[ordered.index].duplicated()].to_numpy()
    found = []
    for share in CERTAIN:
        certain = scores[: max(1, round(share * len(scores)))]
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
) -> Interval | None:
    """The flip rate of a file, from the scores of pairs whose labels are right.

    A rate r is as far from the data as the Student's t of mean m(file) - (1 - 2 r) mean m(trusted),
    with errors by group, is from 0. Kept is every rate whose t^2 is not beyond the least by more
    than chance gives (a profile likelihood), so that a model that knows nothing gives [0, 1]. The
    estimate is the nearest rate; the nearest up to a half, unless all that are kept are above.

    Args:
        scores: [N] of the file, cross-fitted.
        groups: [N].
        trusted: [M] by models that did not see the pair's group.
        trusted_groups: [M]; a group that the file has too is the same.
        level: of the interval.

    Returns:
        None with fewer than LEAST_GROUPS groups of trusted pairs, and where no rate fits: the file
        agrees with the model far better than the trusted pairs do.
    """
    count = min(len(set(groups)), len(set(trusted_groups)))
    if count < LEAST_GROUPS:
        return None
    mean, errors = _mean_and_errors(label_odds(scores), groups)
    known, known_errors = _mean_and_errors(label_odds(trusted), trusted_groups)
    kept = 1 - 2 * RATES
    shared = errors.mul(known_errors, fill_value=0).sum()
    variance = (errors**2).sum() - 2 * kept * shared + kept**2 * (known_errors**2).sum()
    distance = (mean - kept * known) ** 2 / np.maximum(variance, EPS**2)
    chance, misfit = stats.t.ppf([(1 + level) / 2, (1 + MISFIT) / 2], count - 1) ** 2
    if distance.min() > misfit:
        return None
    inside = RATES[distance - distance.min() <= chance]
    most = 0.5 if inside.min() <= 0.5 else 1.0
    value = (1 - mean / known) / 2 if known else np.nan
    if not 0 <= value <= most:
        value = RATES[distance[most >= RATES].argmin()]
    return Interval(float(value), float(inside.min()), float(inside.max()), count)


def _mean_and_errors(values: np.ndarray, groups: Sequence[str]) -> tuple[float, "pd.Series[float]"]:
    """Mean, and by group what it adds to its error: the sum of squares is the variance."""
    mean = float(values.mean())
    sums = pd.Series(values - mean).groupby(np.asarray(groups).astype(str)).sum()
    return mean, sums / len(values) * np.sqrt(len(sums) / (len(sums) - 1))


def checked_rate(turned: ArrayLike, groups: Sequence[str], level: float = 0.95) -> Interval | None:
    """The share of pairs, drawn by lot and checked by hand, whose label is the other way round.

    Args:
        turned: [M].
        groups: [M]; the first pair of each counts.
        level: of the interval (Clopper and Pearson).

    Returns:
        None with fewer than LEAST_GROUPS groups.
    """
    first = ~pd.Series(groups, dtype=object).duplicated().to_numpy()
    found = np.asarray(turned, dtype=bool)[first]
    if len(found) < LEAST_GROUPS:
        return None
    limits = stats.binomtest(int(found.sum()), len(found)).proportion_ci(level)
    return Interval(float(found.mean()), float(limits.low), float(limits.high), len(found))


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
        rate: r, from 0 to 1.
    """
    if abs(rate - 0.5) < NEAR_HALF:
        rate = 0.5 + np.copysign(NEAR_HALF, rate - 0.5)
    low, high = sorted((rate, 1 - rate))
    agree = np.clip(np.asarray(agreement, dtype=float), max(low, EPS), min(high, 1 - EPS))
    true = np.clip((agree - rate) / (1 - 2 * rate), 0, 1)
    return np.clip(rate * (1 - true) / agree, 0, 1)  # but for rounding it is within


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
