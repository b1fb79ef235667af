"""Declared studies on real text (`analysis.Study`): every run of them and no other, resumable."""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from robustpo_kit import objectives, paths, profiles, records
from robustpo_kit.analysis import Study, study_table
from robustpo_kit.errors import KitError
from robustpo_kit.experiments.study_run import ROWS, StudyRun, check_run, study_run
from robustpo_kit.measures import OUTCOMES
from robustpo_kit.toy import sweep


def run_study(name: str, *, limit: int | None = None, workers: int | None = None) -> int:
    """Do the runs of a study that are missing; with the last one its tables are written.

    Args:
        name: of the declaration.
        limit: at most so many runs now.
        workers: processes; None: one a core.

    Returns:
        How many runs are left.

    Raises:
        KitError: the declaration is missing, wrong, or another one than the runs began with; or
            runs have failed, and the next call tries those again.
    """
    study, started = Study.load(name, paths.STUDIES), time.time()
    runs = study_runs(study)
    kept = paths.work("studies") / f"{name}.jsonl"
    _hold_to_declaration(study, kept.with_suffix(".declared.json"))
    table = sweep.sweep(study_run, runs, kept, workers=workers, desc=name, limit=limit)
    if len(table) < len(runs):
        return len(runs) - len(table)
    outcomes = outcome_table(study, runs, table)
    record = records.provenance(dataclasses.asdict(study), study.seeds[0], started)
    record["seconds_of_runs"] = round(float(table["seconds"].sum()), 1)
    folder = study_folder(name)
    records.write_table(folder / "outcomes.csv", outcomes, record)
    records.write_table(folder / "contrasts.csv", study_table(study, outcomes), record)
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


def study_folder(name: str) -> Path:
    """Where the tables of a study are written."""
    return paths.RESULTS / "studies" / name


def study_runs(study: Study) -> list[StudyRun]:
    """All runs of a declaration, seed by seed.

    Raises:
        KitError: naming the setting, the method's field or the primary outcome that is wrong.
    """
    settings = dict(study.settings)
    profile, overrides = settings.pop("profile", None), settings.pop("overrides", {})
    if settings or profile is None:
        raise KitError(
            f"study {study.name}: settings = {dict(study.settings)} should be a profile and its "
            "overrides"
        )
    cfg = profiles.get(profile, overrides)
    cfg = dataclasses.replace(cfg, name=f"studies/{study.name}")  # a folder of its own
    for contrast in study.primary:
        if contrast.outcome not in OUTCOMES:
            raise KitError(
                f"study {study.name}: outcome '{contrast.outcome}' is none of {', '.join(OUTCOMES)}"
            )
    for name in set(ROWS).intersection(study.methods):
        raise KitError(
            f"study {study.name}, methods: '{name}' names the row of every table that is not "
            "trained, and would be averaged with it; take another name"
        )
    runs = []
    for seed in study.seeds:
        runs += [StudyRun(cfg, seed, row) for row in ROWS]
        for name, method in study.methods.items():
            runs += _method_runs(study, StudyRun(cfg, seed, name), method)
    _check_doses(study, runs)
    return runs


def _check_doses(study: Study, runs: list[StudyRun]) -> None:
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


def _picks(where: Mapping[str, Any], run: StudyRun) -> bool:
    return where.get("dose", run.dose) == run.dose


def _method_runs(study: Study, run: StudyRun, method: Mapping[str, Any]) -> list[StudyRun]:
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
        if problem := check_run(dosed):
            raise KitError(f"{where}: {problem}")
    return runs


def outcome_table(study: Study, runs: list[StudyRun], table: pd.DataFrame) -> pd.DataFrame:
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
