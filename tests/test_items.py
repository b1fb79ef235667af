"""The papers' tables and figures beside ours: every name in items.json exists, the rule is kept."""

import dataclasses
import itertools
import re
import shlex

import numpy as np
import pandas as pd
import pytest
from test_paper import ITEMS

from robustpo_kit import objectives, paths, published, series
from robustpo_kit.analysis import Study, item_readings, item_table, paper_items, paper_values
from robustpo_kit.analysis.items import UNITS, printed_values, studies_of, units_needed
from robustpo_kit.analysis.judged import OWN, WHERE, item_verdict, reading_verdict
from robustpo_kit.analysis.readings import READERS
from robustpo_kit.cli.main import _parser

ALL = paper_items()
NAMES = [f"{item['paper']} {item['item']}" for item in ALL]
ROOT = paths.ROOT


def item(name: str) -> dict:
    return ALL[NAMES.index(name)]


def parts(entry: dict, where=WHERE) -> list[dict]:
    return [part for place in where for source in entry.get(place, []) for part in source]


# ---------------------------------------------------------------- the registry


def test_every_table_and_figure_has_one_entry_in_the_papers_order():
    wanted = []
    for paper, kinds in ITEMS.items():
        for kind, count in kinds.items():
            wanted += [f"{paper} {kind} {number}" for number in range(1, count + 1)]
    assert wanted == NAMES and len(wanted) == 33


@pytest.mark.parametrize("entry", ALL, ids=NAMES)
def test_an_entry_names_what_exists(entry):
    assert entry["claim"].endswith(".") and len(entry["title"].split()) <= 4
    if "tested" in entry:
        assert entry["reason"] and not parts(entry)
        for name in entry["tested"]:
            path, _, test = name.partition("::")
            assert f"def {test}(" in (ROOT / path).read_text(encoding="utf-8")
        return
    _parser().parse_args(shlex.split(entry["command"])[1:])
    for spec in re.findall(r"--objective '(.*)'", entry["command"]):
        objectives.build(spec)
    for name in re.findall(r"--preset (\S+)", entry["command"]):
        published.preset(name)
    if not parts(entry):
        assert entry["reason"]
        return
    assert entry["unlike"] and ("margin" in entry) == (entry["wanted"] == "equal")
    for part in parts(entry):
        assert part["read"] in READERS and part.get("unit", entry["unit"]) in UNITS
        assert {part.get(name, entry[name]) for name in OWN[1:]} <= {
            "higher", "lower", "equal", "all", "beside"
        }  # fmt: skip


@pytest.mark.parametrize("entry", ALL, ids=NAMES)
def test_printed_numbers_are_those_of_data_paper(entry):
    """The numbers are picked by names that are there; a percentage stays one."""
    found = printed_values(entry)
    assert bool(found) == ("printed" in entry)
    if found and "minus" not in entry["printed"]:
        table = paper_values(entry["paper"])
        assert set(found) <= set(table.loc[table["table"] == entry["item"], "value"])


def test_printed_differences_by_hand():
    assert printed_values(item("dora Table 1")) == pytest.approx([21.4 - 23.5, 20.9 - 23.7])
    assert printed_values(item("dora Table 10")) == pytest.approx([58.5 - 54, 43.5 - 46.5, 1.5])
    assert printed_values(item("dora Figure 4")) == [0.174, 0.131]
    assert printed_values(item("gamma_po Table 4")) == pytest.approx([26.3 - 24.9, 24.7 - 23.1])
    assert len(printed_values(item("dora Table 2"))) == 12


def test_studies_are_declared_with_these_methods_and_doses():
    for entry in ALL:
        for part in parts(entry):
            if "study" not in part:
                continue
            study = Study.load(part["study"])
            named = part.get("keep", []) + [name for pair in part.get("pairs", []) for name in pair]
            assert set(named) <= set(study.methods), (entry["item"], study.name)
            assert set(part["doses"]) <= set(study.doses), (entry["item"], study.name)


def test_where_an_item_stands_there_is_a_notebook():
    waits = {entry["notebook"] for entry in ALL if set(studies_of(entry)) & NOT_RUN}
    for entry in ALL:
        if "notebook" in entry and entry["notebook"] not in waits:
            assert entry["notebook"] in series.plan.NEEDS


NOT_RUN = {
    name
    for entry in ALL
    for name in studies_of(entry)
    if not (paths.RESULTS / "studies" / name / "outcomes.csv").exists()
}


# ---------------------------------------------------------------- the rule


@pytest.mark.parametrize(
    ("wanted", "low", "high", "said"),
    [
        ("higher", 0.01, 0.05, "agrees"),
        ("higher", -0.05, -0.01, "differs"),
        ("higher", -0.01, 0.05, "not shown"),
        ("higher", 0.0, 0.05, "not shown"),
        ("lower", 0.01, 0.05, "differs"),
        ("lower", -0.05, -0.01, "agrees"),
        ("lower", np.nan, np.nan, "not shown"),
        ("equal", -0.02, 0.02, "agrees"),
        ("equal", -0.02, 0.04, "not shown"),
        ("equal", 0.04, 0.06, "differs"),
        ("equal", -0.06, -0.04, "differs"),
        ("equal", 0.01, 0.02, "agrees"),
    ],
)
@pytest.mark.parametrize("null", [0, 0.5])
def test_a_number_speaks_by_its_interval(wanted, low, high, said, null):
    row = {"wanted": wanted, "low": low + null, "high": high + null, "p_adjusted": 0.01}
    entry = {"null": null, "margin": 0.03}
    assert reading_verdict(row, entry) == said
    unclear = reading_verdict(row | {"p_adjusted": 0.06}, entry)
    assert unclear == (said if wanted == "equal" else "not shown")


def test_what_stands_beside_is_not_judged():
    assert reading_verdict({"wanted": "beside", "low": -2, "high": -1}, {}) == "beside"


def test_within_the_margin_of_its_study_a_number_is_a_tie():
    row = {"wanted": "higher", "low": 0.001, "high": 0.004, "p_adjusted": 0.01, "tie": 0.01}
    assert reading_verdict(row, {}) == "tie"
    assert reading_verdict(row | {"high": 0.02}, {}) == "agrees"
    assert reading_verdict(row | {"low": -0.004, "high": -0.001}, {}) == "tie"
    assert item_verdict(["tie", "agrees"]) == item_verdict(["tie"]) == "not shown"


def test_another_outcome_is_judged_where_it_stands_beside():
    asked = {"paper": "gamma_po", "item": "Figure 4"}
    as_declared, by_wins = item_readings(), item_readings(instead="win_rate")
    for readings, judged, beside in (
        (as_declared, "gold", "win_rate"),
        (by_wins, "win_rate", "gold"),
    ):
        mine = readings[(readings[list(asked)] == pd.Series(asked)).all(axis=1)]
        is_beside = mine["verdict"] == "beside"
        assert mine.loc[is_beside, "what"].str.contains(f", {beside},").all()
        assert mine.loc[~is_beside, "what"].str.contains(f", {judged},").all()
        assert is_beside.sum() == len(mine) / 2 == 5
    same = ["paper", "item", "what", "value"]
    assert set(map(tuple, as_declared[same].dropna().to_numpy())) == set(
        map(tuple, by_wins[same].dropna().to_numpy())
    )


def test_a_count_agrees_where_it_is_whole():
    row = {"wanted": "all", "value": 15, "units": 15}
    assert reading_verdict(row, {}) == "agrees"
    assert reading_verdict(row | {"units": 16}, {}) == "differs"


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        (["agrees", "agrees"], "agrees"),
        (["agrees", "not shown"], "not shown"),
        (["agrees", "differs"], "differs"),
        (["not shown", "differs"], "differs"),
    ],
)
def test_one_number_against_a_claim_is_enough(verdicts, said):
    assert item_verdict(verdicts) == said


def test_units_needed_grow_with_the_error_and_fall_with_the_effect():
    row = {"units": 24, "low": -0.1, "high": 0.1}
    small, large = units_needed(row, 0.05), units_needed(row, 0.1)
    assert small == pytest.approx(4 * large, abs=4)
    # an effect of 2.97 standard errors is seen with probability 0.8 by 24 units: one of 0.144
    assert units_needed(row, 0.144) == pytest.approx(24, abs=1)


# ---------------------------------------------------------------- tables that are not there yet


def test_without_any_table_every_row_says_what_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    readings = item_readings()
    assert set(readings["of"]) == {"printed values"}
    table = item_table(readings)
    assert len(table) == 33 and set(table["verdict"]) == {
        "by construction", "cannot be tested here", "no claim"
    }  # fmt: skip
    waits = table[table["verdict"] == "cannot be tested here"]
    assert (waits["reason"] != "").all() and (waits["command"] != "").all()
    row = table[(table["paper"] == "dora") & (table["item"] == "Table 1")].iloc[0]
    assert row["reason"] == row["toy"] == "the study pairwise has not been run"
    assert row["command"].startswith("robustpo study pairwise; robustpo train --preset dora/")


@pytest.fixture
def every_study(monkeypatch, tmp_path):
    """Outcomes, steps and pairs of every study that an item reads, as no run has made them."""
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    rng = np.random.default_rng(0)
    for name in sorted({name for entry in ALL for name in studies_of(entry)}):
        study, toy = Study.load(name), name not in REAL
        titles = dict.fromkeys(OUTCOMES, "outcomes") | STEPS | PAIRS
        cells = itertools.product(titles, study.seeds[:4], study.methods, study.doses, range(4))
        names = ["outcome", "seed", "method", "dose", "row_id"]
        table = pd.DataFrame(cells, columns=names).assign(study=name)
        table["value"] = rng.normal(size=len(table))
        if toy:
            table["row_id"] = ""  # read back as a column of NaN
        flags = table["outcome"] == "pair_flipped"
        table.loc[flags, "value"] = (table.loc[flags, "value"] > 0).astype(float)
        folder = tmp_path / "studies" / name
        folder.mkdir(parents=True)
        for title, part in table.groupby(table["outcome"].map(titles)):
            part.assign(**{"axis": "base"} if toy else {}).to_csv(folder / f"{title}.csv")
        columns = ["kind", "method", "baseline", "outcome", "where"]
        pd.DataFrame(columns=columns).to_csv(folder / "contrasts.csv")


REAL = ("methods_real", "flips_real", "hh_flips")
OUTCOMES = (
    "gold",
    "gold_at_kl",
    "win_rate",
    "lose",
    "golden_logp",
    "kl_reference",
    "implicit_accuracy",
    "sampled_win",
)
OUTCOMES += ("sampled_reward", "sampled_confidence")
STEPS = {"step_loss": "steps"}
PAIRS = {"pair_gap": "pairs", "pair_flipped": "pairs"}


@pytest.mark.filterwarnings("error:'str' is not supported")
def test_rows_fill_themselves_when_the_studies_tables_come(every_study):
    readings = item_readings()
    assert readings[["value", "low", "high"]].notna().all(axis=1).sum() == len(readings) - 3
    by_studies = {f"{entry['paper']} {entry['item']}" for entry in ALL if studies_of(entry)}
    filled = {" ".join(pair) for pair in readings[["paper", "item"]].to_numpy()}
    assert by_studies <= filled and len(by_studies) >= 15
    assert set(readings.loc[readings["where"] == "toy", "of"]) == {"worlds"}
    real = readings[(readings["where"] == "real") & (readings["of"] != "printed values")]
    assert set(real["of"]) == {"seeds"}


# ---------------------------------------------------------------- readers, on made-up tables


def made_up(tables: dict[str, pd.DataFrame]):
    """A `read` of these tables, by title."""

    def read(folder: str, title: str) -> pd.DataFrame:
        if title not in tables:
            raise FileNotFoundError(title)
        return tables[title]

    return read


def outcomes(columns: dict[str, float], outcome: str, seeds=range(8), rows=6) -> pd.DataFrame:
    """Values of methods in an outcome at dose 0, by seed and row, with shared noise."""
    rng = np.random.default_rng(0)
    found = []
    for seed in seeds:
        for row in range(rows):
            level = rng.normal()
            for method, effect in columns.items():
                value = level + effect + rng.normal(0, 0.01)
                found.append((seed, method, 0, outcome, f"r{row}", value))
    names = ["seed", "method", "dose", "outcome", "row_id", "value"]
    return pd.DataFrame(found, columns=names)


def test_contrasts_come_from_the_studys_own_rows_or_else_from_its_outcomes():
    row = {"method": "b", "baseline": "a", "outcome": "gold", "where": "dose 0", "seeds": 24}
    row |= {"difference": 0.1, "low": 0.05, "high": 0.15, "p_adjusted": 0.02}
    contrasts = pd.DataFrame([row | {"kind": "exploratory", "difference": 0.3}])
    cell = row | {"axis": "base", "dose": 0, "kind": "exploratory", "difference": 0.2}
    cells = pd.DataFrame([cell | {"axis": "K 2"}, cell]).drop(columns="where")
    tables = {"contrasts": contrasts, "outcomes": outcomes({"a": 0, "b": 1, "c": 3}, "gold")}
    asked = {"study": "pairwise", "outcome": "gold", "doses": [0]}

    def found(*pair):
        (reading,) = READERS["contrasts"](made_up(tables), pairs=[pair], **asked)
        return reading

    assert found("b", "a")[1:5] == (0.3, 0.05, 0.15, 24)
    tables["cells"] = cells
    assert found("b", "a").value == 0.2 and found("b", "a").p_adjusted == 0.02
    tables["contrasts"] = pd.concat([contrasts, pd.DataFrame([row | {"kind": "primary"}])])
    assert found("b", "a")[::7] == ("b minus a, gold, dose 0", "primary")
    computed = found("c", "b")
    assert computed.low < 2 < computed.high and computed.units == 8
    assert np.isnan(computed.p_adjusted) and computed.kind == "exploratory"


def test_slopes_of_each_seed_find_a_steeper_line():
    rewards = outcomes({"a": 0, "b": 0}, "sampled_reward", rows=30)
    steep = rewards["method"].map({"a": 0.0, "b": 1.0})
    confidence = rewards.assign(outcome="sampled_confidence", value=rewards["value"] * steep)
    read = made_up({"outcomes": pd.concat([rewards, confidence])})
    (reading,) = READERS["slopes"](read, study="s", pairs=[["b", "a"]], doses=[0])
    assert reading.low > 1 and reading.units == 8  # rewards are put on [0, 1]: steeper than one


def test_flipped_labels_are_sought_among_narrow_pairs():
    gaps = outcomes({"SimPO": 0}, "pair_gap", rows=40)
    flipped = gaps.assign(outcome="pair_flipped", value=(gaps["value"].abs() < 0.5).astype(float))
    read = made_up({"pairs": pd.concat([gaps, flipped])})
    (narrow,) = READERS["ambiguous"](read, study="s", keep=["SimPO"], doses=[0])
    assert narrow.low > 0.5 and narrow.units == 8
    (near,) = READERS["study_near_zero"](read, study="s", keep=["SimPO"], doses=[0])
    of_first = gaps.loc[gaps["seed"] == 0, "value"].abs()
    by_policy = gaps[gaps["seed"] == 0].assign(policy="simpo", gap=of_first)
    (one,) = READERS["run_near_zero"](made_up({"t": by_policy}), table="t", keep=["simpo"])
    assert one.value == (of_first < of_first.max() / 10).mean() and 0 < near.value < 0.5


def test_the_loss_of_the_last_third_is_held_against_the_first():
    steps = outcomes({"erm": 0}, "step_loss", seeds=range(3), rows=11)
    steps["row_id"] = steps["row_id"].str.removeprefix("r")
    steps["value"] = 12.0 - steps["row_id"].astype(int)
    shuffled = steps.sample(frac=1, random_state=0)  # step 10 comes after step 9, not after 1
    read = made_up({"steps": shuffled})
    (reading,) = READERS["study_falls"](read, study="s", keep=["erm"], doses=[0])
    assert reading.value == pytest.approx((2 + 3 + 4) / (12 + 11 + 10) - 1)
    run = made_up({"t": pd.DataFrame({"policy": "erm", "step": [3, 1, 2], "loss": [1, 4, 9]})})
    assert next(READERS["run_falls"](run, table="t", keep=["erm"])).value == 1 / 4 - 1


def test_a_setting_that_is_changed_is_missed(monkeypatch):
    def kept(paper, table):
        (reading,) = READERS["settings"](made_up({}), paper=paper, table=table)
        return reading.value, reading.units

    assert kept("dora", "Table 8") == (15, 15) and kept("gamma_po", "Table 7") == (16, 16)
    # beta-DPO's target margin, which the loss printed beside it does not take
    assert kept("gamma_po", "Table 6") == (46, 49)
    monkeypatch.setattr(published, "PRESETS", dict(published.PRESETS))
    monkeypatch.setitem(published.SEARCH_RANGES, "dpo", {"beta": (0.01, 0.05)})
    assert kept("gamma_po", "Table 6") == (45, 49)
    name = "dora/llama-8b/hh/exo"
    changed = dataclasses.replace(published.PRESETS[name], spec="exo(beta=0.4)")
    monkeypatch.setitem(published.PRESETS, name, changed)
    assert kept("dora", "Table 8") == (14, 15)
    monkeypatch.delitem(published.PRESETS, "gamma/gemma-2-9b-instruct/gamma_simpo")
    assert kept("gamma_po", "Table 7") == (12, 16)


# ---------------------------------------------------------------- what is committed


def test_numbers_of_the_committed_tables_are_numbers_and_carry_their_units():
    readings = item_readings()
    assert readings["value"].notna().all() and (readings["units"] > 0).all()
    assert (readings["low"].isna() | (readings["low"] <= readings["value"])).all()
    assert (readings["high"].isna() | (readings["high"] >= readings["value"])).all()
    table = item_table(readings)
    judged = readings[readings["verdict"] != "beside"].groupby(["paper", "item"]).ngroups
    said = ["agrees", "differs", "not shown", "by construction"]
    assert table["verdict"].isin(said).sum() == judged >= 15
    assert set(table.loc[table["toy"].str.contains("has not been run"), "paper"]) <= set(ITEMS)


def test_numbers_are_the_tables_own():
    readings = item_readings().set_index(["paper", "item", "what"])
    shown = pd.read_csv(paths.RESULTS / "reference" / "gamma_differences.csv").set_index("policy")
    row = readings.loc[("gamma_po", "Table 5", "gamma_over_base, less 1")]
    bench = pd.read_csv(paths.RESULTS / "bench" / "bench.csv")
    ratios = bench.loc[bench["quantity"] == "gamma_over_base", "value"]
    assert row["value"] == pytest.approx(ratios.mean() - 1) and row["units"] == len(ratios)
    if ("gamma_po", "Table 2", "gamma-simpo, win") in readings.index:  # until flips_real has run
        row = readings.loc[("gamma_po", "Table 2", "gamma-simpo, win")]
        assert tuple(row[["value", "low", "high"]]) == tuple(
            shown.loc["gamma-simpo", ["win", "win_low", "win_high"]]
        )
