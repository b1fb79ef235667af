"""Records: every result carries its config, seed, versions, device and duration; nothing is left half-written."""

import contextlib
import dataclasses
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from robustpo_kit import __version__, paths

PACKAGES = ("torch", "transformers", "peft", "accelerate", "numpy", "scikit-learn", "statsmodels")


class KitError(Exception):
    """An error for the user: one line that says what is wrong, where, and what to do."""


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it on success, remove it on failure."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` by rename."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON by rename; dataclasses become objects."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, default=_plain) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; raises KitError that names the file when it is missing or not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise KitError(f"{paths.show(path)}: no such file") from None
    except json.JSONDecodeError as error:
        raise KitError(f"{paths.show(path)}: not JSON (line {error.lineno}: {error.msg})") from None


def _plain(value: Any) -> Any:
    """Numbers of numpy and torch, and paths, as JSON knows them."""
    if isinstance(value, Path):
        return paths.show(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    if dataclasses.is_dataclass(value):
        return dataclasses.asdict(value)
    raise TypeError(f"not JSON: {type(value).__name__}")


def versions() -> dict[str, str]:
    """Versions of Python, of the kit and of the packages that decide a result."""
    found = {"python": platform.python_version(), "robustpo_kit": __version__}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def device_name() -> str:
    """The device that computes, in words: the GPU's name, or the CPU with its threads."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    return f"cpu ({platform.machine()}, {torch.get_num_threads()} threads)"


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def git_revision() -> str | None:
    """The commit of the project's checkout, or None outside one."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=paths.ROOT, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def provenance(config: Any, seed: int, started: float) -> dict[str, Any]:
    """What a result file carries: config, seed, versions, device, seconds since `started` (time.time())."""
    if dataclasses.is_dataclass(config):
        config = dataclasses.asdict(config)
    return {
        "config": config,
        "seed": seed,
        "versions": versions(),
        "device": device_name(),
        "duration_s": round(time.time() - started, 2),
        "revision": git_revision(),
    }


@dataclasses.dataclass
class RunRecord:
    """The record of one training run; `history` holds one flat row an optimizer step."""

    objective: str
    config: dict[str, Any]
    seed: int
    versions: dict[str, str]
    device: str
    duration_s: float
    metrics: dict[str, Any]
    history: list[dict[str, Any]]

    def to_json(self, path: Path) -> None:
        """Write the record to `path`."""
        write_json(path, self)

    @classmethod
    def from_json(cls, path: Path) -> "RunRecord":
        """Read a record; raises KitError naming the file and the field that is missing."""
        value = read_json(path)
        names = [field.name for field in dataclasses.fields(cls)]
        missing = [name for name in names if name not in value]
        if missing:
            raise KitError(f"{paths.show(path)}: field '{missing[0]}' is missing; not a run record")
        return cls(**{name: value[name] for name in names})


def write_table(path: Path, table: Any, record: dict[str, Any]) -> None:
    """Write a DataFrame as CSV and its provenance as JSON beside it (NAME.csv, NAME.json)."""
    path = Path(path)
    with atomic_write(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")
    write_json(path.with_suffix(".json"), record)


def progress(items: Iterable, desc: str, total: int | None = None) -> Iterator:
    """Iterate with progress a person can read; ROBUSTPO_PROGRESS = bar | log | off (default: bar on a terminal).

    `log` writes at most one line a second to the file ROBUSTPO_PROGRESS_LOG (else stderr).
    """
    mode = os.environ.get("ROBUSTPO_PROGRESS") or ("bar" if sys.stderr.isatty() else "off")
    total = total if total is not None else (len(items) if hasattr(items, "__len__") else None)
    if mode == "bar":
        from tqdm.auto import tqdm

        yield from tqdm(items, desc=desc, total=total, leave=False)
        return
    last = started = time.monotonic()
    for count, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if mode == "log" and (now - last >= 1 or count == total):
            last = now
            _log(f"{desc}: {count}/{total if total is not None else '?'} in {now - started:.0f} s")


def _log(line: str) -> None:
    target = os.environ.get("ROBUSTPO_PROGRESS_LOG")
    if target:
        with open(target, "a", encoding="utf-8") as stream:
            stream.write(line + "\n")
    else:
        print(line, file=sys.stderr)
