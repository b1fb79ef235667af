"""What a benchmark measures."""

import dataclasses
from typing import Any

LLAMA_8B: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
}

PEAK_FLOPS = {  # dense bf16 a second, by a part of the device's name: NVIDIA's data sheets
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
}

CONTENDERS = ("engine", "trl", "trl_checkpointing")
PEERS = (
    "trl_liger",
    "flash_pref",
)  # where they can run, else left out with a reason

OVERHEADS = {  # published name of the ratio: (objective, its base, prompts a micro-batch)
    "dora_over_erm": ("dora(dpo(beta=0.1), lam=1.0)", "dpo(beta=0.1)", 4),
    "gamma_over_base": (
        "gamma(simpo(beta=10), gamma_beta_ratio=0.4, tau=10)",
        "simpo(beta=10, gamma_beta_ratio=0.4)",
        4,
    ),
    "dora_over_erm_two_micro_batches": ("dora(dpo(beta=0.1), lam=1.0)", "dpo(beta=0.1)", 2),
}

SCALING = (  # prompt tokens, K, prompts a batch; responses have 32 tokens
    (32, 2, 2),
    (128, 2, 2),
    (512, 2, 2),
    (128, 4, 2),
    (128, 8, 2),
    (128, 2, 1),
    (128, 2, 4),
)

SIZES_K = (2, 4, 8)  # responses a prompt, each of 32 tokens
SIZES_PROMPT = {"cpu": (64, 256), "cuda": (256, 2048)}  # tokens of short and long prompts


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """What all contenders share."""

    model: str = "smollm2-135m-instruct"  # an asset, a folder, "tiny"; "llama-8b": random weights
    dtype: str = "bfloat16"
    pairs: int = 8
    batch_size: int = 4  # prompts a step, in one micro-batch
    max_length: int = 512
    max_overhead_length: int = 128  # tokens of short rows, where an objective's own time shows
    lora_rank: int = 16
    learning_rate: float = 1e-4
    threads: int = 1
    seed: int = 0
    scaling_repeats: int = 1
