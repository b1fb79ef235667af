"""Figures of declared studies, finished or not, and of regressions over their seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from robustpo_kit import analysis
from robustpo_kit.plots import findings, marks
from robustpo_kit.plots.style import GREY, GRID, canvas, groups, head, label

MINUS = f" {findings.MINUS} "


def study_contrasts(table: pd.DataFrame) -> Figure:
    """Declared contrasts, a panel a study, of tables of `analysis.declared_contrasts`."""
    count = table.groupby("study", sort=False).size()
    size = (8.4, 1.1 + 0.36 * len(table) + 0.62 * len(count))
    figure, axes = canvas(len(count), 1, figsize=size, height_ratios=count + 1, squeeze=False)
    for ax, (_, study, part) in zip(axes[:, 0], groups(table, "study"), strict=True):
        names = part["method"].map(label) + MINUS + part["baseline"].map(label)
        part = part.assign(name=names + ", " + part["where"], held=_held(part))
        outcomes = ", ".join(dict.fromkeys(part["outcome"].map(label)))
        look: dict[str, Any] = {
            "xlabel": f"difference in {outcomes}",
            "reference": 0.0,
            "solid": "held",
        }
        marks.bars_with_ci(part, ax, **look)
        for place, row in zip(range(len(part))[::-1], part.to_dict("records"), strict=True):
            if row["margin"]:  # None where no study of the table declares one
                ends = [-row["margin"], row["margin"]]
                ax.plot(ends, [place] * 2, color=GRID, lw=9, solid_capstyle="butt", zorder=0)
            if not row["finished"]:
                ax.text(0, place, f" {row['says']} ", va="center", color=GREY, size=8.5)
        ax.set_title(f"{study}, {part['seeds'].iloc[0]} seeds")
    said = []
    for _, study, part in groups(table, "study"):
        shown = f"{_held(part).sum()} of {len(part)}" if part["finished"].all() else "not finished"
        said.append(f"{shown} ({study})")
    finding = f"Of the declared contrasts are shown: {', '.join(said)}"
    note = findings.counted(table["seeds"], "seeds a contrast; 95 % intervals; filled: shown, Holm")
    return head(
        figure, finding, note + " among a study's contrasts; grey bar: margin of equivalence"
    )


def _held(table: pd.DataFrame) -> "pd.Series[bool]":
    """Whether a contrast's sentence shows a difference, or that there is none to speak of."""
    return table["says"].str.startswith(("gains", "loses", "no difference beyond"))


def confidence_slopes_by_seed(table: pd.DataFrame) -> Figure:
    """Slopes of confidence on reward, and their differences: `analysis.slope_table` and x."""
    words = {
        ("reward", False): "slope of confidence on reward",
        ("reward", True): "difference of slopes",
    }
    paper = analysis.paper_values("dora").query("table == 'Figure 4'")["value"]
    return _slopes(table, words, "Slope of confidence on reward", paper.tolist())


def gamma_slopes_by_seed(table: pd.DataFrame) -> Figure:
    """Slopes of the margin on the gap, and margins of flipped pairs: `slope_table` and x."""
    words = {
        ("gap", False): r"slope of $\gamma/\gamma_0$ on the gap (per nat)",
        ("gap", True): "difference of slopes",
        ("flipped", False): r"$\gamma/\gamma_0$ of flipped minus other pairs",
    }
    return _slopes(table, words, "Slope of the margin on the gap")


def _slopes(
    table: pd.DataFrame,
    words: Mapping[tuple[str, bool], str],
    title: str,
    printed: Sequence[float] = (),
) -> Figure:
    """A panel a regressor and side (slopes, or differences), each seed's estimate small."""
    table = table.assign(baseline=table["baseline"].fillna(""))
    table["differs"] = table["baseline"] != ""
    main = pd.concat([analysis.main_estimates(part) for _, part in table.groupby("x", sort=False)])
    panels = [(key, main[(main["x"] == key[0]) & (main["differs"] == key[1])]) for key in words]
    panels = [(key, rows) for key, rows in panels if len(rows)]
    size = (3.6 * len(panels) + 2.2, 1.9 + 0.3 * max(len(rows) for _, rows in panels))
    figure, axes = canvas(1, len(panels), figsize=size, squeeze=False)
    for ax, ((x, differs), rows) in zip(axes[0], panels, strict=True):
        papers = {f"paper, {value:+.3f}": value for value in (printed if differs else ())}
        rows = rows.assign(name=_names(rows), held=findings.held(rows, "value"), **papers)
        look: dict[str, Any] = {"reference": 0.0, "solid": "held", "printed": list(papers)}
        marks.bars_with_ci(rows, ax, value="value", xlabel=words[x, differs], **look)
        ax.locator_params(axis="x", nbins=5)
        ax.ticklabel_format(axis="x", scilimits=(-3, 4))
        keys = ["where", "method", "baseline"]
        places = rows[keys].assign(place=np.arange(len(rows))[::-1])
        seeds = table[(table["x"] == x) & (table["estimate"] == "a seed")].merge(places, on=keys)
        ax.scatter(seeds["value"], seeds["place"] - 0.24, s=9, c=GREY, alpha=0.6, lw=0)
        if papers:
            ax.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=2)
    told = main[main["differs"] & (main["x"] == main["x"].iloc[0])].reset_index(drop=True)
    said = findings.contrasts(_names(told), told, "the baseline", "value")
    many = findings.ranged(main["seeds"], 0)
    note = f"{findings.counted(main['n'], 'rows')} of {many} seed{'s' * (many != '1')}; "
    note += f"estimates: {', '.join(dict.fromkeys(main['estimate']))}, 95 %; filled: holds after "
    note += "Holm in its panel; small: a seed each"
    return head(figure, f"{title}: {said[0].lower()}{said[1:]}", note, table)


def _names(rows: pd.DataFrame) -> "pd.Series[str]":
    """What a row of `slope_table` is called."""
    minus = rows["baseline"].map(lambda name: MINUS + label(name) if name else "")
    return rows["method"].map(label) + minus + ", " + rows["where"]
