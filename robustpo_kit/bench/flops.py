"""Operations that a training step asks for, whatever computes it, and a card's peak."""

import math
from collections.abc import Sequence
from typing import Any, cast

from torch import nn

from robustpo_kit import policies, records
from robustpo_kit.bench.config import PEAK_FLOPS


def step_flops(policy: policies.Policy, rows: Sequence[policies.TokenRow]) -> float:
    """Operations of forward and backward over `rows`, every prompt computed once.

    The count of PaLM (Chowdhery et al. 2022, App. B), 6 N a token and 12 L H Q for each key that it
    sees, made exact: with frozen weights a weight costs 4 operations (2 forward, 2 for the gradient
    of its input), keys are those that causal attention shows, and the head is asked at responses
    alone. Embeddings are looked up; adapters are not counted.
    """
    model = cast(Any, policies.unwrap(policy.model))
    outside = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    inner = sum(
        parameter.numel()
        for name, parameter in policy.model.named_parameters()
        if "lora_" not in name and id(parameter) not in outside
    )
    settings = model.config.get_text_config()
    heads, layers = settings.num_attention_heads, settings.num_hidden_layers
    width = getattr(settings, "head_dim", None) or settings.hidden_size // heads
    head = cast(nn.Parameter, model.get_output_embeddings().weight).numel()
    weights = 4 * inner * sum(row.tokens() for row in rows)
    weights += 4 * head * sum(sum(row.lengths()) for row in rows)
    return weights + 12 * layers * heads * width * sum(map(_keys, rows))


def _keys(row: policies.TokenRow) -> int:
    """Keys that the tokens of a row see, themselves included."""
    prompt = len(row.prompt)
    seen = prompt * (prompt + 1) // 2
    for response in row.responses:
        own = len(response) - 1
        seen += own * prompt + own * (own + 1) // 2
    return seen


def achieved(
    policy: policies.Policy, rows: Sequence[policies.TokenRow], seconds: float
) -> dict[str, float]:
    """flops_per_second of steps over `rows`; share_of_peak, NaN without a data sheet."""
    device = records.device_name()
    peaks = [peak for card, peak in PEAK_FLOPS.items() if card in device] or [math.nan]
    flops = step_flops(policy, rows)
    return {
        "tokens": sum(row.tokens() for row in rows),
        "step_flops": flops,
        "flops_per_second": flops / seconds,
        "share_of_peak": flops / seconds / peaks[0],
    }
