"""Where things live: the project's folders and the cache, whatever the working directory."""

import os
from pathlib import Path

ROOT = Path(os.environ.get("ROBUSTPO_ROOT", Path(__file__).resolve().parent.parent))
NOTEBOOKS = ROOT / "notebooks"
DATA = ROOT / "data"
SYNTHETIC = DATA / "synthetic"
RESULTS = DATA / "results"
STUDIES = DATA / "studies"  # declared before they run
FIGURES = ROOT / "figures"
RUNS = ROOT / "runs"
CACHE = Path(os.environ.get("ROBUSTPO_CACHE", Path.home() / ".cache" / "robustpo-kit"))


def tables(profile: str) -> Path:
    """Folder of the result tables of a run under `profile`; smoke runs stay out of `data/`."""
    if profile == "smoke":
        return RUNS / "smoke" / "tables"
    return RESULTS / profile


def figures(profile: str) -> Path:
    """Folder of the figures of a run under `profile`; smoke runs stay out of `figures/`."""
    if profile == "smoke":
        return RUNS / "smoke" / "figures"
    return FIGURES


def work(profile: str) -> Path:
    """Folder for models, checkpoints and intermediate files of a profile (git-ignored)."""
    return RUNS / profile


def show(path: Path) -> str:
    """`path` relative to the project root, or its name alone: printed paths name no machine."""
    path = Path(path)
    if path.is_relative_to(ROOT):
        return path.relative_to(ROOT).as_posix()
    return path.name
