"""Figures: `draw` makes a whole one of its table, the others draw a table on an axis.

A module a subject: `style` (colours, names, type, saving), `marks` and `maps` (what is drawn on an
axis), `findings` (the sentences above and below), `in_toy`, `on_text` and `on_gaps` (whole
figures), `catalogue` (their names).
"""

from robustpo_kit.plots.catalogue import FIGURES, draw, read, redraw
from robustpo_kit.plots.findings import contrasts
from robustpo_kit.plots.maps import verdict_map
from robustpo_kit.plots.marks import (
    bars_with_ci,
    clouds,
    composition,
    counts,
    curves,
    gamma_versus_gap,
    lines_with_bands,
    margin_range,
    name_curves,
    reliability,
    scores,
    smoothing,
    violins,
    word_ecdf,
)
from robustpo_kit.plots.on_gaps import PAPERS, SHADES
from robustpo_kit.plots.style import (
    COLOURS,
    GREY,
    GRID,
    MARKERS,
    PALETTE,
    SAVED,
    STYLE,
    canvas,
    colour,
    head,
    label,
    name_lines,
    reference_line,
    save,
    styled,
)

__all__ = [
    "COLOURS",
    "FIGURES",
    "GREY",
    "GRID",
    "MARKERS",
    "PALETTE",
    "PAPERS",
    "SAVED",
    "SHADES",
    "STYLE",
    "bars_with_ci",
    "canvas",
    "clouds",
    "colour",
    "composition",
    "contrasts",
    "counts",
    "curves",
    "draw",
    "gamma_versus_gap",
    "head",
    "label",
    "lines_with_bands",
    "margin_range",
    "name_curves",
    "name_lines",
    "read",
    "redraw",
    "reference_line",
    "reliability",
    "save",
    "scores",
    "smoothing",
    "styled",
    "verdict_map",
    "violins",
    "word_ecdf",
]
