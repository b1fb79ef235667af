"""The runs of a declared study in the toy world, and tables of what they found.

The cells of a study are its methods at every dose (axis "base"), and some of them at some doses
under one further change each. Before that, every method's knobs are tuned on worlds of their own.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from robustpo_kit import analysis
from robustpo_kit.toy.declared import (
    AT_KL,
    BASE,
    GOLDEN_LOGP,
    MEASURES,
    START,
    Declared,
)
from robustpo_kit.toy.runs import Run

POINTS = 4  # of a run's path, for outcomes at equal divergence


class Cell(NamedTuple):
    """One run, and what its outcomes stand under."""

    method: str
    axis: str
    dose: float
    seed: int
    knobs: analysis.Knobs
    run: Run


def tuning_cells(declared: Declared) -> list[Cell]:
    """Every try of every method that is tuned, on the worlds of tuning."""
    settings, cells = declared.settings, []
    for dose, seed in itertools.product(settings.tuning_doses, settings.tuning_seeds):
        setting = declared.setting(seed, dose)
        for name, method in declared.methods.items():
            for knobs in method.knobs():
                run = method.run(setting, knobs)
                cells.append(Cell(name, BASE, dose, seed, knobs, run))
    return cells


def choose(cells: Sequence[Cell], results: pd.DataFrame) -> pd.DataFrame:
    """What tuning found, by the gold of clean held-out prompts, invalid responses counted.

    Args:
        cells: of `tuning_cells`.
        results: of `runs.path`, in the same order.

    Returns:
        A row a method, dose and try: method, dose, knobs (JSON), gold (mean over worlds), worlds,
        chosen.
    """
    tried = pd.DataFrame(cells, columns=Cell._fields)[["method", "dose", "knobs"]]
    tried["gold"] = [path["gold"][-1] for path in results["path"]]
    return analysis.choose(tried, "gold", units="worlds")


def study_cells(declared: Declared, tuned: pd.DataFrame) -> list[Cell]:
    """Every run of the study; those of its primary contrasts come first.

    Args:
        declared: the study.
        tuned: of `choose`.

    Raises:
        KitError: where `tuned` is not of this declaration.
    """
    settings, study, cells = declared.settings, declared.study, []
    tries = {name: method.knobs() for name, method in declared.methods.items() if method.tries}
    chosen = analysis.chosen_knobs(study.name, tuned, tries, settings.tuning_doses)
    doses = dict.fromkeys([*(contrast.where["dose"] for contrast in study.primary), *study.doses])
    everything = itertools.product([BASE], doses, study.seeds, [list(declared.methods)])
    worlds, some = study.seeds[: settings.axis_worlds], [settings.axis_methods]
    further = itertools.product(settings.axes, settings.axis_doses, worlds, some)
    for axis, dose, seed, names in (*everything, *further):
        setting = declared.setting(seed, dose, axis)
        near = analysis.nearest(settings.tuning_doses, dose)
        for name in names:
            method = declared.methods[name]
            knobs = chosen[method.tuned_as or name, near]
            if seed in study.seeds[: method.worlds]:
                run = method.run(setting, knobs, points=POINTS)
                cells.append(Cell(name, axis, dose, seed, knobs, run))
    return cells


def result_tables(
    declared: Declared, cells: Sequence[Cell], results: pd.DataFrame
) -> dict[str, pd.DataFrame]:
    """The tables of a study.

    Args:
        declared: the study.
        cells: of `study_cells`.
        results: of `runs.path`, in the same order.

    Returns:
        outcomes (a row a run and outcome, and those of START), contrasts (`study_table` of its
        primaries and of the methods that have all worlds), cells (`cell_table`; every method is
        held against START, too); where methods have several rounds, also rounds (a row a run of
        those, round and measure; round 0 is the start).
    """
    study, methods = declared.study, declared.methods
    rows, started, by_round = [], set(), []
    names = (*MEASURES, *declared.settings.further)
    for cell, path, ess in zip(cells, results["path"], results["ess"], strict=True):
        values = _values(path, names, -1) | {"ess": ess}
        values[AT_KL] = at_divergence(path, declared.settings.equal_kl)
        rows += _tidy(study.name, cell, cell.method, values)
        by_round += _of_rounds(study.name, cell, path, names)
        world = (cell.axis, cell.dose, cell.seed)
        if world not in started and cell.run.sft_h == "ones":
            started.add(world)
            rows += _tidy(study.name, cell, START, _values(path, names, 0))
    outcomes = pd.DataFrame(rows)
    outcomes["value"] = outcomes["value"].round(5)
    whole = [name for name, method in methods.items() if method.worlds is None]
    primary = outcomes["outcome"].isin({contrast.outcome for contrast in study.primary})
    base = (outcomes["axis"] == BASE) & outcomes["method"].isin(whole)
    against = {name: (*method.against, START) for name, method in methods.items()}
    return {
        "outcomes": outcomes,
        "contrasts": analysis.study_table(study, outcomes[base & primary]),
        "cells": analysis.cell_table(outcomes, against, declared.settings.tie),
    } | ({"rounds": pd.DataFrame(by_round).round(5)} if by_round else {})


def _of_rounds(
    study: str, cell: Cell, path: Mapping[str, Sequence[float]], names: Sequence[str]
) -> list[dict[str, Any]]:
    """The start and the end of each round, of a run that has several."""
    count, rows = len(cell.run.rounds), []
    for number in range(count + 1) if count > 1 else ():
        values = _values(path, names, number * cell.run.points)
        rows += [row | {"round": number} for row in _tidy(study, cell, cell.method, values)]
    return rows


def _values(
    path: Mapping[str, Sequence[float]], names: Sequence[str], point: int
) -> dict[str, float]:
    values = {name: path[name][point] for name in names if name != GOLDEN_LOGP}
    if GOLDEN_LOGP in names:  # the entropy of golden replies is the same at every point
        surprise = path["kl_from_golden"]
        values[GOLDEN_LOGP] = surprise[0] - surprise[point]
    return values


def _tidy(study: str, cell: Cell, method: str, values: Mapping[str, float]) -> list[dict[str, Any]]:
    labels = {"study": study, "seed": cell.seed, "method": method, "axis": cell.axis}
    labels |= {"dose": cell.dose, "row_id": ""}
    return [labels | {"outcome": name, "value": value} for name, value in values.items()]


def at_divergence(path: Mapping[str, Sequence[float]], target: float, name: str = "gold") -> float:
    """A measure where a path's kl_reference first reaches `target`, linear between its points.

    NaN where it never does: a method that stays nearer to its start has no such policy.
    """
    points = zip(path["kl_reference"], path[name], strict=True)
    for (before, first), (after, last) in itertools.pairwise(points):
        if before < target <= after:
            return first + (last - first) * (target - before) / (after - before)
    return float("nan")
