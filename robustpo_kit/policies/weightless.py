"""A model's shape without its weights: parameters counted, and what a training pass would keep."""

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedConfig

from robustpo_kit.data import Template
from robustpo_kit.errors import KitError
from robustpo_kit.policies.attention import block_attention
from robustpo_kit.policies.batches import Batch, collate
from robustpo_kit.policies.passes import batch_token_logps, first_line
from robustpo_kit.policies.policy import Policy
from robustpo_kit.policies.probing import Fit, take_fit
from robustpo_kit.policies.projection import PLAIN_LOGITS, unwrap
from robustpo_kit.policies.tokens import TokenRow

UNMASKED = "robustpo_unmasked"  # transformers makes no mask for an attention it has no mask for
AttentionInterface.register(UNMASKED, block_attention)


class Kept(NamedTuple):
    """Bytes of what one forward pass keeps for its backward pass."""

    layer: int  # a decoder layer
    rest: int  # embeddings, last norm, head


def weightless(
    config: PreTrainedConfig, dtype: torch.dtype, *, lora: str = "none", rank: int = 16
) -> Policy:
    """The policy of a configuration on the meta device, without a tokenizer; nothing is read.

    Args:
        config: of a causal language model.
        dtype: of its weights.
        lora: "none", or targets as `Policy.add_lora` takes them.
        rank: of the adapter.

    Raises:
        KitError: where transformers has no such model, or for unknown targets.
    """
    try:
        with torch.device("meta"):
            core: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    except Exception as error:
        raise KitError(f"config: no causal language model of it ({first_line(error)})") from None
    take_fit(core, Fit(True, PLAIN_LOGITS, False))  # without weights, there is nothing to examine
    tokenizer: Any = None
    policy = Policy(core, tokenizer, Template("plain"))
    return policy if lora == "none" else policy.add_lora(lora, rank)


def kept_by_forward(
    config: PreTrainedConfig,
    dtype: torch.dtype,
    rows: Sequence[TokenRow],
    *,
    layout: str = "shared",
    kernel: str = "sdpa",
    lora: str = "none",
    rank: int = 16,
) -> Kept:
    """What a forward pass of `rows` as one micro-batch keeps, found by passing tensors of no data.

    Layers are alike, so that one and two of them tell of all.

    Args:
        config: of a causal language model.
        dtype: of its weights.
        rows: one micro-batch.
        layout: "shared" or "separate", as `collate` takes it.
        kernel: "sdpa", as on a CPU, or "flex", which keeps what SDPA without a mask keeps.
        lora: "none", or targets of an adapter.
        rank: of the adapter.

    Raises:
        KitError: where the architecture does not run on tensors of no data.
    """
    batch = collate(rows, layout=layout)
    if kernel == "flex":
        batch = dataclasses.replace(batch, blocks=None, position_ids=None)
    _make_masks(batch, config, dtype)
    found = []
    for layers in (1, 2):
        short = shortened(config, layers)
        if kernel == "flex" and hasattr(short, "attn_logit_softcapping"):
            short.attn_logit_softcapping = None  # which flex takes in its stride
        model = weightless(short, dtype, lora=lora, rank=rank).model
        try:
            with FakeTensorMode(allow_non_fake_inputs=True):
                if batch.blocks is None:  # causal without a mask, as with data
                    unwrap(model).set_attn_implementation(UNMASKED)
                found.append(_kept(_materialised(model), batch))
        except Exception as error:
            raise KitError(
                f"{type(unwrap(model)).__name__}: its memory cannot be foretold "
                f"({first_line(error)}); train a few steps instead"
            ) from None
    layer = found[1] - found[0]
    return Kept(layer, found[0] - layer)


def shortened(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    """The configuration with its first `layers` alone."""
    short = copy.deepcopy(config)
    short.num_hidden_layers = layers
    if getattr(short, "layer_types", None):
        short.layer_types = short.layer_types[:layers]
    return short


def _make_masks(batch: Batch, config: PreTrainedConfig, dtype: torch.dtype) -> None:
    """Masks are made of lengths, which tensors of no data do not have; so they are made before."""
    if batch.blocks is None:
        return
    for number, block in enumerate(batch.blocks.blocks):
        batch.blocks.mask(number, None, dtype)
        window = getattr(config, "sliding_window", None)
        if window is not None and window < block.stop - block.start:
            batch.blocks.mask(number, window, dtype)


def _materialised(model: nn.Module) -> nn.Module:
    """Put the model's tensors, shared ones once, from the meta device onto the CPU of now."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in made:
                empty = torch.empty_like(parameter, device="cpu")
                made[id(parameter)] = nn.Parameter(empty, parameter.requires_grad)
            setattr(module, name, made[id(parameter)])
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty_like(buffer, device="cpu"))
    return model.train()


def _kept(model: nn.Module, batch: Batch) -> int:
    """Bytes that autograd keeps besides the model's own tensors; a storage counts once."""
    own = {tensor.untyped_storage()._cdata for tensor in model.parameters()}
    kept: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = (storage.nbytes(), tensor)  # held, so that no address returns
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logps = batch_token_logps(unwrap(model), batch, PLAIN_LOGITS)
    del logps
    return sum(size for size, _ in kept.values())
