"""Declared studies (`analysis.Study`): every run of them and no other, resumable."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pandas as pd

from robustpo_kit import objectives, paths, profiles, records, toy
from robustpo_kit.analysis import Study, study_table
from robustpo_kit.errors import KitError
from robustpo_kit.experiments.pairs_run import OUTCOMES as PAIRS_OUTCOMES
from robustpo_kit.experiments.pairs_run import PairsRun, pairs_run
from robustpo_kit.experiments.study_run import (
    OTHER_TABLES,
    ROWS,
    StudyRun,
    study_run,
)
from robustpo_kit.measures import OUTCOMES
from robustpo_kit.profiles import Profile
from robustpo_kit.toy import sweep

AnyRun = StudyRun | PairsRun
Run = TypeVar("Run", StudyRun, PairsRun)


class Work(NamedTuple):
    """The runs of a study, or of its tuning, and the tables that are made of their results."""

    name: str  # of what finished runs are kept in
    function: Callable[[Any], dict[str, object]]
    runs: Sequence[Any]
    tables: Callable[[pd.DataFrame], dict[str, pd.DataFrame]]


def run_study(
    name: str,
    *,
    limit: int | None = None,
    workers: int | None = None,
    tune: bool = False,
    source: str = "",
) -> int:
    """Do the runs of a study that are missing; with the last one its tables are written.

    Args:
        name: of the declaration.
        limit: at most so many runs now.
        workers: processes; None: one a core.
        tune: the runs that tune the methods of a study in the toy world, which its own need.
        source: of a study on real preferences, a local file instead of the task's own place.

    Returns:
        How many runs are left.

    Raises:
        KitError: the declaration is missing, wrong, or another one than the runs began with; or
            runs have failed, and the next call tries those again.
    """
    study, started = Study.load(name), time.time()
    work = _work(study, tune, source)
    kept = paths.work("studies") / f"{work.name}.jsonl"
    _hold_to_declaration(study, kept.with_suffix(".declared.json"))
    runs, function = work.runs, work.function
    table = sweep.sweep(function, runs, kept, workers=workers, desc=work.name, limit=limit)
    if len(table) < len(runs):
        return len(runs) - len(table)
    record = records.provenance(dataclasses.asdict(study), study.seeds[0], started)
    record["seconds_of_runs"] = round(float(table["seconds"].sum()), 1)
    for title, made in work.tables(table).items():
        records.write_table(study_folder(name) / f"{title}.csv", made, record)
    return 0


def _hold_to_declaration(study: Study, path: Path) -> None:
    """Keep in `path` what is declared when the first run begins; refuse another one after that."""
    declared = dataclasses.asdict(study)
    declared.pop("notes")
    if not path.exists():
        records.write_json(path, declared)
        return
    first = records.read_json(path)
    digests = {field: records.digest(value) for field, value in declared.items()}
    changed = [field for field in declared if records.digest(first.get(field)) != digests[field]]
    if changed:
        raise KitError(
            f"study {study.name}: {', '.join(changed)} differ from what was declared when its runs "
            f"began ({paths.show(path)}); restore it, or declare another study under its own name"
        )


def _work(study: Study, tune: bool, source: str) -> Work:
    """By the world that the study's settings name; without one, the lab's real text."""
    world = study.settings.get("world")
    if source and world != "pairs":
        raise KitError(f"study {study.name}: does not read preferences; leave --source out")
    if world == "toy":
        return _toy_work(study, tune=tune)
    if tune:
        raise KitError(f"study {study.name}: nothing to tune; leave --tune out")
    return _pairs_work(study, source) if world == "pairs" else _real_work(study)


def _pairs_work(study: Study, source: str) -> Work:
    """On real preferences."""
    runs = pairs_runs(study, source)

    def tables(results: pd.DataFrame) -> dict[str, pd.DataFrame]:
        outcomes = outcome_table(study, runs, results)
        return {"outcomes": outcomes, "contrasts": study_table(study, outcomes)}

    return Work(study.name, pairs_run, runs, tables)


def _real_work(study: Study) -> Work:
    """On the lab's real text."""
    runs = study_runs(study)

    def tables(results: pd.DataFrame) -> dict[str, pd.DataFrame]:
        outcomes, others = outcome_table(study, runs, results), {}
        for title, names in OTHER_TABLES.items():
            chosen = outcomes["outcome"].isin(names)
            others[title], outcomes = outcomes[chosen], outcomes[~chosen]
        contrasts = study_table(study, outcomes)
        return {"outcomes": outcomes, "contrasts": contrasts} | {
            title: table for title, table in others.items() if len(table)
        }

    return Work(study.name, study_run, runs, tables)


def _toy_work(study: Study, *, tune: bool) -> Work:
    """In the toy world."""
    declared = toy.declared.read(study)
    if tune:
        cells = toy.phase.tuning_cells(declared)
        runs = [cell.run for cell in cells]
        chosen = functools.partial(toy.phase.choose, cells)
        return Work(f"{study.name}.tuning", toy.runs.path, runs, lambda t: {"tuned": chosen(t)})
    path = study_folder(study.name) / "tuned.csv"
    if not path.exists():
        raise KitError(
            f"{paths.show(path)}: missing; methods are tuned before they are compared: "
            f"`robustpo study {study.name} --tune`"
        )
    cells = toy.phase.study_cells(declared, pd.read_csv(path))
    tables = functools.partial(toy.phase.result_tables, declared, cells)
    return Work(study.name, toy.runs.path, [cell.run for cell in cells], tables)


def study_folder(name: str) -> Path:
    """Where the tables of a study are written."""
    return paths.RESULTS / "studies" / name


def study_runs(study: Study) -> list[StudyRun]:
    """All runs of a declaration on real text, seed by seed.

    Raises:
        KitError: naming the setting, the method's field or the primary outcome that is wrong.
    """
    cfg = _profile(study, OUTCOMES, ROWS)
    runs = []
    sampled = any(method.get("sampled") for method in study.methods.values())
    for seed in study.seeds:
        runs += [StudyRun(cfg, seed, row, sampled=sampled) for row in ROWS]
        for name, method in study.methods.items():
            runs += _method_runs(study, StudyRun(cfg, seed, name), method)
    _check_doses(study, runs)
    return runs


def pairs_runs(study: Study, source: str) -> list[PairsRun]:
    """All runs of a declaration on real preferences, seed by seed.

    Raises:
        KitError: naming the setting, the method's field or the primary outcome that is wrong, or
            the preferences' row.
    """
    cfg = _profile(study, PAIRS_OUTCOMES, ROWS[:2])
    runs = []
    for seed in study.seeds:
        runs.append(PairsRun(cfg, seed, ROWS[1], "", source))
        for name, method in study.methods.items():
            runs += _method_runs(study, PairsRun(cfg, seed, name, "", source), method)
    _check_doses(study, runs)
    return runs


def _profile(study: Study, outcomes: Sequence[str], rows: Sequence[str]) -> Profile:
    """The profile of a study, in a folder of its own; its primary outcomes and names are checked.

    Args:
        study: the declaration.
        outcomes: that its runs have.
        rows: names of what is not trained.
    """
    settings = dict(study.settings)
    settings.pop("world", None)
    profile, overrides = settings.pop("profile", None), settings.pop("overrides", {})
    if settings or profile is None:
        raise KitError(
            f"study {study.name}: settings = {dict(study.settings)} should be a profile and its "
            "overrides"
        )
    for contrast in study.primary:
        if contrast.outcome not in outcomes:
            raise KitError(
                f"study {study.name}: outcome '{contrast.outcome}' is none of {', '.join(outcomes)}"
            )
    for name in set(rows).intersection(study.methods):
        raise KitError(
            f"study {study.name}, methods: '{name}' names the row of every table that is not "
            "trained, and would be averaged with it; take another name"
        )
    return dataclasses.replace(profiles.get(profile, overrides), name=f"studies/{study.name}")


def _check_doses(study: Study, runs: Sequence[AnyRun]) -> None:
    """Refuse a primary contrast without runs, or of the means over unlike doses."""
    for number, contrast in enumerate(study.primary):
        first, second = (
            sorted({run.dose for run in runs if run.method == name and _picks(where, run)})
            for name, where in (
                (contrast.method, contrast.where),
                (contrast.baseline, contrast.against),
            )
        )
        if not first or not second or (first != second and len(first) + len(second) > 2):
            raise KitError(
                f"study {study.name}, primary[{number}].where: {contrast.method} has the doses "
                f"{first} there, {contrast.baseline} {second}; name one that each has"
            )


def _picks(where: Mapping[str, Any], run: AnyRun) -> bool:
    return where.get("dose", run.dose) == run.dose


def _method_runs(study: Study, run: Run, method: Mapping[str, Any]) -> list[Run]:
    """One method at each of its doses."""
    fields = dict(method)
    doses = fields.pop("doses", study.doses)
    where = f"study {study.name}, method '{run.method}'"
    try:
        runs = [dataclasses.replace(run, dose=float(dose), **fields) for dose in doses]
        objectives.build(fields["spec"])
    except (KeyError, TypeError, ValueError) as error:
        raise KitError(f"{where}: {error}") from None
    for dosed in runs:
        if problem := dosed.problem():
            raise KitError(f"{where}: {problem}")
    return runs


def outcome_table(study: Study, runs: Sequence[AnyRun], table: pd.DataFrame) -> pd.DataFrame:
    """A row a run, outcome and held-out row: study, seed, method, dose, outcome, row_id, value.

    Args:
        study: the declaration.
        runs: that were done.
        table: their results, `study_run`'s, in the same order.
    """
    parts = []
    for run, values in zip(runs, table["values"], strict=True):
        part = pd.DataFrame(values).assign(study=study.name, seed=run.seed)
        parts.append(part.assign(method=run.method, dose=run.dose))
    columns = ["study", "seed", "method", "dose", "outcome", "row_id", "value"]
    return pd.concat(parts, ignore_index=True)[columns]
