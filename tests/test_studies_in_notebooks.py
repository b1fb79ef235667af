"""Notebooks show the studies on real text that have ended, and say which have not."""

import json
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from pictures import faults, saved_by

from robustpo_kit import analysis, paths, series
from robustpo_kit.analysis import Study

COMMITTED = paths.RESULTS
TEXTS = paths.NOTEBOOKS / "text"
ON_TEXT = ("methods_real", "flips_real", "hh_flips")
PROMPTS = 6
SLOPE, MORE = 0.4, 0.3  # of confidence on reward under ERM, and what DoRA adds
GAIN = 0.2  # of every method over the baselines, in implicit accuracy


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Another folder of results, with the committed ones but for the studies on real text."""
    for name in ("RESULTS", "RUNS", "FIGURES"):
        monkeypatch.setattr(paths, name, tmp_path / name.lower())
    (paths.RESULTS / "studies").mkdir(parents=True)
    (paths.RESULTS / "reference").symlink_to(COMMITTED / "reference")
    for folder in (COMMITTED / "studies").iterdir():
        if folder.name not in ON_TEXT:
            (paths.RESULTS / "studies" / folder.name).symlink_to(folder)
    monkeypatch.setattr(plt, "show", lambda: None)
    yield paths.RESULTS
    plt.close("all")


def made_outcomes(study: Study, rng) -> pd.DataFrame:
    """As the runs of a study give them, with known effects."""
    baselines, rows = {contrast.baseline for contrast in study.primary}, []
    for seed in study.seeds:
        level = rng.normal(0.5, 0.02)
        for name, method in study.methods.items():
            for dose in method.get("doses", study.doses):
                gain = 0.0 if name in baselines else GAIN * (dose > 0)
                base = {"study": study.name, "seed": seed, "method": name, "dose": float(dose)}
                accuracy = level + gain + rng.normal(0, 0.02, PROMPTS)
                columns = {"implicit_accuracy": accuracy - 0.1 * dose}
                if method.get("sampled"):
                    reward = 10 * seed + rng.random(PROMPTS)
                    scaled = reward - 10 * seed
                    slope = SLOPE + MORE * ("dora" in name) + rng.normal(0, 0.05)
                    columns["sampled_reward"] = reward
                    columns["sampled_confidence"] = slope * scaled + rng.normal(0, 0.02, PROMPTS)
                for outcome, values in columns.items():
                    rows += [
                        base | {"outcome": outcome, "row_id": f"{seed}-{i}", "value": value}
                        for i, value in enumerate(values)
                    ]
    return pd.DataFrame(rows)


def made_pairs(study: Study, rng) -> pd.DataFrame:
    """Gaps after training: flipped pairs have smaller ones."""
    rows = []
    for seed in study.seeds:
        for name in ("SimPO", "gamma-SimPO"):
            for dose in study.doses:
                turned = np.arange(16) < 16 * dose
                gaps = rng.normal(1.0, 0.5, 16) - 1.5 * turned
                base = {"study": study.name, "seed": seed, "method": name, "dose": dose}
                for i in range(16):
                    row = base | {"row_id": str(i)}
                    rows.append(row | {"outcome": "pair_gap", "value": gaps[i]})
                    rows.append(row | {"outcome": "pair_flipped", "value": float(turned[i])})
    return pd.DataFrame(rows)


def make_up(results, name: str) -> None:
    """Writes the tables that `robustpo study NAME` would."""
    study, rng = Study.load(name), np.random.default_rng(0)
    folder = results / "studies" / name
    folder.mkdir()
    outcomes = made_outcomes(study, rng)
    outcomes.to_csv(folder / "outcomes.csv", index=False)
    analysis.study_table(study, outcomes).to_csv(folder / "contrasts.csv", index=False)
    record = json.dumps({"config": {"seeds": list(study.seeds)}, "profile": "cpu", "seed": 0})
    for title in ("outcomes", "contrasts", "pairs", "tuned"):
        (folder / f"{title}.json").write_text(record)
    if name == "flips_real":
        made_pairs(study, rng).to_csv(folder / "pairs.csv", index=False)
        row = {"method": "gamma-SimPO", "dose": 0.45, "chosen": True}
        tuned = pd.DataFrame([row | {"knobs": json.dumps({"ratio": 1.6, "tau": 2.0})}])
        tuned.to_csv(folder / "tuned.csv", index=False)


def cells_of(name: str, *needed: str) -> str:
    """The first three cells of a notebook that are code, and those that have a word of `needed`."""
    cells = series.cells.cells(TEXTS / f"{name}.py")
    code = [source for kind, source, _ in cells if kind == "code"]
    chosen = [source for source in code[3:] if any(word in source for word in needed)]
    return "\n".join([*code[:3], *chosen])


NOTEBOOKS = {
    "04b_train_dora": (["methods_real"], ["declared_contrasts"]),
    "05_reward_confidence": (["methods_real"], ["points", "by_seed"]),
    "07_gamma_vs_margin": (["flips_real"], ["gamma_gaps", "by_seed"]),
    "09_label_noise": (["flips_real", "hh_flips"], ["primary = ", "contrasts"]),
    "11_phase_diagram": (ON_TEXT, ["declared_contrasts"]),
}


def run(name: str, needed: list[str], monkeypatch) -> list:
    """The figures of a notebook's cells; of its training only the start."""
    figures = saved_by(monkeypatch)
    code = cells_of(name, *needed).replace("lab = experiments.Lab(nb.cfg, nb.seed)", "")
    exec(code, {})
    return figures


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_what_has_not_ended_is_said_and_nothing_breaks(name, results, monkeypatch, capsys):
    studies, needed = NOTEBOOKS[name]
    figures = run(name, needed, monkeypatch)
    said = capsys.readouterr().out
    for study in studies:
        assert f"study {study}: declared, not finished; `make study NAME={study}`" in said
    assert [fault for figure in figures for fault in faults(figure)] == []


SAID = {
    "04b_train_dora": [
        r"methods_real: dora h~ minus erm, implicit_accuracy, dose 0.6: gains 0.2",
        r"exploratory: dora slot minus erm, dose 0.6: gains 0.2",
    ],
    "05_reward_confidence": [
        r"outcomes <- .*\[study: 8 seeds\]",
        r"dose 0.6, dora h~ minus erm: steeper by 0\.(2[5-9]|3[0-5])\d .*; positive, as in",
        r"dose 0, reweight slot minus erm: no difference shown",
    ],
    "07_gamma_vs_margin": [
        r"margin by gap, dose 0.45, SimPO: rises by 0\.\d+",
        r"margin by flipped, dose 0.45, gamma-SimPO: smaller by 0\.\d+",
    ],
    "09_label_noise": [
        r"flips_real: rDPO minus DPO, implicit_accuracy, dose 0.45: gains 0.2",
        r"hh_flips: gamma-SimPO minus SimPO, implicit_accuracy, dose 0.3: gains 0.2",
        r"hh_flips, exploratory: ROPO minus DPO, dose 0.3: gains 0.2",
    ],
    "11_phase_diagram": [
        r"methods_real: reweight slot minus erm, .*, dose 0.6: gains 0.2",
        r"methods_real: reweight slot minus erm, .*, dose 0: no difference beyond 0.03",
        r"hh_flips: DPO minus DPO, .*, dose 0.3 against dose 0: loses 0.0",
    ],
}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_what_has_ended_is_shown_and_said(name, results, monkeypatch, capsys):
    studies, needed = NOTEBOOKS[name]
    for study in studies:
        make_up(results, study)
    figures = run(name, needed, monkeypatch)
    said = capsys.readouterr().out
    for pattern in SAID[name]:
        assert re.search(pattern, said), pattern
    assert "not finished" not in said
    assert [fault for figure in figures for fault in faults(figure)] == []
