"""Declared studies on real text: their runs, the tuning of their methods, and their tables.

`settings` of such a study are a `profile` and its `overrides`; `"world": "pairs"` where it is about
real preferences instead of the lab's rows; and `tuning`, with the fields of `Tuning`, where methods
have `tries`, values by the name of a {knob} in their `spec`.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from robustpo_kit import analysis, objectives, profiles
from robustpo_kit.analysis import Knobs, Study
from robustpo_kit.errors import KitError
from robustpo_kit.experiments import pairs_run, study_run
from robustpo_kit.experiments.pairs_run import PairsRun
from robustpo_kit.experiments.study_run import StudyRun
from robustpo_kit.measures import OUTCOMES
from robustpo_kit.profiles import Profile

Run = StudyRun | PairsRun
Chosen = Mapping[tuple[str, float], Knobs]  # by method and dose of tuning


class World(NamedTuple):
    """What runs in it, and what its runs give."""

    function: Callable[[Any], dict[str, object]]
    outcomes: Sequence[str]
    rows: Sequence[str]  # names of what is measured and not trained
    run: Callable[..., Run]  # of profile, seed and name


@dataclasses.dataclass(frozen=True)
class Tuning:
    """Where a method's knobs are chosen: on other seeds than the study's."""

    seeds: Sequence[int]
    doses: Sequence[float]  # a dose of the study takes what was chosen at the nearest of these
    outcome: str  # more of it is better
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # beside the study's


class Try(NamedTuple):
    """One run of the tuning."""

    method: str
    dose: float
    knobs: Knobs
    run: Run


def world_of(study: Study, source: str = "") -> World:
    """The world of a study on real text; `source`: a local file of preferences."""
    if study.settings.get("world") == "pairs":

        def run(cfg: Profile, seed: int, name: str) -> PairsRun:
            return PairsRun(cfg, seed, name, "", source)

        return World(pairs_run.pairs_run, pairs_run.OUTCOMES, ("sft",), run)
    return World(study_run.study_run, OUTCOMES, study_run.ROWS, StudyRun)


def study_runs(study: Study, source: str = "", tuned: pd.DataFrame | None = None) -> list[Run]:
    """All runs of a declaration on real text, seed by seed.

    Args:
        study: the declaration.
        source: of real preferences, a local file instead of the task's own place.
        tuned: of `choose`, where methods have tries.

    Raises:
        KitError: naming the setting, the method's field or the primary outcome that is wrong.
    """
    world, cfg = world_of(study, source), _profile(study)
    _check(study, world)
    chosen = _chosen(study, tuned)
    sampled = any(method.get("sampled") for method in study.methods.values())
    extra: dict[str, Any] = {"sampled": True} if sampled else {}
    runs: list[Run] = []
    for seed in study.seeds:
        untrained = (world.run(cfg, seed, name) for name in world.rows)
        runs += [dataclasses.replace(run, **extra) for run in untrained]
        for name in study.methods:
            runs += _method_runs(study, world.run(cfg, seed, name), chosen)
    _check_doses(study, runs)
    return runs


def tuning_runs(study: Study, source: str = "") -> list[Try]:
    """Every try of every method that has tries, on the seeds of tuning.

    Raises:
        KitError: nothing to tune; methods with unlike numbers of tries; seeds of the study.
    """
    tuning, tries = _tuning(study), _tries(study)
    world, cfg = world_of(study, source), _profile(study, tuning.overrides)
    if tuning.outcome not in world.outcomes:
        known = ", ".join(world.outcomes)
        raise KitError(f"study {study.name}, settings.tuning.outcome: one of {known} is expected")
    found = []
    for seed, dose in itertools.product(tuning.seeds, tuning.doses):
        for name, each in tries.items():
            first = world.run(cfg, seed, name)
            runs = (_dosed(study, first, dose, knobs) for knobs in each)
            found += [Try(name, dose, *pair) for pair in zip(each, runs, strict=True)]
    return found


def choose(study: Study, tries: Sequence[Try], results: pd.DataFrame) -> pd.DataFrame:
    """`analysis.choose` of the tries, by the mean of the outcome over held-out rows and seeds."""
    outcome = _tuning(study).outcome
    tried = pd.DataFrame(tries, columns=Try._fields)[["method", "dose", "knobs"]]
    tried[outcome] = [_mean(values, outcome) for values in results["values"]]
    return analysis.choose(tried, outcome, units="seeds")


def _mean(values: Mapping[str, Sequence[Any]], outcome: str) -> float:
    table = pd.DataFrame(values)
    return float(table.loc[table["outcome"] == outcome, "value"].mean())


def result_tables(
    study: Study, runs: Sequence[Run], results: pd.DataFrame
) -> dict[str, pd.DataFrame]:
    """The tables of a study.

    Args:
        study: the declaration.
        runs: of `study_runs`.
        results: of the world's function, in the same order.

    Returns:
        outcomes (a row a run, outcome and held-out row), contrasts (`analysis.study_table`), and
        those of study_run.OTHER_TABLES that have rows.
    """
    parts = []
    for run, values in zip(runs, results["values"], strict=True):
        part = pd.DataFrame(values).assign(study=study.name, seed=run.seed)
        parts.append(part.assign(method=run.method, dose=run.dose))
    columns = ["study", "seed", "method", "dose", "outcome", "row_id", "value"]
    outcomes, others = pd.concat(parts, ignore_index=True)[columns], {}
    for title, names in study_run.OTHER_TABLES.items():
        chosen = outcomes["outcome"].isin(names)
        others[title], outcomes = outcomes[chosen], outcomes[~chosen]
    tables = {"outcomes": outcomes, "contrasts": analysis.study_table(study, outcomes)}
    return tables | {title: table for title, table in others.items() if len(table)}


# ---------------------------------------------------------------- the declaration, checked


def _profile(study: Study, further: Mapping[str, Any] | None = None) -> Profile:
    """The profile of a study, in a folder of its own."""
    settings = dict(study.settings)
    settings.pop("world", None)
    settings.pop("tuning", None)
    profile, overrides = settings.pop("profile", None), settings.pop("overrides", {})
    if settings or profile is None:
        raise KitError(
            f"study {study.name}: settings = {dict(study.settings)} should be a profile and its "
            "overrides, and tuning where methods have tries"
        )
    cfg = profiles.get(profile, {**overrides, **(further or {})})
    return dataclasses.replace(cfg, name=f"studies/{study.name}")


def _check(study: Study, world: World) -> None:
    """Refuse outcomes that are not measured, and names of rows that nothing trains."""
    for contrast in study.primary:
        if contrast.outcome not in world.outcomes:
            known = ", ".join(world.outcomes)
            raise KitError(f"study {study.name}: outcome '{contrast.outcome}' is none of {known}")
    for name in set(world.rows).intersection(study.methods):
        raise KitError(
            f"study {study.name}, methods: '{name}' names the row of every table that is not "
            "trained, and would be averaged with it; take another name"
        )


def _check_doses(study: Study, runs: Sequence[Run]) -> None:
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


def _picks(where: Mapping[str, Any], run: Run) -> bool:
    return where.get("dose", run.dose) == run.dose


def _method_runs(study: Study, run: Run, chosen: Chosen) -> list[Run]:
    """One method at each of its doses."""
    doses = study.methods[run.method].get("doses", study.doses)
    runs = []
    for dose in doses:
        knobs: Knobs = {}
        if "tries" in study.methods[run.method]:
            knobs = chosen[run.method, analysis.nearest(_tuning(study).doses, dose)]
        runs.append(_dosed(study, run, dose, knobs))
    return runs


def _dosed(study: Study, run: Run, dose: float, knobs: Knobs) -> Run:
    """One method at one dose, with its knobs."""
    fields = dict(study.methods[run.method])
    for field in ("doses", "tries"):
        fields.pop(field, None)
    where = f"study {study.name}, method '{run.method}'"
    try:
        fields["spec"] = fields["spec"].format(**knobs)
        dosed = dataclasses.replace(run, dose=float(dose), **fields)
        objectives.build(dosed.spec)
    except (KeyError, TypeError, ValueError) as error:
        raise KitError(f"{where}: {error}") from None
    if problem := dosed.problem():
        raise KitError(f"{where}: {problem}")
    return dosed


def _tries(study: Study) -> dict[str, list[Knobs]]:
    """The tries of each method that has some; as many of each."""
    methods = study.methods.items()
    tries = {name: analysis.knobs_of(m["tries"]) for name, m in methods if "tries" in m}
    counts = {name: len(each) for name, each in tries.items()}
    if len(set(counts.values())) > 1:
        raise KitError(f"study {study.name}: tries {counts}; give all methods the same number")
    return tries


def _tuning(study: Study) -> Tuning:
    fields = study.settings.get("tuning")
    if not fields or not _tries(study):
        raise KitError(
            f"study {study.name}: nothing to tune; that takes settings.tuning and a method's tries"
        )
    tuning = study.fields(Tuning, fields, "settings.tuning")
    study.check_tuning_seeds(tuning.seeds, "settings.tuning.seeds")
    return tuning


def _chosen(study: Study, tuned: pd.DataFrame | None) -> Chosen:
    """What tuning chose; nothing where no method has tries."""
    tries = _tries(study)
    if not tries:
        return {}
    if tuned is None:
        tuned = pd.DataFrame(columns=["method", "dose", "knobs", "chosen"])
    return analysis.chosen_knobs(study.name, tuned, tries, _tuning(study).doses)
