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
    found = {"python": platform.python_version(), "robustpo_kit": __version__}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


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
