"""Backends of sampling: each draws from the distribution that `SamplingConfig` says, or refuses."""

import dataclasses
import tempfile
from typing import Any, cast

import torch
from torch import nn

from robustpo_kit.errors import KitError
from robustpo_kit.policies.decoding import SamplingConfig, decode, left_padded
from robustpo_kit.policies.projection import unwrap

CPU_BATCH_TOKENS = 512  # of continuous batching
VLLM_SHARE = 0.5  # of the GPU's memory: the model itself lies there, too


@dataclasses.dataclass(frozen=True)
class Ask:
    """Replies asked of a backend, which gives the tokens of each, [N x samples]."""

    prompts: list[list[int]]
    config: SamplingConfig
    ends: frozenset[int]
    pad: int
    seed: int


def by_kit(model: nn.Module, ask: Ask) -> list[list[int]]:
    """The kit's own loop: a reserved cache that shrinks."""
    generator = torch.Generator(next(model.parameters()).device).manual_seed(ask.seed)
    return decode(model, ask.prompts, ask.config, ends=ask.ends, pad=ask.pad, generator=generator)


def by_transformers(model: nn.Module, ask: Ask) -> list[list[int]]:
    """`generate`, which pads a reply that has ended; a model's own settings have no say in it."""
    from transformers import GenerationConfig

    core = cast(Any, unwrap(model))
    own_settings, core.generation_config = core.generation_config, GenerationConfig()
    device = next(model.parameters()).device
    ids, mask = (tensor.to(device) for tensor in left_padded(ask.prompts, ask.pad))
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices), torch.inference_mode():
            torch.manual_seed(ask.seed)
            output = cast(Any, model).generate(
                input_ids=ids, attention_mask=mask, **_generation_settings(ask)
            )
    finally:
        core.generation_config = own_settings
    return output[:, ids.shape[1] :].tolist()


def by_continuous(model: nn.Module, ask: Ask) -> list[list[int]]:
    """`generate_batch`, transformers' continuous batching: for GPUs; slow on a CPU.

    Raises:
        KitError: with a repetition penalty, which continuous batching leaves out with a warning;
            where it gives fewer replies than were asked.
    """
    from transformers import ContinuousBatchingConfig, GenerationConfig

    if ask.config.repetition_penalty != 1.0:
        raise KitError(
            "backend 'continuous': it has no repetition penalty and would draw from another "
            "distribution; set repetition_penalty to 1.0 or choose kit, transformers or vllm"
        )
    core = cast(Any, unwrap(model))
    attention = core.config._attn_implementation
    device = next(model.parameters()).device
    settings = GenerationConfig(**_generation_settings(ask))
    batching = ContinuousBatchingConfig(seed=ask.seed)
    if device.type == "cpu":  # left alone, it takes and fills nearly all memory
        longest = max(map(len, ask.prompts)) + ask.config.max_new_tokens
        pages = -(-longest // batching.page_size)
        batching.num_blocks = len(ask.prompts) * ask.config.samples * pages + 1
        batching.max_batch_tokens = max(longest, CPU_BATCH_TOKENS)
    core.set_attn_implementation("sdpa")  # it pages the cache by attention of its own
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            found = core.generate_batch(
                ask.prompts,
                generation_config=settings,
                continuous_batching_config=batching,
            )
    finally:
        core.set_attn_implementation(attention)
    replies = [reply.generated_tokens for reply in found.values() if reply.error is None]
    if len(replies) != len(ask.prompts) * ask.config.samples:
        asked = len(ask.prompts) * ask.config.samples
        raise KitError(f"backend 'continuous': {len(replies)} of {asked} replies came; see the log")
    return replies


def by_vllm(model: nn.Module, ask: Ask) -> list[list[int]]:
    """vLLM, on a copy of the merged weights in a folder of its own: make batches large.

    Its repetition penalty counts prompt and reply, its order is penalty, temperature, top-k, top-p:
    as transformers' (vllm/v1/sample). Every reply has a seed, so that none share draws.

    Raises:
        KitError: where vLLM is not installed.
    """
    try:
        from vllm import LLM, SamplingParams
    except ImportError as error:
        raise KitError(
            f"backend 'vllm': {error}; vLLM pins its own torch: make an environment for it with "
            "`pip install vllm robustpo-kit`, or choose kit or transformers"
        ) from error
    config, core = ask.config, cast(Any, unwrap(model))
    weights = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in core.state_dict().items()
        if "lora_" not in name
    }
    wishes = [
        SamplingParams(
            n=config.samples,
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            repetition_penalty=config.repetition_penalty,
            max_tokens=config.max_new_tokens,
            stop_token_ids=sorted(ask.ends),
            seed=ask.seed % 2**62 + number * config.samples,  # sample s of a prompt adds s
            detokenize=False,
        )
        for number in range(len(ask.prompts))
    ]
    with tempfile.TemporaryDirectory() as folder:
        core.save_pretrained(folder, state_dict=weights)
        engine = LLM(model=folder, skip_tokenizer_init=True, gpu_memory_utilization=VLLM_SHARE)
    texts = [{"prompt_token_ids": prompt} for prompt in ask.prompts]
    found = engine.generate(texts, wishes, use_tqdm=False)
    return [list(reply.token_ids) for answer in found for reply in answer.outputs]


def _generation_settings(ask: Ask) -> dict[str, Any]:
    """What transformers' `generate` calls the decoding."""
    config = ask.config
    return {
        "do_sample": True,
        "temperature": config.temperature,
        "top_k": config.top_k,
        "top_p": config.top_p,
        "repetition_penalty": config.repetition_penalty,
        "max_new_tokens": config.max_new_tokens,
        "num_return_sequences": config.samples,
        "eos_token_id": sorted(ask.ends),
        "pad_token_id": ask.pad,
    }


BACKENDS = {
    "kit": by_kit,
    "transformers": by_transformers,
    "continuous": by_continuous,
    "vllm": by_vllm,
}
