"""Figures: `draw` makes a whole one of its table, the others draw a table on an axis.

A module a subject: `style` (colours, names, type, saving), `marks` and `maps` (what is drawn on an
axis), `findings` (the sentences above and below), `in_toy`, `on_text`, `on_gaps` and
`on_studies` (whole figures), `catalogue` (their names).
"""

from robustpo_kit.plots.catalogue import FIGURES, draw, read, redraw
from robustpo_kit.plots.findings import contrasts
from robustpo_kit.plots.maps import verdict_map
from robustpo_kit.plots.marks import (
    bars_with_ci,
    clouds,
    curves,
    gamma_versus_gap,
    lines_with_bands,
    reliability,
    scores,
)
from robustpo_kit.plots.on_gaps import PAPERS, SHADES
from robustpo_kit.plots.schematics import SCHEMATICS, schematic
from robustpo_kit.plots.style import (
    COLOURS,
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
    "PALETTE",
    "PAPERS",
    "SAVED",
    "SCHEMATICS",
    "SHADES",
    "STYLE",
    "bars_with_ci",
    "canvas",
    "clouds",
    "colour",
    "contrasts",
    "curves",
    "draw",
    "gamma_versus_gap",
    "head",
    "label",
    "lines_with_bands",
    "name_lines",
    "read",
    "redraw",
    "reference_line",
    "reliability",
    "save",
    "schematic",
    "scores",
    "styled",
    "verdict_map",
]
