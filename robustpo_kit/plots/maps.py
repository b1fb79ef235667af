"""The map of a study: where each method wins, ties and loses."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.patches import Rectangle

from robustpo_kit.plots.findings import signed
from robustpo_kit.plots.style import GRID, label

VERDICTS = {"win": "#7fb8d8", "tie": "#d9d9d9", "lose": "#f2b880", "open": "#ffffff"}
SIGNS = {"win": "\N{BLACK UP-POINTING TRIANGLE}", "lose": "\N{BLACK DOWN-POINTING TRIANGLE}"}
SIGNS |= {"tie": "=", "open": ""}


def verdict_map(table: pd.DataFrame, ax: Axes, *, xlabel: str, legend: bool = True) -> Axes:
    """Where each method wins, ties and loses: a row a method and baseline, a column a dose.

    Numbers are differences; colour and sign say what their intervals show, and white that they show
    none.

    Args:
        table: of `analysis.cell_table`, one outcome.
        ax: where to draw.
        xlabel: what a dose is.
        legend: whether colours are named.
    """
    minus = "\N{MINUS SIGN}"
    pairs = table["method"].map(label) + f" {minus} " + table["baseline"].map(label)
    texts = (table["difference"].map(signed) + " " + table["verdict"].map(SIGNS)).str.strip()
    codes = table["verdict"].map({name: place for place, name in enumerate(VERDICTS)})
    drawn = pd.DataFrame({"pair": pairs, "dose": table["dose"], "text": texts, "code": codes})
    wide = drawn.pivot(index="pair", columns="dose").loc[list(dict.fromkeys(pairs))]
    sns.heatmap(
        wide["code"],
        annot=wide["text"].fillna(""),
        fmt="",
        cmap=ListedColormap(list(VERDICTS.values())),
        vmin=-0.5,
        vmax=3.5,
        cbar=False,
        linewidths=0.5,
        linecolor=GRID,
        annot_kws={"color": "#222222", "size": 8},
        ax=ax,
    )
    for text in ax.texts:
        text.set_fontweight(
            "bold" if text.get_text()[-1] in SIGNS["win"] + SIGNS["lose"] else "normal"
        )
    ax.set_xticks(np.arange(wide["code"].shape[1]) + 0.5, [f"{d:g}" for d in wide["code"].columns])
    ax.set(xlabel=xlabel, ylabel="")
    ax.tick_params(length=0, labelrotation=0)
    if legend:
        boxes = [Rectangle((0, 0), 1, 1, fc=c, ec=GRID) for c in VERDICTS.values()]
        names = [f"{name} {SIGNS[name]}".strip() for name in VERDICTS]
        ax.legend(boxes, names, loc="upper left", bbox_to_anchor=(1.02, 1.0))
    return ax
