"""The table of losses: what each one needs, and the gap that a dynamic margin applies to."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from robustpo_kit.losses.coupled import beta_dpo, kto, kto_pair
from robustpo_kit.losses.listwise import dpo_pl, lire, rrhf, sft
from robustpo_kit.losses.pairwise import (
    cdpo,
    cpo,
    dpo,
    dpo_gap,
    exo,
    ipo,
    orpo,
    r_dpo_length,
    rdpo,
    simpo,
    simpo_gap,
)


@dataclasses.dataclass(frozen=True)
class Base:
    """What a base loss needs of its scores; `gap` is the reward gap for a dynamic margin, None = it takes none."""

    loss: Callable[..., Tensor]
    responses: str  # "pair" | "list" | "one"
    needs_reference: bool = True
    needs_rewards: bool = False
    gap: Callable[..., Tensor] | None = None
    coupled: bool = False  # a sample's value depends on the other samples of the step
    extra: tuple[str, ...] = ()  # options of the objective's own, such as the seed of a generator
    logp: str = "sum"  # the log-probs it reads: "sum" | "mean" a token | "reduction": as that says

    def logp_kind(self, options: dict[str, Any]) -> str:
        """ "mean" where the loss with these `options` reads log-probs per token only, else "sum"."""
        if self.logp != "reduction":
            return self.logp
        default = inspect.signature(self.loss).parameters["reduction"].default
        return str(options.get("reduction", default))

    @property
    def options(self) -> tuple[str, ...]:
        """The keywords a spec may give."""
        return (
            *(name for name in inspect.signature(self.loss).parameters if name not in SUPPLIED),
            *self.extra,
        )

    @property
    def required(self) -> tuple[str, ...]:
        """The keywords a spec must give."""
        parameters = inspect.signature(self.loss).parameters.values()
        return tuple(p.name for p in parameters if p.default is p.empty and p.name not in SUPPLIED)


SUPPLIED = (
    "scores",
    "margin",
    "state",
    "generator",
    "training",
)  # arguments of losses that the objective fills in


BASES = {
    "dpo": Base(dpo, "pair", gap=dpo_gap),
    "cdpo": Base(cdpo, "pair", gap=dpo_gap),
    "rdpo": Base(rdpo, "pair", gap=dpo_gap),
    "r_dpo_length": Base(r_dpo_length, "pair", gap=dpo_gap),
    "ipo": Base(ipo, "pair", logp="reduction"),
    "exo": Base(exo, "pair"),
    "simpo": Base(simpo, "pair", needs_reference=False, gap=simpo_gap, logp="mean"),
    "cpo": Base(cpo, "pair", needs_reference=False),
    "orpo": Base(orpo, "pair", needs_reference=False, logp="mean"),
    "kto": Base(kto, "pair", coupled=True),
    "kto_pair": Base(kto_pair, "pair", coupled=True),
    "beta_dpo": Base(beta_dpo, "pair", coupled=True, extra=("momentum", "seed")),
    "dpo_pl": Base(dpo_pl, "list", needs_rewards=True),
    "rrhf": Base(rrhf, "list", needs_reference=False, needs_rewards=True, logp="reduction"),
    "lire": Base(lire, "list", needs_reference=False, needs_rewards=True),
    "sft": Base(sft, "one", needs_reference=False, logp="reduction"),
}
