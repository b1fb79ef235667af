"""Published runs by name: what DoRA and gamma-PO set for each model and task, and their models.

A name is PAPER/MODEL/TASK/LOSS for DoRA (dora/mistral-7b/hh/dpo_pl, and .../dora_dpo_pl for DoRA
over that loss) and PAPER/MODEL/LOSS for gamma-PO (gamma/llama-3-8b-instruct/gamma_simpo). What a
paper does not state is left to the kit's default and listed in `Preset.unstated`. Read where torch
is not: this module imports nothing of it.
"""

import dataclasses
import difflib
from typing import Any

from robustpo_kit.errors import KitError

STATABLE = ("learning_rate", "epochs", "schedule", "warmup", "max_length", "dtype")
LORA = ("LoRA's targets", "LoRA's rank")


@dataclasses.dataclass(frozen=True)
class Preset:
    """One published training run."""

    spec: str  # of the objective
    model: str  # Hub id
    task: str  # of data.TASKS
    lora: bool  # False: full fine-tuning
    settings: dict[str, Any]  # fields of TrainConfig that the paper states
    source: str
    chosen: dict[str, Any] = dataclasses.field(default_factory=dict)  # by the kit; unstated
    sources: int = 2  # responses a prompt of the paper's data

    @property
    def unstated(self) -> tuple[str, ...]:
        """What a run needs and the paper does not state: the kit's default, or `chosen`."""
        needed = STATABLE + LORA * self.lora
        return tuple(name for name in needed if name not in self.settings)


# DoRA Sec. 4 and App. C.3: name, Hub id, rate of pairwise training (full), of listwise (LoRA).
_DORA_MODELS = (
    ("mistral-7b", "mistralai/Mistral-7B-v0.1", 3e-7, 2e-5),
    ("llama-8b", "meta-llama/Llama-3.1-8B", 6e-7, 4e-5),
)

# DoRA Table 8: task, loss, responses a prompt. RRHF's supervised term is on the chosen reply, as in
# the authors' code; RRHF's own Eq. 4 has it on the best by reward, `rrhf`'s default.
_DORA_LOSSES = (
    ("hh", "dpo(beta=0.1)", 2),
    ("hh", "r_dpo_length(alpha=0.01, beta=0.1)", 2),
    ("hh", "exo(beta=0.5)", 2),
    ("hh", "simpo(beta=2.0, gamma0=0.8)", 2),
    ("hh", "dpo_pl(beta=0.1)", 4),
    ("hh", "rrhf(alpha=1.0, supervised='first')", 4),
    ("hh", "lire(temperature=2.0)", 4),
    ("summarization", "dpo_pl(beta=0.5)", 4),
    ("summarization", "rrhf(alpha=0.5, supervised='first')", 4),
    ("summarization", "lire(temperature=1.0)", 4),
    ("ultrafeedback", "dpo_pl(beta=0.1)", 4),
    ("ultrafeedback", "rrhf(alpha=1.0, supervised='first')", 4),
    ("ultrafeedback", "lire(temperature=2.0)", 4),
)

# DoRA App. C.3: task, the kit's name of it, new tokens of a reply.
_DORA_TASKS = (
    ("hh", "hh", 128),
    ("summarization", "tldr", 512),
    ("ultrafeedback", "ultrafeedback", 1024),
)

# gamma-PO Table 7: name, Hub id, beta, gamma / beta (the table's "gamma"), tau, rate.
_GAMMA_MODELS = (
    ("llama-3-8b-instruct", "meta-llama/Meta-Llama-3-8B-Instruct", 10.0, 0.4, 10.0, 1e-6),
    ("mistral-7b-instruct", "mistralai/Mistral-7B-Instruct-v0.2", 2.5, 0.15, 10.0, 6e-7),
    ("gemma-2-9b-instruct", "google/gemma-2-9b-it", 10.0, 0.5, 20.0, 8e-7),
    ("qwen-2.5-7b-instruct", "Qwen/Qwen2.5-7B-Instruct", 10.0, 0.3, 3.0, 1e-6),
)

# gamma-PO App. B; no adapter is mentioned.
_GAMMA_RUN = {
    "batch_size": 128, "epochs": 1, "schedule": "cosine", "warmup": 0.1, "max_length": 2048,
}  # fmt: skip

# What DoRA App. C.3 means by the defaults of the DPO codebase: its config/config.yaml. Not taken
# over: RMSprop (the kit has AdamW) and a warm-up of 150 steps (the kit's is a share of the run).
_DORA_SFT = {
    "batch_size": 32, "learning_rate": 5e-7, "epochs": 1, "max_length": 512, "max_grad_norm": 10.0,
}  # fmt: skip

# BERT base, DoRA Sec. 4 and App. C.3
CLASSIFIER: dict[str, Any] = {"learning_rate": 2e-5, "epochs": 3}
NEW_TOKENS = {task: tokens for _, task, tokens in _DORA_TASKS}
# Prompts of a task's data set on the Hub, by its card, in round figures.
ROWS = {"hh": 161_000, "tldr": 93_000, "ultrafeedback": 61_000}

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

_LLAMA_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "vocab_size": 128256, "tie_word_embeddings": False,
}  # fmt: skip
_MISTRAL_7B = _LLAMA_8B | {"model_type": "mistral", "vocab_size": 32000, "sliding_window": None}
# What decides the size of the presets' models, from the config.json of each Hub id.
SHAPES: dict[str, dict[str, Any]] = {
    "mistralai/Mistral-7B-v0.1": _MISTRAL_7B,
    "mistralai/Mistral-7B-Instruct-v0.2": _MISTRAL_7B,
    "meta-llama/Llama-3.1-8B": _LLAMA_8B,
    "meta-llama/Meta-Llama-3-8B-Instruct": _LLAMA_8B,
    "google/gemma-2-9b-it": {
        "model_type": "gemma2", "hidden_size": 3584, "intermediate_size": 14336,
        "num_hidden_layers": 42, "num_attention_heads": 16, "num_key_value_heads": 8,
        "head_dim": 256, "vocab_size": 256000, "tie_word_embeddings": True,
    },
    "Qwen/Qwen2.5-7B-Instruct": {
        "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944,
        "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
        "vocab_size": 152064, "tie_word_embeddings": False,
    },
}  # fmt: skip


def _dora(model: tuple[str, str, float, float], task: str, spec: str, sources: int) -> Preset:
    """A row of DoRA's Table 8 for one model: UltraFeedback is fine-tuned in full, at no rate."""
    _, hub, full_rate, lora_rate = model
    kit_task = {name: kit for name, kit, _ in _DORA_TASKS}[task]
    settings: dict[str, Any] = {"batch_size": 32}
    chosen: dict[str, Any] = {}
    lora = sources > 2 and task != "ultrafeedback"
    if task == "ultrafeedback":
        chosen = {"learning_rate": full_rate}  # the model's other rate of full fine-tuning
    else:
        settings["learning_rate"] = lora_rate if lora else full_rate
    source = "DoRA Table 8 and App. C.3"
    return Preset(spec, hub, kit_task, lora, settings, source, chosen, sources)


def _over(preset: Preset) -> Preset:
    """DoRA over the loss of a preset, at the paper's lambda."""
    spec, source = f"dora({preset.spec}, lam=1.0)", f"{preset.source}; lambda of Sec. 4"
    return dataclasses.replace(preset, spec=spec, source=source)


def _presets() -> dict[str, Preset]:
    presets = {}
    for model in _DORA_MODELS:
        for task, spec, sources in _DORA_LOSSES:
            name, loss = f"dora/{model[0]}/{task}", spec.partition("(")[0]
            presets[f"{name}/{loss}"] = _dora(model, task, spec, sources)
            presets[f"{name}/dora_{loss}"] = _over(presets[f"{name}/{loss}"])
        for task, kit_task, _ in _DORA_TASKS:
            source = "DoRA App. C.3, by the DPO codebase's config.yaml"
            name = f"dora/{model[0]}/{task}/sft"
            presets[name] = Preset("sft()", model[1], kit_task, False, dict(_DORA_SFT), source)
    for name, hub, beta, ratio, tau, rate in _GAMMA_MODELS:
        run, source = {**_GAMMA_RUN, "learning_rate": rate}, "gamma-PO Table 7 and App. B"
        simpo = f"simpo(beta={beta}, gamma_beta_ratio={ratio})"
        layer = f"gamma(simpo(beta={beta}), gamma_beta_ratio={ratio}, tau={tau})"
        rows = (
            ("simpo", simpo, f"{source}, with the margin constant"),
            ("gamma_simpo", layer, source),
        )
        for loss, spec, said in rows:
            presets[f"gamma/{name}/{loss}"] = Preset(spec, hub, "ultrafeedback", False, run, said)
    return presets


PRESETS = _presets()


def preset(name: str) -> Preset:
    """The preset `name`; raises KitError that names the nearest ones."""
    if name in PRESETS:
        return PRESETS[name]
    near = difflib.get_close_matches(name, PRESETS, n=3, cutoff=0.3)
    hint = f"did you mean {' or '.join(near)}?" if near else "there is none like it;"
    raise KitError(f"preset '{name}': unknown; {hint} `robustpo presets` lists all")


def find(model: str, task: str, loss: str) -> Preset | None:
    """The preset of a model (Hub id), a task of data.TASKS and a loss by name, if there is one."""
    for name, row in PRESETS.items():
        if (row.model, row.task, name.rpartition("/")[2]) == (model, task, loss):
            return row
    return None
