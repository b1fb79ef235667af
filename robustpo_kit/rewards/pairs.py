"""Ranked pairs to train and to test a reward model on."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from robustpo_kit.data import PreferenceSet

# Pairs that the data sets themselves rank, both sides from one kind of writer.
DIRECT = (
    ("human_correct", "human_wrong"),
    ("human_matched", "human_mismatched"),
    ("chosen", "rejected"),
)


OFF_PROMPT = ("human_mismatched",)  # sources that answer another prompt already


ELSEWHERE = " elsewhere"  # marks a reply to another prompt, in the name of a kind of pair


class RankedPair(NamedTuple):
    """A prompt with a better and a worse reply; `kind` reads `source of the better > source of the worse`."""

    row_id: str
    group: str
    kind: str
    prompt: str
    better: str
    worse: str


def training_pairs(
    preferences: PreferenceSet, *, seed: int, direct: Sequence[tuple[str, str]] = DIRECT
) -> list[RankedPair]:
    """Pairs with the same kind of writer on both sides: `direct` ones, and `S > S elsewhere` for every source S."""
    others = replies_elsewhere(preferences, seed=seed)
    pairs = []
    for row, elsewhere in zip(preferences, others, strict=True):
        pairs += _direct_pairs(row, direct)
        for source, reply, other in zip(row.sources, row.responses, elsewhere, strict=True):
            if other is not None and source not in OFF_PROMPT:
                kind = f"{source} > {source}{ELSEWHERE}"
                pairs.append(RankedPair(row.row_id, row.group, kind, row.prompt, reply, other))
    return pairs


def pairs_across_sources(preferences: PreferenceSet, *, seed: int) -> list[RankedPair]:
    """Pairs never trained on that set source against relevance, for each source S other than the golden column's G:

    `G > S`, the reply of another source to the same prompt, which a source classifier gets right; and
    `S > G elsewhere`, a reply to the prompt against a golden one to another prompt, which it gets wrong.
    """
    others = replies_elsewhere(preferences, seed=seed)
    pairs = []
    for row, elsewhere in zip(preferences, others, strict=True):
        if row.golden is None:
            continue
        golden, reply, away = (
            row.sources[row.golden],
            row.responses[row.golden],
            elsewhere[row.golden],
        )
        for source, response in zip(row.sources, row.responses, strict=True):
            if source == golden or source in OFF_PROMPT or (golden, source) in DIRECT:
                continue
            pairs.append(
                RankedPair(
                    row.row_id, row.group, f"{golden} > {source}", row.prompt, reply, response
                )
            )
            if away is not None:
                kind = f"{source} > {golden}{ELSEWHERE}"
                pairs.append(RankedPair(row.row_id, row.group, kind, row.prompt, response, away))
    return pairs


def _direct_pairs(row: Any, direct: Sequence[tuple[str, str]]) -> list[RankedPair]:
    return [
        RankedPair(
            row.row_id,
            row.group,
            f"{better} > {worse}",
            row.prompt,
            row.responses[i],
            row.responses[j],
        )
        for better, worse in direct
        for i, first in enumerate(row.sources)
        for j, second in enumerate(row.sources)
        if (first, second) == (better, worse)
    ]


def replies_elsewhere(
    preferences: PreferenceSet, *, seed: int, among: int = 8
) -> list[list[str | None]]:
    """[N][K] for every reply one of the same source to another group, drawn from the `among` nearest in word count.

    None where the source has no other text in another group.
    """
    rng = np.random.default_rng(seed)
    places: dict[str, list[tuple[int, int]]] = {}
    for i, row in enumerate(preferences):
        for k, source in enumerate(row.sources):
            places.setdefault(source, []).append((i, k))
    found: list[list[str | None]] = [[None] * len(row.responses) for row in preferences]
    for members in places.values():
        words = np.array([len(preferences[i].responses[k].split()) for i, k in members])
        groups = np.array([preferences[i].group for i, _ in members])
        texts = np.array([preferences[i].responses[k] for i, k in members], dtype=object)
        jitter = rng.random(len(members))  # equal lengths in random order
        for place, (i, k) in enumerate(members):
            unfit = (groups == groups[place]) | (texts == texts[place])
            distance = np.where(unfit, np.inf, np.abs(words - words[place]) + jitter)
            nearest = np.argsort(distance)[:among]
            nearest = nearest[np.isfinite(distance[nearest])]
            if len(nearest):
                found[i][k] = texts[rng.choice(nearest)]
    return found
