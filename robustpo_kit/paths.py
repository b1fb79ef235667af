"""Where things live: the project's folders and the cache, whatever the working directory."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(os.environ.get("ROBUSTPO_ROOT", Path(__file__).resolve().parent.parent))
NOTEBOOKS = ROOT / "notebooks"
DATA = ROOT / "data"
SYNTHETIC = DATA / "synthetic"
RESULTS = DATA / "results"
STUDIES = DATA / "studies"  # declared before they run
FIGURES = ROOT / "figures"
RUNS = ROOT / "runs"
SCRATCH = ("smoke", "demo")  # profiles that are looked at, and never published
CACHE = Path(os.environ.get("ROBUSTPO_CACHE", Path.home() / ".cache" / "robustpo-kit"))


def run_name(seed: int, overrides: Mapping[str, Any]) -> str:
    """The folder of a run's results among those of its profile, so that none replaces another's.

    Empty for seed 0 without overrides, the run of record; else seedN, or seedN-DIGEST of what is
    set in place of the profile's settings.
    """
    if not overrides:
        return f"seed{seed}" if seed else ""
    text = json.dumps(dict(overrides), sort_keys=True)
    return f"seed{seed}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def tables(profile: str, run: str = "") -> Path:
    """Folder of the tables of a run (`run_name`) under `profile`; of SCRATCH in runs/."""
    if profile in SCRATCH:
        return RUNS / profile / "tables" / run
    return RESULTS / profile / run


def figures(profile: str, run: str = "") -> Path:
    """Folder of the figures of a run (`run_name`); of SCRATCH in runs/."""
    if profile in SCRATCH:
        return RUNS / profile / "figures" / run
    return FIGURES / profile / run if run else FIGURES


def work(profile: str, run: str = "") -> Path:
    """Folder for models, checkpoints and intermediate files of a profile or run (git-ignored)."""
    return RUNS / profile / run


def show(path: Path) -> str:
    """`path` relative to the project root, or its name alone: printed paths name no machine."""
    path = Path(path)
    if path.is_relative_to(ROOT):
        return path.relative_to(ROOT).as_posix()
    return path.name
