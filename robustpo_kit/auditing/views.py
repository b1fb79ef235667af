"""What a simple model may see of a response: its length, its form, its words, its embedding."""

import re
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer

from robustpo_kit import encoders
from robustpo_kit.calibration import WORD, word_count
from robustpo_kit.data import PreferenceSet
from robustpo_kit.encoders import Encoder

MOST_WORDS = 20_000  # of the vocabulary
FORM = {  # what is counted in a response; log(1 + count) is the feature
    "line breaks": re.compile(r"\n"),
    "list items": re.compile(r"^\s*(?:[-*•]|\d+[.)])\s", re.MULTILINE),
    "headings and bold": re.compile(r"^#+\s|\*\*", re.MULTILINE),
    "code": re.compile(r"`"),
    "digits": re.compile(r"\d"),
    "questions": re.compile(r"[?？]"),
    "exclamations": re.compile(r"[!！]"),
    "capitals": re.compile(r"\b[A-Z]"),
    "full stop at the end": re.compile(r"[.!?。！？][\"')\]」』]*\s*\Z"),
    "apologies and refusals": re.compile(
        r"\b(?:sorry|apologi[sz]e|I can(?:'|’)?(?:no)?t|unable to)\b", re.IGNORECASE
    ),
}
Features: TypeAlias = Any  # [N, F], an array or a sparse matrix


def differences(pairs: PreferenceSet, encoder: Encoder | None) -> dict[str, Features]:
    """Features of the first response minus those of the second, by view.

    A score that is linear in them changes its sign with the order of the responses, as it should.

    Args:
        pairs: N rows of two responses.
        encoder: of the view `encoder`; without one it is left out.

    Returns:
        [N, F] each: length, form, words, encoder, and together, the last two (or words) with length
        and form.
    """
    sides = [row.responses[0] for row in pairs], [row.responses[1] for row in pairs]
    length = np.subtract(*map(_length, sides))
    form = np.subtract(*map(_form, sides))
    words = _words(*sides)
    views: dict[str, Features] = {"length": length, "form": form, "words": words}
    together = [words, length, form / np.sqrt(form.shape[1])]
    if encoder is not None:
        views["encoder"] = np.subtract(*(_embedded(encoder, pairs, side) for side in (0, 1)))
        together.append(2 * views["encoder"] / np.sqrt(views["encoder"].shape[1]))
    return views | {"together": sparse.hstack(together).tocsr()}


def _length(texts: Sequence[str]) -> np.ndarray:
    return np.log1p(np.array([[word_count(text)] for text in texts]))


def _form(texts: Sequence[str]) -> np.ndarray:
    return np.log1p(np.array([_counts(text) for text in texts]))


def _counts(text: str) -> list[int]:
    return [len(pattern.findall(text)) for pattern in FORM.values()]


def _words(first: Sequence[str], second: Sequence[str]) -> sparse.csr_matrix:
    """Words and pairs of words by TF-IDF, which knows no labels."""
    vectorizer = TfidfVectorizer(
        ngram_range=(1, 2),
        sublinear_tf=True,
        max_features=MOST_WORDS,
        token_pattern=WORD.pattern,  # of any script, and never empty where a text is not
    )
    both = vectorizer.fit_transform([*first, *second])
    return (both[: len(first)] - both[len(first) :]).tocsr()


def _embedded(encoder: Encoder, pairs: PreferenceSet, side: int) -> np.ndarray:
    """The response's embedding, and how it goes with the prompt's."""
    texts = [(row.prompt, row.responses[side]) for row in pairs]
    return np.hstack(
        [
            encoders.response_features(encoder, texts),
            encoders.relevance_features(encoder, texts),
        ]
    )
