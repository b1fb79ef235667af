"""Records: atomic writes and folders, JSON, tables with provenance, progress, digests, streams."""

import dataclasses
import json
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from robustpo_kit import profiles, records
from robustpo_kit.errors import KitError
from robustpo_kit.records import RunRecord, atomic_folder, digest, files, stream, stream_seed


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
    assert log.read_text() == "steps: 3/3 in 0 s\n"  # one line a second, the last with no time left
    monkeypatch.setenv("ROBUSTPO_PROGRESS", "log")
    monkeypatch.delenv("ROBUSTPO_PROGRESS_LOG")
    capfd.readouterr()
    assert list(records.progress(iter("ab"), "letters", total=2)) == ["a", "b"]
    assert capfd.readouterr().err == "letters: 2/2 in 0 s\n"


def test_progress_off_a_terminal_is_a_line_every_30_seconds(monkeypatch, capsys):
    """A run of ten minutes said nothing between its first lines and its end."""
    monkeypatch.delenv("ROBUSTPO_PROGRESS", raising=False)
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(records.progress.__globals__["time"], "monotonic", lambda: next(clock))
    assert len(list(records.progress(range(20), "steps"))) == 20
    assert capsys.readouterr().err == ""  # somebody else has taken stderr: a notebook, a test
    monkeypatch.setattr(sys, "__stderr__", sys.stderr)
    assert len(list(records.progress(range(2), "quick"))) == 2
    assert capsys.readouterr().err == ""
    assert len(list(records.progress(range(7), "steps"))) == 7
    assert (
        capsys.readouterr().err == "steps: 3/7 in 30 s, 40 s left\nsteps: 6/7 in 60 s, 10 s left\n"
    )


# ---------------------------------------------------------------- folders


def fill(folder: Path, text: str) -> None:
    with atomic_folder(folder) as temporary:
        (temporary / "value.txt").write_text(text)


def gone_process() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    return process.pid


def leftover(path: Path, owner: int, ending: str) -> Path:
    """The name of what a process left beside `path`."""
    return path.with_name(f".{path.name}.{platform.node()}-{owner}-{'0' * 32}.{ending}")


def test_atomic_folder_takes_the_place_of_the_old_one_as_a_whole(tmp_path):
    fill(tmp_path / "a" / "policy", "old")
    with atomic_folder(tmp_path / "a" / "policy") as temporary:
        assert not list(temporary.iterdir()), "nothing of the old folder is carried over"
        assert (tmp_path / "a" / "policy" / "value.txt").read_text() == "old"
        (temporary / "other.txt").write_text("new")
    assert [path.name for path in (tmp_path / "a" / "policy").iterdir()] == ["other.txt"]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["policy"]


def test_atomic_folder_leaves_the_old_one_when_writing_fails(tmp_path):
    fill(tmp_path / "policy", "old")
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "policy") as temporary:
        (temporary / "value.txt").write_text("half")
        raise RuntimeError
    assert (tmp_path / "policy" / "value.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def test_atomic_folder_puts_the_old_one_back_when_the_last_rename_fails(tmp_path, monkeypatch):
    fill(tmp_path / "policy", "old")
    rename, tried = os.rename, []

    def refuse(source, target):
        tried.append(Path(source).suffix)
        if tried[-1] == ".tmp" and tried.count(".tmp") == 2:  # the old one has gone aside
            raise OSError("no")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(OSError, match="no"):
        fill(tmp_path / "policy", "new")
    assert (tmp_path / "policy" / "value.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def test_atomic_folder_clears_up_after_a_dead_process_alone(tmp_path):
    living = leftover(tmp_path / "policy", os.getppid(), "tmp")
    neighbours = [
        tmp_path / f".policy.{platform.node()}-{name}" for name in ("x.tmp", "12", "3.old")
    ]
    for left in (leftover(tmp_path / "policy", gone_process(), "tmp"), living, *neighbours):
        left.mkdir()
        (left / "value.txt").write_text("half")
    fill(tmp_path / "policy", "new")
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {living.name, "policy", *(path.name for path in neighbours)}


def test_atomic_write_clears_up_after_a_dead_process_alone(tmp_path):
    path = tmp_path / "value.txt"
    living = leftover(path, os.getppid(), "tmp")
    for left in (leftover(path, gone_process(), "tmp"), living):
        left.write_text("half")
    records.write_text(path, "new")
    assert {entry.name for entry in tmp_path.iterdir()} == {living.name, "value.txt"}


@pytest.mark.parametrize("there", [True, False])
def test_links_are_written_through(tmp_path, there):
    (tmp_path / "far").mkdir()
    if there:
        fill(tmp_path / "far" / "policy", "old")
        (tmp_path / "far" / "value.txt").write_text("old")
    for name in ("policy", "value.txt"):
        (tmp_path / name).symlink_to(tmp_path / "far" / name)
    fill(tmp_path / "policy", "new")
    records.write_text(tmp_path / "value.txt", "new")
    assert (tmp_path / "policy").is_symlink() and (tmp_path / "value.txt").is_symlink()
    assert (tmp_path / "far" / "policy" / "value.txt").read_text() == "new"
    assert (tmp_path / "far" / "value.txt").read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 3 and len(list((tmp_path / "far").iterdir())) == 2


WRITER = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from robustpo_kit.records import atomic_folder, write_text

for number in range(100):
    with atomic_folder(Path(sys.argv[1]) / "policy") as folder:
        for name in ("a", "b"):
            (folder / name).write_text(f"{sys.argv[2]} {number}")
    write_text(Path(sys.argv[1]) / "value.txt", sys.argv[2] * 1000)
"""


def assert_one_result(folder: Path) -> None:
    """The last folder and file of x or y, whole, and nothing beside them."""
    first, second = ((folder / "policy" / name).read_text() for name in ("a", "b"))
    assert first == second and first in ("x 99", "y 99")
    assert (folder / "value.txt").read_text() in ("x" * 1000, "y" * 1000)
    assert {path.name for path in folder.iterdir()} == {"policy", "value.txt"}


def test_of_two_processes_on_one_folder_one_stays_whole(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [subprocess.Popen([*command, name], stderr=subprocess.PIPE) for name in "xy"]
    for writer in writers:
        _, said = writer.communicate(timeout=120)
        assert writer.returncode == 0, said.decode()
    assert_one_result(tmp_path)


def test_of_two_threads_on_one_folder_one_stays_whole(tmp_path):
    code = compile(WRITER.replace("sys.argv", "argv"), "writer", "exec")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda name: exec(code, {"argv": ["", tmp_path, name]}), "xy"))
    assert_one_result(tmp_path)


def test_the_old_folder_goes_while_another_process_is_between_its_renames(tmp_path, monkeypatch):
    fill(tmp_path / "policy", "old")
    place = files._take_place

    def place_and_lose(temporary, folder, before):
        place(temporary, folder, before)
        folder.rename(tmp_path / "moved")

    monkeypatch.setattr(files, "_take_place", place_and_lose)
    fill(tmp_path / "policy", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["moved"]
    assert (tmp_path / "moved" / "value.txt").read_text() == "new"


def test_atomic_folder_rescues_what_a_process_moved_aside_and_died(tmp_path):
    """Killed between the two renames: the old one is put back before the next one is written."""
    old = leftover(tmp_path / "policy", gone_process(), "old")
    old.mkdir()
    (old / "value.txt").write_text("old")
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "policy"):
        raise RuntimeError
    assert (tmp_path / "policy" / "value.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


# ---------------------------------------------------------------- digests


def test_digest_is_of_contents_and_not_of_order_or_place():
    assert digest({"a": 1, "b": [2, None]}) == digest({"b": (2, None), "a": 1})
    assert digest(profiles.get("cpu")) == digest(dataclasses.asdict(profiles.get("cpu")))
    values = torch.arange(6.0).reshape(2, 3)
    assert digest(values.t()) == digest(values.t().contiguous()) != digest(values)
    assert digest(values.numpy().T) == digest(np.ascontiguousarray(values.numpy().T))
    assert digest("a", length=16) == digest("a")[:16] and len(digest()) == 64


def test_digest_is_the_same_in_another_process():
    code = "from robustpo_kit.records import digest; print(digest({'b': 1.5, 'a': ['x', b'y']}))"
    environment = os.environ | {"PYTHONHASHSEED": "123"}
    other = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert other.stdout.decode().strip() == digest({"a": ["x", b"y"], "b": 1.5})


def test_digest_tells_kinds_and_bounds_apart():
    ones = torch.ones(4)
    values = [
        None, True, 1, 1.0, "1", b"1", [1], ["1"], [[1]], {"1": 1}, {"1": "1"}, [], {}, "", b"",
        ["ab", "c"], ["a", "bc"], ["abc"], [["a"], "b"], ["a", ["b"]], {"a": {}}, {"a": []}, "[1",
        ones, ones.double(), ones.half(), ones.bfloat16(), ones.int(), ones.view(2, 2),
        ones.numpy(), ones.view(torch.int32), torch.zeros(0), torch.zeros(0, 2),
    ]  # fmt: skip
    assert len({digest(value) for value in values}) == len(values)
    assert digest("ab", "c") != digest("a", "bc") != digest("abc")


def test_digest_of_bfloat16_is_of_its_bits():
    value = torch.tensor([1.0, 2.0]).bfloat16()
    assert digest(value) == digest(value.clone()) != digest(value + 0.01)
    assert digest(value) != digest(value.view(torch.int16))


@pytest.mark.parametrize("value", [{1, 2}, object(), Path("x"), np.array([object()]), np.int64(1)])
def test_digest_refuses_what_has_no_content_of_its_own(value):
    with pytest.raises(TypeError):
        digest([value])


def test_file_digest_follows_the_file(tmp_path):
    path = tmp_path / "value.txt"
    path.write_text("one")
    before = records.file_digest(path)
    assert before == records.file_digest(path) and len(before) == 64
    path.write_text("other")
    assert records.file_digest(path) != before


# ---------------------------------------------------------------- streams


def test_streams_never_share_draws_between_names_or_seeds():
    names = [("a",), ("b",), ("a", "b"), ("ab",), ("a", 0), ("a", 1), ("a", "1"), ("a", ("b",))]
    keys = [(seed, *name) for seed in (0, 1, 2, 2**32, 2**64 + 1) for name in names]
    draws = np.array([stream(*key).integers(2**63, size=4) for key in keys])
    assert len(np.unique(draws)) == draws.size
    seeds = {stream_seed(*key) for key in keys}
    assert len(seeds) == len(keys) and all(0 <= seed < 2**63 for seed in seeds)


def test_a_stream_is_the_same_each_time():
    assert stream(3, "fold", 2).integers(100, size=5).tolist() == (
        stream(np.int64(3), "fold", 2).integers(100, size=5).tolist()
    )
    first, second = (records.torch_stream(3, "fold", 2) for _ in range(2))
    assert torch.equal(torch.rand(5, generator=first), torch.rand(5, generator=second))


@pytest.mark.parametrize("make", [stream, stream_seed, records.torch_stream])
def test_stream_refuses_what_names_no_stream(make):
    for seed in (-1, 0.5, True, "0", None):
        with pytest.raises(ValueError, match="seed: expected a whole number of 0 or more"):
            make(seed, "a")
    with pytest.raises(ValueError, match="names: a stream is named by its purpose"):
        make(0)


def test_a_digest_refuses_what_has_no_stable_value():
    with pytest.raises(TypeError, match="two keys"):
        records.digest({1: "a", "1": "b"})
    with pytest.raises(TypeError, match="objects"):
        records.digest(np.array([(1, object())], dtype=[("a", int), ("b", object)]))
