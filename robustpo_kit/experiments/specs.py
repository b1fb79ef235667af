"""The methods that notebooks train, at the papers' hyperparameters (`objectives.PRESETS`)."""

from robustpo_kit import objectives, robust
from robustpo_kit.errors import KitError
from robustpo_kit.profiles import Profile

LISTWISE_TASK = "hh"  # DoRA Table 8
PAIRWISE_MODEL = "llama3-8b-instruct"  # gamma-PO Table 7, of strength gamma0 / tau = 0.4


def listwise_spec(name: str, cfg: Profile) -> str:
    """The spec of a method "LOSS AGGREGATOR", with the profile's lambda where it takes one.

    LOSS is one that the papers set for HH (`objectives.PRESETS`), or any spec of a loss, such as
    "ipo(tau=0.1)".
    """
    loss, _, aggregator = name.rpartition(" ")
    if not loss or aggregator not in robust.AGGREGATORS:
        known = ", ".join(robust.AGGREGATORS)
        raise KitError(f"method '{name}': LOSS AGGREGATOR is expected, the latter one of {known}")
    preset = objectives.PRESETS.get(f"{LISTWISE_TASK}/{loss}")
    spec = loss if preset is None else preset.spec
    if "lam" in robust.AGGREGATORS[aggregator].options:
        spec += f", lam={cfg.lam}"
    return f"{aggregator}({spec})"


def _gamma_methods() -> dict[str, str]:
    """DPO and SimPO, each with a constant and a dynamic margin; DPO takes SimPO's gamma0, tau."""
    dpo = objectives.PRESETS[f"{LISTWISE_TASK}/dpo"].spec
    simpo = objectives.PRESETS[f"{PAIRWISE_MODEL}/simpo"].spec
    gamma_simpo = objectives.PRESETS[f"{PAIRWISE_MODEL}/gamma_simpo"].spec
    built = objectives.build(gamma_simpo)
    assert built.margin is not None, gamma_simpo
    return {
        "dpo": dpo,
        "gamma-dpo": f"gamma({dpo}, gamma0={built.gamma0}, tau={built.margin['tau']})",
        "simpo": simpo,
        "gamma-simpo": gamma_simpo,
    }


GAMMA_METHODS = _gamma_methods()
SIMPO_BETA: float = objectives.build(GAMMA_METHODS["simpo"]).options["beta"]
