"""The toy world trained while the reader waits: what is wrong with the data, and which method."""

from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from robustpo_kit import notebook, plots
from robustpo_kit.toy.data import DataConfig
from robustpo_kit.toy.runs import Run, run
from robustpo_kit.toy.setting import Setting
from robustpo_kit.toy.study import METHODS

MEASURES = {"gold": "gold reward (sds)", "win_rate": "win rate", "mass": "valid mass"}


def train_toy(
    method: str = "dora", *, contamination: float = 0.4, flips: float = 0.0, seed: int = 0
) -> pd.DataFrame:
    """SFT, ERM and a method in one world, exactly measured on held-out prompts.

    Args:
        method: of `toy.study.METHODS`.
        contamination: share of rows whose golden slot holds a synthetic reply.
        flips: share of rows whose ranking is turned upside down.
        seed: of the world, its data and the training.

    Returns:
        A row a policy: policy, and MEASURES.
    """
    data = DataConfig(contamination=contamination, label_noise=flips)
    setting = Setting(seed=seed, data=data)
    rows: list[dict[str, object]] = []
    for name in dict.fromkeys(("erm", method)):
        found = run(Run(METHODS[name], setting=setting))
        if not rows:
            rows.append({"policy": "sft"} | {key: found[f"sft_{key}"] for key in MEASURES})
        rows.append({"policy": name} | {key: found[key] for key in MEASURES})
    return pd.DataFrame(rows)


def picture(table: pd.DataFrame, what: str) -> Figure:
    """A panel a measure, a bar a policy, of `train_toy`'s table; `what` says of which world."""
    figure, axes = plots.canvas(1, len(MEASURES), figsize=(8, 2.9))
    bars = table.assign(policy=table["policy"].map(plots.label))
    palette = {plots.label(name): plots.colour(name) for name in table["policy"]}
    for ax, (name, words) in zip(axes, MEASURES.items(), strict=True):
        sns.barplot(bars, x="policy", y=name, hue="policy", palette=palette, legend=False, ax=ax)
        for bar in ax.containers:
            ax.bar_label(bar, fmt="%.2f", size=8)
        ax.set(xlabel="", ylabel=words)
        ax.margins(y=0.15)
    last = table.iloc[-1]
    change = last["gold"] - table.loc[table["policy"] == "erm", "gold"].iloc[0]
    finding = f"{plots.label(last['policy'])} minus ERM in gold, this one world: {change:+.2f}"
    plots.head(figure, finding, f"n = 1 world, which proves nothing; {what}")
    return figure


def toy_live(table: pd.DataFrame, **settings: Any) -> Any:
    """Controls that train anew where a person looks, else the picture of a finished training.

    Args:
        table: of `train_toy` under `settings`.
        settings: those of `train_toy`.
    """
    if not notebook.interactive():
        with plots.styled():
            picture(table, _words(settings))
            plt.show()
        return None
    return _controls(table, settings)


def _words(settings: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items() if name != "method")


def _controls(table: pd.DataFrame, settings: dict[str, Any]) -> Any:
    import ipywidgets as ui

    def knob(name: str, words: str, high: float) -> ui.FloatSlider:
        wide = {"description_width": "initial"}
        return ui.FloatSlider(
            settings[name],
            min=0.0,
            max=high,
            step=0.1,
            description=words,
            style=wide,
            continuous_update=False,
        )

    knobs = {
        "contamination": knob("contamination", "contaminated rows", 0.8),
        "flips": knob("flips", "flipped rankings", 0.5),
        "method": ui.Dropdown(
            options=[(plots.label(name), name) for name in METHODS if name != "erm"],
            value=settings["method"],
            description="method",
        ),
        "seed": ui.BoundedIntText(settings["seed"], min=0, max=999, description="world"),
    }
    shown = ui.Output()

    def draw(found: pd.DataFrame, own: dict[str, Any]) -> None:
        with plots.styled():
            figure = picture(found, _words(own))
        shown.clear_output(wait=True)
        with shown:
            from IPython.display import display

            display(figure)
        plt.close(figure)

    def follow(_: Any) -> None:
        own = {name: control.value for name, control in knobs.items()}
        with shown:
            print("training two policies: some seconds")
        draw(train_toy(**own), own)

    for control in knobs.values():
        control.observe(follow, names="value")
    draw(table, settings)
    return ui.VBox([ui.HBox(list(knobs.values())[:2]), ui.HBox(list(knobs.values())[2:]), shown])
