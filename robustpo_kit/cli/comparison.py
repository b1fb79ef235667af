"""The command that sets finished runs beside each other."""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from robustpo_kit import paths, records
from robustpo_kit.cli.parsing import Commands, free_folder
from robustpo_kit.errors import KitError

if TYPE_CHECKING:
    import pandas as pd

TABLE = "differences"
MEASURES = ("loss", "accuracy", "margin", "ess")  # of a step, in the figure where runs have them
LEFT_OUT = ["baseline", "seeds", "prompts"]  # of what is printed, as a line says them


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
    runs = analysis.read_runs(arguments.runs)
    table = analysis.compare_runs(runs, level=arguments.level)
    settings, curves = analysis.differing_settings(runs), analysis.all_curves(runs)
    seeds = int(table["seeds"].max())
    print(f"against {table['baseline'].iloc[0]}, {table['prompts'].max()} held-out prompts")
    print(table.drop(columns=LEFT_OUT).round(3).to_string(index=False))
    if seeds == 1:
        print("one seed: the intervals are over prompts, and say nothing of other seeds")
    print(f"\nset otherwise:\n{settings.to_string(index=False, max_colwidth=50)}")
    if arguments.out:
        out = free_folder(arguments.out, f"{TABLE}.json", "comparison")
        config = {"runs": [paths.show(Path(run)) for run in arguments.runs]}
        origin = records.provenance(config | {"level": arguments.level}, 0, started)
        with records.atomic_folder(out) as folder:
            for name, part in (("settings", settings), ("curves", curves)):
                part.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")
            _draw(table, curves, folder)
            records.write_table(folder / f"{TABLE}.csv", table, origin)
        print(f"-> {paths.show(out)}")
    return 0


def _draw(table: "pd.DataFrame", curves: "pd.DataFrame", folder: Path) -> None:
    """Differences above, an axis an outcome; below curves, a row a measure, a column a method."""
    from matplotlib.figure import Figure

    from robustpo_kit import plots

    outcomes = list(dict.fromkeys(table["outcome"]))
    measures = [name for name in MEASURES if name in curves]
    methods = list(dict.fromkeys(curves["method"])) if measures else []
    columns = max(len(outcomes), len(methods))
    height = 1.2 + 0.25 * len(table) / len(outcomes) + 2.2 * len(measures)
    figure = Figure(figsize=(3.2 * columns, height), layout="constrained")
    upper, *lower = figure.subfigures(2 if measures else 1, 1, squeeze=False)[:, 0]
    row = upper.subplots(1, len(outcomes), squeeze=False)[0]
    for axis, outcome in zip(row, outcomes, strict=True):
        part = table[table["outcome"] == outcome]
        names = part["run"] + " " + part["method"].replace("policy", "")
        plots.bars_with_ci(
            part.assign(name=names.str.strip()),
            axis,
            name="name",
            value="difference",
            xlabel=f"{outcome}, less {table['baseline'].iloc[0]}",
            reference=0.0,
        )
    if measures:
        axes = lower[0].subplots(len(measures), len(methods), squeeze=False)
        for method, column in zip(methods, axes.T, strict=True):
            own = curves[curves["method"] == method].assign(policy=lambda rows: rows["run"])
            for measure, axis in zip(measures, column, strict=True):
                plots.curves(own, axis, value=measure, ylabel=measure)
            column[0].set_title(method)
    for ending in ("png", "pdf"):
        figure.savefig(folder / f"comparison.{ending}")
