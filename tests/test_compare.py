"""Runs beside each other: the same held-out rows, paired differences, what was set otherwise."""

import dataclasses
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from pictures import faults, saved_by
from test_cli import refused
from training_setting import preferences

from robustpo_kit import analysis, cli, records, training
from robustpo_kit.data import PreferenceSet
from robustpo_kit.errors import KitError
from robustpo_kit.records import RunRecord

STEPS = [{"step": 1, "loss": 0.7, "margin": 0.0}, {"step": 2, "loss": 0.6, "margin": 0.3}]


def write_run(
    folder, gain=0.0, seed=0, rows=40, text="t", objective="dpo(beta=0.1)", missing=0, **config
):
    """A trained policy's folder, whose outcomes lie `gain` above noise that all runs share."""
    settings = {"learning_rate": 1e-3, "seed": seed, "policy": {"source": "tiny"}} | config
    metrics = {"steps": 2}
    RunRecord(objective, settings, seed, {}, "cpu", 1.0, metrics, STEPS).to_json(
        folder / "record.json"
    )
    noise, own = np.random.default_rng(0).normal(size=rows), np.random.default_rng(seed + 1)
    values = noise + gain + 0.1 * own.normal(size=rows)
    names = ["NA", "null", *(f"r{i}" for i in range(2, rows))]  # as an id they are no gap
    table = pd.DataFrame({"row_id": names, "value": values})
    table.loc[table.index >= rows - missing, "value"] = np.nan
    table = table.assign(group=[f"g{i // 2}" for i in range(rows)], texts=text)
    records.write_table(folder / "heldout.csv", table.assign(outcome="implicit_margin"), {})
    return folder


def compared(*folders) -> pd.DataFrame:
    return analysis.compare_runs(analysis.read_runs(folders))


def test_a_difference_is_paired_by_row_and_clustered_by_prompt(tmp_path):
    """Noise that both share goes; without pairing its spread of one would hide the gain."""
    base = write_run(tmp_path / "erm")
    better = write_run(tmp_path / "dora", gain=0.2, seed=1, objective="dora")
    (row,) = compared(base, better).to_dict("records")
    assert (row["run"], row["baseline"], row["seeds"], row["prompts"]) == ("dora", "erm", 1, 20)
    assert row["low"] < 0.2 < row["high"] and row["low"] > 0.05
    own = [pd.read_csv(folder / "heldout.csv")["value"] for folder in (better, base)]
    pairs = pd.DataFrame({"seed": 0, "difference": own[0] - own[1]})
    pairs["row_id"] = [f"g{i // 2}" for i in range(40)]
    expected = analysis.mean_difference(pairs)
    assert row["difference"] == pytest.approx(expected.difference)
    assert row["low"] == pytest.approx(expected.low)


def test_runs_that_differ_in_their_seeds_are_one_arm(tmp_path):
    folders = []
    for name, gain in (("erm", 0.0), ("dora", 0.2)):
        for seed in range(3):
            place = tmp_path / f"{name}{seed}"
            folders.append(write_run(place, gain=gain, seed=seed, objective=name))
    (row,) = compared(*folders).to_dict("records")
    assert (row["run"], row["baseline"], row["seeds"]) == ("dora0", "erm0", 3)
    settings = analysis.differing_settings(analysis.read_runs(folders))
    assert set(settings["setting"]) == {"seed", "objective"}


def test_means_are_of_the_rows_that_are_paired(tmp_path):
    folders = [write_run(tmp_path / f"erm{seed}", gain=8.0 * seed, seed=seed) for seed in (0, 1)]
    folders.append(write_run(tmp_path / "dora", gain=1.0, objective="dora"))
    (row,) = compared(*folders).to_dict("records")
    assert row["difference"] == pytest.approx(row["mean"] - row["baseline_mean"])
    assert row["seeds"] == 1 and row["difference"] > 0


def test_rows_without_a_number_are_told_and_a_run_without_any_is_refused(tmp_path, capsys):
    """Twelve of fifteen were dropped without a word."""
    base = write_run(tmp_path / "erm", rows=15)
    part = write_run(tmp_path / "dora", gain=0.2, rows=15, objective="dora", missing=12)
    (row,) = compared(base, part).to_dict("records")
    assert (row["left_out"], row["prompts"]) == (12, 2)
    assert cli.main(["compare", str(base), str(part)]) == 0
    told = capsys.readouterr().out
    assert "dora, implicit margin: 12 values left out, no number in one" in told
    assert "2 held-out prompts are few: an exact sign test gives p 0.5 at best" in told
    lost = write_run(tmp_path / "lost", rows=15, objective="dro", missing=15)
    assert "lost, implicit_margin: no number in the 15" in refused(capsys, "compare", base, lost)
    assert "lost, implicit_margin: no number in the 15" in refused(capsys, "compare", lost, base)


def test_an_arm_without_a_common_seed_and_a_run_of_the_same_seed_are_refused(tmp_path, capsys):
    folders = [write_run(tmp_path / f"erm{seed}", seed=seed) for seed in (0, 1)]
    folders.append(write_run(tmp_path / "dora", objective="dora"))
    alone = write_run(tmp_path / "dro", seed=5, objective="dro")
    assert "erm0 and dro have no seed" in refused(capsys, "compare", *folders, alone)
    twin = write_run(tmp_path / "again", gain=0.5)
    assert "erm0 and again are one run" in refused(capsys, "compare", *folders, twin)


def test_settings_that_differ_and_no_others_are_told(tmp_path):
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", learning_rate=2e-3, extra=1)]
    table = analysis.differing_settings(analysis.read_runs(runs)).set_index("setting")
    assert table.loc["learning_rate"].tolist() == ["0.001", "0.002"]
    assert table.loc["extra"].tolist() == ["", "1"] and len(table) == 2


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"rows": 38}, "2 are in a alone (the first: r38)"),
        ({"rows": 41}, "1 are in b alone (the first: r40)"),
        ({"text": "u"}, "held-out row NA (40 in all) has other texts"),
    ],
)
def test_runs_on_other_rows_are_refused(tmp_path, other, said):
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", learning_rate=2.0, **other)]
    with pytest.raises(KitError) as error:
        analysis.read_runs(runs)
    assert said in str(error.value)


def test_what_is_no_run_is_refused(tmp_path, capsys):
    run = write_run(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    assert "no run" in refused(capsys, "compare", run, tmp_path / "empty")
    assert "two runs" in refused(capsys, "compare", run)
    assert "each named once" in refused(capsys, "compare", run, run)
    same = write_run(tmp_path / "b", seed=1)
    assert "nothing but their seeds" in refused(capsys, "compare", run, same)
    (tmp_path / "b" / "heldout.csv").unlink()
    assert "train with --heldout" in refused(capsys, "compare", run, same)


def test_runs_within_the_folder_of_a_comparison_stay(tmp_path, capsys):
    """They were removed with the comparison that they lay beside."""
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", gain=0.3, learning_rate=2e-3)]
    names = [str(run) for run in runs]
    for _ in range(2):
        assert cli.main(["compare", *names, "--out", str(tmp_path / "both")]) == 0
    capsys.readouterr()
    for place in (tmp_path / "both").iterdir():
        place.rename(tmp_path / place.name)
    assert "holds a/" in refused(capsys, "compare", *runs, "--out", tmp_path)
    assert all((run / "record.json").exists() for run in runs)


def test_folders_of_one_name_are_told_apart(tmp_path):
    runs = [write_run(tmp_path / "x" / "run"), write_run(tmp_path / "y" / "run", extra=1)]
    assert [run.name for run in analysis.read_runs(runs)] == ["x/run", "y/run"]


# ---------------------------------------------------------------- series


def write_series(folder, gain: float = 0.0, prompts: int = 12, seed: int = 0, **config):
    """Tables as notebook 04b writes them."""
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0).normal(size=prompts)
    parts = [
        pd.DataFrame(
            {"policy": name, "prompt_id": [f"p{i}" for i in range(prompts)], "gold": value}
        )
        for name, value in (("sft", noise), ("dora", noise + gain))
    ]
    record = {"config": {"epochs": 1} | config, "profile": "cpu", "seed": seed}
    replies = pd.concat(parts).assign(fingerprint="f")
    records.write_table(folder / "dora_replies.csv", replies, record)
    records.write_table(
        folder / "dora_curves.csv", pd.DataFrame(STEPS).assign(policy="dora"), record
    )
    return folder


def test_runs_of_a_series_are_compared_method_by_method(tmp_path):
    runs = [write_series(tmp_path / "a"), write_series(tmp_path / "b", gain=0.5, epochs=2)]
    table = compared(*runs).set_index("method")
    assert table["outcome"].eq("gold").all()
    assert table.loc["sft", "difference"] == pytest.approx(0, abs=1e-5)
    assert table.loc["dora", "difference"] == pytest.approx(0.5, abs=1e-5)


def test_seeds_of_a_series_have_other_prompts_and_are_refused(tmp_path):
    runs = [write_series(tmp_path / "a"), write_series(tmp_path / "b", prompts=10, seed=1)]
    with pytest.raises(KitError, match=r"seed 0.*seed 1.*other held-out rows: 2 are in a alone"):
        analysis.read_runs(runs)


# ---------------------------------------------------------------- held-out outcomes


def test_heldout_outcomes_by_hand():
    rows = preferences(2, 2)
    rows = PreferenceSet([rows[0], *preferences(3, 2)[1:]])
    rewards = [list(row.rewards) for row in rows]
    lengths = torch.tensor([[2, 4, 1], [1, 2, 4]])
    before = torch.tensor([[-4.0, -4.0, 0.0], [-3.0, -3.0, -3.0]])
    after = torch.tensor([[-3.0, -5.0, 0.0], [-3.0, -2.0, -4.0]])
    table = training.heldout_outcomes(rows, (before, lengths), (after, lengths))
    wide = table.pivot(index="row_id", columns="outcome", values="value")
    gains = [[1.0, -1.0], [0.0, 1.0, -1.0]]
    per_token = [[-1.5, -1.25], [-3.0, -1.0, -1.0]]
    for place, row in enumerate(rows):
        best = int(np.argmax(rewards[place]))
        rivals = [k for k in range(len(row.responses)) if k != best]
        mean = np.mean([gains[place][k] for k in rivals])
        found = wide.loc[row.row_id]
        assert found["implicit_margin"] == pytest.approx(gains[place][best] - mean)
        below = [np.sign(gains[place][best] - gains[place][k]) / 2 + 0.5 for k in rivals]
        assert found["implicit_accuracy"] == pytest.approx(np.mean(below))
        assert found["preferred_logp"] == pytest.approx(per_token[place][best])
        below = [np.sign(per_token[place][best] - per_token[place][k]) / 2 + 0.5 for k in rivals]
        assert found["accuracy_per_token"] == pytest.approx(np.mean(below))


# ---------------------------------------------------------------- the commands


def train(tmp_path, out: str, spec: str, *more: str) -> list[str]:
    arguments = ["train", "--data", tmp_path / "train.jsonl", "--heldout", tmp_path / "held.jsonl"]
    arguments += ["--model", "tiny", "--objective", spec, "--out", tmp_path / out]
    arguments += ["--set", "batch_size=4", "--set", f"reference_cache={tmp_path}/cache", *more]
    return [str(argument) for argument in arguments]


def test_two_objectives_are_trained_and_compared(tmp_path, capsys, monkeypatch):
    figures = saved_by(monkeypatch)
    rows = preferences(2, 14)
    rows[:8].to_jsonl(tmp_path / "train.jsonl")
    rows[8:].to_jsonl(tmp_path / "held.jsonl")
    for name, spec in (("erm", "dpo(beta=0.1)"), ("dro", "dro(dpo(beta=0.1), lam=0.5)")):
        assert cli.main(train(tmp_path, name, spec, "--set", "learning_rate=0.01")) == 0
    assert "held out   6 rows; implicit_accuracy" in capsys.readouterr().out
    out = tmp_path / "beside"
    runs = [str(tmp_path / "erm"), str(tmp_path / "dro")]
    assert cli.main(["compare", *runs, "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "dro, implicit margin: " in told and "could have seen" in told
    assert "one seed" in told and "dro(dpo(beta=0.1), lam=0.5)" in told
    assert {path.name for path in out.iterdir()} == {
        "comparison.pdf", "comparison.png", "curves.csv", "differences.csv", "differences.json",
        "settings.csv",
    }  # fmt: skip
    assert [faults(figure) for figure in figures] == [[]]
    assert set(pd.read_csv(out / "settings.csv")["setting"]) == {"objective"}
    assert set(pd.read_csv(out / "curves.csv")["run"]) == {"erm", "dro"}
    assert json.loads((out / "differences.json").read_text())["config"]["level"] == 0.95


def test_held_out_prompts_are_not_trained_on(tmp_path, capsys):
    rows = preferences(2, 8)
    rows.to_jsonl(tmp_path / "train.jsonl")
    rows[5:].to_jsonl(tmp_path / "held.jsonl")
    line = refused(capsys, *train(tmp_path, "out", "dpo(beta=0.1)"))
    assert "held-out row r5 (3 of 3): its prompt is among" in line
    assert not (tmp_path / "out").exists()


def test_seeds_of_other_rows_are_no_seeds_of_one_arm(tmp_path, capsys):
    """The file of one name had changed between the two."""
    rows = preferences(2, 14)
    rows[8:].to_jsonl(tmp_path / "held.jsonl")
    for seed, used in (("0", rows[:8]), ("1", rows[:8]), ("2", rows[1:8])):
        used.to_jsonl(tmp_path / "train.jsonl")
        more = ["--seed", seed, "--set", "max_steps=1"]
        assert cli.main(train(tmp_path, f"s{seed}", "dpo(beta=0.1)", *more)) == 0
    runs = [tmp_path / f"s{seed}" for seed in range(3)]
    capsys.readouterr()
    assert "nothing but their seeds" in refused(capsys, "compare", *runs[:2])
    settings = analysis.differing_settings(analysis.read_runs(runs[1:])).set_index("setting")
    assert settings.loc["rows.digest", "s1"] != settings.loc["rows.digest", "s2"]
    assert compared(*runs[1:])["seeds"].eq(1).all()


def alike(folder, *names):
    tables = [pd.read_csv(folder / name / "heldout.csv") for name in names]
    keys = [table[["row_id", "texts"]].drop_duplicates().values.tolist() for table in tables]
    assert all(other == keys[0] for other in keys)
    return {row_id for row_id, _ in keys[0]}


@pytest.mark.parametrize(("asked", "count"), [("0.25", 4), ("3", 3)])
def test_rows_of_the_file_are_set_aside_alike_for_every_run(tmp_path, capsys, asked, count):
    """The rows of prompt 0 have several groups, as a file may name them: none is on both sides."""
    rows = preferences(2, 14)
    again = [replace(row, row_id=f"again {row.row_id}", group=f"g{row.row_id}") for row in rows[:2]]
    PreferenceSet([*rows, *again]).to_jsonl(tmp_path / "train.jsonl")
    for name, spec, seed in (("a", "dpo(beta=0.1)", 0), ("b", "ipo(tau=0.1)", 5)):
        arguments = train(tmp_path, name, spec, "--seed", seed, "--set", "max_steps=1")
        arguments[arguments.index("--heldout") + 1] = asked
        assert cli.main(arguments) == 0
    held = alike(tmp_path, "a", "b")
    assert count <= len(held) <= count + 1
    record = RunRecord.from_json(tmp_path / "a" / "record.json")
    assert record.config["heldout"] == asked and record.config["heldout_seed"] == 0
    assert record.metrics["rows"] <= 16 - len(held)
    assert f"{len(held)} held out, {record.metrics['rows']} to train on" in capsys.readouterr().err
    assert cli.main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("0", "a share between 0 and 1, or a number"),
        ("2.5", "a share between 0 and 1, or a number"),
        ("inf", "a share between 0 and 1, or a number"),
        ("14", "leaves no row to train on"),
        ("15", "too few"),
        ("absent.jsonl", "absent.jsonl"),
        ("train.jsonl", "held-out row"),
        ("one.jsonl", "has one response"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_dry_run_checks_held_out_rows_as_a_run_does(
    tmp_path, capsys, monkeypatch, asked, said, dry
):
    monkeypatch.chdir(tmp_path)
    preferences(2, 14).to_jsonl(tmp_path / "train.jsonl")
    preferences(1, 2).to_jsonl(tmp_path / "one.jsonl")
    arguments = train(tmp_path, "a", "dpo(beta=0.1)", *dry)
    arguments[arguments.index("--heldout") + 1] = asked
    assert said in refused(capsys, *arguments)
    assert not (tmp_path / "a").exists()


def test_a_group_or_a_prompt_is_enough_to_be_trained_on():
    rows = preferences(2, 4)
    other = rows.map(lambda row: dataclasses.replace(row, group=f"other {row.group}"))
    with pytest.raises(KitError, match=r"held-out row r2 \(2 of 2\): its prompt is among"):
        training.check_heldout(rows, other[2:])
    other = rows.map(lambda row: dataclasses.replace(row, prompt=f"other {row.prompt}"))
    with pytest.raises(KitError, match=r"\(2 of 2\): its group 'g2' is among the training rows"):
        training.check_heldout(rows, other[2:])
    training.check_heldout(rows[:2], rows[2:])
