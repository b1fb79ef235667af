"""Similarity of replies to a reference reply: what the field trusts where a reference exists.

Own code, since rouge-score and sacrebleu bring a tokenizer each and a stemmer for these lines.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd

from robustpo_kit.encoders import Encoder

CHARACTERS = 6  # longest n-gram of chrF
BETA = 2.0  # chrF weighs recall so many times


def to_reference(
    replies: Sequence[str], references: Sequence[str], encoder: Encoder
) -> pd.DataFrame:
    """Similarity of each reply to its reference.

    Args:
        replies: [N]; an empty one is similar to nothing.
        references: [N].
        encoder: whose token states the embedding F1 compares.

    Returns:
        A row a reply: rouge_l, chrf, embedding_f1, each 1 for the reference itself.

    Raises:
        ValueError: lengths differ.
    """
    if len(replies) != len(references):
        raise ValueError(
            f"replies, references: {len(replies)} and {len(references)}; equally many are expected"
        )
    pairs = list(zip(replies, references, strict=True))
    return pd.DataFrame(
        {
            "rouge_l": [rouge_l(*pair) for pair in pairs],
            "chrf": [chrf(*pair) for pair in pairs],
            "embedding_f1": embedding_f1(replies, references, encoder),
        }
    )


def rouge_l(reply: str, reference: str) -> float:
    """F1 of the longest common subsequence of lower-cased words (Lin 2004, ROUGE-L)."""
    first, second = reply.lower().split(), reference.lower().split()
    longest = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for place, other in enumerate(second, start=1):
            above = longest[place]
            best = max(above, longest[place - 1])
            longest[place] = diagonal + 1 if word == other else best
            diagonal = above
    return _f_score(longest[-1], len(first), len(second), 1.0)


def chrf(reply: str, reference: str) -> float:
    """Mean F2 of character n-grams, 1 to 6, without spaces (Popovic 2015, chrF2), in [0, 1]."""
    first, second = "".join(reply.split()), "".join(reference.split())
    scores = []
    for size in range(1, min(CHARACTERS, max(len(first), len(second), 1)) + 1):
        grams, others = _grams(first, size), _grams(second, size)
        common = (grams & others).total()
        scores.append(_f_score(common, grams.total(), others.total(), BETA))
    return float(np.mean(scores))


def embedding_f1(
    replies: Sequence[str], references: Sequence[str], encoder: Encoder
) -> list[float]:
    """F1 of greedy cosine matches of token states (Zhang et al. 2020, BERTScore's form, no idf)."""
    scores = []
    for reply, reference in zip(replies, references, strict=True):
        cosines = encoder.token_states(reply) @ encoder.token_states(reference).T
        if cosines.numel() == 0:  # a text without a token, such as of control characters
            scores.append(0.0)
            continue
        precision, recall = cosines.max(1).values.mean(), cosines.max(0).values.mean()
        scores.append(float(2 * precision * recall / (precision + recall)))
    return scores


def _grams(text: str, size: int) -> "Counter[str]":
    return Counter(text[start : start + size] for start in range(len(text) - size + 1))


def _f_score(common: float, in_first: int, in_second: int, beta: float) -> float:
    """F of precision common / in_first and recall common / in_second; 0 without anything common."""
    if common == 0:
        return 0.0
    precision, recall = common / in_first, common / in_second
    return (1 + beta**2) * precision * recall / (beta**2 * precision + recall)
