"""A sentence of effect says what its row says, and no more."""

import numpy as np
import pandas as pd
import pytest

from robustpo_kit import analysis


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ((0.034, 0.012, 0.056), "gains 0.03 [0.01, 0.06]"),
        ((-0.04, -0.061, -0.02), "loses 0.04 [0.02, 0.06]"),
        ((-0.001, -0.02, 0.02), "no difference shown: 0.00 [-0.02, 0.02], could have seen 0.03"),
        ((0.03, np.nan, np.nan), "no interval: 0.03 from one unit"),
    ],
)
def test_a_sentence_of_each_kind(row, sentence):
    value, low, high = row
    assert (
        analysis.verdict({"difference": value, "low": low, "high": high, "seeds": 50}) == sentence
    )
    named = {"score": value, "score_low": low, "score_high": high, "low": 9.0, "high": 9.0}
    assert analysis.verdict(pd.Series(named | {"prompts": 50}), "score") == sentence


def test_one_of_many_is_no_difference_and_says_so():
    row = {"difference": 0.03, "low": 0.01, "high": 0.05, "p_adjusted": 0.21, "could_see": 0.029}
    assert analysis.verdict(row) == (
        "no difference shown: 0.03 [0.01, 0.05] but p 0.21 among all, could have seen 0.03"
    )
    assert analysis.verdict(row | {"p_adjusted": 0.01}) == "gains 0.03 [0.01, 0.05]"


def test_verbs_and_digits_are_the_writers():
    row = {"difference": -0.1234, "low": -0.2, "high": -0.1}
    words = analysis.verdict(row, places=3, verbs=("moves further by", "stays closer by"))
    assert words == "stays closer by 0.123 [0.100, 0.200]"


def test_equivalence_is_said_with_its_margin_and_only_where_it_is_shown():
    row = {"difference": 0.001, "low": -0.02, "high": 0.022, "margin": 0.05}
    shown, not_shown = "no difference beyond 0.05: ", "equivalence within 0.05 not shown: "
    assert analysis.verdict(row) == analysis.verdict(row | {"p_adjusted": 0.01})
    assert analysis.verdict(row) == f"{shown}0.00 [-0.02, 0.02]"
    assert analysis.verdict(row | {"p_adjusted": 0.2}) == f"{not_shown}0.00 [-0.02, 0.02]"
    wide = row | {"high": 0.06, "p_adjusted": 0.04}
    assert analysis.verdict(wide) == f"{not_shown}0.00 [-0.02, 0.06]"
    far = {"difference": 0.3, "low": 0.2, "high": 0.4, "margin": 0.05}
    for known in ({}, {"p_adjusted": 1.0}):
        said = analysis.verdict(far | known)
        assert said == "gains 0.30 [0.20, 0.40], beyond the margin of 0.05"
    below = far | {"difference": -0.3, "low": -0.4, "high": -0.2}
    assert analysis.verdict(below).startswith("loses 0.30 [0.20, 0.40], beyond")


def test_holm_keeps_the_p_of_equivalence():
    """p is of what the row is about: 0.3 is no small difference, however surely it is one."""
    rows = [
        {"difference": 0.3, "low": 0.29, "high": 0.31, "seeds": 8, "margin": 0.05},
        {"difference": 0.0, "low": -0.01, "high": 0.01, "seeds": 8, "margin": 0.05},
    ]
    found = analysis.among_all(pd.DataFrame(rows))
    assert found["p_adjusted"][0] > 0.99 and found["p_adjusted"][1] < 0.001
    given = analysis.among_all(pd.DataFrame(rows).assign(p_value=[0.2, 0.01]))
    assert list(given["p_adjusted"]) == pytest.approx([0.2, 0.02])


def test_holm_over_a_table_reads_p_back_from_its_intervals():
    from scipy import stats

    rng = np.random.default_rng(0)
    samples = [rng.normal(effect, 1, 10) for effect in (0.0, 0.9, 2.0)]
    tests = [stats.ttest_1samp(sample, 0) for sample in samples]
    bounds = [test.confidence_interval(0.95) for test in tests]
    table = pd.DataFrame(bounds, columns=["low", "high"])
    table = table.assign(difference=[sample.mean() for sample in samples], seeds=10)
    blank = pd.DataFrame([{"difference": 0.5, "seeds": 1}])
    found = analysis.among_all(pd.concat([table, blank], ignore_index=True))
    first, second, third = np.argsort([test.pvalue for test in tests])
    assert found["p_adjusted"][first] == pytest.approx(3 * tests[first].pvalue)
    assert found["p_adjusted"][second] == pytest.approx(2 * tests[second].pvalue)
    assert found["p_adjusted"][third] == pytest.approx(tests[third].pvalue)
    assert np.isnan(found["p_adjusted"][3])
    ses = [sample.std(ddof=1) / np.sqrt(10) for sample in samples]
    seen = [analysis.minimum_detectable(se * np.sqrt(10), 10, level=1 - 0.05 / 3) for se in ses]
    assert list(found["could_see"][:3]) == pytest.approx(seen)  # Holm's first step, of three
    assert np.isnan(found["could_see"][3])


def test_what_has_no_p_or_no_error_is_said_without_one():
    nothing = {"difference": 0.0, "low": 0.0, "high": 0.0, "seeds": 8}
    assert analysis.verdict(nothing) == "no difference shown: 0.00 [0.00, 0.00]"
    untested = {"difference": 0.3, "low": 0.1, "high": 0.5, "seeds": 8, "p_adjusted": np.nan}
    assert analysis.verdict(untested).startswith("no difference shown: 0.30 [0.10, 0.50], could")


def test_a_missing_p_is_read_back_from_its_interval():
    row = {"difference": 0.0, "low": -0.01, "high": 0.01, "seeds": 8, "margin": 0.05}
    table = pd.DataFrame([row | {"p_value": np.nan}, row | {"p_value": 0.9}])
    found = analysis.among_all(table)
    assert found["p_adjusted"][0] < 0.001 and found["p_adjusted"][1] == pytest.approx(0.9)
    assert analysis.verdict(found.iloc[0]) == "no difference beyond 0.05: 0.00 [-0.01, 0.01]"
