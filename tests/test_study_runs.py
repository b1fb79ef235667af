"""Studies: declared first, run whole, gone on with after a limit; a smoke study from end to end."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from robustpo_kit import data, experiments, mixture, paths
from robustpo_kit.analysis import Study
from robustpo_kit.cli import main
from robustpo_kit.errors import KitError
from robustpo_kit.experiments import study_run
from robustpo_kit.records import file_digest
from robustpo_kit.toy import sweep

CONTRAST = {
    "contrast": ["erm", "erm"],
    "outcome": "implicit_accuracy",
    "where": {"dose": 1.0},
    "against": {"dose": 0.0},
    "direction": "lower",
}
UNLIKE = {"contrast": ["erm", "pairs"], "outcome": "gold_tau", "direction": "either"}
DECLARED = {
    "name": "small",
    "question": "Does it hurt?",
    "primary": [CONTRAST],
    "seeds": [0],
    "methods": {
        "erm": {"spec": "dpo_pl(beta=0.1)", "harm": "contamination"},
        "pairs": {"spec": "reweight(dpo(beta=0.1))", "harm": "flips", "doses": [0.5]},
    },
    "doses": [0.0, 1.0],
    "stopping": "all seeds",
    "settings": {"profile": "smoke"},
}


def test_a_study_runs_in_parts_and_writes_tidy_tables(declare, capsys):
    name = declare()
    assert main(["study", name, "--limit", "2", "--workers", "1"]) == 0
    assert "4 runs left" in capsys.readouterr().out
    assert not (paths.RESULTS / "studies").exists()
    assert experiments.run_study(name, workers=1) == 0
    folder = paths.RESULTS / "studies" / name
    outcomes, record = (
        pd.read_csv(folder / "outcomes.csv"),
        json.loads((folder / "outcomes.json").read_text()),
    )
    assert list(outcomes) == ["study", "seed", "method", "dose", "outcome", "row_id", "value"]
    counts = outcomes.groupby(["method", "dose", "outcome"]).size()
    assert (counts == 8).all()  # eval_rows of smoke
    assert set(outcomes["method"]) == {"base", "sft", "golden", "erm", "pairs"}
    assert {"config", "seed", "versions", "device", "duration_s"} <= set(record)
    assert record["config"]["question"] == "Does it hurt?"
    before = (paths.RUNS / "studies" / "small.jsonl").read_text()
    assert experiments.run_study(name, workers=1) == 0
    assert (paths.RUNS / "studies" / "small.jsonl").read_text() == before, "nothing is run again"
    contrasts = pd.read_csv(folder / "contrasts.csv")
    assert contrasts["kind"].tolist()[0] == "primary" and contrasts["prompts"][0] == 8
    declare(notes="seen since")  # words change nothing
    assert experiments.run_study(name, workers=1) == 0
    declare(primary=[CONTRAST | {"outcome": "golden_logp"}], stopping="now")
    with pytest.raises(KitError, match=r"small: primary, stopping differ .*small\.declared\.json"):
        experiments.run_study(name, workers=1)


def test_replies_gaps_and_steps_are_kept_where_asked(declare):
    """One row of outcomes a held-out prompt; steps and training pairs in tables of their own."""
    erm, pairs = DECLARED["methods"]["erm"], DECLARED["methods"]["pairs"]
    methods = {"erm": erm | {"sampled": True}, "pairs": pairs | {"gaps": True}}
    name = declare(methods=methods)
    assert experiments.run_study(name, workers=1) == 0
    outcomes, steps, gaps = (
        pd.read_csv(paths.RESULTS / "studies" / name / f"{title}.csv")
        for title in ("outcomes", "steps", "pairs")
    )
    sampled = outcomes[outcomes["outcome"].isin(study_run.SAMPLED)]
    assert set(sampled["method"]) == {"base", "sft", "golden", "erm"}
    assert (sampled.groupby(["method", "dose", "outcome"]).size() == 8).all()
    golden = sampled.query("method == 'golden' and outcome == 'sampled_win'")
    assert (golden["value"] == 0.5).all(), "a human reply against itself"
    assert set(steps["outcome"]) == set(study_run.STEPS) and set(steps["row_id"]) == {1, 2}
    flipped = gaps.query("outcome == 'pair_flipped'")
    assert set(gaps["method"]) == {"pairs"} and flipped["value"].sum() == len(flipped) / 2 == 4


def test_runs_on_other_data_are_other_runs(declare, tmp_path, monkeypatch):
    """Stored replies and the task's rows decide the results, and so the keys."""
    runs = experiments.study_runs(Study.load(declare(), paths.STUDIES))

    def keys():
        study_run._rows_digest.cache_clear()
        return [sweep.key(study_run.study_run, run) for run in runs]

    before, stores = keys(), [mixture.store_path("how_to"), mixture.store_path("how_to_extra")]
    assert keys() == before
    monkeypatch.setattr(paths, "SYNTHETIC", tmp_path)
    for path in stores:
        for file in (path, path.with_suffix(".json")):
            shutil.copy(file, tmp_path)
    assert keys() == before
    changed = tmp_path / "how_to_extra.jsonl"
    changed.write_text(changed.read_text().replace("the", "a"))
    record = changed.with_suffix(".json")
    record.write_text(json.dumps({"sha256": file_digest(changed)}))
    again = keys()
    assert not set(again) & set(before)
    rows = data.load("how_to")
    monkeypatch.setattr(data, "load", lambda task: rows[1:])
    assert not set(keys()) & {*again, *before}


def test_harm_is_done_to_the_training_rows_alone(declare):
    run = experiments.study_runs(Study.load(declare(), paths.STUDIES))[3]
    lab = experiments.Lab(run.cfg, 0)
    clean, none = study_run.contaminated(lab, 0.0)
    rows, mask = study_run.contaminated(lab, 0.5)
    assert none.sum() == 0 and mask.sum() == 4
    assert all(max(row.rewards) == row.rewards[0] > max(row.rewards[1:]) for row in [*clean, *rows])
    assert [row.sources[0] == "smollm2" for row in rows] == mask.tolist()
    pairs, turned = study_run.flipped(lab, 0.25)
    assert turned.sum() == 2 and pairs.responses_per_prompt == 2
    assert [row.sources[0] == "smollm2" for row in pairs] == turned.tolist()
    assert all(row.sources[0] == "human_correct" for row in lab.splits["eval"])


def test_weights_are_of_the_harmed_rows(declare):
    run = experiments.study_runs(Study.load(declare(), paths.STUDIES))[3]
    lab = experiments.Lab(run.cfg, 0)
    rows, harmed = study_run.contaminated(lab, 0.5)
    weights = {name: weigh(lab, rows, harmed) for name, weigh in study_run.WEIGHTS.items()}
    assert (weights["ones"] == 1).all() and (weights["mask"][harmed] == 0).all()
    assert weights["mask"].mean() == weights["mask"][~harmed].mean() / 2 == 1
    assert weights["slot"].mean() == pytest.approx(1, abs=1e-6)
    np.testing.assert_array_equal(weights["h~"], lab.h(lab.classifier().score_set(rows)))


def test_nothing_measured_was_trained_on(declare):
    """Gold, training, SFT and held-out rows share no group."""
    lab = experiments.Lab(experiments.study_runs(Study.load(declare(), paths.STUDIES))[0].cfg, 0)
    groups = {name: {row.group for row in part} for name, part in lab.splits.items()}
    assert sum(map(len, groups.values())) == len(set.union(*groups.values()))
    gold_rows = {row.row_id: row.group for row in lab.splits["gold"]}
    assert lab.gold().learned.row_ids == set(gold_rows)


def method(**fields):
    return {"methods": {"erm": {"spec": "dpo_pl(beta=0.1)", "harm": "contamination"} | fields}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"primary": [CONTRAST | {"outcome": "luck"}]}, "'luck' is none of implicit_accuracy"),
        (method(weight="slot"), r"weight 'slot', which dpo_pl\(beta=0.1\) does not look at"),
        (method(harm="rain"), "method 'erm': harm 'rain' is unknown; choose one of contamination"),
        (method(weight="w"), "method 'erm': weight 'w' is unknown; choose one of ones"),
        (method(doses=[2]), "method 'erm': dose 2.0; a share between 0 and 1"),
        ({"methods": DECLARED["methods"] | {"sft": DECLARED["methods"]["erm"]}}, "methods: 'sft' "),
        ({"primary": [UNLIKE]}, r"primary\[0\].where: erm has the doses \[0.0, 1.0\] there, pairs"),
        ({"primary": [UNLIKE | {"where": {"dose": 1.0}}]}, r"\[1.0\] there, pairs \[\]; name one"),
        (method(spec="dqo(beta=0.1)"), "method 'erm': .*dqo"),
        (method(colour="red"), "method 'erm': .*colour"),
        ({"settings": {"profile": "smoke", "rows": 3}}, "a profile and its overrides"),
        ({"settings": {}}, "a profile and its overrides"),
        ({"settings": {"profile": "smoke", "overrides": {"rows": 3}}}, "'rows' is not a setting"),
    ],
)
def test_a_declaration_that_cannot_run_is_one_line(declare, changes, message):
    with pytest.raises(KitError, match=message):
        experiments.study_runs(Study.load(declare(**changes), paths.STUDIES))


def test_a_killed_study_resumes_to_the_same_tables(tmp_path):
    """SIGKILL in the middle, the same command again: what was done stays, the tables are equal."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for root in (whole, killed):
        (root / "data" / "studies").mkdir(parents=True)
        (root / "data" / "synthetic").symlink_to(paths.SYNTHETIC)
        (root / "data" / "studies" / "small.json").write_text(json.dumps(DECLARED))
    command = [sys.executable, "-m", "robustpo_kit", "study", "small", "--workers", "1"]

    def start(root):
        environment = os.environ | {"ROBUSTPO_ROOT": str(root)}
        return subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.DEVNULL)

    first, log = start(killed), killed / "runs" / "studies" / "small.jsonl"
    deadline = time.monotonic() + 900
    while not log.exists() or log.read_text().count("\n") < 4:  # three rows, a method
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    kept = log.read_text().splitlines()
    assert 4 <= len(kept) < 6 and not (killed / "data" / "results").exists()
    assert start(killed).wait(timeout=900) == 0 and start(whole).wait(timeout=900) == 0
    lines = log.read_text().splitlines()
    finished = [json.loads(line)["key"] for line in lines]
    assert len(set(finished)) == len(finished) == 6 and lines[:4] == kept[:4]
    for title in ("outcomes", "contrasts"):
        one, other = (
            (root / "data" / "results" / "studies" / "small" / f"{title}.csv").read_bytes()
            for root in (whole, killed)
        )
        assert one == other, title


def test_an_undeclared_study_is_refused(declare, capsys):
    declare()
    assert main(["study", "other"]) == 2
    assert "other.json: no such study; there are: small" in capsys.readouterr().err


def test_every_declaration_of_the_project_can_run():
    names = [path.stem for path in paths.STUDIES.glob("*.json")]
    assert {"dose_real", "dose_real_blind", "methods_real"} <= set(names)
    assert len(experiments.study_runs(Study.load("dose_real"))) == 8 * (3 + 6)
    assert len(experiments.study_runs(Study.load("dose_real_blind"))) == 10 * (3 + 6)
    assert len(experiments.study_runs(Study.load("methods_real"))) == 8 * (3 + 19)
