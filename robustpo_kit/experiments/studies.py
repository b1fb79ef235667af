"""Declared studies (`analysis.Study`): every run of them and no other, resumable."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from robustpo_kit import paths, records, toy
from robustpo_kit.analysis import Study
from robustpo_kit.errors import KitError
from robustpo_kit.experiments import real_studies
from robustpo_kit.toy import sweep


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
        tune: the runs that tune the methods, which the study's own runs need.
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
    function = real_studies.world_of(study).function
    if tune:
        tries = real_studies.tuning_runs(study, source)

        def tuned(results: pd.DataFrame) -> dict[str, pd.DataFrame]:
            return {"tuned": real_studies.choose(study, tries, results)}

        return Work(f"{study.name}.tuning", function, [each.run for each in tries], tuned)
    needed = any("tries" in method for method in study.methods.values())
    runs = real_studies.study_runs(study, source, _read_tuned(study) if needed else None)
    tables = functools.partial(real_studies.result_tables, study, runs)
    return Work(study.name, function, runs, tables)


def _toy_work(study: Study, *, tune: bool) -> Work:
    """In the toy world."""
    declared = toy.declared.read(study)
    if tune:
        cells = toy.phase.tuning_cells(declared)
        runs = [cell.run for cell in cells]
        chosen = functools.partial(toy.phase.choose, cells)
        return Work(f"{study.name}.tuning", toy.runs.path, runs, lambda t: {"tuned": chosen(t)})
    cells = toy.phase.study_cells(declared, _read_tuned(study))
    tables = functools.partial(toy.phase.result_tables, declared, cells)
    return Work(study.name, toy.runs.path, [cell.run for cell in cells], tables)


def _read_tuned(study: Study) -> pd.DataFrame:
    path = study_folder(study.name) / "tuned.csv"
    if not path.exists():
        raise KitError(
            f"{paths.show(path)}: missing; methods are tuned before they are compared: "
            f"`robustpo study {study.name} --tune`"
        )
    return pd.read_csv(path)


def study_folder(name: str) -> Path:
    """Where the tables of a study are written."""
    return paths.RESULTS / "studies" / name
