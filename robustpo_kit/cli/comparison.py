"""The command that sets finished runs beside each other."""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from robustpo_kit import paths, records
from robustpo_kit.cli.parsing import Commands, free_folder
from robustpo_kit.errors import KitError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

TABLE = "differences"
WRITES = (f"{TABLE}.*", "comparison.*", "settings.csv", "curves.csv")
ALONE = "policy"  # the method of a run that has no other; not worth a word
MEASURES = ("loss", "accuracy", "margin", "ess")  # of a step, in the figure where runs have them
NOT_SHOWN = ["baseline", "seeds", "prompts", "left_out"]  # in the table, as lines say them
FEW = 6  # units, fewer of which no exact sign test at 0.05 can tell from chance
UNITS = {"loss": "loss, of its own objective", "margin": "margin (nats)", "ess": "ess (rows)"}
UNITS |= {"implicit_margin": "implicit margin (nats)", "preferred_logp": "log-prob (nats a token)"}


def add_compare(commands: Commands) -> None:
    parser = commands.add_parser(
        "compare", help="finished runs: paired differences to the first, curves, what was set"
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="folders of `train --heldout FILE`, or of a series' tables; the first is the baseline",
    )
    parser.add_argument("--out", metavar="DIR", help="tables and a figure; default: printed alone")
    parser.add_argument("--level", type=float, default=0.95, help="of intervals (default: 0.95)")
    parser.set_defaults(run=_compare)


def _compare(arguments: argparse.Namespace) -> int:
    from robustpo_kit import analysis

    started = time.time()
    if not 0 < arguments.level < 1:
        raise KitError(f"--level {arguments.level}: a share between 0 and 1 is expected")
    if arguments.out:
        free_folder(arguments.out, f"{TABLE}.json", "comparison", WRITES)
    runs = analysis.read_runs(arguments.runs)
    table = analysis.compare_runs(runs, level=arguments.level)
    settings, curves = analysis.differing_settings(runs), analysis.all_curves(runs)
    seeds = int(table["seeds"].max())
    print(f"against {table['baseline'].iloc[0]}, {table['prompts'].max()} held-out prompts")
    not_shown = NOT_SHOWN + ["method"] * (set(table["method"]) == {ALONE})
    print(table.drop(columns=not_shown).round(3).to_string(index=False))
    for _, row in analysis.among_all(table, level=arguments.level).iterrows():
        method = "" if row["method"] == ALONE else f" {row['method']}"
        of = f"{row['run']}{method}, {row['outcome'].replace('_', ' ')}"
        print(f"{of}: {analysis.verdict(row, places=3, level=arguments.level)}")
        if row["left_out"]:
            print(f"{of}: {row['left_out']} values left out, no number in one of the two")
    units = int(table["prompts"].min()) if seeds == 1 else seeds
    if units < FEW:
        unit = "held-out prompts" if seeds == 1 else "seeds"
        print(
            f"{units} {unit} are few: an exact sign test gives p {0.5 ** (units - 1):.2g} at best"
        )
    if seeds == 1:
        print("one seed: the intervals are over prompts, and say nothing of other seeds")
    print(f"\nset otherwise:\n{settings.to_string(index=False, max_colwidth=50)}")
    if arguments.out:
        out = Path(arguments.out)
        config = {"runs": [paths.show(Path(run)) for run in arguments.runs]}
        origin = records.provenance(config | {"level": arguments.level}, 0, started)
        with records.atomic_folder(out) as folder:
            for name, part in (("settings", settings), ("curves", curves)):
                part.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")
            _draw(table, curves, folder)
            records.write_table(folder / f"{TABLE}.csv", table, origin)
        print(f"-> {out / f'{TABLE}.csv'}")
    return 0


def _draw(table: "pd.DataFrame", curves: "pd.DataFrame", folder: Path) -> None:
    """Differences above, an axis an outcome; below the runs' curves, a row a method."""
    from matplotlib.figure import Figure

    from robustpo_kit import plots

    outcomes = list(dict.fromkeys(table["outcome"]))
    measures = [name for name in MEASURES if name in curves]
    methods = list(dict.fromkeys(curves["method"])) if measures else []
    heights = [1.2 + 0.25 * len(table) / len(outcomes), 2.4 * len(methods)][: 1 + bool(methods)]
    size = (max(6.4, 3.2 * max(len(outcomes), len(measures))), 0.6 + sum(heights))
    with plots.styled():
        figure = Figure(figsize=size, layout="constrained")
        parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
        _draw_differences(table, outcomes, parts[0])
        if methods:
            axes = parts[1].subplots(len(methods), len(measures), squeeze=False)
            for method, row in zip(methods, axes, strict=True):
                _draw_curves(curves[curves["method"] == method], measures, row)
                row[0].set_title(method.replace(ALONE, ""), loc="left")
    plots.save(figure, folder / "comparison")


def _draw_differences(table: "pd.DataFrame", outcomes: list[str], part: "SubFigure") -> None:
    from robustpo_kit import plots

    named = table.assign(name=table["run"] + " " + table["method"].replace(ALONE, ""))
    axes = part.subplots(1, len(outcomes), squeeze=False)[0]
    for axis, outcome in zip(axes, outcomes, strict=True):
        own = named[named["outcome"] == outcome]
        label = UNITS.get(outcome, outcome.replace("_", " "))
        plots.bars_with_ci(own, axis, name="name", value="difference", xlabel=label, reference=0.0)
        if axis is not axes[0]:
            axis.set_yticklabels([])
    baseline = table["baseline"].iloc[0]
    finding = plots.contrasts(named["name"] + ", " + named["outcome"], named, baseline)
    note = f"n = {table['prompts'].max()} held-out prompts, paired; seeds: {table['seeds'].max()}"
    plots.head(part, finding, note)


def _draw_curves(curves: "pd.DataFrame", measures: list[str], axes: "Sequence[Axes]") -> None:
    from robustpo_kit import plots

    for measure, axis in zip(measures, axes, strict=True):
        plots.curves(
            curves.assign(policy=curves["run"]),
            axis,
            value=measure,
            ylabel=UNITS.get(measure, measure),
        )
        axis.locator_params(axis="x", integer=True)
        if axis is not axes[0] and (legend := axis.get_legend()):
            legend.remove()
