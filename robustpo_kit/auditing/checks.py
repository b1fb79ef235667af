"""What a file holds, and what is wrong with it that needs no model: repeats, ties, leaks."""

from collections.abc import Callable
from itertools import chain, pairwise

import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import TfidfVectorizer

from robustpo_kit.calibration import WORD
from robustpo_kit.data import Preference, PreferenceSet, plain, question

NEAR = 0.9  # cosine of word counts from which two rows are near duplicates
ALIKE = 0.9  # share of words that two responses have in common, from which a pair is ambiguous
BLOCK = 512  # rows compared with all others at once
QUANTILES = (0.05, 0.5, 0.95)
REPEATS = ["row_id", "other", "kind", "similarity"]


def of_other_prompts(rows: PreferenceSet, taken: PreferenceSet) -> PreferenceSet:
    """The rows whose prompts no row of `taken` has."""
    seen = {question(row.prompt) for row in taken}
    return rows.select(n for n, row in enumerate(rows) if question(row.prompt) not in seen)


def as_labelled(pairs: PreferenceSet, rows: PreferenceSet) -> np.ndarray:
    """Whether `rows` have each of M pairs, letter case and blanks aside, and with which label.

    Returns:
        [M] 1: with the same label; -1: with the opposite one; 0: not at all. Of several rows with
        the same texts the first counts.
    """
    label: dict[tuple[str, ...], int] = {}
    for row in rows:
        key = _texts(row)
        label.setdefault(key, 1)
        label.setdefault((key[0], *key[:0:-1]), -1)
    return np.array([label.get(_texts(row), 0) for row in pairs], dtype=int)


def _texts(row: Preference) -> tuple[str, ...]:
    """The prompt and the responses of a row, for comparison."""
    return (question(row.prompt), *map(plain, row.responses))


def schema_table(rows: PreferenceSet) -> pd.DataFrame:
    """What the file has: name and value, a row each."""
    counts = sorted({len(row.responses) for row in rows})
    facts = {
        "rows": len(rows),
        "prompts": len({question(row.prompt) for row in rows}),
        "groups": len({row.group for row in rows}),
        "responses a row": " to ".join(map(str, dict.fromkeys((counts[0], counts[-1])))),
        "sources": ", ".join(sorted(set(chain.from_iterable(row.sources for row in rows)))[:8]),
        "rows with rewards": sum(row.rewards is not None for row in rows),
        "rows with h": sum(row.h is not None for row in rows),
        "rows that name a golden response": sum(row.golden is not None for row in rows),
    }
    facts |= {f"left out on reading: {why}": count for why, count in rows.dropped.items()}
    return pd.DataFrame({"name": list(facts), "value": [str(value) for value in facts.values()]})


def length_table(rows: PreferenceSet, count: Callable[[str], int], unit: str) -> pd.DataFrame:
    """Lengths of prompts and responses by column.

    Args:
        rows: N rows.
        count: units of a text.
        unit: what is counted.

    Returns:
        A row a part: part, unit, n, mean, the quantiles p5, p50, p95, and max.
    """
    parts: dict[str, list[int]] = {}
    for row in rows.preferred_first():
        parts.setdefault("prompt", []).append(count(row.prompt))
        for column, response in enumerate(row.responses):
            parts.setdefault(_column_name(row, column), []).append(count(response))
    table = []
    for part, counts in parts.items():
        spread = {f"p{q * 100:.0f}": float(np.quantile(counts, q)) for q in QUANTILES}
        line = {"part": part, "unit": unit, "n": len(counts), "mean": float(np.mean(counts))}
        table.append(line | spread | {"max": max(counts)})
    return pd.DataFrame(table)


def _column_name(row: Preference, column: int) -> str:
    if len(row.responses) == 2:
        return ("chosen", "rejected")[column]
    return f"response {column}"


def repeat_table(rows: PreferenceSet) -> pd.DataFrame:
    """Rows that say what an earlier row says, letter case and blanks aside.

    Returns:
        A row a finding: row_id, other (the earlier row), kind (exact | contradiction: the same two
        responses the other way round), similarity (1).
    """
    first: dict[tuple[str, ...], str] = {}
    found = []
    for row in rows.preferred_first():
        prompt, *texts = key = _texts(row)
        if key in first:
            found.append((row.row_id, first[key], "exact", 1.0))
        elif len(texts) == 2 and (prompt, *texts[::-1]) in first:
            found.append((row.row_id, first[prompt, *texts[::-1]], "contradiction", 1.0))
        first.setdefault(key, row.row_id)
    return pd.DataFrame(found, columns=REPEATS)


def near_table(rows: PreferenceSet) -> pd.DataFrame:
    """Rows of nearly the words of an earlier one: cosine of the counts at least NEAR.

    Returns:
        A row a row that has any, the earlier one most alike beside it: as `repeat_table`, of kind
        near.
    """
    if len(rows) < 2:
        return pd.DataFrame(columns=REPEATS)
    texts = [" ".join((row.prompt, *row.responses)) for row in rows]
    words = TfidfVectorizer(use_idf=False, token_pattern=WORD.pattern).fit_transform(texts)
    ids = np.array([row.row_id for row in rows], dtype=object)
    parts = []
    for start in range(0, len(rows), BLOCK):
        block = (words[start : start + BLOCK] @ words.T).tocoo()
        close = (block.data >= NEAR) & (block.col < block.row + start)
        later, earlier = ids[block.row[close] + start], ids[block.col[close]]
        parts.append(pd.DataFrame({"row_id": later, "other": earlier, "like": block.data[close]}))
    table = pd.concat(parts, ignore_index=True).sort_values("like", ascending=False, kind="stable")
    best = table.drop_duplicates("row_id").rename(columns={"like": "similarity"})
    return best.assign(kind="near")[REPEATS].reset_index(drop=True)


def leak_table(rows: PreferenceSet, heldout: PreferenceSet) -> pd.DataFrame:
    """Rows of the file that a held-out file shares.

    Returns:
        A row a finding: row_id, other (in the held-out file), kind (prompt and responses | prompt |
        group: another turn of one conversation, or of the group that both files name).
    """
    seen: dict[tuple[str, ...], str] = {}
    for row in heldout:
        for _, key in _shareable(row):
            seen.setdefault(key, row.row_id)
    found = []
    for row in rows:
        kinds = [(row.row_id, seen[key], kind) for kind, key in _shareable(row) if key in seen]
        found += kinds[:1]
    return pd.DataFrame(found, columns=["row_id", "other", "kind"])


def _shareable(row: Preference) -> list[tuple[str, tuple[str, ...]]]:
    """What a file may share of a row, the most first."""
    prompt, *replies = _texts(row)
    return [
        ("prompt and responses", ("prompt", prompt, *sorted(replies))),
        ("prompt", ("prompt", prompt)),
        ("group", ("group", row.group)),
    ]


def overlaps(pairs: PreferenceSet) -> np.ndarray:
    """[N] share of words that the two responses have in common (Jaccard)."""
    shares = []
    for row in pairs:
        left, right = (set(WORD.findall(plain(text))) for text in row.responses)
        shares.append(len(left & right) / max(1, len(left | right)))
    return np.array(shares)


def scored_against(rows: PreferenceSet) -> tuple[int, int]:
    """Of rows of two responses: how many score the second above the first, and how many score."""
    scores = [row.rewards for row in rows if row.rewards is not None and len(row.rewards) == 2]
    if rows.ranked:  # by these scores, but for those that loading found against a label
        return rows.contrary, len(scores) + rows.contrary
    return sum(first < second for first, second in scores), len(scores)


def unranked(rows: PreferenceSet) -> np.ndarray:
    """[N] whether nothing says which response is preferred: more than two, and no rewards."""
    return np.array([len(row.responses) > 2 and row.rewards is None for row in rows], dtype=bool)


def ties(rows: PreferenceSet) -> np.ndarray:
    """[N] whether two responses of a row share a reward, or a text."""
    return np.array([_has_tie(row) for row in rows], dtype=bool)


def _has_tie(row: Preference) -> bool:
    if len(set(row.responses)) < len(row.responses):
        return True
    ranked = sorted(row.rewards or ())
    return any(low == high for low, high in pairwise(ranked))


def position_table(rows: PreferenceSet) -> pd.DataFrame:
    """How often the best reward stands in each column, of rows with rewards.

    Returns:
        A row a column: column, n, best (share), even (what chance gives). Empty without rewards.
    """
    places = [int(np.argmax(row.rewards)) for row in rows if row.rewards is not None]
    columns = ["column", "n", "best", "even"]
    if not places:
        return pd.DataFrame(columns=columns)
    count = rows.responses_per_prompt
    shares = np.bincount(places, minlength=count) / len(places)
    found = [(k, len(places), share, 1 / count) for k, share in enumerate(shares)]
    return pd.DataFrame(found, columns=columns)
