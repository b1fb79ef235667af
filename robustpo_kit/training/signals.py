"""What is known of every row before training: reference log-probs, lengths, rewards, h."""

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustpo_kit.data import PreferenceSet
from robustpo_kit.errors import KitError
from robustpo_kit.losses import Scores
from robustpo_kit.policies import TokenTable


def fitting_rows(dataset: PreferenceSet, objective: Any) -> PreferenceSet:
    """The rows as the objective takes them; raises KitError naming a row that does not fit."""
    if len(dataset) == 0:
        raise KitError("training: the preference set has no rows")
    for row in dataset:
        k = len(row.responses)
        if objective.responses == "pair" and k != 2:
            raise KitError(
                f"row {row.row_id}: {objective.spec} takes pairs, this row has {k} responses; use .pairs()"
            )
        if objective.responses == "list" and k < 2:
            raise KitError(
                f"row {row.row_id}: {objective.spec} takes at least 2 responses, this row has {k}"
            )
        if objective.responses == "one" and row.golden is None:
            raise KitError(
                f"row {row.row_id}: {objective.spec} trains on the golden response, but 'golden' is not set"
            )
        if objective.needs_rewards and row.rewards is None:
            raise KitError(
                f"row {row.row_id}: {objective.spec} needs rewards; add them with .with_rewards(array)"
            )
        if objective.needs_h and row.h is None:
            raise KitError(
                f"row {row.row_id}: {objective.spec} needs h (calibration factor); add it with .with_h(array)"
            )
    if objective.responses != "one":
        return dataset
    golden = [
        dataclasses.replace(
            row,
            responses=(row.responses[row.golden],),
            sources=(row.sources[row.golden],),
            rewards=None,
            golden=0,
        )
        for row in dataset
    ]
    return PreferenceSet(golden)


class Signals(NamedTuple):
    """What is known of every row before training; K is the largest number of responses."""

    ref_logps: Tensor | None  # [N, K]
    kl_ref_logps: Tensor | None  # [N]
    lengths: Tensor  # [N, K]
    mask: Tensor | None  # [N, K], None where every column is real
    rewards: Tensor | None  # [N, K]
    h: Tensor | None  # [N]

    @classmethod
    def of(cls, rows: PreferenceSet, tokens: TokenTable, reference: Tensor | None) -> "Signals":
        """Signals of a preference set; `reference` [N, K (+ 1 for the mismatched pair)]."""
        k = max(len(row.responses) for row in rows)
        lengths = torch.tensor([(r.lengths() + [0] * k)[:k] for r in tokens.rows])
        rewards = [row.rewards for row in rows]
        return cls(
            None if reference is None else reference[:, :k],
            reference[:, k] if reference is not None and tokens.mismatched else None,
            lengths,
            None if bool((lengths > 0).all()) else lengths > 0,
            None
            if None in rewards
            else torch.tensor([[*r, *[0.0] * (k - len(r))] for r in rewards]),
            None if any(row.h is None for row in rows) else torch.tensor([row.h for row in rows]),
        )

    def scores(
        self, logps: Tensor, index: Tensor, *, mismatched: bool
    ) -> tuple[Scores, Tensor | None]:
        """Scores and h of the rows `index`; a mismatched pair's log-prob is the last column of `logps`."""
        device = logps.device
        pick = lambda value: None if value is None else value[index].to(device)  # noqa: E731
        k = self.lengths.shape[1]
        scores = Scores(
            logps[:, :k],
            pick(self.ref_logps),
            pick(self.lengths),
            pick(self.rewards),
            pick(self.mask),
            logps[:, k].detach() if mismatched else None,
            pick(self.kl_ref_logps),
        )
        return scores, pick(self.h)
