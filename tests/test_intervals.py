"""Cluster bootstrap against hand-made cases."""

import numpy as np
import pandas as pd
import pytest

from robustpo_kit import intervals


def test_equal_rows_give_a_point():
    assert intervals.bootstrap_mean([2.0, 2.0, 2.0], list("aab"), draws=50) == (2.0, 2.0, 2.0, 2)


def test_half_width_is_that_of_the_normal_for_many_rows():
    values = np.random.default_rng(0).standard_normal(2000)
    found = intervals.bootstrap_mean(values, draws=4000)
    assert (found.high - found.low) / 2 == pytest.approx(
        1.96 * values.std() / np.sqrt(2000), rel=0.06
    )


def test_repeating_every_row_changes_nothing_when_the_row_is_the_cluster():
    values = np.random.default_rng(0).standard_normal(50)
    once = intervals.bootstrap_mean(values, np.arange(50), draws=300, seed=1)
    thrice = intervals.bootstrap_mean(
        np.repeat(values, 3), np.repeat(np.arange(50), 3), draws=300, seed=1
    )
    np.testing.assert_allclose(once, thrice)


def test_intervals_over_clusters_cover_the_truth_and_intervals_over_rows_do_not():
    """Win probability differs by prompt, 4 replies each: 2.5 times the rows' variance, so 78 %."""
    rng = np.random.default_rng(0)
    prompts = np.repeat(np.arange(60), 4)
    covered = {"clusters": 0, "rows": 0}
    for trial in range(800):
        wins = (rng.random((60, 4)) < rng.beta(0.5, 0.5, size=(60, 1))).astype(float).reshape(-1)
        for name, clusters in (("clusters", prompts), ("rows", None)):
            found = intervals.bootstrap_mean(wins, clusters, draws=200, seed=trial)
            covered[name] += found.low <= 0.5 <= found.high
    assert 0.91 <= covered["clusters"] / 800 <= 0.97
    assert covered["rows"] / 800 < 0.84


def test_missing_values_are_left_out():
    found = intervals.bootstrap_mean([1.0, np.nan, 3.0], draws=50)
    assert found.value == 2.0 and found.clusters == 2
    assert np.isnan(intervals.bootstrap_mean([np.nan], draws=50).value)
    assert np.isnan(intervals.bootstrap_mean([1.0, 2.0], ["a", "a"], draws=50).low)


def test_statistic_of_rows_agrees_with_the_mean():
    values = np.random.default_rng(0).standard_normal(400)
    clusters = np.repeat(np.arange(100), 4)
    mean = intervals.bootstrap_mean(values, clusters, draws=2000)
    statistic = intervals.bootstrap_statistic(
        lambda rows: values[rows].mean(), clusters, draws=2000
    )
    assert statistic.value == pytest.approx(mean.value)
    assert statistic.high - statistic.low == pytest.approx(mean.high - mean.low, rel=0.1)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("values", lambda: intervals.bootstrap_mean([[1.0]])),
        ("draws", lambda: intervals.bootstrap_mean([1.0], draws=0)),
        ("draws", lambda: intervals.bootstrap_mean([1.0], level=1.0)),
        ("clusters", lambda: intervals.bootstrap_mean([1.0], ["a", "b"])),
    ],
)
def test_bad_arguments_are_named(name, call):
    with pytest.raises(ValueError, match=f"^{name}"):
        call()


def test_t_interval_covers_at_its_level():
    rng = np.random.default_rng(1)
    inside = sum(
        low <= 2.0 <= high
        for _, low, high, _ in (intervals.t_interval(rng.normal(2, 3, 8)) for _ in range(4000))
    )
    assert inside / 4000 == pytest.approx(0.95, abs=4 * (0.95 * 0.05 / 4000) ** 0.5)


def test_t_interval_by_hand_and_of_one():
    mean, low, high, count = intervals.t_interval(np.array([1.0, 2.0, 3.0]))
    assert (
        mean == 2
        and count == 3
        and high - 2 == pytest.approx(4.302652729911275 / 3**0.5)
        and low == pytest.approx(4 - high)
    )
    assert np.isnan(intervals.t_interval(np.array([1.0]))[1])


# ---- tables --------------------------------------------------------------------------------


def test_means_by_group_are_those_of_each_group_alone():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "policy": rng.choice(["b", "a"], 60),
            "prompt_id": rng.integers(0, 12, 60),
            "reward": rng.normal(size=60),
            "words": rng.integers(1, 9, 60),
        }
    )
    table.loc[3, "reward"] = np.nan
    found = intervals.mean_by_group(
        table, "policy", ["reward", "words"], cluster="prompt_id", sort=True, draws=50, seed=1
    )
    assert found["policy"].tolist() == ["a", "b"]
    for row in found.itertuples():
        part = table[table["policy"] == row.policy]
        assert (row.n, row.clusters) == (len(part), part["prompt_id"].nunique())
        alone = intervals.bootstrap_mean(part["reward"], part["prompt_id"], draws=50, seed=1)
        assert alone[:3] == (row.reward, row.reward_low, row.reward_high)
        assert row.words == part["words"].mean()


def test_groups_of_two_columns_with_each_row_alone():
    table = pd.DataFrame({"size": [1, 1, 2], "kind": ["x", "x", "y"], "value": [1.0, 3.0, 5.0]})
    found = intervals.mean_by_group(table, ["size", "kind"], ["value"], draws=20)
    assert found[["size", "kind", "clusters", "n", "value"]].values.tolist() == [
        [1, "x", 2, 2, 2.0],
        [2, "y", 1, 1, 5.0],
    ]


def test_ids_of_another_type_draw_the_same():
    values, ids = np.arange(30.0), np.arange(30) // 2
    as_text = intervals.bootstrap_mean(values, [str(i) for i in ids], draws=50)
    assert intervals.bootstrap_mean(values, ids, draws=50) == as_text


def test_a_statistic_that_no_draw_has_gives_no_bounds_and_no_warning(recwarn):
    found = intervals.bootstrap_statistic(lambda rows: np.nan, np.arange(5), draws=20, seed=0)
    assert np.isnan([found.value, found.low, found.high]).all() and found.clusters == 5
    assert not recwarn.list
