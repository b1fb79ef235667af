"""The methods that notebooks train, at the papers' hyperparameters (`published.PRESETS`)."""

import math

from robustpo_kit import objectives, published, robust
from robustpo_kit.errors import KitError
from robustpo_kit.profiles import Profile

# Whose settings a profile takes whose model or task is none of the papers'.
DORA_RUN = "dora/mistral-7b/hh"
GAMMA_RUN = "gamma/llama-3-8b-instruct"  # of strength gamma0 / tau = 0.4
GAMMA_TASK = "ultrafeedback"  # of gamma-PO, whatever the profile's
DPO_SPREAD = 0.2  # wished standard deviation of the margins over DPO, in units of gamma0


def listwise_spec(name: str, cfg: Profile) -> str:
    """The spec of a method "LOSS AGGREGATOR", with the profile's lambda where it takes one.

    LOSS is one that the papers set for the profile's model and task, or else for Mistral on HH
    (`published.PRESETS`), or any spec of a loss, such as "ipo(tau=0.1)".
    """
    loss, _, aggregator = name.rpartition(" ")
    if not loss or aggregator not in robust.AGGREGATORS:
        known = ", ".join(robust.AGGREGATORS)
        raise KitError(f"method '{name}': LOSS AGGREGATOR is expected, the latter one of {known}")
    preset = published.find(cfg.model, cfg.task, loss)
    preset = preset or published.PRESETS.get(f"{DORA_RUN}/{loss}")
    spec = loss if preset is None else preset.spec
    if "lam" in robust.AGGREGATORS[aggregator].options:
        spec += f", lam={cfg.lam}"
    return f"{aggregator}({spec})"


def gamma_methods(cfg: Profile) -> dict[str, str]:
    """DPO and SimPO, each with a constant and a dynamic margin.

    SimPO's margins are those of gamma-PO Table 7 for the profile's model, or else for Llama-3.
    gamma0 and tau over DPO are solved on the gaps of the run itself, a third of the way through it:
    at the start they are all 0, and SimPO's gamma0 is ten times as large as they become.
    """
    dpo = published.PRESETS[f"{DORA_RUN}/dpo"].spec
    simpo, gamma_simpo = (_gamma_spec(cfg, loss) for loss in ("simpo", "gamma_simpo"))
    steps = cfg.epochs * math.ceil(cfg.policy_rows / cfg.batch_size)
    solve_step = max(2, math.ceil(steps / 3))
    return {
        "dpo": dpo,
        "gamma-dpo": f"gamma({dpo}, spread={DPO_SPREAD}, solve_step={solve_step})",
        "simpo": simpo,
        "gamma-simpo": gamma_simpo,
    }


def _gamma_spec(cfg: Profile, loss: str) -> str:
    """The spec of a preset of gamma-PO for the profile's model."""
    preset = published.find(cfg.model, GAMMA_TASK, loss)
    return (preset or published.PRESETS[f"{GAMMA_RUN}/{loss}"]).spec


def simpo_beta(cfg: Profile) -> float:
    """SimPO's beta in `gamma_methods`."""
    return objectives.build(_gamma_spec(cfg, "simpo")).options["beta"]
