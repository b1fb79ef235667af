"""Finished runs beside each other: paired differences on the same held-out rows, what was set.

A run is a folder: a policy that `robustpo train --heldout FILE` wrote (record.json, heldout.csv),
or the tables of a series of notebooks (its replies to held-out prompts, NAME_replies.csv, and
NAME_curves.csv). Runs that differ in nothing but their seed are one arm.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd

from robustpo_kit import paths
from robustpo_kit.analysis.paired import mean_difference, paired_rows
from robustpo_kit.errors import KitError
from robustpo_kit.records import RunRecord, digest, read_json

RECORD, HELDOUT = "record.json", "heldout.csv"
REPLIES, CURVES = "*_replies.csv", "*_curves.csv"  # tables of the series
OF_REPLIES = ("gold", "reward", "confidence", "log_ratio", "words")
ALONE = "policy"  # the one method of a trained run
# Of a record, what does not decide a run: where it ran, what it was called, where things lie.
ASIDE = ("checkpoint", "checkpoint_every", "reference_cache", "seed")
FOUND = ("difference", "low", "high", "p_value", "seeds", "prompts")  # of a `Difference`
TEXT = {"row_id": str, "group": str, "texts": str, "prompt_id": str}
NUMBERS = ("value", *OF_REPLIES)  # columns whose empty cell is no number; "NA" may be an id
NO_NUMBER = ["", "nan", "NaN"]


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished run."""

    name: str
    seed: int
    settings: dict[str, Any]  # by dotted name, the seed aside
    outcomes: pd.DataFrame  # method, row_id, group, texts, outcome, value
    curves: pd.DataFrame  # method, step, and a column a measure; may be empty

    def rows(self) -> dict[str, str]:
        """The digest of the texts of each held-out row, by its id."""
        return dict(zip(self.outcomes["row_id"], self.outcomes["texts"], strict=True))

    @property
    def arm(self) -> str:
        """The same for runs that differ in their seeds alone."""
        return digest(self.settings, length=16)


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Runs by their folders, at least two, all on the same held-out rows.

    Raises:
        KitError: a folder is no run, comes twice, or lacks held-out scores; the held-out rows of
            two runs differ, and how.
    """
    places = [Path(folder) for folder in folders]
    if len({place.resolve() for place in places}) < max(len(places), 2):
        raise KitError("compare: at least two runs are needed, each named once")
    runs = [_read(place, name) for place, name in zip(places, _names(places), strict=True)]
    for run in runs[1:]:
        _check_same_rows(runs[0], run)
    return runs


def _names(places: Sequence[Path]) -> list[str]:
    """Folders by as many of their last parts as tell them apart."""
    parts = [place.resolve().parts for place in places]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(place) for place in places]


def _read(folder: Path, name: str) -> Run:
    if (folder / RECORD).exists():
        return _trained(folder, name)
    if list(folder.glob(REPLIES)):
        return _series(folder, name)
    raise KitError(
        f"{paths.show(folder)}: no run: it holds neither {RECORD} (of `robustpo train`) nor "
        f"{REPLIES} (a table of a series)"
    )


def _trained(folder: Path, name: str) -> Run:
    record = RunRecord.from_json(folder / RECORD)
    if not (folder / HELDOUT).exists():
        raise KitError(
            f"{paths.show(folder)}: holds no {HELDOUT}; train with --heldout FILE, the same for all"
        )
    settings = _flat(record.config | {"objective": record.objective})
    kept = {key: value for key, value in settings.items() if key.split(".")[-1] not in ASIDE}
    outcomes = _read_outcomes(folder / HELDOUT).assign(method=ALONE)
    curves = pd.DataFrame(record.history).assign(method=ALONE)
    return Run(name, record.seed, kept, outcomes, curves)


def _series(folder: Path, name: str) -> Run:
    parts, curves, seed = [], [], 0
    settings: dict[str, Any] = {}
    for path in sorted(folder.glob(REPLIES)):
        replies = _read_outcomes(path)
        beside = read_json(path.with_suffix(".json"))
        settings |= _flat(beside["config"]) | {"profile": beside["profile"]}
        seed = beside["seed"]
        if "fingerprint" in replies:
            settings["judge of replies"] = replies["fingerprint"].iloc[0]
        values = [column for column in OF_REPLIES if column in replies]
        parts.append(replies.melt(["policy", "prompt_id"], values, "outcome", "value"))
    for path in sorted(folder.glob(CURVES)):
        curves.append(pd.read_csv(path).rename(columns={"policy": "method"}))
    outcomes = pd.concat(parts).rename(columns={"policy": "method", "prompt_id": "group"})
    outcomes["row_id"] = outcomes["group"]
    every = pd.concat(curves) if curves else pd.DataFrame()
    return Run(name, seed, settings, outcomes.assign(texts=""), every)


def _read_outcomes(path: Path) -> pd.DataFrame:
    empty = dict.fromkeys(NUMBERS, NO_NUMBER)
    return pd.read_csv(path, dtype=TEXT, keep_default_na=False, na_values=empty)


def _flat(value: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested settings by dotted names."""
    found: dict[str, Any] = {}
    for name, entry in value.items():
        if isinstance(entry, Mapping):
            found |= _flat(entry, f"{before}{name}.")
        else:
            found[f"{before}{name}"] = entry
    return found


def _check_same_rows(first: Run, other: Run) -> None:
    """Raises KitError that says how the held-out rows of two runs differ."""
    own, others = first.rows(), other.rows()
    alone = [sorted(set(own) - set(others)), sorted(set(others) - set(own))]
    where = (
        f"{first.name} ({len(own)} rows, seed {first.seed}) and {other.name} ({len(others)} rows, "
        f"seed {other.seed})"
    )
    for run, names in zip((first, other), alone, strict=True):
        if names:
            raise KitError(
                f"compare: {where} have other held-out rows: {len(names)} are in {run.name} alone "
                f"(the first: {names[0]}); runs on the same rows are compared"
            )
    changed = [name for name in own if own[name] != others[name]]
    if changed:
        raise KitError(
            f"compare: {where}: held-out row {changed[0]} ({len(changed)} in all) has other texts, "
            "or another preferred reply; runs on the same rows are compared"
        )


def compare_runs(runs: Sequence[Run], *, level: float = 0.95) -> pd.DataFrame:
    """Each arm less the first run's, paired by seed and held-out row, clustered by seed and prompt.

    Seeds are paired where arms have several; of single runs the seeds may differ. With one seed an
    interval is over prompts, and says nothing of other seeds.

    Args:
        runs: of `read_runs`.
        level: of the intervals.

    Returns:
        A row an arm, method and outcome: run, baseline (names of first runs), method, outcome,
        mean, baseline_mean, difference, low, high, p_value, seeds, prompts, left_out (values of
        seeds and held-out rows that both have, and that are no number in one of them).

    Raises:
        KitError: all runs differ in their seeds alone, two in nothing at all, an arm has no seed
            and method in common with the first run's, or no number in an outcome where the other
            has some.
    """
    names: dict[str, str] = {}
    same: dict[tuple[str, int], str] = {}
    for run in runs:
        names.setdefault(run.arm, run.name)
        twin = same.setdefault((run.arm, run.seed), run.name)
        if twin != run.name:
            raise KitError(f"compare: {twin} and {run.name} are one run: same settings, same seed")
    if len(names) < 2:
        raise KitError("compare: these runs differ in nothing but their seeds")
    single = len(names) == len(runs)
    parts = []
    for run in runs:
        seed = 0 if single else run.seed
        parts.append(run.outcomes.assign(arm=names[run.arm], seed=seed))
    values = pd.concat(parts, ignore_index=True)
    groups = dict(zip(values["row_id"], values["group"], strict=True))
    baseline, *others = names.values()
    found = []
    for arm in others:
        rows = _differences(values, groups, arm, baseline, level)
        if not rows:
            raise KitError(
                f"compare: {baseline} and {arm} have no seed, method and number in common; leave "
                "one out"
            )
        found += rows
    return pd.DataFrame(found)


def _differences(
    values: pd.DataFrame, groups: Mapping[str, str], arm: str, baseline: str, level: float
) -> list[dict[str, Any]]:
    rows = []
    both = values[values["arm"].isin([arm, baseline])]
    for (method, outcome), part in both.groupby(["method", "outcome"], sort=False):
        table = part.assign(method=part["arm"])
        pairs = paired_rows(table, arm, baseline, str(outcome))
        both_have = _asked_of_both(table)
        if not len(pairs):
            _refuse_failed(part, both_have, str(outcome))
            continue
        clustered = pairs.assign(row_id=pairs["row_id"].map(groups))
        means = table.merge(pairs[["seed", "row_id"]]).groupby("arm")["value"].mean()
        row = {"run": arm, "baseline": baseline, "method": method, "outcome": outcome}
        row |= {"mean": means[arm], "baseline_mean": means[baseline]}
        found = mean_difference(clustered, level=level)._asdict()
        row |= {name: found[name] for name in FOUND}
        rows.append(row | {"left_out": both_have - len(pairs)})
    return rows


def _asked_of_both(table: pd.DataFrame) -> int:
    """Seeds and held-out rows that both arms have, with or without a number."""
    arms = table[["arm", "seed", "row_id"]].drop_duplicates()
    return int((arms.groupby(["seed", "row_id"]).size() == 2).sum())


def _refuse_failed(part: pd.DataFrame, both_have: int, outcome: str) -> None:
    """Raises KitError where both arms have rows, and one of them numbers."""
    numbers = part.groupby("arm", sort=False)["value"].count()
    if both_have and numbers.any():
        raise KitError(
            f"compare: {numbers.idxmin()}, {outcome}: no number in the {both_have} held-out rows "
            "that both have; a run without one has failed, leave it out"
        )


def differing_settings(runs: Sequence[Run]) -> pd.DataFrame:
    """What was set otherwise, the seed too: a row a setting, a column a run; empty: not set."""
    every = [{"seed": run.seed} | run.settings for run in runs]
    rows = []
    for name in dict.fromkeys(chain.from_iterable(every)):
        values = [settings.get(name, "") for settings in every]
        if any(value != values[0] for value in values):
            said = {run.name: str(value) for run, value in zip(runs, values, strict=True)}
            rows.append({"setting": name} | said)
    return pd.DataFrame(rows, columns=["setting", *[run.name for run in runs]])


def all_curves(runs: Sequence[Run]) -> pd.DataFrame:
    """The steps of all runs: run, method, step, and a column a measure."""
    parts = [run.curves.assign(run=run.name) for run in runs if len(run.curves)]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
