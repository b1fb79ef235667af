"""What goes where in the two methods: boxes and arrows, drawn of no numbers."""

from typing import Any, NamedTuple

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from robustpo_kit.errors import KitError
from robustpo_kit.plots.style import GREY, PALETTE

WEIGHT = r"$\tilde{h}\,e^{\tilde{h}\ell/\lambda}$"


class Box(NamedTuple):
    """A step of a method."""

    column: int
    row: int
    text: str
    own: bool = False  # what the method adds to a preference loss as it was


class Schematic(NamedTuple):
    """Boxes by name, arrows between them, and the idea in a line."""

    title: str
    boxes: dict[str, Box]
    arrows: tuple[tuple[str, str], ...]


SCHEMATICS = {
    "dora": Schematic(
        "DoRA: weigh a sample by how golden it looks and by how large its loss is",
        {
            "data": Box(0, 0, "a prompt,\nK responses,\nrewards"),
            "classifier": Box(1, 1, "classifier:\nc of each\nresponse", own=True),
            "h": Box(2, 1, r"$\tilde{h}$: how golden" + "\nis the sample?", own=True),
            "policy": Box(1, 0, "policy:\nlog-probs"),
            "loss": Box(2, 0, r"loss $\ell$" + "\nof the sample"),
            "weight": Box(3, 0, "weight in step:\n" + WEIGHT, own=True),
            "step": Box(4, 0, "gradient step"),
        },
        (
            ("data", "classifier"), ("classifier", "h"), ("h", "weight"), ("data", "policy"),
            ("policy", "loss"), ("loss", "weight"), ("weight", "step"),
        ),
    ),
    "gamma_po": Schematic(
        "gamma-PO: ask a clear pair for a larger margin, an ambiguous one for a smaller",
        {
            "data": Box(0, 0, "pairs:\nchosen,\nrejected"),
            "gaps": Box(1, 0, "policy: gap $m_i$\nof each pair"),
            "queue": Box(1, 1, "queue of\npast gaps", own=True),
            "margins": Box(2, 1, "margins $\\gamma_i$:\nmean $\\gamma_0$, near equal", own=True),
            "loss": Box(3, 0, "loss\n" + r"$-\log\sigma(m_i-\gamma_i)$"),
            "step": Box(4, 0, "gradient step"),
        },
        (
            ("data", "gaps"), ("gaps", "queue"), ("queue", "margins"), ("gaps", "margins"),
            ("margins", "loss"), ("gaps", "loss"), ("loss", "step"),
        ),
    ),
}  # fmt: skip


def schematic(name: str) -> Figure:
    """The drawing of "dora" or "gamma_po"; raises KitError for another name."""
    if name not in SCHEMATICS:
        raise KitError(f"schematic: '{name}' is none of {', '.join(SCHEMATICS)}")
    title, boxes, arrows = SCHEMATICS[name]
    figure, axes = plt.subplots(figsize=(7.6, 2.4))
    patches = {}
    for key, box in boxes.items():
        colour = PALETTE[5] if box.own else GREY
        frame: dict[str, Any] = {
            "boxstyle": "round,pad=0.5",
            "facecolor": "white",
            "edgecolor": colour,
        }
        written = axes.text(
            box.column, box.row, box.text, ha="center", va="center", fontsize=8.5, bbox=frame
        )
        patches[key] = written.get_bbox_patch()
    for start, end in arrows:
        ends: dict[str, Any] = {"patchA": patches[start], "patchB": patches[end]}
        style = {"arrowstyle": "-|>", "color": GREY, "shrinkA": 0, "shrinkB": 2} | ends
        axes.annotate("", boxes[end][:2], boxes[start][:2], arrowprops=style)
    axes.set(xlim=(-0.5, 4.5), ylim=(-0.45, 1.4), title=title)
    axes.axis("off")
    return figure
