"""Sweeps of independent runs over the cores: a JSON line a finished run, resumable; a summary."""

import contextlib
import dataclasses
import itertools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from robustpo_kit import paths
from robustpo_kit.errors import KitError
from robustpo_kit.intervals import t_interval
from robustpo_kit.records import cores, digest, key_of_function, progress, write_text

POLL_S = 0.2  # how often the parent looks for finished runs

Function = Callable[[Any], dict[str, object]]


def key(function: Function, config: Any) -> str:
    """Key of a run: its frozen dataclass, the code that it runs, and what it reads.

    A config that reads data says by their digests in `inputs` what they are.
    """
    inputs = getattr(config, "inputs", ())
    return digest(key_of_function(function), type(config).__name__, config, *inputs, length=20)


def sweep(
    function: Function,
    configs: Sequence[Any],
    path: Path,
    *,
    workers: int | None = None,
    desc: str = "runs",
    limit: int | None = None,
) -> pd.DataFrame:
    """Run `function(config)` for every config that is not yet in the file `path`.

    Runs of one `setting` (an attribute of the config, where it has one) follow one another in one
    worker, so that what they share can be cached. Every finished run is a line at once: a killed
    sweep continues where it was.

    Args:
        function: importable; returns one flat row.
        configs: frozen dataclasses.
        path: .jsonl, made where it is missing.
        workers: processes of one thread each; None: one a core.
        desc: names the runs in the progress shown and in errors.
        limit: at most so many runs now; None: all.

    Returns:
        The rows of all configs in their order, with the seconds of each run; after a `limit`, of
        those that have finished.

    Raises:
        KitError: at the end, when runs have failed; the next call tries those again.
        ValueError: when `workers` or `limit` is below one.
    """
    for name, value in (("workers", workers), ("limit", limit)):
        if value is not None and value < 1:
            raise ValueError(f"{name} = {value}: at least one is expected")
    path = Path(path)
    done = _finished(path)
    keys = [key(function, config) for config in configs]
    config_of = dict(zip(keys, configs, strict=True))
    waiting = ((run, config) for run, config in config_of.items() if run not in done)
    missing = dict(itertools.islice(waiting, limit))
    if missing:
        # a line torn by a kill and the lines of failed runs go first
        write_text(path, "".join(json.dumps(entry) + "\n" for entry in done.values()))
        groups = _by_setting(missing.values())
        workers = min(workers or cores(), len(groups))
        work = _in_process if workers == 1 else _in_workers
        for _ in progress(work(function, groups, path, workers), desc, total=len(missing)):
            pass
        done = _finished(path)
        if failed := [run for run in missing if run not in done]:
            raise _failure(path, desc, len(failed), len(keys))
    finished = [done[run] for run in keys if run in done]
    return pd.DataFrame([entry["result"] | {"seconds": entry["seconds"]} for entry in finished])


def _by_setting(configs: Iterable[Any]) -> list[list[Any]]:
    """The configs of each setting, in the order of the first ones."""
    groups: dict[Any, list[Any]] = {}
    for config in configs:
        groups.setdefault(getattr(config, "setting", config), []).append(config)
    return list(groups.values())


def _lines(path: Path) -> list[dict[str, Any]]:
    """The entries of a sweep's file; a torn line is left out."""
    if not path.exists():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            entries.append(json.loads(line))
    return [entry for entry in entries if isinstance(entry, dict) and "key" in entry]


def _finished(path: Path) -> dict[str, dict[str, Any]]:
    """Successful runs by key."""
    return {entry["key"]: entry for entry in _lines(path) if "result" in entry}


def _failure(path: Path, desc: str, failed: int, total: int) -> KitError:
    errors = [entry["error"] for entry in _lines(path) if "error" in entry] or ["a worker died"]
    return KitError(
        f"{desc}: {failed} of {total} runs failed ({errors[0]}); "
        f"{paths.show(path)} keeps the others, run again"
    )


def _run_one(function: Function, config: Any, path: Path) -> None:
    """One run and its line: a single write in append mode, so that workers' lines do not mix."""
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
    function: Function, groups: list[list[Any]], path: Path, _workers: int
) -> Iterator[None]:
    """Yield once for every finished run."""
    for config in itertools.chain.from_iterable(groups):
        _run_one(function, config, path)
        yield


def _in_workers(
    function: Function, groups: list[list[Any]], path: Path, workers: int
) -> Iterator[None]:
    """Yield once for every line that the workers append.

    Processes of our own: those of joblib and of concurrent.futures outlive a parent that is killed,
    go on through their queues, and all give up when one of them dies.
    """
    # a fork of a process that has used torch's threads can hang
    context = multiprocessing.get_context("spawn")
    position = context.Value("i", 0)
    arguments = (function, groups, path, position)
    processes = [
        context.Process(target=_worker, args=arguments, daemon=True) for _ in range(workers)
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
                appended = stream.read()
            offset += len(appended)
            yield from [None] * appended.count(b"\n")
            if running:
                time.sleep(POLL_S)
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()


def _worker(function: Function, groups: list[list[Any]], path: Path, position: Any) -> None:
    """Take one group after another, until there are none left or the parent is gone."""
    os.environ["OMP_NUM_THREADS"] = "1"  # for a torch that `function` imports later
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    parent = multiprocessing.parent_process()
    while True:
        with position.get_lock():
            number = position.value
            position.value += 1
        if number >= len(groups):
            return
        for config in groups[number]:
            if parent is None or not parent.is_alive():  # nobody is left to read the result
                return
            _run_one(function, config, path)


def summarise(
    table: pd.DataFrame,
    *,
    by: Sequence[str],
    metric: str = "win_rate",
    baseline: str = "erm",
    level: float = 0.95,
) -> pd.DataFrame:
    """Means over seeds with Student's t intervals, and differences from a baseline paired by seed.

    Every seed is another world: the intervals cover worlds, data, models and order. One seed gives
    no interval (NaN).

    Args:
        table: with the columns method, seed, `by` and `metric`.
        by: the columns that make a cell; may be empty.
        metric: the column to take means of.
        baseline: the method that differences are taken from.
        level: of the intervals.

    Returns:
        A row a method and cell: `by`, method, n (seeds), mean, low, high, and, where the cell has
        the baseline, difference, difference_low, difference_high (NaN for the baseline itself).
    """
    rows = []
    for cell, part in _cells(table, by):
        wide = part.pivot(index="seed", columns="method", values=metric)
        for method in part["method"].unique():
            mean = t_interval(wide[method].dropna(), level)
            row = cell | {"method": method, "n": mean.clusters}
            row |= {"mean": mean.value, "low": mean.low, "high": mean.high}
            if baseline in wide and method != baseline:
                paired = (wide[method] - wide[baseline]).dropna()
                row |= t_interval(paired, level).columns("difference")
            rows.append(row)
    return pd.DataFrame(rows)


def summarise_outcomes(
    table: pd.DataFrame, outcomes: Sequence[str], **options: Any
) -> pd.DataFrame:
    """`summarise` of one column after the other, with its name in the column `outcome`."""
    parts = [summarise(table, metric=name, **options).assign(outcome=name) for name in outcomes]
    return pd.concat(parts, ignore_index=True)


def _cells(
    table: pd.DataFrame, by: Sequence[str]
) -> Iterator[tuple[dict[str, object], pd.DataFrame]]:
    """The values of `by` and the rows that have them; without `by`, all rows."""
    if not by:
        yield {}, table
        return
    for values, part in table.groupby(list(by), sort=False, dropna=False):
        yield dict(zip(by, values, strict=True)), part
