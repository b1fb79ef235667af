"""Ranked pairs to train and to test a reward model on."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from robustpo_kit.calibration import flat_responses, word_count
from robustpo_kit.data import Preference, PreferenceSet
from robustpo_kit.records import stream

# Pairs that the data sets themselves rank, both sides from one kind of writer.
DIRECT = (
    ("human_correct", "human_wrong"),
    ("human_matched", "human_mismatched"),
    ("chosen", "rejected"),
)
OFF_PROMPT = ("human_mismatched",)  # sources that answer another prompt already
NEAREST = 8  # so many replies, by their word count, of which another one is drawn
ELSEWHERE = " elsewhere"  # marks a reply to another prompt, in the name of a kind of pair


class RankedPair(NamedTuple):
    """A prompt with a better and a worse reply; `kind` reads `better source > worse source`."""

    row_id: str
    group: str
    kind: str
    prompt: str
    better: str
    worse: str


def training_pairs(
    preferences: PreferenceSet, *, seed: int, direct: Sequence[tuple[str, str]] = DIRECT
) -> list[RankedPair]:
    """Pairs with the same kind of writer on both sides.

    These are the `direct` ones, and `S > S elsewhere` for every source S: a reply against one of
    the same source to another prompt.

    Args:
        preferences: the rows.
        seed: of the draw of replies to other prompts.
        direct: sources (better, worse) that the data rank themselves.
    """
    others = replies_elsewhere(preferences, seed=seed)
    pairs = []
    for row, elsewhere in zip(preferences, others, strict=True):
        pairs += _direct_pairs(row, direct)
        for source, reply, other in zip(row.sources, row.responses, elsewhere, strict=True):
            if other is not None and source not in OFF_PROMPT:
                pairs.append(_ranked(row, f"{source} > {source}{ELSEWHERE}", reply, other))
    return pairs


def pairs_across_sources(
    preferences: PreferenceSet, *, seed: int, direct: Sequence[tuple[str, str]] = DIRECT
) -> list[RankedPair]:
    """Pairs never trained on that set source against relevance.

    For each source S other than the golden column's G these are `G > S`, the reply of another
    source to the same prompt, which a source classifier gets right; and `S > G elsewhere`, a reply
    to the prompt against a golden one to another prompt, which it gets wrong.

    Args:
        preferences: the rows; those without a golden column are left out.
        seed: of the draw of replies to other prompts.
        direct: sources (better, worse) that are trained on, and so left out here.
    """
    others = replies_elsewhere(preferences, seed=seed)
    pairs = []
    for row, elsewhere in zip(preferences, others, strict=True):
        if row.golden is None:
            continue
        golden, golden_reply = row.sources[row.golden], row.responses[row.golden]
        golden_elsewhere = elsewhere[row.golden]
        for source, reply in zip(row.sources, row.responses, strict=True):
            if source == golden or source in OFF_PROMPT or (golden, source) in direct:
                continue
            pairs.append(_ranked(row, f"{golden} > {source}", golden_reply, reply))
            if golden_elsewhere is not None:
                kind = f"{source} > {golden}{ELSEWHERE}"
                pairs.append(_ranked(row, kind, reply, golden_elsewhere))
    return pairs


def _direct_pairs(row: Preference, direct: Sequence[tuple[str, str]]) -> list[RankedPair]:
    pairs = []
    for better, worse in direct:
        for i, j in itertools.product(_columns_of(row, better), _columns_of(row, worse)):
            kind = f"{better} > {worse}"
            pairs.append(_ranked(row, kind, row.responses[i], row.responses[j]))
    return pairs


def _columns_of(row: Preference, source: str) -> list[int]:
    return [column for column, name in enumerate(row.sources) if name == source]


def _ranked(row: Preference, kind: str, better: str, worse: str) -> RankedPair:
    return RankedPair(row.row_id, row.group, kind, row.prompt, better, worse)


def replies_elsewhere(preferences: PreferenceSet, *, seed: int) -> list[list[str | None]]:
    """For every reply one of the same source to another group, drawn from NEAREST alike in length.

    Args:
        preferences: N rows.
        seed: of the draw.

    Returns:
        [N][K] texts; None where the source has no other text in another group.
    """
    rng = stream(seed, "replies elsewhere")
    replies = flat_responses(preferences)
    others = np.full(len(replies), None, dtype=object)
    for _, of_source in replies.groupby("source", sort=False):
        others[of_source.index] = _others_alike(of_source, rng)
    remaining = iter(others)
    return [list(itertools.islice(remaining, len(row.responses))) for row in preferences]


def _others_alike(replies: pd.DataFrame, rng: np.random.Generator) -> list[str | None]:
    """For each reply of one source another one, to another group; None where there is none."""
    texts, groups = replies["response"].to_numpy(dtype=object), replies["group"].to_numpy()
    words = np.array([word_count(text) for text in texts])
    jitter = rng.random(len(texts))  # equal lengths in random order
    others: list[str | None] = []
    for place in range(len(texts)):
        unfit = (groups == groups[place]) | (texts == texts[place])
        distance = np.where(unfit, np.inf, np.abs(words - words[place]) + jitter)
        nearest = np.argsort(distance)[:NEAREST]
        nearest = nearest[np.isfinite(distance[nearest])]
        others.append(texts[rng.choice(nearest)] if len(nearest) else None)
    return others
