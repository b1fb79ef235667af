"""Where a result comes from: config, seed, versions, device, duration, revision."""

import contextlib
import dataclasses
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from robustpo_kit import __version__, paths
from robustpo_kit.errors import KitError
from robustpo_kit.records.files import atomic_write, read_json, write_json
from robustpo_kit.records.machine import device_name

PACKAGES = ("torch", "transformers", "peft", "accelerate", "numpy", "scikit-learn", "statsmodels")


def versions() -> dict[str, str]:
    """Versions of Python, of the kit and of the packages that decide a result."""
    by_name = {"python": platform.python_version(), "robustpo_kit": __version__}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            by_name[name] = metadata.version(name)
    return by_name


def git_revision() -> str | None:
    """The commit of the project's checkout, or None outside one."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=paths.ROOT,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode != 0:
        return None
    return done.stdout.strip() or None


def provenance(config: Any, seed: int, started: float) -> dict[str, Any]:
    """What a result file carries about its origin.

    Args:
        config: A dataclass, or a dict that JSON knows.
        seed: The seed of the run.
        started: time.time() at its start, for the duration in seconds.

    Returns:
        config, seed, versions, device, duration_s and revision (of git; None outside a checkout).
    """
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        config = dataclasses.asdict(config)
    return {
        "config": config,
        "seed": seed,
        "versions": versions(),
        "device": device_name(),
        "duration_s": round(time.time() - started, 2),
        "revision": git_revision(),
    }


def is_provenance(path: Path, *, of: Path) -> bool:
    """Whether `path` holds what `write_origin` writes of the file `of`."""
    try:
        found = read_json(path)
    except (KitError, OSError, UnicodeDecodeError):
        return False
    return isinstance(found, dict) and found.get("file") == Path(of).name


def write_origin(file: Path, record: dict[str, Any], beside: Path | None = None) -> None:
    """Write the provenance of `file` to `beside` (default: NAME.json); it names the file."""
    file = Path(file)
    write_json(beside or file.with_suffix(".json"), record | {"file": file.name})


def write_table(path: Path, table: Any, record: dict[str, Any]) -> None:
    """Write a DataFrame as CSV and its provenance as JSON beside it (NAME.csv, NAME.json)."""
    path = Path(path)
    with atomic_write(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")
    write_origin(path, record)
