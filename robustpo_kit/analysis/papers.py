"""What the papers print: the numbers of their tables and captions, from `data/paper`."""

import csv
import math
from pathlib import Path

import pandas as pd

from robustpo_kit import paths
from robustpo_kit.errors import KitError

FOLDER = paths.DATA / "paper"
PAPERS = ("dora", "gamma_po")
COLUMNS = ["paper", "table", "row", "column", "value"]


def paper_values(paper: str | None = None) -> pd.DataFrame:
    """The printed numbers, one a line; the unit is part of `column`, see data/paper/README.md.

    Args:
        paper: "dora" or "gamma_po"; None for both.

    Returns:
        Columns paper, table ("Table 2", "Figure 4"), row, column (text) and value (float).

    Raises:
        KitError: naming an unknown paper, or the file and its line that is not such a number.
    """
    if paper not in (None, *PAPERS):
        raise KitError(f"paper '{paper}': unknown; choose from {', '.join(PAPERS)}")
    names = [name for name in PAPERS if paper in (None, name)]
    return pd.concat([_read(FOLDER / f"{name}.csv") for name in names], ignore_index=True)


def _read(path: Path) -> pd.DataFrame:
    try:
        lines = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
    except FileNotFoundError:
        raise KitError(f"{paths.show(path)}: no such file; it is in the repository") from None
    for number, cells in enumerate(lines, start=1):
        right = cells == COLUMNS if number == 1 else _is_number(cells, path.stem)
        if not right:
            names = ", ".join(COLUMNS)
            raise KitError(f"{paths.show(path)}, line {number}: {cells}; expected {names}")
    return pd.DataFrame(lines[1:], columns=COLUMNS).astype({"value": float})


def _is_number(cells: list[str], paper: str) -> bool:
    """Whether a line names this paper and a place in it, and ends in a finite number."""
    if len(cells) != len(COLUMNS) or cells[0] != paper or not all(cells):
        return False
    try:
        return math.isfinite(float(cells[-1]))
    except ValueError:
        return False
