"""Declared studies: what a declaration may say, and what a table of results may not omit."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from robustpo_kit import analysis
from robustpo_kit.errors import KitError


def declaration() -> dict:
    return {
        "name": "contamination",
        "question": "Does reweighting protect against contaminated rows?",
        "primary": [
            {
                "contrast": ["reweight", "erm"],
                "outcome": "gold",
                "where": {"dose": 0.6},
                "direction": "higher",
            },
            {
                "contrast": ["erm", "erm"],
                "outcome": "gold",
                "where": {"dose": 0.6},
                "against": {"dose": 0},
                "direction": "lower",
            },
        ],
        "seeds": [0, 1, 2, 3],
        "methods": {"erm": "dpo_pl(beta=0.1)", "reweight": "reweight(dpo_pl(beta=0.1))"},
        "doses": [0, 0.6],
        "stopping": "when every seed has run",
    }


def load(folder, declared):
    (folder / "contamination.json").write_text(json.dumps(declared))
    return analysis.Study.load("contamination", folder)


def test_a_declaration_is_read_as_it_stands(tmp_path):
    study = load(tmp_path, declaration())
    assert study.seeds == (0, 1, 2, 3) and study.doses == (0.0, 0.6) and study.settings == {}
    first, second = study.primary
    assert (first.method, first.baseline, first.direction) == ("reweight", "erm", "higher")
    assert first.against == first.where == {"dose": 0.6} and second.against == {"dose": 0}


BROKEN = [  # a change of a field (None: left out), and what the error says
    ("name", "others", "name = 'others' should be that of the file"),
    ("question", None, "question is missing"),
    ("stopping", " ", "stopping = ' ' should be text"),
    ("seeds", [], "seeds = [] should be a list of whole numbers"),
    ("seeds", [0, True], "seeds = [0, True] should be a list of whole numbers"),
    ("seeds", [1, 1], "seeds = [1, 1]: each may stand there once"),
    ("doses", ["much"], "doses = ['much'] should be a list of numbers"),
    ("methods", ["erm"], "methods = ['erm'] should be an object"),
    ("primary", [], "primary should be a list of 1 to 3 objects"),
    ("seedz", [1], "seedz is not a field; choose among name, question"),
]
BROKEN_PRIMARY = [
    ("contrast", ["dora", "erm"], "contrast has 'dora'; the methods are erm, reweight"),
    ("contrast", "erm", "contrast = 'erm' should be [method, baseline]"),
    ("contrast", ["erm", "erm"], "contrast = ['erm', 'erm']: both sides are the same rows"),
    ("outcome", None, "outcome is missing"),
    ("where", {"dose": 0.5}, "where has dose 0.5; the doses are [0.0, 0.6]"),
    ("direction", "up", "direction = 'up': choose among higher, lower, either, equivalent"),
    ("direction", "equivalent", "margin goes with direction 'equivalent'"),
    ("margin", 0.1, "margin goes with direction 'equivalent', and only with it"),
    ("method", "erm", "method is not a field; choose among contrast, outcome, where"),
]


@pytest.mark.parametrize(("field", "value", "message"), BROKEN)
def test_what_is_wrong_is_named_with_its_file(tmp_path, field, value, message):
    with pytest.raises(KitError) as raised:
        load(tmp_path, declaration() | {field: value})
    assert str(raised.value).startswith(f"contamination.json: {message}")


@pytest.mark.parametrize(("field", "value", "message"), BROKEN_PRIMARY)
def test_what_is_wrong_in_a_contrast_is_named_with_its_place(tmp_path, field, value, message):
    declared = declaration()
    declared["primary"][0] |= {field: value}
    with pytest.raises(KitError) as raised:
        load(tmp_path, declared)
    assert str(raised.value).startswith(f"contamination.json: primary[0].{message}")


def test_a_contrast_stands_once_and_a_study_is_where_it_is_said_to_be(tmp_path):
    declared = declaration()
    declared["primary"] = [declared["primary"][0]] * 2
    with pytest.raises(KitError, match="primary has the same contrast twice"):
        load(tmp_path, declared)
    with pytest.raises(KitError, match="flips.json: no such study; there are: contamination"):
        analysis.Study.load("flips", tmp_path)
    (tmp_path / "contamination.json").write_text("[]")
    with pytest.raises(KitError, match="contamination.json: the file should be an object"):
        analysis.Study.load("contamination", tmp_path)


def test_every_committed_study_is_a_study():
    from robustpo_kit import paths

    for path in paths.STUDIES.glob("*.json"):
        analysis.Study.load(path.stem)


# ---------------------------------------------------------------- the table of a study

EFFECTS = {("erm", 0.0): 0.0, ("erm", 0.6): -0.3, ("reweight", 0.0): 0.0, ("reweight", 0.6): -0.1}


def outcomes(study, rng, names=("gold", "words")) -> pd.DataFrame:
    """Tidy outcomes with the EFFECTS, equal in every outcome; ten prompts a seed."""
    rows = []
    for seed in study.seeds:
        level = rng.normal(0, 0.05)
        for (method, dose), effect in EFFECTS.items():
            for name in names:
                cell = {"seed": seed, "method": method, "dose": dose, "outcome": name}
                values = effect + level + rng.normal(0, 0.05, 10)
                rows += [cell | {"row_id": n, "value": v} for n, v in enumerate(values)]
    return pd.DataFrame(rows).assign(study=study.name)


@pytest.fixture
def study(tmp_path):
    return load(tmp_path, declaration())


def test_primaries_come_first_with_holm_and_the_rest_is_exploratory(study):
    table = analysis.study_table(study, outcomes(study, np.random.default_rng(0)))
    assert table["kind"].tolist() == ["primary"] * 2 + ["exploratory"] * (len(table) - 2)
    first, second = table.iloc[0], table.iloc[1]
    assert first["difference"] == pytest.approx(0.2, abs=0.06) and first["shown"]
    assert second["difference"] == pytest.approx(-0.3, abs=0.06) and second["shown"]
    assert second["where"] == "dose 0.6 against dose 0"
    smaller, larger = sorted(table["p_value"][:2])
    holm = sorted(table["p_adjusted"][:2])
    assert holm == pytest.approx([2 * smaller, max(2 * smaller, larger)])
    # reweight at both doses and erm's own loss, in gold and words, less the two primaries
    seen = table[table["kind"] == "exploratory"]
    assert len(seen) == 4 and not seen["shown"].any()
    assert (seen["p_adjusted"] >= seen["p_value"] - 0.05).all()


def test_a_difference_against_the_declared_direction_is_not_shown(study, tmp_path):
    declared = declaration()
    declared["primary"][0]["direction"] = "lower"
    declared["primary"][1]["direction"] = "equivalent"
    declared["primary"][1]["margin"] = 0.5
    other = load(tmp_path, declared)
    table = analysis.study_table(other, outcomes(other, np.random.default_rng(0)))
    assert table["p_adjusted"][0] < 0.05 and not table["shown"][0]
    assert table["shown"][1]  # -0.3 lies within plus or minus 0.5
    assert analysis.verdict(table.iloc[1]).startswith("no difference beyond 0.5: -0.3")
    declared["primary"][1]["margin"] = 0.1
    other = load(tmp_path, declared)
    table = analysis.study_table(other, outcomes(other, np.random.default_rng(0)))
    assert not table["shown"][1]
    assert analysis.verdict(table.iloc[1]).startswith("loses 0.3")


def test_what_could_be_seen_is_asked_of_the_test_that_is_made(study):
    """At a true difference of could_see, Holm's first step and the band are left with power 0.8.

    Power by the noncentral t; one value a seed, so that t has seeds - 1 degrees of freedom.
    """
    table = outcomes(study, np.random.default_rng(0)).query("row_id == 0").assign(row_id="")
    found = analysis.study_table(study, table)
    freedom = len(study.seeds) - 1
    for _, row in found.iterrows():
        critical = stats.t.isf(0.05 / 2 / 2, freedom)  # two primaries, two-sided
        if row["kind"] == "exploratory":
            critical = (row["high"] - row["difference"]) / row["se"]
        power = stats.nct.sf(critical, freedom, row["could_see"] / row["se"])
        assert power == pytest.approx(0.8, abs=1e-3)


def test_every_baseline_has_its_doses(tmp_path):
    declared = declaration()
    declared["primary"].append(declared["primary"][1] | {"contrast": ["reweight", "reweight"]})
    other = load(tmp_path, declared)
    table = analysis.study_table(other, outcomes(other, np.random.default_rng(0)))
    seen = table[table["kind"] == "exploratory"]
    assert (seen["method"] == seen["baseline"]).all() and set(seen["outcome"]) == {"words"}
    assert sorted(seen["method"]) == ["erm", "reweight"]


def test_a_table_cannot_omit_what_was_declared(study):
    table = outcomes(study, np.random.default_rng(0))
    for left, message in (
        (table[table["outcome"] == "words"], "primary outcome 'gold' is missing"),
        (table[table["seed"] != 2], "reweight minus erm in gold (dose 0.6) lacks seed 2 of 4"),
        (table[table["dose"] == 0], "reweight minus erm in gold (dose 0.6) lacks seed 0 of 4"),
        (table.assign(seed=table["seed"] + 1), "seed 4 was not declared"),
        (
            table[(table["row_id"] != 0) | (table["dose"] == 0)],
            "reweight minus erm in gold (dose 0.6) has a number for 9 of 10 prompts of seed 0",
        ),
        (table.assign(study="flips"), "the outcomes are of flips"),
        (table.drop(columns="dose"), "the outcomes lack the column 'dose'"),
    ):
        with pytest.raises(KitError) as raised:
            analysis.study_table(study, left)
        assert str(raised.value).startswith("study contamination: ") and message in str(
            raised.value
        )
