"""Published settings by name."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Preset:
    """A published setting. `learning_rates` by base model; empty where the paper states none."""

    spec: str
    task: str
    learning_rates: dict[str, float]
    batch_size: int
    source: str


_PAIR_RATES = {"mistral-7b-v0.1": 3e-7, "llama-3.1-8b": 6e-7}
_LIST_RATES = {"mistral-7b-v0.1": 2e-5, "llama-3.1-8b": 4e-5}  # LoRA


# By task: base loss, learning rates; UltraFeedback: full fine-tuning, its rate is not stated.
_DORA_TABLE_8 = {
    "hh": (
        ("dpo(beta=0.1)", _PAIR_RATES),
        ("r_dpo_length(alpha=0.01, beta=0.1)", _PAIR_RATES),
        ("exo(beta=0.5)", _PAIR_RATES),
        ("simpo(beta=2.0, gamma0=0.8)", _PAIR_RATES),
        ("dpo_pl(beta=0.1)", _LIST_RATES),
        ("rrhf(alpha=1.0)", _LIST_RATES),
        ("lire(temperature=2.0)", _LIST_RATES),
    ),
    "summarization": (
        ("dpo_pl(beta=0.5)", _LIST_RATES),
        ("rrhf(alpha=0.5)", _LIST_RATES),
        ("lire(temperature=1.0)", _LIST_RATES),
    ),
    "ultrafeedback": (
        ("dpo_pl(beta=0.1)", {}),
        ("rrhf(alpha=1.0)", {}),
        ("lire(temperature=2.0)", {}),
    ),
}


# By model: beta, gamma/beta ratio (the table's "gamma"), tau, learning rate.
_GAMMA_PO_TABLE_7 = {
    "llama3-8b-instruct": (10.0, 0.4, 10.0, 1e-6),
    "mistral-7b-instruct": (2.5, 0.15, 10.0, 6e-7),
    "gemma-2-9b-it": (10.0, 0.5, 20.0, 8e-7),
    "qwen2.5-7b-instruct": (10.0, 0.3, 3.0, 1e-6),
}


# Hyperparameters gamma-PO searched for its baselines, Table 6. Its "rDPO" is our cdpo by Eq. 5 and,
# up to a constant, our rdpo by the sign printed there. Its "beta-DPO" has betas of SimPO's size and
# a target margin (0.1, 0.3, 0.5) that the loss printed beside it does not take.
SEARCH_RANGES: dict[str, dict[str, tuple[float, ...]]] = {
    "dpo": {"beta": (0.01, 0.05, 0.1)},
    "ipo": {"tau": (0.01, 0.1, 0.5, 1.0)},
    "cpo": {"beta": (0.01, 0.05, 0.1), "lam": (1.0,)},
    "kto": {"beta": (0.01, 0.05, 0.1), "weight_chosen": (1.0,), "weight_rejected": (1.0,)},
    "orpo": {"lam": (0.1, 0.5, 1.0, 2.0)},
    "r_dpo_length": {"beta": (0.01, 0.05, 0.1), "alpha": (0.05, 0.1, 0.5, 1.0)},
    "cdpo": {"beta": (0.01, 0.05, 0.1), "epsilon": (0.01, 0.05, 0.1)},
    "rdpo": {"beta": (0.01, 0.05, 0.1), "epsilon": (0.01, 0.05, 0.1)},
    "simpo": {"beta": (2.5, 5.0, 10.0), "gamma_beta_ratio": (0.3, 0.4, 0.5, 1.0)},
    "beta_dpo": {"beta": (2.5, 10.0), "alpha": (0.01, 0.05, 0.1, 0.2)},
}


def _presets() -> dict[str, Preset]:
    """Every published setting, as TASK/LOSS, TASK/dora_LOSS, MODEL/simpo, MODEL/gamma_simpo."""
    presets = {}
    for task, rows in _DORA_TABLE_8.items():
        for spec, rates in rows:
            name = spec.partition("(")[0]
            source = "DoRA Table 8 and App. C.3"
            presets[f"{task}/{name}"] = Preset(spec, task, rates, 32, source)
            robust_spec = f"dora({spec}, lam=1.0)"
            presets[f"{task}/dora_{name}"] = Preset(
                robust_spec, task, rates, 32, f"{source}; lam = 1 from Fig. 5"
            )
    for model, (beta, ratio, tau, rate) in _GAMMA_PO_TABLE_7.items():
        base = f"simpo(beta={beta}, gamma_beta_ratio={ratio})"
        layer = f"gamma(simpo(beta={beta}), gamma_beta_ratio={ratio}, tau={tau})"
        source = "gamma-PO Table 7 and App. B"
        presets[f"{model}/gamma_simpo"] = Preset(layer, "ultrafeedback", {model: rate}, 128, source)
        presets[f"{model}/simpo"] = Preset(
            base, "ultrafeedback", {model: rate}, 128, f"{source}, with the margin constant"
        )
    return presets


PRESETS = _presets()
