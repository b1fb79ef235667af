"""Similarity to a reference, against values by hand."""

import pytest

from robustpo_kit import encoders, similarity


def test_rouge_l_by_hand():
    # the longest common subsequence of 3 words: precision 3/4, recall 3/6
    value = similarity.rouge_l("The cat sat down", "the big cat sat on mats")
    assert value == pytest.approx(2 * 0.75 * 0.5 / 1.25)
    assert similarity.rouge_l("a b", "b a") == 0.5  # order counts
    assert similarity.rouge_l("", "a") == 0 == similarity.rouge_l("x", "a")


def test_chrf_by_hand():
    # "abc" against "abd": 1-grams 2 of 3 both ways, 2-grams 1 of 2, the 3-gram differs
    assert similarity.chrf("abc", "abd") == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    # recall weighs more: half a text is worse than the text twice
    assert similarity.chrf("abcdef", "abcdefabcdef") < similarity.chrf("abcdefabcdef", "abcdef")
    assert similarity.chrf("", "") == 0


def test_the_reference_is_like_itself_and_nothing_is_like_nothing():
    texts = ["tap the lid, then turn", "grill it"]
    table = similarity.to_reference([*texts, ""], [*texts, "grill it"], encoders.load("tiny"))
    assert table.iloc[:2].to_numpy() == pytest.approx(1, abs=1e-5)
    assert (table.iloc[2] == 0).all()
    assert similarity.embedding_f1(["\x01\x02"], ["grill it"], encoders.load("tiny")) == [0.0]
    near, far = similarity.embedding_f1(
        ["tap the lid", "zqzq"], ["tap the lip", "tap the lip"], encoders.load("tiny")
    )
    assert far < near < 1
    with pytest.raises(ValueError, match="replies, references: 1 and 2"):
        similarity.to_reference(["a"], ["a", "b"], encoders.load("tiny"))
