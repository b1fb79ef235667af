"""The model that all contenders share, its tokenizer, and what this engine trains it by."""

from typing import Any

import torch

from robustpo_kit import assets, policies, training
from robustpo_kit.bench.config import LLAMA_8B, BenchConfig
from robustpo_kit.data import Template
from robustpo_kit.errors import KitError

SMALL_MODEL = "smollm2-135m-instruct"


def bench_policy(config: BenchConfig) -> policies.Policy:
    """The model with a fresh adapter, prompts as they are."""
    if config.model == "llama-8b":
        policy = _random_llama(config)
    else:
        policy = policies.load(config.model, dtype=config.dtype, template=Template("plain"))
    return policy.add_lora("attention", config.lora_rank, seed=config.seed)


def _random_llama(config: BenchConfig) -> policies.Policy:
    """An 8B Llama with random weights, made on the GPU: speed needs no trained ones."""
    from transformers import LlamaConfig, LlamaForCausalLM

    if not torch.cuda.is_available():
        raise KitError(f"bench: model llama-8b needs a GPU; without one use {SMALL_MODEL}")
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, config.dtype))
    try:
        with torch.device("cuda"):
            model = LlamaForCausalLM(LlamaConfig(**LLAMA_8B))
    finally:
        torch.set_default_dtype(before)
    origin = {"source": "llama-8b, random"}
    return policies.Policy(model, bench_tokenizer(SMALL_MODEL), Template("plain"), origin)


def bench_tokenizer(model: str) -> Any:
    """The tokenizer of a model that `BenchConfig` may name."""
    if model == "tiny":
        return policies.byte_tokenizer()
    from transformers import AutoTokenizer

    if model == "llama-8b":
        model = SMALL_MODEL
    return AutoTokenizer.from_pretrained(assets.resolve(model))


def train_config(config: BenchConfig, cache: str) -> training.TrainConfig:
    """What the engine trains by; reference log-probs are kept in the folder `cache`."""
    return training.TrainConfig(
        batch_size=config.batch_size,
        micro_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        warmup=0.0,
        seed=config.seed,
        max_length=config.max_length,
        reference_cache=cache,
    )
