"""The table of losses: what each one needs, and what may be built around it."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor

from robustpo_kit.losses import coupled, listwise, noise, pairwise, states

SUPPLIED = ("scores", "margin", "state", "generator", "training")  # what the objective fills in
TARGETS = ("gamma0", "gamma_beta_ratio")  # a constant target margin, in either published form


class LossState(Protocol):
    """What a loss remembers between steps."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> None: ...


@dataclasses.dataclass(frozen=True)
class Base:
    """A base loss and what it needs of its scores; its keywords are those of its function.

    A loss that draws has an argument `generator`, and a spec may give its `seed`; one that treats
    evaluation in another way has an argument `training`. A loss whose state moves before it is
    read is coupled; one that reads first is not, as the parts of a step all see the old state.
    """

    loss: Callable[..., Tensor]
    responses: str  # "pair" | "list" | "one"
    needs_reference: bool = True
    needs_rewards: bool = False
    needs_kl: bool = False  # log-probabilities of mismatched responses
    logp: str = "sum"  # the log-probs it reads: "sum" | "mean" a token | "reduction": as that says
    gap: Callable[..., Tensor] | None = None  # what a dynamic margin applies to; None = takes none
    coupled: bool = False  # a sample's value depends on the other samples of the step
    state: Callable[..., LossState] | None = None  # its argument `state` at the start of training
    share_kept: str | None = None  # the argument below 1 that sets the other samples to a loss of 0
    bounded: bool = False  # bounded values of probabilities, not of their logarithms

    @property
    def options(self) -> tuple[str, ...]:
        """The keywords a spec may give."""
        keywords = [name for name in self._parameters if name not in SUPPLIED]
        if self.state is not None:
            keywords += inspect.signature(self.state).parameters
        if self.takes("generator"):
            keywords.append("seed")
        return tuple(keywords)

    @property
    def required(self) -> tuple[str, ...]:
        """The keywords a spec must give."""
        return tuple(
            name
            for name, parameter in self._parameters.items()
            if parameter.default is parameter.empty and name not in SUPPLIED
        )

    @property
    def has_target(self) -> bool:
        """Whether it has a constant target margin of its own, whose place a dynamic one takes."""
        return any(self.takes(target) for target in TARGETS)

    def takes(self, argument: str) -> bool:
        """Whether the loss has this argument."""
        return argument in self._parameters

    def value_of(self, argument: str, options: dict[str, Any]) -> Any:
        """The argument's value under `options`, its default where they do not give it."""
        return options.get(argument, self._parameters[argument].default)

    def logp_kind(self, options: dict[str, Any]) -> str:
        """ "mean" where the loss, under `options`, reads log-probs per token only, else "sum"."""
        if self.logp == "reduction":
            return str(self.value_of("reduction", options))
        return self.logp

    @property
    def _parameters(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self.loss).parameters


BASES: dict[str, Base] = {
    "dpo": Base(pairwise.dpo, "pair", gap=pairwise.dpo_gap),
    "cdpo": Base(noise.cdpo, "pair", gap=pairwise.dpo_gap),
    "rdpo": Base(noise.rdpo, "pair", gap=pairwise.dpo_gap),
    "r_dpo_length": Base(pairwise.r_dpo_length, "pair", gap=pairwise.dpo_gap),
    "ipo": Base(pairwise.ipo, "pair", logp="reduction"),
    "exo": Base(pairwise.exo, "pair"),
    "simpo": Base(
        pairwise.simpo, "pair", needs_reference=False, logp="mean", gap=pairwise.simpo_gap
    ),
    "cpo": Base(pairwise.cpo, "pair", needs_reference=False),
    "orpo": Base(pairwise.orpo, "pair", needs_reference=False, logp="mean"),
    "kto": Base(coupled.kto, "pair", needs_kl=True, coupled=True, bounded=True),
    "kto_pair": Base(coupled.kto_pair, "pair", coupled=True, bounded=True),
    "beta_dpo": Base(
        coupled.beta_dpo, "pair", coupled=True, state=states.BetaState, share_kept="keep"
    ),
    "rsimpo": Base(
        noise.rsimpo, "pair", needs_reference=False, logp="mean", gap=pairwise.simpo_gap
    ),
    "beta_simpo": Base(
        coupled.beta_simpo,
        "pair",
        needs_reference=False,
        logp="mean",
        coupled=True,
        state=states.BetaState,
    ),
    "alpha_dpo": Base(
        coupled.alpha_dpo, "pair", logp="mean", coupled=True, state=states.AlphaState
    ),
    "re_po": Base(noise.re_po, "pair", state=states.EtaState),
    "ropo": Base(noise.ropo, "pair"),
    "dpo_pro": Base(noise.dpo_pro, "pair", needs_rewards=True),
    "chi_po": Base(pairwise.chi_po, "pair"),
    "dpop": Base(pairwise.dpop, "pair"),
    "hinge": Base(pairwise.hinge, "pair"),
    "slic": Base(pairwise.slic, "pair", needs_reference=False),
    "simper": Base(pairwise.simper, "pair", needs_reference=False, logp="mean", bounded=True),
    "sppo": Base(pairwise.sppo, "pair"),
    "aot": Base(coupled.aot, "pair", coupled=True),
    "infonca": Base(listwise.infonca, "list", needs_rewards=True),
    "nca": Base(listwise.nca, "list", needs_rewards=True),
    "dpo_pl": Base(listwise.dpo_pl, "list", needs_rewards=True),
    "rrhf": Base(
        listwise.rrhf, "list", needs_reference=False, needs_rewards=True, logp="reduction"
    ),
    "lire": Base(listwise.lire, "list", needs_reference=False, needs_rewards=True),
    "sft": Base(listwise.sft, "one", needs_reference=False, logp="reduction"),
}
"""Every loss by its name in specs: a row is all that objectives, training and notebooks know."""
