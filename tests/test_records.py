"""Records: atomic writes, JSON in and out, tables with provenance, progress."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from robustpo_kit import profiles, records
from robustpo_kit.errors import KitError
from robustpo_kit.records import RunRecord


def test_atomic_write_leaves_the_old_file_when_writing_fails(tmp_path):
    path = tmp_path / "deep" / "value.txt"
    records.write_text(path, "old")
    with pytest.raises(RuntimeError), records.atomic_write(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [entry.name for entry in path.parent.iterdir()] == ["value.txt"]


def test_json_takes_numbers_of_numpy_and_torch_paths_and_dataclasses(tmp_path):
    value = {
        "a": np.float32(0.5),
        "b": torch.tensor([1, 2]),
        "c": Path("x") / "y.csv",
        "d": profiles.get("cpu"),
    }
    records.write_json(tmp_path / "value.json", value)
    found = records.read_json(tmp_path / "value.json")
    assert (
        found["a"] == 0.5
        and found["b"] == [1, 2]
        and found["c"] == "y.csv"
        and found["d"]["name"] == "cpu"
    )
    with pytest.raises(TypeError, match="not JSON"):
        records.write_json(tmp_path / "value.json", {"a": object()})
    assert records.read_json(tmp_path / "value.json") == found


def test_read_json_says_what_is_wrong(tmp_path):
    with pytest.raises(KitError, match=r"absent\.json: no such file"):
        records.read_json(tmp_path / "absent.json")
    (tmp_path / "bad.json").write_text('{\n"a": }')
    with pytest.raises(KitError, match=r"bad\.json: not JSON \(line 2"):
        records.read_json(tmp_path / "bad.json")


def test_table_and_its_provenance(tmp_path):
    record = records.provenance(profiles.get("smoke"), 7, started=0.0)
    records.write_table(tmp_path / "t.csv", pd.DataFrame({"x": [1 / 3], "n": [2]}), record)
    assert (tmp_path / "t.csv").read_text() == "x,n\n0.333333,2\n"
    found = records.read_json(tmp_path / "t.json")
    assert found["seed"] == 7 and found["config"]["name"] == "smoke" and found["duration_s"] > 0
    assert (
        found["versions"]["python"]
        and found["versions"]["torch"]
        and "revision" in found
        and found["device"]
    )


def test_run_record_round_trip_and_missing_field(tmp_path):
    record = RunRecord(
        "dpo(beta=0.1)", {"epochs": 1}, 3, {"torch": "2"}, "cpu", 1.5, {"loss": 0.69}, [{"step": 1}]
    )
    record.to_json(tmp_path / "record.json")
    assert RunRecord.from_json(tmp_path / "record.json") == record
    value = dataclasses.asdict(record)
    del value["seed"]
    (tmp_path / "short.json").write_text(json.dumps(value))
    with pytest.raises(KitError, match=r"short\.json: field 'seed' is missing"):
        RunRecord.from_json(tmp_path / "short.json")


def test_progress_yields_everything_and_writes_only_where_it_should(tmp_path, monkeypatch, capfd):
    log = tmp_path / "progress.log"
    monkeypatch.setenv("ROBUSTPO_PROGRESS_LOG", str(log))
    for mode in ("off", "log", "bar"):
        monkeypatch.setenv("ROBUSTPO_PROGRESS", mode)
        assert list(records.progress(range(3), "steps")) == [0, 1, 2]
        assert log.exists() == (mode != "off")
    assert log.read_text() == "steps: 3/3 in 0 s\n"
    monkeypatch.setenv("ROBUSTPO_PROGRESS", "log")
    monkeypatch.delenv("ROBUSTPO_PROGRESS_LOG")
    capfd.readouterr()
    assert list(records.progress(iter("ab"), "letters", total=2)) == ["a", "b"]
    assert capfd.readouterr().err == "letters: 2/2 in 0 s\n"


@pytest.mark.parametrize(
    ("name", "overrides", "said"),
    [
        ("huge", None, "profile: 'huge' is unknown; choose one of smoke, cpu, gpu, paper"),
        ("cpu", {"speed": 1}, "'speed' is not a setting"),
        ("cpu", {"name": "x"}, "'name' is not a setting"),
        ("cpu", {"epochs": "2"}, "epochs = '2' should be of type int"),
        ("cpu", {"epochs": True}, "epochs = True should be of type int"),
    ],
)
def test_profile_refuses(name, overrides, said):
    with pytest.raises(KitError, match=said.replace("(", r"\(")):
        profiles.get(name, overrides)


def test_profile_takes_what_json_gives():
    cfg = profiles.get("cpu", {"lam": 2, "listwise": ["rrhf"], "epochs": 3})
    assert (cfg.lam, cfg.listwise, cfg.epochs) == (2.0, ("rrhf",), 3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        cfg.lam = 3.0
