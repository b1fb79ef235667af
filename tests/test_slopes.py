"""Slopes over seeds: known truths, the bootstrap by hand, one seed, what is not finished yet."""

import itertools

import numpy as np
import pandas as pd
import pytest

from robustpo_kit import analysis
from robustpo_kit.analysis import slopes
from robustpo_kit.analysis.figures import clustered_fit

PAIRS = [("dora", "erm")]


def made_up(rng, seeds=8, prompts=30, spread=0.2, difference=0.3):
    """Slopes 0.4 and more, other ones in each seed; errors shared within a prompt."""
    parts = []
    for seed in range(seeds):
        level, slope, more = (
            mean + rng.normal(0, spread * part)
            for mean, part in ((0.2, 0.5), (0.4, 1.0), (difference, 1.0))
        )
        shared = rng.normal(0, 0.05, prompts)
        for method, side in (("erm", 0.0), ("dora", 1.0)):
            x = rng.random(prompts)
            y = level + slope * x + side * more * x + shared + rng.normal(0, 0.05, prompts)
            part = pd.DataFrame({"seed": seed, "method": method, "x": x, "y": y})
            parts.append(part.assign(where="made up", row_id=[f"{seed}-{i}" for i in part.index]))
    return pd.concat(parts, ignore_index=True)


def estimates(table):
    found = analysis.slope_table(table, "x", "y", PAIRS)
    rows = found[found["estimate"] != "a seed"]
    return found, rows.set_index(["method", "baseline", "estimate"])


def test_every_estimate_is_what_it_says():
    """By hand: polyfit in each seed and overall; the mixed model near the paired mean."""
    table = made_up(np.random.default_rng(0))
    found, rows = estimates(table)
    by_hand = {
        key: np.polyfit(part["x"], part["y"], 1)[0]
        for key, part in table.groupby(["method", "seed"])
    }
    for method in ("erm", "dora"):
        each = found[(found["method"] == method) & (found["baseline"] == "")].dropna(subset="seed")
        assert dict(zip(each["seed"], each["value"], strict=True)) == pytest.approx(
            {seed: value for (name, seed), value in by_hand.items() if name == method}
        )
        part = table[table["method"] == method]
        pooled = rows.loc[(method, "", "clustered"), "value"]
        assert pooled == pytest.approx(np.polyfit(part["x"], part["y"], 1)[0])
    paired = [by_hand["dora", seed] - by_hand["erm", seed] for seed in range(8)]
    row = rows.loc[("dora", "erm", "by seed")]
    assert row["value"] == pytest.approx(np.mean(paired))
    assert row["high"] - row["low"] == pytest.approx(
        2 * 2.364624 * np.std(paired, ddof=1) / np.sqrt(8), rel=1e-5
    )
    mixed = rows.loc[("dora", "erm", "mixed")]
    assert mixed["converged"] and mixed["value"] == pytest.approx(row["value"], abs=0.02)
    assert mixed["seeds"] == 8 and mixed["n"] == len(table)


def test_intervals_over_seeds_cover_the_truth_and_those_over_rows_do_not():
    rng, hits = np.random.default_rng(1), {"mixed": 0, "by seed": 0, "over rows": 0}
    for _ in range(12):
        table = made_up(rng, prompts=12)
        _, rows = estimates(table)
        for name in ("mixed", "by seed"):
            row = rows.loc[("dora", "erm", name)]
            hits[name] += row["low"] < 0.3 < row["high"]
        one = analysis.slope_table(table.assign(seed=0), "x", "y", PAIRS).iloc[-1]
        hits["over rows"] += one["low"] < 0.3 < one["high"]
    # of 12 at 95 %, fewer than 9 have probability 0.002
    assert hits["mixed"] >= 9 and hits["by seed"] >= 9
    assert hits["over rows"] < min(hits["mixed"], hits["by seed"])


def test_wild_p_is_the_share_of_flips_with_a_t_as_large():
    """Every flip written out, with the clustered t of statsmodels, scaled alike."""
    table = made_up(np.random.default_rng(2), seeds=5, prompts=6, difference=0.2, spread=0.3)
    table = table[table["method"] == "dora"].reset_index(drop=True)
    fit = clustered_fit("y ~ x", table, table["seed"])
    rest = table["y"].mean()
    larger = []
    for signs in itertools.product([1.0, -1.0], repeat=5):
        drawn = rest + np.array(signs)[table["seed"]] * (table["y"] - rest)
        flipped = clustered_fit("y ~ x", table.assign(y=drawn), table["seed"])
        larger.append(abs(flipped.tvalues["x"]) >= abs(fit.tvalues["x"]) - 1e-9)
    assert slopes.wild_p(fit, "x", table["seed"]) == pytest.approx(np.mean(larger))
    assert 0 < np.mean(larger) < 1


def test_one_seed_is_said_to_be_one():
    table = made_up(np.random.default_rng(3), seeds=1)
    found, rows = estimates(table)
    assert set(found["estimate"]) == {"one seed"} and (found["seeds"] == 1).all()
    named = table.rename(
        columns={"method": "policy", "row_id": "prompt_id", "x": "reward", "y": "confidence"}
    )
    alone = analysis.slope_difference(named, "erm", "dora").iloc[0]
    row = rows.loc[("dora", "erm", "one seed")]
    assert row["value"] == pytest.approx(alone["difference"])
    assert row["low"] == pytest.approx(alone["low"])


def test_verdicts_read_a_mixed_model_only_where_it_ended():
    found, _ = estimates(made_up(np.random.default_rng(4)))
    assert set(analysis.main_estimates(found)["estimate"]) == {"mixed"}
    is_mixed = (found["estimate"] == "mixed") & (found["baseline"] == "erm")
    found.loc[is_mixed, "converged"] = False
    told = analysis.main_estimates(found).set_index("baseline")["estimate"]
    assert told["erm"] == "by seed" and (told[""] == "mixed").all() and len(told) == 3


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [
        (0.01, 0.3, "as in the paper"),
        (-0.1, 0.12, "less than the paper's"),
        (-0.1, 0.14, "not reproduced at this scale, and not refuted"),
    ],
)
def test_beside_the_paper_by_one_rule(low, high, says):
    assert says in analysis.beside_paper({"low": low, "high": high}, [0.174, 0.131])


def test_replies_of_a_study_have_the_scale_of_their_seed():
    rows = []
    for seed, scale in ((0, 1.0), (1, 100.0)):
        for method, shift in (("erm", 0.0), ("dora", 1.0), ("sft", 50.0)):
            for prompt in range(3):
                base = {"seed": seed, "method": method, "dose": 0.0, "row_id": str(prompt)}
                rows.append(base | {"outcome": "sampled_reward", "value": scale * (prompt + shift)})
                rows.append(base | {"outcome": "sampled_confidence", "value": 0.1 * prompt})
                rows.append(base | {"outcome": "golden_logp", "value": -1.0})
    table = analysis.study_replies(pd.DataFrame(rows), ["erm", "dora"])
    assert set(table["method"]) == {"erm", "dora"} and len(table) == 12
    for _, part in table.groupby("seed"):
        assert part["reward"].tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1 / 3, 2 / 3, 1])
        assert part["confidence"].tolist() == pytest.approx([0, 0.1, 0.2] * 2)


def test_a_study_that_has_not_ended_tells_what_it_declared():
    study = analysis.Study.load("dose_real_blind")
    told = analysis.declared_contrasts(study)
    assert (told["says"] == analysis.UNFINISHED).all() and not told["finished"].any()
    assert told["difference"].isna().all() and set(told["seeds"]) == {len(study.seeds)}
    from robustpo_kit import paths

    table = pd.read_csv(paths.RESULTS / "studies" / study.name / "contrasts.csv")
    ended = analysis.declared_contrasts(study, table)
    names = ["method", "baseline", "outcome", "where"]
    pd.testing.assert_frame_equal(ended[names], told[names])
    assert ended["finished"].all() and ended["says"].iloc[0].startswith("loses 0.57")
