"""Series: run the numbered notebooks headless, in order of their needs, each in a process of its own.

A notebook is `ok` only when its process ended 0 and its last cell wrote the done file: papermill calls a notebook that
left early by sys.exit(0) a success. Statuses: ok, failed (a cell raised, the kernel died, the time limit passed),
incomplete (ended without its done file), skipped (a notebook that it needs is not ok).
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from robustpo_kit import paths, profiles, records
from robustpo_kit.execution import kill_tree
from robustpo_kit.freshness import file_hash, source_key
from robustpo_kit.notebook import done_file, kernel_environment
from robustpo_kit.records import KitError

# What each notebook reads that another one writes.
NEEDS: dict[str, tuple[str, ...]] = {
    "00": (),
    "01": (),
    "02": ("01",),
    "03": ("01",),
    "04": ("02", "03"),
    "05": ("04",),
    "06": ("03", "04"),  # 04 trains the SFT policy that gamma-PO starts from
    "07": ("06",),
}
HEARTBEAT_SECONDS = 20


@dataclasses.dataclass(frozen=True)
class Plan:
    """One invocation of the runner."""

    profile: str
    seed: int = 0
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)  # settings of the profile
    parameters: dict[str, Any] = dataclasses.field(default_factory=dict)  # further notebook parameters
    only: tuple[str, ...] = ()  # numbers; empty = all
    resume: bool = False  # keep notebooks that are ok and whose inputs have not changed
    time_limit: float = 3600.0  # seconds a notebook
    slots: tuple[str | None, ...] = (None,)  # one notebook at a time a slot; a slot names its CUDA_VISIBLE_DEVICES
    notebooks: Path = dataclasses.field(default_factory=lambda: paths.NOTEBOOKS)

    @property
    def work(self) -> Path:
        """Folder of this profile's runs."""
        return paths.work(self.profile)


@dataclasses.dataclass
class Result:
    """What became of one notebook."""

    name: str
    status: str  # ok | failed | incomplete | skipped
    reason: str = ""
    kept: bool = False  # ok from an earlier run, not executed again
    seconds: float = 0.0
    tables: list[str] = dataclasses.field(default_factory=list)
    figures: list[str] = dataclasses.field(default_factory=list)
    key: str = ""

    @property
    def number(self) -> str:
        """The two digits that order the series."""
        return self.name[:2]


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


# ---------------------------------------------------------------- what there is to run


def sources(folder: Path) -> dict[str, Path]:
    """Number -> notebook file; raises KitError where there is none, or one whose needs are not declared."""
    found = {path.name[:2]: path for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}
    if not found:
        raise KitError(f"{paths.show(folder)}: no notebook named NN_name.ipynb")
    undeclared = sorted(set(found) - set(NEEDS))
    if undeclared:
        raise KitError(f"{found[undeclared[0]].name}: its needs are not declared; add it to NEEDS in series.py")
    return found


def in_order(numbers: list[str]) -> list[str]:
    """`numbers` with every notebook after those it needs, otherwise ascending."""
    done: list[str] = []
    waiting = sorted(numbers)
    while waiting:
        ready = next((n for n in waiting if not set(NEEDS[n]) & set(waiting)), None)
        if ready is None:
            raise KitError(
                f"series: notebooks {', '.join(waiting)} need each other in a circle; see NEEDS in series.py"
            )
        waiting.remove(ready)
        done.append(ready)
    return done


def check(plan: Plan) -> dict[str, Path]:
    """The notebooks that `plan` runs, in order; raises KitError for anything that it names and does not exist."""
    profiles.get(plan.profile, plan.overrides)
    known = sources(plan.notebooks)
    for number in plan.only:
        if number not in known:
            raise KitError(f"--only: there is no notebook {number}; choose among {', '.join(known)}")
    chosen = {number: known[number] for number in in_order(list(known)) if not plan.only or number in plan.only}
    for path in chosen.values():
        _check_parameters(path, plan)
    for number in chosen if plan.only else ():
        missing = [need for need in NEEDS[number] if need not in chosen and not _was_ok(plan, need)]
        if missing:
            numbers = ",".join(sorted({*plan.only, *missing}))
            raise KitError(
                f"--only: {number} needs {', '.join(missing)}, which has not run under profile {plan.profile}; "
                f"run --only {numbers}, or the whole series"
            )
    return chosen


def _check_parameters(path: Path, plan: Plan) -> None:
    """papermill only warns of an unknown parameter, and the run would silently use the default."""
    from papermill import inspect_notebook

    known = inspect_notebook(path)
    for name in parameters(plan):
        if name not in known:
            raise KitError(f"{path.name}: parameter '{name}' is unknown; it has {', '.join(known) or 'none'}")


def parameters(plan: Plan) -> dict[str, Any]:
    """What papermill injects into every notebook; raises KitError for a value that JSON cannot carry."""
    for name in ("profile", "seed", "overrides"):
        if name in plan.parameters:
            raise KitError(f"-P {name}: use --profile, --seed or --set instead")
    values = {"profile": plan.profile, "seed": plan.seed, "overrides": plan.overrides} | plan.parameters
    try:
        return json.loads(json.dumps(values))
    except TypeError as error:
        raise KitError(f"parameters: {error}") from None


# ---------------------------------------------------------------- what happened before


def _key(plan: Plan, path: Path) -> str:
    """`source_key` and the states of the notebooks before: when one of those ran again, this one must too."""
    before = [_state_file(plan, need) for need in NEEDS[path.name[:2]]]
    parts = [source_key(path, parameters(plan), plan.profile)]
    parts += [file_hash(state) if state.exists() else "" for state in before]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _state_file(plan: Plan, number: str) -> Path:
    return plan.work / "state" / f"{number}.json"


def _was_ok(plan: Plan, number: str) -> bool:
    state = _state_file(plan, number)
    return state.exists() and records.read_json(state)["status"] == "ok" and done_file(plan.profile, number).exists()


def _kept(plan: Plan, path: Path, key: str) -> Result | None:
    """The earlier result of a notebook, if it was ok, nothing that decides it has changed and its files are there."""
    number = path.name[:2]
    if not plan.resume or not _was_ok(plan, number):
        return None
    result = Result(**records.read_json(_state_file(plan, number)))
    files = [paths.ROOT / name for name in result.tables + result.figures]
    if result.key != key or not all(file.exists() for file in [*files, _output(plan, path)]):
        return None
    return dataclasses.replace(result, kept=True)


def _output(plan: Plan, path: Path) -> Path:
    return plan.work / "notebooks" / path.name


# ---------------------------------------------------------------- running


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
        _say(f"profile {plan.profile}, seed {plan.seed}: {len(chosen)} notebooks")
        try:
            _schedule(plan, chosen, results, running)
        except KeyboardInterrupt:
            interrupted = True
        finally:
            for child in running:
                kill_tree(child.process.pid)
                child.process.wait()
                seconds = time.monotonic() - child.started
                results[child.source.name[:2]] = Result(child.source.stem, "failed", "interrupted", seconds=seconds)
            for number in [n for n in chosen if n not in results]:
                results[number] = Result(chosen[number].stem, "skipped", "interrupted")
            ordered = [results[number] for number in sorted(results)]
            _report(plan, ordered, began)
    if interrupted:
        raise KeyboardInterrupt
    return ordered


def _schedule(plan: Plan, chosen: dict[str, Path], results: dict[str, Result], running: list[Child]) -> None:
    """Start what is ready while there are free slots, and watch what runs, until every notebook has a result."""
    waiting = list(chosen)
    while waiting or running:
        for number in list(waiting):
            needs = [need for need in NEEDS[number] if need in chosen]
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
            elif kept := _kept(plan, chosen[number], key := _key(plan, chosen[number])):
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
    done, state, output = done_file(plan.profile, number), _state_file(plan, number), _output(plan, path)
    for old in (log, progress, failure, done, state, output):
        old.parent.mkdir(parents=True, exist_ok=True)
        old.unlink(missing_ok=True)
    files = {"source": path, "output": output, "log": log, "failure": failure}
    task = {name: str(file) for name, file in files.items()}
    task |= {"parameters": parameters(plan), "runner": os.getpid()}
    task_file = plan.work / "tasks" / f"{number}.json"
    records.write_json(task_file, task)
    environment = os.environ | kernel_environment(plan.profile)
    environment |= {"ROBUSTPO_DONE": str(done), "ROBUSTPO_PROGRESS_LOG": str(progress), "JUPYTER_PREFER_ENV_PATH": "1"}
    if plan.profile != "smoke":
        environment["ROBUSTPO_PROGRESS"] = "log"
    if slot is not None:
        environment["CUDA_VISIBLE_DEVICES"] = slot
    with open(log, "ab") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "robustpo_kit.execution", str(task_file)],
            cwd=path.parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,  # Ctrl-C reaches the runner alone, which then ends its children in order
        )
    _say(f"  {path.stem:<28} started" + (f" on GPU {slot}" if slot is not None else ""))
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
        return Result(path.stem, "failed", f"time limit of {plan.time_limit:.0f} s", seconds=seconds, key=child.key)
    if code is None:
        if now - child.beat >= HEARTBEAT_SECONDS:
            child.beat = now
            line = _last_line(_log(plan, path).with_suffix(".progress"))
            _say(f"  {path.stem:<28} {seconds / 60:4.1f} min  {line if line != child.said else ''}".rstrip())
            child.said = line
        return None
    if code != 0:
        reason = _reason(plan, path, code)
        return Result(path.stem, "failed", reason, seconds=seconds, key=child.key)
    done = done_file(plan.profile, path.name[:2])
    if not done.exists():
        return Result(path.stem, "incomplete", "ended without finish()", seconds=seconds, key=child.key)
    said = records.read_json(done)
    tables, figures = (list(dict.fromkeys(said[kind])) for kind in ("tables", "figures"))  # one may be saved twice
    return Result(path.stem, "ok", seconds=seconds, tables=tables, figures=figures, key=child.key)


def _log(plan: Plan, path: Path) -> Path:
    return plan.work / "logs" / f"{path.stem}.log"


def _reason(plan: Plan, path: Path, code: int) -> str:
    log = _log(plan, path)
    said = _last_line(log.with_suffix(".failure")) or (f"signal {-code}" if code < 0 else f"exit {code}")
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
                raise KitError(f"series: one is already running under profile {plan.profile}; wait for it") from None
        yield


# ---------------------------------------------------------------- telling


def _say(line: str) -> None:
    print(line, flush=True)


def _tell(plan: Plan, result: Result) -> Result:
    """Keep the result for the next run and print its line."""
    if not result.kept and result.status != "skipped":
        records.write_json(_state_file(plan, result.number), result)
    time_taken = "kept" if result.kept else f"{result.seconds / 60:4.1f} min"
    counts = f"{len(result.tables)} tables, {len(result.figures)} figures" if result.status == "ok" else result.reason
    _say(f"  {result.name:<28} {result.status:<10} {time_taken:<8}  {counts}")
    return result


def _report(plan: Plan, results: list[Result], began: float) -> None:
    """Write manifest.json and index.md of this run and print where they are."""
    manifest = records.provenance(profiles.get(plan.profile, plan.overrides), plan.seed, began)
    manifest |= {"schema": 1, "profile": plan.profile, "parameters": parameters(plan), "began": began}
    manifest["notebooks"] = [dataclasses.asdict(result) for result in results]
    records.write_json(plan.work / "manifest.json", manifest)
    records.write_text(plan.work / "index.md", index(plan, results))
    counts = {status: sum(r.status == status for r in results) for status in ("ok", "failed", "incomplete", "skipped")}
    said = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    minutes = (time.time() - began) / 60
    _say(f"{said}; {minutes:.1f} min; {paths.show(plan.work / 'index.md')} says what ran")


def index(plan: Plan, results: list[Result]) -> str:
    """The index of a run as Markdown: a table of notebooks, then the tables and figures of each."""
    lines = [
        f"# Series under profile {plan.profile}, seed {plan.seed}",
        "",
        "| notebook | status | minutes | tables | figures | note |",
        "|---|---|---|---|---|---|",
    ]
    for r in results:
        note = "kept from an earlier run" if r.kept else r.reason.replace("|", "\\|")
        counts = f"{len(r.tables)} | {len(r.figures)}"
        lines.append(f"| {r.name} | {r.status} | {r.seconds / 60:.1f} | {counts} | {note} |")
    for r in results:
        if r.tables or r.figures:
            lines += ["", f"## {r.name}", "", *(f"- `{name}`" for name in r.tables + r.figures)]
    return "\n".join(lines) + "\n"


def publish(profile: str) -> list[str]:
    """Copy the tables and figures of a finished series, provenance included, to where they are committed.

    Tables of profile gpu already lie in their committed folder. Raises KitError unless every notebook was ok.
    """
    manifest = records.read_json(paths.work(profile) / "manifest.json")
    bad = [entry["name"] for entry in manifest["notebooks"] if entry["status"] != "ok"]
    missing = set(sources(paths.NOTEBOOKS)) - {entry["name"][:2] for entry in manifest["notebooks"]}
    if bad or missing:
        raise KitError(f"publish: not every notebook was ok under {profile} ({', '.join(bad or sorted(missing))})")
    if profile == "smoke":
        raise KitError("publish: smoke results come from random models; publish those of profile cpu or gpu")
    copied = []
    for kind, folder in (("tables", paths.RESULTS / "reference"), ("figures", paths.FIGURES / "reference")):
        if kind == "tables" and profile == "gpu":
            continue
        folder.mkdir(parents=True, exist_ok=True)
        for name in dict.fromkeys(name for entry in manifest["notebooks"] for name in entry[kind]):
            source = paths.ROOT / name
            for file in sorted(source.parent.glob(f"{source.stem}.*")):
                with records.atomic_write(folder / file.name) as temporary:
                    shutil.copyfile(file, temporary)
                copied.append(paths.show(folder / file.name))
    return copied
