"""The responses of a preference set as a tidy table, a row a response; how long a text is."""

import re

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from robustpo_kit.data import PreferenceSet

# a word is what stands between blanks; in scripts without blanks (Thai, Lao, Burmese, Khmer, kana,
# Chinese characters, of the supplementary planes too) it is each character
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
WORD = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")


def word_count(text: str) -> int:
    """How long a text is: its words, as WORD tells them."""
    return len(WORD.findall(text))


def flat_responses(preferences: PreferenceSet) -> pd.DataFrame:
    """A row a response, in the order of rows and columns.

    Returns:
        Columns row_id, group, column, source, claimed (whether the row claims that this column is
        golden), prompt, response.
    """
    rows = []
    for row in preferences:
        for column, (source, response) in enumerate(zip(row.sources, row.responses, strict=True)):
            claimed = column == row.golden
            rows.append((row.row_id, row.group, column, source, claimed, row.prompt, response))
    columns = ["row_id", "group", "column", "source", "claimed", "prompt", "response"]
    return pd.DataFrame(rows, columns=columns)


def by_row(preferences: PreferenceSet, values: ArrayLike) -> list[list[float]]:
    """Values [M] of all responses, in the order of `flat_responses`, as a list a row."""
    ends = np.cumsum([len(row.responses) for row in preferences])
    return [part.tolist() for part in np.split(np.asarray(values, dtype=float), ends[:-1])]


def responses_per_row(preferences: PreferenceSet) -> int:
    """K; raises ValueError where it differs between rows."""
    counts = {len(row.responses) for row in preferences}
    if len(counts) != 1:
        raise ValueError(
            f"preferences: rows of {sorted(counts)} responses; equally many in every row are "
            "expected"
        )
    return counts.pop()


def response_table(preferences: PreferenceSet, values: ArrayLike, name: str = "c") -> pd.DataFrame:
    """Values of responses as a tidy table, without the texts.

    Args:
        preferences: N rows of K responses.
        values: [N, K].
        name: of the column of values.

    Returns:
        A row a response: row_id, group, column, source, words, and the value.

    Raises:
        ValueError: the shape of `values` is another one.
    """
    values = np.asarray(values, dtype=float)
    if values.shape != (len(preferences), responses_per_row(preferences)):
        raise ValueError(
            f"values: shape {values.shape} for {len(preferences)} rows; [N, K] is expected"
        )
    table = flat_responses(preferences)
    words = [word_count(response) for response in table["response"]]
    table = table[["row_id", "group", "column", "source"]].assign(words=words)
    return table.assign(**{name: values.reshape(-1)})
