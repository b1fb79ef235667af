"""Series: run the numbered notebooks headless, in order of their needs, each in its own process.

A notebook is `ok` only when its process ended 0 and its last cell wrote the done file: papermill
calls a notebook that left early by sys.exit(0) a success. Statuses: ok, failed (a cell raised, the
kernel died, the time limit passed), incomplete (ended without its done file), skipped (a notebook
that it needs is not ok).
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
from types import FrameType

from robustpo_kit import paths, records
from robustpo_kit.errors import KitError
from robustpo_kit.kernel import kernel_environment
from robustpo_kit.notebook import done_file, number_of
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
    process: subprocess.Popen[bytes]
    slot: str | None  # of the plan
    key: str
    started: float  # time.monotonic()
    last_beat: float  # time.monotonic() of the last line of progress
    last_progress: str = ""

    @property
    def number(self) -> str:
        """Its `number_of`."""
        return number_of(self.source.name)


def run(plan: Plan) -> list[Result]:
    """Run the series; prints as it goes, writes manifest.json and index.md.

    On SIGINT or SIGTERM the running notebooks are killed with everything that they started, the
    manifest is written, and KeyboardInterrupt is raised.

    Returns:
        One result a notebook, in the order of their numbers.

    Raises:
        KitError: For a plan that cannot be run, before anything is started.
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
                _end(child)
                seconds = time.monotonic() - child.started
                name = child.source.stem
                results[child.number] = Result(name, "failed", "interrupted", seconds=seconds)
            for number, path in chosen.items():
                results.setdefault(number, Result(path.stem, "skipped", "interrupted"))
            ordered = [results[number] for number in sorted(results)]
            report_run(plan, ordered, began)
    if interrupted:
        raise KeyboardInterrupt
    return ordered


def _schedule(
    plan: Plan, chosen: dict[str, Path], results: dict[str, Result], running: list[Child]
) -> None:
    """Start what is ready while slots are free, and watch what runs, until all have a result."""
    waiting = list(chosen)
    while waiting or running:
        for number in list(waiting):
            needs = [need for need in needs_of(number) if need in chosen]
            if any(need not in results for need in needs):
                continue
            free_slots = list(plan.slots)
            for child in running:
                free_slots.remove(child.slot)
            if not free_slots:
                break
            waiting.remove(number)
            started = _result_or_child(plan, chosen[number], needs, results, free_slots[0])
            if isinstance(started, Child):
                running.append(started)
            else:
                results[number] = _tell(plan, started)
        time.sleep(0.1)
        for child in list(running):
            result = _watch(plan, child)
            if result is not None:
                running.remove(child)
                results[result.number] = _tell(plan, result)


def _result_or_child(
    plan: Plan, path: Path, needs: list[str], results: dict[str, Result], slot: str | None
) -> Result | Child:
    """A notebook whose needs have run: skipped, kept from an earlier run, or started."""
    for need in needs:
        if results[need].status != "ok":
            return Result(path.stem, "skipped", f"needs {need} ({results[need].status})")
    key = plan_key(plan, path)
    return kept_result(plan, path, key) or _start(plan, path, key, slot)


def _start(plan: Plan, path: Path, key: str, slot: str | None) -> Child:
    """Start the child process of one notebook; what an earlier run left for it is removed first."""
    number, log = number_of(path.name), _log(plan, path)
    output, failure = output_path(plan, path), log.with_suffix(".failure")
    environment = _environment(plan, path, slot)
    leftovers = [log, failure, output, state_file(plan, number)]
    leftovers += [Path(environment[name]) for name in ("ROBUSTPO_DONE", "ROBUSTPO_PROGRESS_LOG")]
    for file in leftovers:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
    task_file = plan.work / "tasks" / f"{number}.json"
    task = {
        "source": str(path),
        "output": str(output),
        "log": str(log),
        "failure": str(failure),
        "parameters": parameters(plan),
        "runner": os.getpid(),
    }
    records.write_json(task_file, task)
    with open(log, "ab") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "robustpo_kit.series.execution", str(task_file)],
            cwd=path.parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,  # Ctrl-C reaches the runner alone, and it ends its children
        )
    where = "" if slot is None else f" on GPU {slot}"
    say(f"  {path.stem:<28} started{where}")
    now = time.monotonic()
    return Child(path, process, slot, key, started=now, last_beat=now)


def _environment(plan: Plan, path: Path, slot: str | None) -> dict[str, str]:
    """Variables of the child process of one notebook."""
    environment = os.environ | kernel_environment(plan.profile)
    environment |= {
        "ROBUSTPO_DONE": str(done_file(plan.work, number_of(path.name))),
        "ROBUSTPO_PROGRESS_LOG": str(_log(plan, path).with_suffix(".progress")),
        "JUPYTER_PREFER_ENV_PATH": "1",
    }
    if plan.profile != "smoke":
        environment["ROBUSTPO_PROGRESS"] = "log"
    if slot is not None:
        environment["CUDA_VISIBLE_DEVICES"] = slot
    return environment


def _watch(plan: Plan, child: Child) -> Result | None:
    """The result of a child that has ended or used up its time; else None, and its progress."""
    seconds = time.monotonic() - child.started
    code = child.process.poll()
    if code is not None:
        result = _ended(plan, child, code)
    elif seconds > plan.time_limit:
        _end(child)
        reason = f"time limit of {plan.time_limit:.0f} s"
        result = Result(child.source.stem, "failed", reason)
    else:
        _show_progress(plan, child)
        return None
    return dataclasses.replace(result, seconds=seconds, key=child.key)


def _ended(plan: Plan, child: Child, code: int) -> Result:
    """What became of a child that ended by itself with exit code `code`."""
    name = child.source.stem
    if code != 0:
        return Result(name, "failed", _reason(plan, child.source, code))
    done = done_file(plan.work, child.number)
    if not done.exists():
        return Result(name, "incomplete", "ended without finish()")
    outcome = records.read_json(done)
    tables = list(dict.fromkeys(outcome["tables"]))  # one may be saved twice
    figures = list(dict.fromkeys(outcome["figures"]))
    return Result(name, "ok", tables=tables, figures=figures)


def _end(child: Child) -> None:
    kill_tree(child.process.pid)
    child.process.wait()


def _show_progress(plan: Plan, child: Child) -> None:
    """Now and then a line: the notebook, its minutes, and its newest progress if there is any."""
    now = time.monotonic()
    if now - child.last_beat < HEARTBEAT_SECONDS:
        return
    child.last_beat = now
    minutes = (now - child.started) / 60
    line = _last_line(_log(plan, child.source).with_suffix(".progress"))
    news = "" if line == child.last_progress else line
    say(f"  {child.source.stem:<28} {minutes:4.1f} min  {news}".rstrip())
    child.last_progress = line


def _log(plan: Plan, path: Path) -> Path:
    return plan.work / "logs" / f"{path.stem}.log"


def _reason(plan: Plan, path: Path, code: int) -> str:
    """Why a notebook's process failed: its own words, else how it ended."""
    log = _log(plan, path)
    reason = _last_line(log.with_suffix(".failure"))
    if not reason:
        reason = f"signal {-code}" if code < 0 else f"exit {code}"
    return f"{reason} (log: {paths.show(log)})"


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
    """SIGTERM and SIGHUP end the series as Ctrl-C does: children first.

    Only in the main thread, since no other may set signals.
    """

    def stop(_number: int, _frame: FrameType | None) -> None:
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
    """One series a profile at a time: two would share what steps keep. It dies with its process."""
    shared = paths.work(plan.profile)
    shared.mkdir(parents=True, exist_ok=True)
    with open(shared / "series.lock", "a") as stream:
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
    note = result.reason
    if result.status == "ok":
        note = f"{len(result.tables)} tables, {len(result.figures)} figures"
    say(f"  {result.name:<28} {result.status:<10} {time_taken:<8}  {note}")
    return result
