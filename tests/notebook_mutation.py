"""How many notebooks notice a mutant of the package: what nbval over the series is worth.

`python tests/notebook_mutation.py` makes one of MUTANTS at a time in a scratch copy of the project
and replays every stored notebook there, as `make test` does. Outcomes are appended to
runs/mutation/notebooks.csv, so that a stopped run goes on; when none is left, the table goes to
data/results/engine/notebook_mutation.csv with its provenance. Exit status 1 where one lives.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from mutation import ENVIRONMENT, ROOT

OUTCOMES = ROOT / "runs" / "mutation" / "notebooks.csv"
TABLE = ROOT / "data" / "results" / "engine" / "notebook_mutation.csv"
FAILED = re.compile(r"^(?:FAILED|ERROR) notebooks/(\w+)\.ipynb", re.M)


class Mutant(NamedTuple):
    """A piece of a file of the package, which stands there once, and what takes its place."""

    file: str
    code: str
    mutant: str


MUTANTS = (
    Mutant("robust.py", "exponents = h * losses / lam", "exponents = h * losses * lam"),
    Mutant("losses/listwise.py", "(beta * log_ratios(scores)).gather", "log_ratios(scores).gather"),
    Mutant("losses/pairwise.py", "- 1 / (2 * tau)) ** 2", "- 1 / tau) ** 2"),
    Mutant("margins.py", "return margins - gamma0", "return margins"),
    Mutant("calibration/maps.py", "dtype=float) / self.temp", "dtype=float) * self.temp"),
    Mutant("calibration/factor.py", "mixture = alpha * golden + other", "mixture = golden + other"),
    Mutant("mixture.py", "[: round(share * count)]", "[: round(share * count) // 2]"),
    Mutant("analysis/paired.py", "mean - half, mean + half, float", "mean, mean + half, float"),
    Mutant("measures.py", "((1 + np.sign(difference)) / 2)", "((1 - np.sign(difference)) / 2)"),
    Mutant("toy/truth.py", "self.win + self.tie / 2", "self.win"),
)  # fmt: skip


def whole_copy(folder: Path) -> None:
    """The project in an empty folder, without what was made: notebooks write into the copy."""
    made = shutil.ignore_patterns(".*", "__pycache__", "runs", "build", "dist", "site", "smoke")
    shutil.copytree(ROOT, folder, ignore=made, dirs_exist_ok=True)


def here(folder: Path) -> dict[str, str]:
    """The environment of a process that works in a copy."""
    return os.environ | ENVIRONMENT | {"PYTHONPATH": str(folder), "ROBUSTPO_ROOT": str(folder)}


def noticed_by(folder: Path, mutant: Mutant) -> list[str]:
    """The notebooks whose replay fails in a scratch copy that holds the mutant."""
    source = folder / "robustpo_kit" / mutant.file
    text = source.read_text(encoding="utf-8")
    if text.count(mutant.code) != 1:
        sys.exit(f"{mutant.file}: '{mutant.code}' stands there {text.count(mutant.code)} times")
    source.write_text(text.replace(mutant.code, mutant.mutant), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider"]
    command += ["--nbval", "--nbval-current-env", "--nbval-cell-timeout", "300", "notebooks"]
    replay = subprocess.run(command, cwd=folder, env=here(folder), capture_output=True, text=True)
    source.write_text(text, encoding="utf-8")
    if replay.returncode not in (0, 1):
        sys.exit(replay.stdout[-2000:] + replay.stderr[-2000:])
    return sorted(set(FAILED.findall(replay.stdout)))


def outcomes() -> pd.DataFrame:
    """The mutants tried so far: file, code, mutant, notebooks (their number), noticed, seconds."""
    if not OUTCOMES.exists():
        return pd.DataFrame(columns=[*Mutant._fields, "notebooks", "noticed", "seconds"])
    return pd.read_csv(OUTCOMES, keep_default_na=False)


def main() -> None:
    from robustpo_kit import records

    started, known = time.time(), set(outcomes()["code"])
    OUTCOMES.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole_copy(folder)
        for mutant in (mutant for mutant in MUTANTS if mutant.code not in known):
            began, found = time.time(), noticed_by(folder, mutant)
            row = pd.DataFrame([mutant]).assign(notebooks=len(found), noticed=" ".join(found))
            row["seconds"] = round(time.time() - began)
            row.to_csv(OUTCOMES, mode="a", header=not OUTCOMES.exists(), index=False)
            print(f"{mutant.file}: {mutant.code} -> {mutant.mutant}: {len(found)} notebooks")
    table = outcomes()
    spent = float(table.pop("seconds").sum())
    config = {"command": "python tests/notebook_mutation.py"}
    records.write_table(TABLE, table, records.provenance(config, 0, started - spent))
    print(table.to_string(index=False))
    sys.exit(int((table["notebooks"] == 0).any()))


if __name__ == "__main__":
    main()
