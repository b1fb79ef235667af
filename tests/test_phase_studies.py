"""The declared studies in the toy world, and notebook 11 on outcomes of them that are made up."""

import json

import numpy as np
import pandas as pd
import pytest

from robustpo_kit import analysis, paths, series, toy
from robustpo_kit.analysis import Study
from robustpo_kit.records import write_table
from robustpo_kit.toy.declared import BASE, MEASURES
from robustpo_kit.toy.phase import POINTS

NAMES = ("phase_contamination", "phase_flips")
DECLARED = {name: toy.declared.read(Study.load(name)) for name in NAMES}
COMMITTED = paths.ROOT
TIE = {"gold": 0.05, "gold_at_kl": 0.05}
# gold above that of the tuned plain mean, by method; all others have none
EFFECTS = {"reweight slot": 0.4, "KLDPO": -0.4, "gamma-SimPO": 0.3, "reweight mask": 0.6}


@pytest.mark.parametrize("name", NAMES)
def test_a_phase_study_has_few_primaries_many_worlds_and_others_for_tuning(name):
    study, settings = DECLARED[name].study, DECLARED[name].settings
    assert 2 <= len(study.primary) <= 3 and len(study.seeds) >= 24
    assert {contrast.outcome for contrast in study.primary} == {"gold"}
    assert {contrast.where["dose"] for contrast in study.primary} <= set(settings.tuning_doses)
    others = {seed for other in DECLARED.values() for seed in other.study.seeds}
    assert not others.intersection(settings.tuning_seeds)
    assert sum(len(other.study.seeds) for other in DECLARED.values()) == len(others)
    assert {"reward bias 1.5", "K 2", "K 8"} <= set(settings.axes)


def write_tables(name: str, results) -> None:
    """The tables of a study, tuned first, from what `results` makes up for its cells."""
    declared = toy.declared.read(Study.load(name))
    tuning = toy.phase.tuning_cells(declared)
    tables = {"tuned": toy.phase.choose(tuning, results(tuning))}
    cells = toy.phase.study_cells(declared, tables["tuned"])
    tables |= toy.phase.result_tables(declared, cells, results(cells))
    for title, table in tables.items():
        record = {"seed": declared.study.seeds[0]}
        write_table(paths.RESULTS / "studies" / name / f"{title}.csv", table, record)


@pytest.fixture
def made_up(demo):
    """Both studies with fewer cells, and their tables of paths that no run has made."""
    paths.STUDIES.mkdir(parents=True)
    for real in (COMMITTED / "data" / "studies").glob("*.json"):  # of the others no tables
        (paths.STUDIES / real.name).write_text(real.read_text())
    for name, whole in DECLARED.items():
        fields = json.loads((COMMITTED / "data" / "studies" / f"{name}.json").read_text())
        fields |= {"seeds": list(range(8)), "doses": whole.settings.tuning_doses}
        fields["settings"] |= {"tuning_seeds": [1000], "axis_worlds": 2, "tie": TIE}
        fields["settings"]["axes"] = {"K 2": whole.settings.axes["K 2"]}
        (paths.STUDIES / f"{name}.json").write_text(json.dumps(fields))
        write_tables(name, results)


def made_up_path(rng, cell, outcome: str, effect: float, noise: float, names=MEASURES) -> dict:
    """A run's path: `outcome` grows to the world's level and the method's effect."""
    way = np.linspace(0, 1, POINTS + 1)
    path = {name: (way * rng.uniform(0.5, 0.6)).tolist() for name in names}
    level = np.sin(cell.seed) + effect
    path[outcome] = (level + 0.2 * way + rng.normal(0, noise)).tolist()
    return path


def results(cells) -> pd.DataFrame:
    """Of `runs.path`, with EFFECTS on gold where something is harmed."""
    rng, paths_of = np.random.default_rng(0), []
    for cell in cells:
        effect = EFFECTS.get(cell.method, 0.0) * (cell.dose > 0)
        paths_of.append(made_up_path(rng, cell, "gold", effect, 0.02))
    return pd.DataFrame({"path": paths_of, "ess": 8.0})


def test_notebook_11_says_what_the_tables_of_its_studies_say(
    made_up, settings, monkeypatch, capsys
):
    import matplotlib.pyplot as plt

    monkeypatch.setattr(plt, "show", plt.close)
    text = COMMITTED / "notebooks" / "text" / "11_phase_diagram.py"
    code = [source for kind, source, _ in series.cells.cells(text) if kind == "code"]
    exec("\n".join(code), {})
    contrasts = pd.read_csv(paths.RESULTS / "studies" / "phase_flips" / "contrasts.csv")
    said = f"gamma-SimPO minus SimPO, dose 0.3: {analysis.verdict(contrasts.iloc[0])}"
    assert said.startswith("gamma-SimPO minus SimPO, dose 0.3: gains 0.")
    assert said in capsys.readouterr().out
    tables = paths.RUNS / "smoke" / "tables"
    advice = pd.read_csv(tables / "phase_advice.csv").set_index(["study", "dose"])
    assert advice["use"].to_dict() == {
        (name, dose): plain if dose == 0 else best
        for name, plain, best in zip(
            NAMES, ("ERM", "DPO"), ("reweight slot", "gamma-SimPO"), strict=True
        )
        for dose in DECLARED[name].settings.tuning_doses
    }
    spoiled = advice.query("dose > 0")
    assert (spoiled["loses"] == "KLDPO").all() and spoiled["why"].str.startswith("gains 0.").all()
    at_kl = pd.read_csv(tables / "phase_at_kl.csv").set_index(["study", "method", "baseline"])
    assert at_kl.loc[("phase_flips", "gamma-SimPO", "SimPO"), "verdict"] == "win"
    drawn = pd.read_csv(paths.RUNS / "smoke" / "figures" / "phase_map.csv")
    assert (drawn["kind"] == "exploratory").all() and set(drawn["axis"]) == {BASE}
    assert (paths.RUNS / "smoke" / "figures" / "phase_map.png").exists()
