"""The one style of every figure: colours, names, type, what stands around it, how it is saved."""

import textwrap
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar, cast

import matplotlib as mpl
import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from robustpo_kit import records

Drawn = TypeVar("Drawn", Figure, SubFigure)

# Okabe and Ito (2008): distinguishable for every common form of colour vision
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")
MARKERS = "osD^vPX*"  # a place has its marker beside its colour, which never stands alone
GREY = "#555555"
GRID = "#e6e6e6"
LIVE = "#00795a"  # of the badge on a figure of one's own run
COLOURS = {
    "human_correct": "#0072B2", "human_matched": "#0072B2", "golden": "#0072B2", "erm": "#0072B2",
    "human_wrong": "#56B4E9", "human_mismatched": "#56B4E9", "smollm2": "#D55E00",
    "base": "#999999", "sft": "#999999", "dro": "#E69F00", "reweight": "#009E73", "dora": "#D55E00",
}  # fmt: skip
ROWS = ("golden", "base")  # of tables, by their whole name; elsewhere these words say what they say
NAMES = {
    "human_correct": "human, correct", "human_wrong": "human, wrong", "human_matched": "human",
    "human_mismatched": "human, other prompt", "smollm2": "SmolLM2", "golden": "human reply",
    "base": "base model", "sft": "SFT", "erm": "ERM", "dro": "DRO", "reweight": "reweighting",
    "dora": "DoRA", "dpo": "DPO", "simpo": "SimPO", "gamma-dpo": "gamma-DPO",
    "gamma-simpo": "gamma-SimPO", "dpo_pl": "DPO-PL", "rrhf": "RRHF", "lire": "LIRE",
    "win_rate": "win rate", "win_rate_valid": "win rate, if valid", "mass": "valid mass",
    "golden_logp": "log p of golden", "gold": "gold reward", "proxy": "proxy reward",
    "reweight+oracle": "reweighting, true h~", "dora+oracle": "DoRA, true h~",
    "implicit_accuracy": "implicit accuracy", "expected_gold": "expected gold (sds)",
}  # fmt: skip
STYLE: dict[str, Any] = {
    "figure.figsize": (6.4, 4.0),  # nbval compares "<Figure size 576x360 with 1 Axes>": pin it
    "figure.dpi": 90,
    "savefig.dpi": 150,
    "font.family": "DejaVu Sans",  # bundled with matplotlib, so every machine has it
    "font.size": 9, "axes.titlesize": 9.5, "axes.labelsize": 9, "legend.fontsize": 8.5,
    "xtick.labelsize": 8.5, "ytick.labelsize": 8.5,
    "axes.grid": True, "axes.axisbelow": True, "grid.alpha": 0.3, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False,
    "pdf.fonttype": 42,  # letters stay letters, as publishers ask
    "svg.hashsalt": "robustpo-kit",
    "axes.prop_cycle": cycler(color=PALETTE),
}  # fmt: skip
# matplotlib writes its version, address and clock into files; without them a picture has one form.
PLAIN: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
}
SAVED: dict[str, Any] = {"bbox_inches": "tight", "metadata": PLAIN["png"]}  # as a kernel shows it


def styled() -> AbstractContextManager[None]:
    """A context in which matplotlib has the kit's style."""
    return mpl.rc_context(cast(Any, STYLE))  # its stub lists 300 names


def canvas(rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """A figure that arranges itself, and its axes, as of `pyplot.subplots`."""
    return plt.subplots(rows, columns, layout="constrained", **options)


def panels(
    table: pd.DataFrame, column: str, *, rows: bool = False, **options: Any
) -> tuple[Figure, list[tuple[Axes, str, pd.DataFrame]]]:
    """A figure, and of each level of a column an axes, beside the last or below, name and rows."""
    parts = list(groups(table, column))
    shape = (len(parts), 1) if rows else (1, len(parts))
    figure, axes = canvas(*shape, squeeze=False, **options)
    return figure, [(ax, *part[1:]) for ax, part in zip(axes.flat, parts, strict=True)]


def save(figure: Figure, stem: Path, **options: Any) -> None:
    """Write STEM.png for the screen and STEM.pdf for print, each whole or not at all."""
    for ending, metadata in PLAIN.items():
        with records.atomic_write(stem.with_name(f"{stem.name}.{ending}")) as temporary, styled():
            figure.savefig(
                temporary, format=ending, bbox_inches="tight", metadata=metadata, **options
            )


def head(figure: Drawn, finding: str, note: str, table: pd.DataFrame | None = None) -> Drawn:
    """The figure with its finding above it, and n, seeds and what else must be known below it.

    Args:
        figure: to write on.
        finding: a sentence made from the table.
        note: "n = 24 worlds; 95 % intervals".
        table: whose `attrs["origin"]` (a run's profile and seed, or a study's) follows the note,
            and stands as a badge above all where it is live.
    """
    if table is not None and table.attrs.get("origin"):
        note += f"; {table.attrs['origin']}"
    inches = figure.get_figure(root=True).get_figwidth()
    above = textwrap.fill(finding, int(inches * 11.4))
    below = textwrap.fill(note, int(inches * 17.5))
    if table is not None and str(table.attrs.get("origin", "")).startswith("live"):
        box = {"boxstyle": "round,pad=0.25", "fc": LIVE, "ec": "none"}
        figure.text(0.012, 1.01, table.attrs["origin"], va="bottom", color="w", bbox=box)
    figure.suptitle(above, x=0.01, ha="left", size=10, weight="bold")
    figure.supxlabel(below, x=0.01, ha="left", size=8, color=GREY)
    return figure


def colour(name: str, place: int = 0) -> str:
    """The fixed colour of a source or method, else one of the palette by place."""
    return COLOURS.get(name, PALETTE[place % len(PALETTE)])


def label(name: str) -> str:
    """The readable name of a source or method; "LOSS AGGREGATOR" is read word by word."""
    words = (word if word in ROWS else NAMES.get(word, word) for word in name.split())
    return NAMES.get(name) or " ".join(words)


def groups(table: pd.DataFrame, column: str) -> Iterator[tuple[int, str, pd.DataFrame]]:
    """Number, name and rows of each group, in the order of their first rows."""
    for place, (name, part) in enumerate(table.groupby(column, sort=False)):
        yield place, str(name), part


def reference_line(ax: Axes, value: float, *, upright: bool = True) -> None:
    """A dotted line where nothing differs."""
    (ax.axvline if upright else ax.axhline)(value, color=GREY, lw=1, ls=":", zorder=1)


def name_lines(ax: Axes, ends: Mapping[str, tuple[float, float, str]]) -> None:
    """The name of each line at its right end, moved apart where two would touch.

    Args:
        ax: whose limits stand.
        ends: by name, x and y of the last point, and the line's colour.
    """
    box = ax.get_position()
    height = ax.figure.get_figure(root=True).get_figheight() * box.height * 72
    low, high = ax.get_ylim()
    order = sorted(ends, key=lambda name: ends[name][1])
    wished = np.array([(ends[name][1] - low) / (high - low) * height for name in order])
    placed = _apart(wished, 11.5)
    for name, wish, place in zip(order, wished, placed, strict=True):
        x, y, shade = ends[name]
        look: dict[str, Any] = {"color": shade, "va": "center", "size": 8.5}
        offset: dict[str, Any] = {"xytext": (7, place - wish), "textcoords": "offset points"}
        ax.annotate(name, (x, y), **offset, **look, annotation_clip=False)


def _apart(wished: np.ndarray, gap: float) -> np.ndarray:
    """Ascending places at least `gap` apart, near those `wished`: runs that touch are centred."""
    runs = [[place] for place in wished]
    joined = True
    while joined:
        joined = False
        for left in range(len(runs) - 1):
            reach = (len(runs[left]) + len(runs[left + 1])) / 2 * gap
            if np.mean(runs[left + 1]) - np.mean(runs[left]) < reach:
                runs[left : left + 2] = [runs[left] + runs[left + 1]]
                joined = True
                break
    spread = [np.mean(run) + gap * (np.arange(len(run)) - (len(run) - 1) / 2) for run in runs]
    return np.concatenate(spread)
