"""What the flags of `robustpo train` ask for, and the rows that they name."""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from robustpo_kit.cli.parsing import is_first_rank, read_preferences
from robustpo_kit.data import Preference, PreferenceSet, preferred_and_least, shared
from robustpo_kit.errors import KitError

if TYPE_CHECKING:
    from robustpo_kit.training import StepObjective, TrainConfig

HELDOUT_SEED = 0  # of the rows that --heldout sets aside


class Rows(NamedTuple):
    """The rows of a run."""

    trained: PreferenceSet
    heldout: PreferenceSet | None


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the flags ask for."""

    model: str
    data: str
    preset: str | None
    dtype: str
    lora: str  # attention | all-linear | none
    rank: int
    run: "TrainConfig"
    objective: "StepObjective"
    split: str | None = None
    on_bad_row: str | None = None
    heldout: str | None = None

    def rows(self) -> Rows:
        """The rows to train on and those held out; says on standard error what they are.

        A share or a number of rows is drawn by a stream of its own, whole groups, so that runs of
        one file hold out the same rows, whatever their objective and seed.

        Raises:
            KitError: for rows that cannot be read, held-out ones whose prompts are trained on, and
                for those that an objective or a comparison cannot take.
        """
        from robustpo_kit import policies, training

        given = read_preferences(self.data, self.split, self.on_bad_row)
        lists_for_pairs = given.responses_per_prompt > 2 and self.objective.responses == "pair"
        if lists_for_pairs and is_first_rank():
            said = "a pair loss takes the replies of highest and of lowest reward"
            print(f"{given.name}: {said}", file=sys.stderr)
        if self.objective.responses == "pair":
            _tell_ties(given)
        if self.heldout is None:
            return Rows(training.fitting_rows(given, self.objective), None)
        if policies.first_rank_loads():
            raise KitError("--heldout: weights are sharded here; `robustpo score` them afterwards")
        count = _count(self.heldout, len(given))
        if count is None:
            heldout = read_preferences(self.heldout, None, self.on_bad_row)
        else:
            heldout = given.split({"heldout": count}, HELDOUT_SEED)["heldout"]
            given = _without(given, heldout)
            if not len(given):
                raise KitError(f"--heldout {self.heldout}: leaves no row to train on")
            if is_first_rank():
                print(f"{len(heldout):,} held out, {len(given):,} to train on", file=sys.stderr)
        training.check_heldout(given, heldout)
        return Rows(training.fitting_rows(given, self.objective), heldout)

    def described(self) -> dict[str, Any]:
        """All that was asked for but the settings of the run, as JSON knows it."""
        names = ("model", "data", "split", "on_bad_row", "heldout", "dtype", "lora", "rank")
        return {name: getattr(self, name) for name in names} | {"heldout_seed": HELDOUT_SEED}


def _tell_ties(rows: PreferenceSet) -> None:
    """Say on standard error how many rows prefer nothing; raises KitError where all of them do."""
    count = sum(map(_is_tie, rows))
    if count and count == len(rows):
        raise KitError(f"{rows.name}: every row is a tie, of equal rewards or texts; rank them")
    if count and is_first_rank():
        said = "are ties, of which a pair loss takes the first reply; drop them"
        print(f"{rows.name}: {count:,} of {len(rows):,} rows {said}", file=sys.stderr)


def _is_tie(row: Preference) -> bool:
    """Whether a pair loss's two replies share their text; or their reward, which no label ranks."""
    best, least = preferred_and_least(row)
    if len(row.responses) < 2 or row.responses[best] == row.responses[least]:
        return len(row.responses) > 1
    labelled = set(row.sources) == {"chosen", "rejected"}
    return not labelled and row.rewards is not None and row.rewards[best] == row.rewards[least]


def _without(rows: PreferenceSet, heldout: PreferenceSet) -> PreferenceSet:
    """The rows that share neither group nor prompt with held-out ones."""
    return rows.select(np.flatnonzero(~np.array(shared(rows, heldout))))


def _count(heldout: str, rows: int) -> int | None:
    """How many rows `--heldout` asks for; None where it names a file. Raises KitError."""
    if Path(heldout).exists():
        return None
    try:
        asked = float(heldout)
    except ValueError:
        return None
    if 0 < asked < 1:
        return max(1, round(asked * rows))
    if asked < 1 or not asked.is_integer():  # nor is inf
        raise KitError(
            f"--heldout {heldout}: a file, a share between 0 and 1, or a number of rows is expected"
        )
    return int(asked)
