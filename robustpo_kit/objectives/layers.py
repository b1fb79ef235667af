"""The layers of an objective and the keywords that each of them takes."""

from typing import Any

from robustpo_kit.errors import KitError
from robustpo_kit.losses import BASES


class SpecError(KitError, ValueError):
    """A spec that is not understood, or a combination that makes no sense; the message says why."""


AGGREGATOR_OPTIONS = {
    "erm": ("loss_shift",),
    "reweight": ("loss_shift", "normalise_h"),
    "dro": ("lam", "loss_shift"),
    "dora": ("lam", "loss_shift", "normalise_h"),
    "dora_outside": ("lam", "loss_shift", "normalise_h"),
    "dr_dpo": ("lam", "loss_shift"),
}


TARGETS = ("gamma0", "gamma_beta_ratio")


MARGIN_OPTIONS = (
    *TARGETS,
    "tau",
    "solver",
    "steps",
    "center",
    "capacity",
    "solve_size",
    "seed",
    "parity",
)


LAYERS = (*AGGREGATOR_OPTIONS, "gamma")


def layer_options(name: str, under_gamma: bool) -> tuple[str, ...]:
    """The keywords of a layer; under a dynamic margin SimPO has no constant of its own."""
    if name == "gamma":
        return MARGIN_OPTIONS
    if name in AGGREGATOR_OPTIONS:
        return AGGREGATOR_OPTIONS[name]
    return tuple(key for key in BASES[name].options if not (under_gamma and key in TARGETS))


def check_takes_margin(base: str) -> None:
    if BASES[base].gap is None:
        takers = ", ".join(name for name, entry in BASES.items() if entry.gap)
        raise SpecError(
            f"gamma({base}): {base} has no target margin on a pairwise reward gap; gamma takes {takers}"
        )


def chosen_options(options: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: options[name] for name in names if name in options}
