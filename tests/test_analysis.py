import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from robustpo_kit import analysis, plots
from robustpo_kit.records import RunRecord


def made_up(rng, prompts=120, difference=0.3, prompt_noise=0.1):
    """Two policies on the same prompts, slopes 0.4 and more, errors shared within a prompt."""
    ids = np.tile(np.arange(prompts), 2)
    reward, policy = rng.random(2 * prompts), np.repeat([0, 1], prompts)
    noise = rng.normal(0, prompt_noise, prompts)[ids] + rng.normal(0, 0.05, 2 * prompts)
    confidence = 0.2 + 0.4 * reward + difference * reward * policy + noise
    names = np.where(policy == 1, "dora", "erm")
    return pd.DataFrame(
        {"policy": names, "prompt_id": ids, "reward": reward, "confidence": confidence}
    )


def test_slopes_agree_with_least_squares_by_hand():
    table = made_up(np.random.default_rng(0))
    fits = analysis.reward_confidence(table).set_index("policy")
    for name, part in table.groupby("policy"):
        slope, intercept = np.polyfit(part["reward"], part["confidence"], 1)
        assert fits.loc[name, "slope"] == pytest.approx(slope, abs=1e-9)
        assert fits.loc[name, "intercept"] == pytest.approx(intercept, abs=1e-9)
    difference = analysis.slope_difference(table, "erm", "dora").iloc[0]
    assert difference["difference"] == pytest.approx(
        fits.loc["dora", "slope"] - fits.loc["erm", "slope"], abs=1e-9
    )


def test_the_interval_of_the_slope_difference_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(120):
        row = analysis.slope_difference(made_up(rng), "erm", "dora").iloc[0]
        hits += row["low"] < 0.3 < row["high"]
    # binomial(120, 0.95) lies below 104 or reaches 120 with probability under one in 400
    assert 104 <= hits <= 119


def test_normalised_rewards_span_the_unit_interval_and_refuse_a_constant():
    assert analysis.normalise([3.0, 1.0, 2.0]).tolist() == [1.0, 0.0, 0.5]
    assert analysis.normalise([1.0, 2.0, 3.0], "zscore").mean() == pytest.approx(0.0)
    with pytest.raises(ValueError, match="all equal"):
        analysis.normalise([2.0, 2.0])
    with pytest.raises(ValueError, match="how = 'rank'"):
        analysis.normalise([1.0, 2.0], "rank")


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="policy 'lora' is not in the table"):
        analysis.slope_difference(made_up(np.random.default_rng(0)), "erm", "lora")


def test_energy_distance_is_about_zero_for_one_source_and_grows_with_the_shift():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(400, 3)), rng.normal(size=(400, 3))
    distances = [analysis.energy_distance(first, second + shift) for shift in (0.0, 0.5, 1.0, 2.0)]
    assert abs(distances[0]) < 0.03 and distances == sorted(distances)
    with pytest.raises(ValueError, match="at least two rows"):
        analysis.energy_distance(first[:1], second)


def test_energy_distance_of_pairs_leaves_pairs_out():
    """Two rows that belong together lie closer than chance: unbiased only without such pairs."""
    rng = np.random.default_rng(0)
    first = rng.normal(size=(60, 3))
    second = first + 0.1 * rng.normal(size=first.shape)
    rough, exact = (analysis.energy_distance(first, second, paired=p) for p in (False, True))
    distances = np.linalg.norm(first[:, None] - second, axis=-1)
    kept = distances[~np.eye(60, dtype=bool)]
    within = [2 * np.mean(kept)]
    for sample in (first, second):
        own = [np.linalg.norm(a - b) for i, a in enumerate(sample) for b in sample[:i]]
        within.append(-np.mean(own))
    assert exact == pytest.approx(sum(within)) and rough < exact and abs(exact) < 0.01
    with pytest.raises(ValueError, match="60 and 59 rows are not paired"):
        analysis.energy_distance(first, second[1:], paired=True)


def test_quantiles_of_gaps():
    row = analysis.gap_quantiles([-1.0, 0.0, 0.05, 2.0]).iloc[0]
    assert (row["near_zero"], row["positive"], row["pairs"]) == (0.5, 0.5, 4)


def test_histories_become_one_tidy_table():
    record = RunRecord(
        "dpo(beta=0.1)",
        {},
        0,
        {},
        "cpu",
        1.0,
        {},
        [{"step": 1, "loss": 0.7}, {"step": 2, "loss": 0.6}],
    )
    table = analysis.training_curves({"erm": record, "dora": record})
    assert list(table.columns) == ["policy", "step", "loss"] and len(table) == 4


def test_means_of_cells_have_an_interval_that_covers_them():
    table = pd.DataFrame({"size": [1] * 100 + [2] * 3, "value": [*range(100), 5.0, 5.0, 5.0]})
    found = analysis.mean_by(table, ["size"], "value", seed=0).set_index("size")
    assert (
        found.loc[1, "low"] < found.loc[1, "value"] == 49.5 < found.loc[1, "high"]
        and found.loc[1, "n"] == 100
    )
    assert (found.loc[2, ["low", "value", "high"]] == 5.0).all()


# ---- figures: each draws its table on the axis it is given, labelled ----


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


def labelled(ax):
    return bool(ax.get_xlabel() or ax.get_xticklabels()) and bool(
        ax.get_ylabel() or ax.get_yticklabels()
    )


def test_regressions_draw_a_line_a_band_and_a_cloud_a_policy(ax):
    table = made_up(np.random.default_rng(0))
    plots.clouds(table, analysis.confidence_bands(table), ax)
    policies = table["policy"].nunique()
    assert len(ax.collections) == 2 * policies and labelled(ax)
    assert len(ax.lines) == policies + table["prompt_id"].nunique()  # each prompt's replies joined


def test_ties_lie_between_what_is_won_and_what_is_lost(ax):
    row = {"win": 0.5, "tie": 0.2, "score": 0.6, "score_low": 0.5, "score_high": 0.7}
    plots.scores(pd.DataFrame([{"policy": p} | row for p in ("erm", "dora")]), ax)
    bands = [(bar.get_x(), bar.get_width()) for bar in ax.patches]
    assert np.allclose(bands, [(0.5, 0.2)] * 2)
    assert labelled(ax)


def test_intervals_are_found_under_either_name(ax):
    table = pd.DataFrame(
        [{"policy": "dora", "score": 0.1, "score_low": 0.0, "score_high": 0.3, "low": 9, "high": 9}]
    )
    plots.bars_with_ci(table, ax, name="policy", value="score", xlabel="x", reference=0.0)
    segment = ax.collections[0].get_segments()[0]
    assert segment[:, 0].tolist() == pytest.approx([0.0, 0.3])


def test_sources_and_methods_keep_their_colour():
    assert (
        plots.colour("dora") == plots.COLOURS["dora"]
        and plots.colour("unknown", 3) == plots.PALETTE[3]
    )
