"""Sweeps of independent runs over the cores: one JSON line a finished run, resumable, and a summary with intervals."""

import dataclasses
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from robustpo_kit import paths
from robustpo_kit.errors import KitError
from robustpo_kit.intervals import t_interval
from robustpo_kit.records import cores, digest, key_of_function, progress, write_text

POLL_S = 0.2  # how often the parent looks for finished runs


def key(function: Callable, config: Any) -> str:
    """Key of a run, by its frozen dataclass and the code that it runs: what a finished run is found by."""
    return digest(key_of_function(function), type(config).__name__, config, length=20)


def sweep(
    function: Callable[[Any], dict],
    configs: Sequence[Any],
    path: Path,
    *,
    workers: int | None = None,
    desc: str = "runs",
) -> pd.DataFrame:
    """Run `function(config)` for every config not yet in `path` (.jsonl); the tidy table of all, in the given order.

    `function` is importable and returns one flat row; `configs` are frozen dataclasses. Runs of one `setting` (an
    attribute of the config, where it has one) follow one another in one worker, so that what they share can be cached.
    Workers (default: one a core) use one thread each. Every finished run is a line at once: a killed sweep continues
    where it was. Raises KitError at the end when runs have failed; the next call tries those again.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"workers = {workers}: at least one is expected")
    path = Path(path)
    done = _finished(path)
    keys = [key(function, config) for config in configs]
    missing = {k: config for k, config in zip(keys, configs, strict=True) if k not in done}
    groups: dict[Any, list[Any]] = {}
    for config in missing.values():
        groups.setdefault(getattr(config, "setting", config), []).append(config)
    workers = min(cores() if workers is None else workers, len(groups))
    if missing:
        # a line torn by a kill and the lines of failed runs go first
        write_text(path, "".join(json.dumps(entry) + "\n" for entry in done.values()))
        work = _in_process if workers == 1 else _in_workers
        for _ in progress(
            work(function, list(groups.values()), path, workers), desc, total=len(missing)
        ):
            pass
        done = _finished(path)
        if not all(k in done for k in keys):
            raise _failure(path, desc, sum(k not in done for k in missing), len(keys))
    return pd.DataFrame([done[k]["result"] | {"seconds": done[k]["seconds"]} for k in keys])


def _lines(path: Path) -> list[dict]:
    """The entries of a sweep's file; a torn line is left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(entry, dict) and "key" in entry:
            found.append(entry)
    return found


def _finished(path: Path) -> dict[str, dict]:
    """Successful runs by key."""
    return {entry["key"]: entry for entry in _lines(path) if "result" in entry}


def _failure(path: Path, desc: str, failed: int, total: int) -> KitError:
    errors = [entry["error"] for entry in _lines(path) if "error" in entry] or ["a worker died"]
    return KitError(
        f"{desc}: {failed} of {total} runs failed ({errors[0]}); {paths.show(path)} keeps the others, run again"
    )


def _one(function: Callable[[Any], dict], config: Any, path: Path) -> None:
    """One run and its line: a single write in append mode, so that lines of several workers do not mix."""
    started = time.perf_counter()
    entry: dict[str, Any] = {"key": key(function, config), "config": dataclasses.asdict(config)}
    try:
        entry["result"] = function(config)
    except Exception as error:  # whatever it is, the other runs go on and the sweep reports it
        entry["error"] = f"{type(error).__name__}: {str(error)[:200]}"
    entry["seconds"] = round(time.perf_counter() - started, 3)
    line = (json.dumps(entry) + "\n").encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line)
    finally:
        os.close(descriptor)


def _in_process(
    function: Callable[[Any], dict], groups: list[list[Any]], path: Path, _workers: int
) -> Iterator[None]:
    for group in groups:
        for config in group:
            _one(function, config, path)
            yield


def _in_workers(
    function: Callable[[Any], dict], groups: list[list[Any]], path: Path, workers: int
) -> Iterator[None]:
    """Yield once for every line that the workers append."""
    context = multiprocessing.get_context(
        "spawn"
    )  # a fork of a process that has used torch's threads can hang
    position = context.Value("i", 0)
    processes = [
        context.Process(target=_worker, args=(function, groups, path, position), daemon=True)
        for _ in range(workers)
    ]
    offset = path.stat().st_size
    try:
        for process in processes:
            process.start()
        running = True
        while running:
            running = any(process.is_alive() for process in processes)
            with open(path, "rb") as stream:
                stream.seek(offset)
                new = stream.read()
            offset += len(new)
            for _ in range(new.count(b"\n")):
                yield
            if running:
                time.sleep(POLL_S)
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()


def _worker(
    function: Callable[[Any], dict], groups: list[list[Any]], path: Path, position: Any
) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"  # for a torch that `function` imports later
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    while True:
        with position.get_lock():
            number = position.value
            position.value += 1
        if number >= len(groups):
            return
        for config in groups[number]:
            if not multiprocessing.parent_process().is_alive():  # nobody is left to read the result
                return
            _one(function, config, path)


def summarise(
    table: pd.DataFrame,
    *,
    by: Sequence[str],
    metric: str = "win_rate",
    baseline: str = "erm",
    level: float = 0.95,
) -> pd.DataFrame:
    """Mean of `metric` a method and cell of `by`, and its difference from `baseline`, paired by seed; t intervals.

    `table` has the columns method, seed, `by` and `metric`. The intervals are over seeds, and every seed is another
    world: they cover worlds, data, models and order. One seed gives no interval (NaN).
    """
    rows = []
    for cell, part in table.groupby(list(by), sort=False, dropna=False) if by else [((), table)]:
        wide = part.pivot(index="seed", columns="method", values=metric)
        for method in part["method"].unique():
            mean = t_interval(wide[method].dropna().to_numpy(), level)
            row = dict(zip(by, cell, strict=True)) | {"method": method, "n": mean.clusters}
            row |= {"mean": mean.value, "low": mean.low, "high": mean.high}
            if baseline in wide and method != baseline:
                paired = (wide[method] - wide[baseline]).dropna().to_numpy()
                row |= t_interval(paired, level).columns("difference")
            rows.append(row)
    return pd.DataFrame(rows)
