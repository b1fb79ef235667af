"""Sweeps: nothing is done twice, a kill loses what was under way, the summary pairs by seed."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from robustpo_kit import toy
from robustpo_kit.errors import KitError


@dataclasses.dataclass(frozen=True)
class Job:
    number: int
    log: str = ""
    setting: int = 0
    fail: bool = False


def work(job):
    """Leaves a mark in the log, so that a test can count how often it ran."""
    if job.log:
        with open(job.log, "a", encoding="utf-8") as stream:
            stream.write(f"{job.number} {os.getpid()}\n")
    if job.fail and not Path(job.log + ".mended").exists():
        raise ValueError(f"job {job.number} is broken")
    return {"number": job.number, "square": job.number**2}


def jobs(tmp_path, count, **changes):
    return [Job(i, str(tmp_path / "log"), **changes) for i in range(count)]


def marks(tmp_path):
    return [int(line.split()[0]) for line in (tmp_path / "log").read_text().splitlines()]


def test_table_keeps_the_order_and_a_second_call_runs_nothing(tmp_path):
    configs = jobs(tmp_path, 5)
    table = toy.sweep.sweep(work, configs[:3], tmp_path / "runs.jsonl", workers=1)
    assert table["square"].tolist() == [0, 1, 4] and (table["seconds"] >= 0).all()
    again = toy.sweep.sweep(work, configs[::-1], tmp_path / "runs.jsonl", workers=1)
    assert again["square"].tolist() == [16, 9, 4, 1, 0]
    assert sorted(marks(tmp_path)) == [0, 1, 2, 3, 4]


def test_a_torn_line_is_run_again_and_nothing_else(tmp_path):
    configs, path = jobs(tmp_path, 4), tmp_path / "runs.jsonl"
    toy.sweep.sweep(work, configs, path, workers=1)
    text = path.read_text()
    path.write_text(text[:-15])
    table = toy.sweep.sweep(work, configs, path, workers=1)
    assert table["number"].tolist() == [0, 1, 2, 3]
    assert marks(tmp_path) == [0, 1, 2, 3, 3]
    assert all(json.loads(line)["key"] for line in path.read_text().splitlines())


def test_a_failed_run_is_named_the_others_kept_and_it_is_tried_again(tmp_path):
    configs = [*jobs(tmp_path, 3), Job(3, str(tmp_path / "log"), fail=True)]
    with pytest.raises(KitError, match=r"1 of 4 runs failed \(ValueError: job 3 is broken\)"):
        toy.sweep.sweep(work, configs, tmp_path / "runs.jsonl", workers=1)
    Path(f"{tmp_path / 'log'}.mended").touch()
    table = toy.sweep.sweep(work, configs, tmp_path / "runs.jsonl", workers=1)
    assert table["number"].tolist() == [0, 1, 2, 3] and marks(tmp_path) == [0, 1, 2, 3, 3]


def test_no_workers_is_refused(tmp_path):
    with pytest.raises(ValueError, match="workers = 0"):
        toy.sweep.sweep(work, jobs(tmp_path, 1), tmp_path / "runs.jsonl", workers=0)


def test_two_workers_share_the_settings(tmp_path):
    configs = [Job(i, str(tmp_path / "log"), setting=i // 3) for i in range(12)]
    table = toy.sweep.sweep(work, configs, tmp_path / "runs.jsonl", workers=2)
    assert table["number"].tolist() == list(range(12))
    lines = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert sorted(int(number) for number, _ in lines) == list(range(12))
    by_setting = {int(number) // 3: set() for number, _ in lines}
    for number, pid in lines:
        by_setting[int(number) // 3].add(pid)
    assert all(len(pids) == 1 for pids in by_setting.values())  # one worker a setting
    assert str(os.getpid()) not in {pid for _, pid in lines}


def test_a_killed_sweep_resumes_without_redoing(tmp_path):
    """SIGKILL of the parent: its workers end by themselves, the next call runs what is missing."""
    module = tmp_path / "slowjob.py"
    module.write_text(
        textwrap.dedent("""
        import dataclasses, pathlib, sys, time
        from robustpo_kit import toy
        @dataclasses.dataclass(frozen=True)
        class Slow:
            number: int
        def work(job):
            time.sleep(0.3)
            with open("log", "a") as stream:
                stream.write(f"{job.number}\\n")
            return {"number": job.number}
        if __name__ == "__main__":
            jobs = [Slow(i) for i in range(12)]
            table = toy.sweep.sweep(work, jobs, pathlib.Path("runs.jsonl"), workers=2)
            print(table["number"].tolist())
        """)
    )
    command = [sys.executable, module.name]
    first = subprocess.Popen(command, cwd=tmp_path)
    deadline = time.monotonic() + 60
    runs = tmp_path / "runs.jsonl"
    while not runs.exists() or runs.read_text().count("\n") < 4:
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    time.sleep(1)
    kept = runs.read_text().count("\n")
    assert 4 <= kept < 12  # a worker ends the run it is at, and no other
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == str(list(range(12)))
    ran = (tmp_path / "log").read_text().split()
    assert sorted(ran, key=int) == [str(i) for i in range(12)]


def test_keys_tell_configs_apart():
    keys = {
        toy.sweep.key(work, config) for config in (Job(1), Job(2), Job(1, setting=1), Job(1, "x"))
    }
    assert len(keys) == 4 and toy.sweep.key(work, Job(1)) == toy.sweep.key(work, Job(1))


# --- summary -------------------------------------------------------------------------------------


def table(effect, noise=0.01, seeds=10):
    """Methods that share a strong effect of the seed; b is better than erm by `effect`."""
    rng = np.random.default_rng(0)
    rows = []
    for seed in range(seeds):
        world = rng.normal(0.5, 0.2)
        for method, gain in (("erm", 0.0), ("b", effect)):
            rows.append(
                {
                    "cell": "x",
                    "seed": seed,
                    "method": method,
                    "win_rate": world + gain + rng.normal(0, noise),
                }
            )
    return pd.DataFrame(rows)


def test_summary_pairs_by_seed():
    found = toy.sweep.summarise(table(0.05), by=["cell"]).set_index("method")
    assert found.loc["b", "difference_low"] > 0.03 and found.loc["b", "difference_high"] < 0.07
    assert found.loc["b", "low"] < found.loc["erm", "mean"]  # unpaired, the seeds would hide it
    assert np.isnan(found.loc["erm", "difference"]) and found.loc["b", "n"] == 10
