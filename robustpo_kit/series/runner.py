"""Series: run the numbered notebooks headless, in order of their needs, each in a process of its own.

A notebook is `ok` only when its process ended 0 and its last cell wrote the done file: papermill calls a notebook that
left early by sys.exit(0) a success. Statuses: ok, failed (a cell raised, the kernel died, the time limit passed),
incomplete (ended without its done file), skipped (a notebook that it needs is not ok).
"""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from robustpo_kit import paths, records
from robustpo_kit.errors import KitError
from robustpo_kit.notebook import done_file, kernel_environment
from robustpo_kit.series.execution import kill_tree
from robustpo_kit.series.plan import (
    Plan,
    Result,
    check,
    kept_result,
    needs_of,
    output_path,
    parameters,
    plan_key,
    state_file,
)
from robustpo_kit.series.report import report_run, say

HEARTBEAT_SECONDS = 20


@dataclasses.dataclass
class Child:
    """A notebook that is running."""

    source: Path
    process: subprocess.Popen
    slot: str | None
    key: str
    started: float  # time.monotonic()
    beat: float
    said: str = ""


def run(plan: Plan) -> list[Result]:
    """Run the series; prints as it goes, writes manifest.json and index.md, returns one result a notebook.

    Raises KitError for a plan that cannot be run, before anything is started. On SIGINT or SIGTERM the running
    notebooks are killed with everything that they started, the manifest is written, and KeyboardInterrupt is raised.
    """
    chosen = check(plan)
    results: dict[str, Result] = {}
    running: list[Child] = []
    began, interrupted = time.time(), False
    with _lock(plan), _terminable():
        say(f"profile {plan.profile}, seed {plan.seed}: {len(chosen)} notebooks")
        try:
            _schedule(plan, chosen, results, running)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            for child in running:
                kill_tree(child.process.pid)
                child.process.wait()
                seconds = time.monotonic() - child.started
                results[child.source.name[:2]] = Result(
                    child.source.stem, "failed", "interrupted", seconds=seconds
                )
            for number in [n for n in chosen if n not in results]:
                results[number] = Result(chosen[number].stem, "skipped", "interrupted")
            ordered = [results[number] for number in sorted(results)]
            report_run(plan, ordered, began)
    if interrupted:
        raise KeyboardInterrupt
    return ordered


def _schedule(
    plan: Plan, chosen: dict[str, Path], results: dict[str, Result], running: list[Child]
) -> None:
    """Start what is ready while there are free slots, and watch what runs, until every notebook has a result."""
    waiting = list(chosen)
    while waiting or running:
        for number in list(waiting):
            needs = [need for need in needs_of(number) if need in chosen]
            if any(need not in results for need in needs):
                continue
            free = list(plan.slots)
            for child in running:
                free.remove(child.slot)
            if not free:
                break
            waiting.remove(number)
            bad = [need for need in needs if results[need].status != "ok"]
            if bad:
                reason = f"needs {bad[0]} ({results[bad[0]].status})"
                results[number] = _tell(plan, Result(chosen[number].stem, "skipped", reason))
            elif kept := kept_result(plan, chosen[number], key := plan_key(plan, chosen[number])):
                results[number] = _tell(plan, kept)
            else:
                running.append(_start(plan, chosen[number], key, free[0]))
        time.sleep(0.1)
        for child in list(running):
            result = _watch(plan, child)
            if result is not None:
                running.remove(child)
                results[result.number] = _tell(plan, result)


def _start(plan: Plan, path: Path, key: str, slot: str | None) -> Child:
    """Start the child process of one notebook; whatever an earlier run left for it is removed first."""
    number = path.name[:2]
    log = _log(plan, path)
    progress, failure = log.with_suffix(".progress"), log.with_suffix(".failure")
    done, state, output = (
        done_file(plan.profile, number),
        state_file(plan, number),
        output_path(plan, path),
    )
    for old in (log, progress, failure, done, state, output):
        old.parent.mkdir(parents=True, exist_ok=True)
        old.unlink(missing_ok=True)
    files = {"source": path, "output": output, "log": log, "failure": failure}
    task = {name: str(file) for name, file in files.items()}
    task |= {"parameters": parameters(plan), "runner": os.getpid()}
    task_file = plan.work / "tasks" / f"{number}.json"
    records.write_json(task_file, task)
    environment = os.environ | kernel_environment(plan.profile)
    environment |= {
        "ROBUSTPO_DONE": str(done),
        "ROBUSTPO_PROGRESS_LOG": str(progress),
        "JUPYTER_PREFER_ENV_PATH": "1",
    }
    if plan.profile != "smoke":
        environment["ROBUSTPO_PROGRESS"] = "log"
    if slot is not None:
        environment["CUDA_VISIBLE_DEVICES"] = slot
    with open(log, "ab") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "robustpo_kit.series.execution", str(task_file)],
            cwd=path.parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,  # Ctrl-C reaches the runner alone, which then ends its children in order
        )
    say(f"  {path.stem:<28} started" + (f" on GPU {slot}" if slot is not None else ""))
    now = time.monotonic()
    return Child(path, process, slot, key, started=now, beat=now)


def _watch(plan: Plan, child: Child) -> Result | None:
    """The result of a child that has ended or used up its time; else None, now and then with a line of progress."""
    now, path = time.monotonic(), child.source
    seconds = now - child.started
    code = child.process.poll()
    if code is None and seconds > plan.time_limit:
        kill_tree(child.process.pid)
        child.process.wait()
        return Result(
            path.stem,
            "failed",
            f"time limit of {plan.time_limit:.0f} s",
            seconds=seconds,
            key=child.key,
        )
    if code is None:
        if now - child.beat >= HEARTBEAT_SECONDS:
            child.beat = now
            line = _last_line(_log(plan, path).with_suffix(".progress"))
            say(
                f"  {path.stem:<28} {seconds / 60:4.1f} min  {line if line != child.said else ''}".rstrip()
            )
            child.said = line
        return None
    if code != 0:
        reason = _reason(plan, path, code)
        return Result(path.stem, "failed", reason, seconds=seconds, key=child.key)
    done = done_file(plan.profile, path.name[:2])
    if not done.exists():
        return Result(
            path.stem, "incomplete", "ended without finish()", seconds=seconds, key=child.key
        )
    said = records.read_json(done)
    tables, figures = (
        list(dict.fromkeys(said[kind])) for kind in ("tables", "figures")
    )  # one may be saved twice
    return Result(path.stem, "ok", seconds=seconds, tables=tables, figures=figures, key=child.key)


def _log(plan: Plan, path: Path) -> Path:
    return plan.work / "logs" / f"{path.stem}.log"


def _reason(plan: Plan, path: Path, code: int) -> str:
    log = _log(plan, path)
    said = _last_line(log.with_suffix(".failure")) or (
        f"signal {-code}" if code < 0 else f"exit {code}"
    )
    return f"{said} (log: {paths.show(log)})"


def _last_line(path: Path) -> str:
    """The last non-empty line of a text file, read from its end; empty when there is none."""
    if not path.exists():
        return ""
    with open(path, "rb") as stream:
        stream.seek(max(0, path.stat().st_size - 4096))
        lines = stream.read().decode("utf-8", errors="replace").split("\n")
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM and SIGHUP end the series as Ctrl-C does: children first. Only where signals can be set (main thread)."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {name: signal.signal(getattr(signal, name), stop) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


@contextlib.contextmanager
def _lock(plan: Plan) -> Iterator[None]:
    """One series a profile at a time: two would write the same files. The lock dies with its process."""
    plan.work.mkdir(parents=True, exist_ok=True)
    with open(plan.work / "series.lock", "a") as stream:
        if os.name != "nt":
            import fcntl

            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise KitError(
                    f"series: one is already running under profile {plan.profile}; wait for it"
                ) from None
        yield


def _tell(plan: Plan, result: Result) -> Result:
    """Keep the result for the next run and print its line."""
    if not result.kept and result.status != "skipped":
        records.write_json(state_file(plan, result.number), result)
    time_taken = "kept" if result.kept else f"{result.seconds / 60:4.1f} min"
    counts = (
        f"{len(result.tables)} tables, {len(result.figures)} figures"
        if result.status == "ok"
        else result.reason
    )
    say(f"  {result.name:<28} {result.status:<10} {time_taken:<8}  {counts}")
    return result
