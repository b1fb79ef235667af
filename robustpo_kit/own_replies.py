"""A policy's own replies as rows to train on, and statistical rejection sampling among them.

Self-training trains on the replies of `sample_rows`, ranked by a reward. RSO (Liu et al. 2023)
trains on those that `accepted_rows` keeps of them: they follow pi(y|x) exp(R(x, y) / beta) up to a
constant, which maximises reward R under a KL of strength beta to the policy pi that drew them.
"""

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

from robustpo_kit.data import Preference, PreferenceSet, take
from robustpo_kit.errors import KitError
from robustpo_kit.policies import Policy, SamplingConfig, sample
from robustpo_kit.records import stream

SOURCE = "policy"


def sample_rows(
    preferences: PreferenceSet, policy: Policy, config: SamplingConfig, *, seed: int
) -> PreferenceSet:
    """The same prompts with `config.samples` replies of the policy, and nothing else.

    Rows with an empty reply are counted and dropped.

    Args:
        preferences: the rows whose prompts are answered.
        policy: as it is now.
        config: decoding.
        seed: of the sampling.

    Raises:
        KitError: no row is left.
    """
    drawn = sample(policy, [row.prompt for row in preferences], config, seed=seed)
    rows = []
    for row, replies in zip(preferences, drawn, strict=True):
        texts = tuple(reply.text for reply in replies)
        if all(text.strip() for text in texts):
            rows.append(_own(row, texts))
    if not rows:
        raise KitError(
            f"{preferences.name}: each of {len(preferences)} rows has an empty reply; train the "
            "policy before it answers, or raise max_new_tokens"
        )
    empty = len(preferences) - len(rows)
    dropped = preferences.dropped | ({"empty reply": empty} if empty else {})
    name, template = preferences.name, preferences.template
    return PreferenceSet(rows, name=name, template=template, dropped=dropped)


def _own(row: Preference, texts: tuple[str, ...]) -> Preference:
    return dataclasses.replace(
        row,
        responses=texts,
        sources=(SOURCE,) * len(texts),
        rewards=None,
        golden=None,
        flipped=False,
        h=None,
    )


def acceptance(rewards: ArrayLike, beta: float) -> np.ndarray:
    """The probability exp((R - max R) / beta) that each of a prompt's draws is accepted.

    Args:
        rewards: R [N, M] of the draws.
        beta: above 0; towards 0 only the best is accepted, and far above their spread every one.

    Returns:
        [N, M]; 1 for the best of a prompt.
    """
    values = np.asarray(rewards, dtype=float)
    if not beta > 0:
        raise ValueError(f"beta = {beta}: a number above 0 is expected")
    if values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise ValueError(f"rewards: shape {values.shape}; finite numbers [N, M] are expected")
    return np.exp((values - values.max(-1, keepdims=True)) / beta)


def accept(rewards: ArrayLike, count: int, beta: float, *, seed: int) -> np.ndarray:
    """Columns [N, count] of the draws accepted for each prompt, ascending.

    Each draw in turn is accepted with its `acceptance`. While some are missing, what is left is
    gone through again, against the best that is left: Algorithm 1 of Liu et al. (2023), which takes
    the largest reward of the draws for the largest there is.

    Args:
        rewards: R [N, M] of the draws.
        count: so many of M.
        beta: as in `acceptance`.
        seed: of what is accepted.

    Raises:
        ValueError: a `count` that is not in 1..M, or what `acceptance` refuses.
    """
    first = acceptance(rewards, beta)
    if not 1 <= count <= first.shape[1]:
        raise ValueError(f"count = {count}: 1 to {first.shape[1]} of the draws can be accepted")
    values, chosen = np.asarray(rewards, dtype=float), np.zeros(first.shape, dtype=bool)
    rng = stream(seed, "rejection sampling")
    while (missing := count - chosen.sum(-1, keepdims=True)).any():
        best = np.where(chosen, -np.inf, values).max(-1, keepdims=True)
        kept = ~chosen & (rng.random(chosen.shape) < np.exp(np.minimum(0, values - best) / beta))
        chosen |= kept & (kept.cumsum(-1) <= missing)
    return np.nonzero(chosen)[1].reshape(-1, count)


def accepted_rows(
    preferences: PreferenceSet, count: int, beta: float, *, seed: int
) -> PreferenceSet:
    """Rows with `count` of their responses, accepted by their rewards as `accept` does.

    Raises:
        KitError: naming a row without a reward a response, or with fewer responses than others.
        ValueError: as `accept`.
    """
    most = preferences.responses_per_prompt
    for row in preferences:
        if len(row.rewards or ()) < most:
            raise KitError(
                f"{preferences.name}, row '{row.row_id}', field rewards: {len(row.rewards or ())} "
                f"of {most}; score every draw first (with_rewards)"
            )
    rewards = [row.rewards or () for row in preferences]
    columns = accept(rewards, count, beta, seed=seed)
    picks = iter(columns.tolist())
    return preferences.map(lambda row: take(row, next(picks)))
