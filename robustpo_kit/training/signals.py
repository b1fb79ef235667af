"""What is known of every row before training: reference log-probs, lengths, rewards, h."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from robustpo_kit.data import Preference, PreferenceSet, mean_h, preferred_pair
from robustpo_kit.errors import KitError
from robustpo_kit.losses import Scores
from robustpo_kit.policies import TokenTable
from robustpo_kit.training.step_objective import StepObjective


def fitting_rows(dataset: PreferenceSet, objective: StepObjective) -> PreferenceSet:
    """The rows as the objective takes them; raises KitError naming a row that does not fit.

    A pair loss takes what `preferred_pair` makes of rows of more than two responses, and of rows
    that were loaded (`PreferenceSet.ranked`); else column 0 is the preferred one of a pair.
    """
    if len(dataset) == 0:
        raise KitError("training: the preference set has no rows")
    for row in dataset:
        problem = _misfit(row, objective)
        if problem:
            raise KitError(f"row {row.row_id}: {objective.spec} {problem}")
    if objective.responses == "one":
        return dataset.golden_only()
    if objective.responses == "pair" and dataset.responses_per_prompt > 2:
        return dataset.map(preferred_pair)
    return dataset.preferred_first() if objective.responses == "pair" else dataset


def _misfit(row: Preference, objective: StepObjective) -> str | None:
    """What the objective misses in the row, and what to do; None where the row fits."""
    count = len(row.responses)
    if objective.responses == "pair" and count != 2 and len(row.rewards or ()) < 3:
        return f"takes pairs, this row has {count} responses and no rewards that say which two"
    if objective.responses == "list" and count < 2:
        return f"takes at least 2 responses, this row has {count}"
    if objective.responses == "one" and row.golden is None:
        return "trains on the golden response, but 'golden' is not set"
    if objective.needs_rewards and row.rewards is None:
        return "needs rewards, which `robustpo calibrate` adds; or .with_rewards(array)"
    if objective.needs_h and row.h is None:
        return "needs h (calibration factor), which `robustpo calibrate` adds; or .with_h(array)"
    if objective.needs_ratios and not isinstance(row.h, tuple):
        return "needs h as the density ratio of each response; give a list, or .with_h([N, K])"
    return None


class Signals(NamedTuple):
    """What is known of every row before training; K is the largest number of responses."""

    ref_logps: Tensor | None  # [N, K]
    kl_ref_logps: Tensor | None  # [N]
    lengths: Tensor  # [N, K]
    mask: Tensor | None  # [N, K], None where every column is real
    rewards: Tensor | None  # [N, K]
    h: Tensor | None  # [N], or [N, K] of each response

    @classmethod
    def of(cls, rows: PreferenceSet, tokens: TokenTable, reference: Tensor | None) -> "Signals":
        """Signals of a preference set.

        Args:
            rows: N rows of at most K responses.
            tokens: Their tokens, with a mismatched response a row where the objective needs it.
            reference: Log-probs [N, K] under the reference, with a column more for the mismatched
                response; None for an objective without a reference.
        """
        width = max(len(row.responses) for row in rows)
        lengths = torch.tensor([_padded(row.lengths()[:width], width, 0) for row in tokens.rows])
        real_columns = lengths > 0
        signals = cls(
            None,
            None,
            lengths,
            None if bool(real_columns.all()) else real_columns,
            _rewards(rows, width),
            _factors(rows, width),
        )
        return signals if reference is None else signals.with_reference(reference)

    def with_reference(self, reference: Tensor) -> "Signals":
        """The same with log-probs under the reference, as `of` takes them."""
        width = self.lengths.shape[1]
        mismatched = reference[:, width] if reference.shape[1] > width else None
        return self._replace(ref_logps=reference[:, :width], kl_ref_logps=mismatched)

    def scores(
        self, logps: Tensor, index: Tensor, *, mismatched: bool
    ) -> tuple[Scores, Tensor | None]:
        """Scores and h of some rows, on the device of their log-probs.

        Args:
            logps: Log-probs [B, K], with a column more for the mismatched response.
            index: Numbers [B] of the rows.
            mismatched: Whether `logps` has that column.

        Returns:
            The scores of B rows, and their h, [B] or [B, K], None where rows have none.
        """
        width = self.lengths.shape[1]
        device = logps.device
        scores = Scores(
            logps[:, :width],
            _at(self.ref_logps, index, device),
            self.lengths[index].to(device),
            _at(self.rewards, index, device),
            _at(self.mask, index, device),
            logps[:, width].detach() if mismatched else None,
            _at(self.kl_ref_logps, index, device),
        )
        return scores, _at(self.h, index, device)


def _padded(values: Sequence[float], width: int, filler: float) -> list[float]:
    return [*values, *[filler] * (width - len(values))]


def _rewards(rows: PreferenceSet, width: int) -> Tensor | None:
    """Rewards [N, K], 0 in columns that a row does not have; None where a row has none."""
    rewards = [_padded(row.rewards, width, 0.0) for row in rows if row.rewards is not None]
    return torch.tensor(rewards, dtype=torch.float32) if len(rewards) == len(rows) else None


def _factors(rows: PreferenceSet, width: int) -> Tensor | None:
    """h [N], or [N, K] where every row has a ratio of each response; None where a row has none."""
    ratios = [_padded(row.h, width, 0.0) for row in rows if isinstance(row.h, tuple)]
    if len(ratios) == len(rows):
        return torch.tensor(ratios, dtype=torch.float32)
    factors = [factor for factor in map(mean_h, rows) if factor is not None]
    return torch.tensor(factors, dtype=torch.float32) if len(factors) == len(rows) else None


def _at(value: Tensor | None, index: Tensor, device: torch.device) -> Tensor | None:
    return None if value is None else value[index].to(device)
