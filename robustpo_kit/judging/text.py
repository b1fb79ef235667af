"""What the text of replies looks like."""

from collections.abc import Mapping, Sequence

import pandas as pd


def text_table(replies: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """What the replies of each policy look like.

    Returns:
        A row a policy: policy, replies, mean_words, median_words, distinct_1, distinct_2 (share of
        different n-grams), duplicates (replies that another one equals).
    """
    rows = []
    for policy, texts in replies.items():
        words = pd.Series([len(text.split()) for text in texts], dtype=float)
        rows.append(
            {
                "policy": policy,
                "replies": len(texts),
                "mean_words": words.mean(),
                "median_words": words.median(),
                "distinct_1": distinct_n(texts, 1),
                "distinct_2": distinct_n(texts, 2),
                "duplicates": len(texts) - len(set(texts)),
            }
        )
    return pd.DataFrame(rows)


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Different n-grams of lower-cased words over all n-grams of all texts; NaN without any.

    Source: Li et al. 2016, A Diversity-Promoting Objective Function for Neural Conversation Models.
    """
    grams: list[tuple[str, ...]] = []
    for text in texts:
        words = text.lower().split()
        grams += [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    if not grams:
        return float("nan")
    return len(set(grams)) / len(grams)
