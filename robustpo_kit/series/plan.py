"""What a run of the series is: notebooks in the order of their needs, parameters, state."""

import dataclasses
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from robustpo_kit import paths, profiles, records
from robustpo_kit.errors import KitError
from robustpo_kit.notebook import done_file, number_of
from robustpo_kit.records import digest, file_digest
from robustpo_kit.series.cells import source_key

# What each notebook reads that another one writes.
NEEDS: dict[str, tuple[str, ...]] = {
    "00": (),
    "01": (),
    "02": ("01",),
    "03": ("01",),
    "04a": (),
    "04b": ("02", "03"),
    "05": ("04b",),
    "06": ("03", "04b"),  # 04b trains the SFT policy that gamma-PO starts from
    "07": ("06",),
    "08": (),  # from here on, the tables of declared studies
    "09": (),
    "10": (),
    "11": (),
    "12": ("03", "04b"),  # the proxy, the SFT policy
    "13": (),
    "14": (),
    "15": (),
    "99": ("03", "04b", "05", "06", "07"),  # and the tables of declared studies
}


STATUSES = ("ok", "failed", "incomplete", "skipped")


def needs_of(number: str) -> tuple[str, ...]:
    """Numbers of the notebooks whose results notebook `number` reads."""
    return NEEDS.get(number, ())


@dataclasses.dataclass(frozen=True)
class Plan:
    """One invocation of the runner."""

    profile: str
    seed: int = 0
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)  # settings of the profile
    parameters: dict[str, Any] = dataclasses.field(default_factory=dict)  # further ones
    only: tuple[str, ...] = ()  # numbers; empty = all
    resume: bool = False  # keep notebooks that are ok and whose inputs have not changed
    time_limit: float = 3600.0  # seconds a notebook
    slots: tuple[str | None, ...] = (None,)  # one notebook at a time each; its CUDA_VISIBLE_DEVICES
    notebooks: Path = dataclasses.field(default_factory=lambda: paths.NOTEBOOKS)

    @property
    def work(self) -> Path:
        """Folder of this run, of its profile, seed and overrides."""
        return paths.work(self.profile, paths.run_name(self.seed, self.overrides))


@dataclasses.dataclass
class Result:
    """What became of one notebook."""

    name: str
    status: str  # one of STATUSES
    reason: str = ""
    kept: bool = False  # ok from an earlier run, not executed again
    seconds: float = 0.0
    tables: list[str] = dataclasses.field(default_factory=list)
    figures: list[str] = dataclasses.field(default_factory=list)
    key: str = ""

    @property
    def number(self) -> str:
        """Its `number_of`."""
        return number_of(self.name)


def sources(folder: Path) -> dict[str, Path]:
    """Number -> notebook file; raises KitError where there is none, or needs are not declared."""
    by_number = {number_of(path.name): path for path in sorted(folder.glob("[0-9][0-9]*_*.ipynb"))}
    if not by_number:
        raise KitError(f"{paths.show(folder)}: no notebook named NN_name.ipynb")
    undeclared = sorted(set(by_number) - set(NEEDS))
    if undeclared:
        name = by_number[undeclared[0]].name
        raise KitError(f"{name}: its needs are not declared; add it to NEEDS in series/plan.py")
    return by_number


def named(only: Collection[str], known: Collection[str], where: str) -> set[str]:
    """The notebooks that `only` names: 04 stands for 04a and 04b, too.

    Raises KitError, which begins with `where`, for a number that is none.
    """
    found: set[str] = set()
    for number in only:
        parts = {other for other in known if _is_part(other, number)}
        if not parts:
            choices = ", ".join(known)
            raise KitError(f"{where}: there is no notebook {number}; choose among {choices}")
        found |= parts
    return found


def _is_part(number: str, of: str) -> bool:
    return number == of or (len(of) == 2 and number.startswith(of))


def in_order(numbers: list[str]) -> list[str]:
    """`numbers` with every notebook after those it needs, otherwise ascending."""
    done: list[str] = []
    waiting = sorted(numbers)
    while waiting:
        ready = next((n for n in waiting if not set(needs_of(n)) & set(waiting)), None)
        if ready is None:
            raise KitError(
                f"series: notebooks {', '.join(waiting)} need each other in a circle; "
                "see NEEDS in series/plan.py"
            )
        waiting.remove(ready)
        done.append(ready)
    return done


def check(plan: Plan) -> dict[str, Path]:
    """The notebooks that `plan` runs, in order; raises KitError for what it names in vain."""
    profiles.get(plan.profile, plan.overrides)
    known = sources(plan.notebooks)
    chosen = named(plan.only, known, "--only")
    numbers = [n for n in in_order(list(known)) if not plan.only or n in chosen]
    for number in numbers:
        _check_parameters(plan, known[number])
        if plan.only:
            _check_needs(plan, number, numbers)
    return {number: known[number] for number in numbers}


def _check_needs(plan: Plan, number: str, chosen: list[str]) -> None:
    """What a notebook reads is written in this run, or was in an earlier one."""
    missing = [need for need in needs_of(number) if need not in chosen and not _was_ok(plan, need)]
    if missing:
        raise KitError(
            f"--only: {number} needs {', '.join(missing)}, which has not run under profile "
            f"{plan.profile}; run --only {','.join(sorted({*plan.only, *missing}))}, "
            "or the whole series"
        )


def _check_parameters(plan: Plan, path: Path) -> None:
    """papermill only warns of an unknown parameter, and the run would silently use the default."""
    from papermill import inspect_notebook

    known = inspect_notebook(path)
    for name in parameters(plan):
        if name not in known:
            raise KitError(
                f"{path.name}: parameter '{name}' is unknown; it has {', '.join(known) or 'none'}"
            )


def parameters(plan: Plan) -> dict[str, Any]:
    """What papermill injects into every notebook; raises KitError for what JSON cannot carry."""
    for name in ("profile", "seed", "overrides"):
        if name in plan.parameters:
            raise KitError(f"-P {name}: use --profile, --seed or --set instead")
    own = {"profile": plan.profile, "seed": plan.seed, "overrides": plan.overrides}
    try:
        return json.loads(json.dumps(own | plan.parameters))
    except TypeError as error:
        raise KitError(f"parameters: {error}") from None


def plan_key(plan: Plan, path: Path) -> str:
    """`source_key`, and the states of what it needs: when one of those ran again, so must this."""
    states = [state_file(plan, need) for need in needs_of(number_of(path.name))]
    before = [file_digest(state) for state in states if state.exists()]
    return digest(source_key(path, parameters(plan), plan.profile), before, length=16)


def state_file(plan: Plan, number: str) -> Path:
    """Where the result of notebook `number` is kept for the next run."""
    return plan.work / "state" / f"{number}.json"


def _was_ok(plan: Plan, number: str) -> bool:
    state = state_file(plan, number)
    return (
        state.exists()
        and records.read_json(state)["status"] == "ok"
        and done_file(plan.work, number).exists()
    )


def kept_result(plan: Plan, path: Path, key: str) -> Result | None:
    """The earlier result of a notebook, if it was ok under the same key and its files are there."""
    number = number_of(path.name)
    if not plan.resume or not _was_ok(plan, number):
        return None
    result = Result(**records.read_json(state_file(plan, number)))
    files = [paths.ROOT / name for name in result.tables + result.figures]
    if result.key != key or not all(file.exists() for file in [*files, output_path(plan, path)]):
        return None
    return dataclasses.replace(result, kept=True)


def output_path(plan: Plan, path: Path) -> Path:
    """Where the executed form of the notebook `path` goes."""
    return plan.work / "notebooks" / path.name
