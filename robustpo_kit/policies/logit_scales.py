"""What an architecture does between its head and its logits: its own numbers, tried out."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from robustpo_kit.policies.passes import no_cache
from robustpo_kit.policies.projection import LogitScale

FACTORS = (  # multiplied in some architectures, divided by in others under the same name
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "output_multiplier",
    "logits_mup_width_multiplier",
)
CAPS = ("final_logit_softcapping", "logits_soft_cap")


@torch.no_grad()
def logit_scale(core: PreTrainedModel, tokens: Sequence[int]) -> LogitScale | None:
    """What lies between the product with the head and the logits; None for anything else.

    Numbers of the configuration are tried out on products that are large enough to be bent.
    """
    head: Any = core.get_output_embeddings()
    if getattr(getattr(head, "weight", None), "ndim", 0) != 2:
        return None
    factors, caps = _numbers(core, FACTORS), _numbers(core, CAPS)
    top = 2 * max(caps, default=5.0)
    kept: dict[str, Tensor] = {}

    def keep_hidden(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if hasattr(output, "last_hidden_state"):
            kept["hidden"] = output.last_hidden_state

    def enlarge(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        kept["by"] = top / output.abs().amax()
        return output * kept["by"]

    hooks = [core.base_model.register_forward_hook(keep_hidden)]
    hooks.append(head.register_forward_hook(enlarge))
    try:
        ids = torch.tensor([list(tokens)], device=head.weight.device)
        logits = core(input_ids=ids, **no_cache(core)).logits.float()
    finally:
        for hook in hooks:
            hook.remove()
    if "hidden" not in kept or "by" not in kept:
        return None
    hidden = kept["hidden"].to(head.weight.dtype)
    product = F.linear(hidden, head.weight, getattr(head, "bias", None)).float()
    tried = [LogitScale(f, cap) for f in _with_inverses(factors) for cap in (None, *caps)]
    product, eps = product * kept["by"], torch.finfo(head.weight.dtype).eps
    return _fitting(tried, product, logits, tolerance=4 * eps * float(logits.abs().amax()))


def _fitting(
    tried: list[LogitScale], product: Tensor, logits: Tensor, *, tolerance: float
) -> LogitScale | None:
    """The one of `tried` that makes `logits` of `product`; None where none does."""
    if product.shape != logits.shape:
        return None
    errors = [float((scale.apply(product.clone())[0] - logits).abs().amax()) for scale in tried]
    error, best = min(zip(errors, tried, strict=True), key=lambda pair: pair[0])
    return best if error <= tolerance else None


def _numbers(core: PreTrainedModel, names: Sequence[str]) -> list[float]:
    """The values that the configuration has under some names."""
    configs = (core.config, core.config.get_text_config(decoder=True))
    values = [getattr(config, name, None) for config in configs for name in names]
    return list(dict.fromkeys(float(v) for v in values if isinstance(v, int | float) and v))


def _with_inverses(factors: list[float]) -> list[float]:
    return list(dict.fromkeys([1.0, *factors, *(1 / factor for factor in factors)]))
