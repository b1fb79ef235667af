"""The studies behind notebooks 08 and 10, and these notebooks on outcomes that are made up."""

import json

import numpy as np
import pandas as pd
import pytest
from test_phase_studies import made_up_path, write_tables

from robustpo_kit import paths, series, toy
from robustpo_kit.analysis import Study

NOTEBOOKS = {"08_pairwise_robust": ("pairwise",), "10_ablations": ("ablations", "ablations_tau")}
NAMES = [name for names in NOTEBOOKS.values() for name in names]
DECLARED = {name: toy.declared.read(Study.load(name)) for name in NAMES}
COMMITTED = paths.ROOT
# what a method's win rate has beyond that of all others
EFFECTS = {"DPO + DoRA": 0.05, "DoRA, lambda 0.5": 0.04, "gamma-SimPO, tau 10 gamma0": 0.03}
MEASURES = (*toy.declared.MEASURES, *toy.declared.FURTHER, "kl_from_golden")


@pytest.mark.parametrize("name", NAMES)
def test_worlds_are_of_this_study_alone_and_others_tune_it(name):
    declared = DECLARED[name]
    mine = set(declared.study.seeds) | set(declared.settings.tuning_seeds)
    assert len(declared.study.seeds) >= 24 and len(declared.settings.tuning_seeds) >= 3
    for path in paths.STUDIES.glob("*.json"):
        other = json.loads(path.read_text(encoding="utf-8"))
        if path.stem != name and other["settings"].get("world") == "toy":
            assert not mine.intersection([*other["seeds"], *other["settings"]["tuning_seeds"]])


def test_what_is_ablated_is_not_tuned():
    for name in ("ablations", "ablations_tau"):
        methods = DECLARED[name].methods
        assert {m for m, how in methods.items() if how.tries} <= {"ERM", "SimPO", "DPO"}
        assert all(
            {"learning_rate", "beta"} == set(how.tries) for how in methods.values() if how.tries
        )


def test_tau_is_declared_in_units_of_the_margin():
    for name, method in DECLARED["ablations_tau"].methods.items():
        if "tau" in name:
            ratio = float(name.split("tau ")[1].split()[0])
            gamma0, tau = (
                float(method.spec.split(f"{knob}=")[1].split(",")[0].rstrip(")"))
                for knob in ("gamma0", "tau")
            )
            assert tau == ratio * gamma0


def make_up(name: str) -> None:
    """The study with eight worlds, and tables, of fewer outcomes, of paths that no run has made."""
    text = (COMMITTED / "data" / "studies" / f"{name}.json").read_text(encoding="utf-8")
    fields = json.loads(text) | {"seeds": list(range(8))}
    del fields["settings"]["tie"]["gold"]
    (paths.STUDIES / f"{name}.json").write_text(json.dumps(fields))
    write_tables(name, results)


def results(cells) -> pd.DataFrame:
    """Of `runs.path`, with EFFECTS on the win rate."""
    rng, rows = np.random.default_rng(0), []
    for cell in cells:
        effect = EFFECTS.get(cell.method, 0.0)
        path = made_up_path(rng, cell, "win_rate", effect, 0.005, MEASURES)
        lam = float(cell.method.split("lambda ")[1]) if "lambda" in cell.method else 32.0
        rows.append({"path": path, "ess": lam})
    return pd.DataFrame(rows)


SAID = {
    "08_pairwise_robust": {"DPO + DoRA minus DPO, win_rate, dose 0: gains 0.05": True},
    "10_ablations": {
        "DoRA, lambda 0.5, win_rate, dose 0: falls by 0.04": True,
        "gamma-SimPO, tau 4 gamma0, win_rate, dose 0: rises by 0.03": False,
    },
}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_says_what_its_tables_say(name, demo, settings, monkeypatch, capsys):
    import matplotlib.pyplot as plt

    monkeypatch.setattr(plt, "show", plt.close)
    paths.STUDIES.mkdir(parents=True)
    for study in NOTEBOOKS[name]:
        make_up(study)
    text = COMMITTED / "notebooks" / "text" / f"{name}.py"
    code = [source for kind, source, _ in series.cells.cells(text) if kind == "code"]
    exec("\n".join(source for source in code if "live = {" not in source), {})
    lines = capsys.readouterr().out.splitlines()
    for words, as_declared in SAID[name].items():
        line = next(line for line in lines if words in line)
        assert line.endswith(f"as declared: {as_declared}")
    tables, stem = paths.RUNS / "smoke" / "tables", NOTEBOOKS[name][0]
    told = pd.read_csv(tables / f"{stem}_primaries.csv")
    assert len(told) == sum(len(DECLARED[study].study.primary) for study in NOTEBOOKS[name])
