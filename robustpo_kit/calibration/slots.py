"""Slot weights: the density ratio of a shift that touches the golden slot alone.

In Def. 2.1 let the golden slot of a share r of the samples hold a reply of another source S, all
other slots being as they should. The density of a sample is then that of a clean one times
(1 - r) + r S(y) / P_golden(y) at the reply y of that slot, so that the ratio of the clean density
to the data's is

    W = 1 / ((1 - r) + r / R),   R = P_golden(y) / S(y):                bounded by 1 / (1 - r)

the posterior that the slot is golden, over its share. Every other slot cancels. (h~, the mean of
the ratios of all slots, answers another question: how golden are the replies taken together.)

r is not the classifier's prior. It is estimated on these samples: the fixed point of expectation
maximisation (Saerens et al. 2002), p <- mean of p R / (p R + 1 - p) with p = 1 - r, is the root of
a falling function. There the weights have mean one.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq

from robustpo_kit.calibration.quality import EPS


class SlotWeights(NamedTuple):
    """Weights of samples, and the contamination that they assume."""

    weights: np.ndarray  # [N]
    rate: float  # r, the share of samples whose golden slot holds something else


def slot_ratios(probs: ArrayLike, *, imbalance: float = 1.0) -> np.ndarray:
    """R [N] = P_golden / S from c of the golden slot: the odds, without the classifier's prior.

    Args:
        probs: [N] c in [0, 1], of a classifier that tells golden replies from S.
        imbalance: gamma = n_S / n_golden of its training rows.

    Raises:
        ValueError: naming the argument.
    """
    probs = np.asarray(probs, dtype=float)
    if probs.ndim != 1 or not len(probs) or not ((probs >= 0) & (probs <= 1)).all():
        raise ValueError("probs: c of the golden slot of every sample is expected, [N] in [0, 1]")
    if not imbalance > 0:
        raise ValueError(f"imbalance = {imbalance}: a positive number is expected")
    clipped = np.clip(probs, EPS, 1 - EPS)
    return imbalance * clipped / (1 - clipped)


def slot_weights(ratios: ArrayLike, *, rate: float | None = None) -> SlotWeights:
    """W [N] of every sample, from R of its golden slot.

    Args:
        ratios: [N] > 0, over *all* samples of the data set: their share of contamination is
            estimated from them.
        rate: r, where it is known; then it is not estimated.

    Raises:
        ValueError: naming the argument.
    """
    ratios = np.asarray(ratios, dtype=float)
    if ratios.ndim != 1 or not len(ratios) or not (np.isfinite(ratios) & (ratios > 0)).all():
        raise ValueError("ratios: a positive finite number a sample is expected, [N]")
    if rate is None:
        rate = 1 - _golden_share(ratios)
    elif not 0 <= rate <= 1:
        raise ValueError(f"rate = {rate}: a share between 0 and 1 is expected")
    return SlotWeights(1 / ((1 - rate) + rate / ratios), rate)


def _golden_share(ratios: np.ndarray) -> float:
    """p of greatest likelihood: where the falling derivative of mean log(p R + 1 - p) is 0."""

    def slope(share: float) -> float:
        return float(((ratios - 1) / (share * ratios + 1 - share)).mean())

    if slope(0.0) <= 0:
        return 0.0
    if slope(1.0) >= 0:
        return 1.0
    return brentq(slope, 0.0, 1.0, xtol=1e-14)
