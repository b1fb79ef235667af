"""LoRA layers as one autograd function: peft's layers, names and checkpoints, less memory traffic.

peft computes W x, casts x to the adapter's precision, multiplies by A and B, scales, adds and casts
back; of this every step writes or keeps a tensor as large as the activations. Here x A^T is
computed in the model's precision, as under autocast, and B accumulates onto W x in place; the
adapter's weights and their gradients keep their own precision.
"""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.lora import Linear
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils import logging as hf_logging


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without what transformers shows of a save, and what peft's calls of it warn of."""
    hf_logging.disable_progress_bar()
    with warnings.catch_warnings():
        # peft asks transformers by a name that is going away
        warnings.simplefilter("ignore", FutureWarning)
        yield


class _LowRank(torch.autograd.Function):
    """x W^T + b + scale (x A^T) B^T with W and b frozen: x [N, in], A [r, in], B [out, r]."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scale: float,
    ) -> Tensor:
        low, high = a.to(x.dtype), b.to(x.dtype)
        inner = x @ low.t()
        ctx.save_for_backward(x, weight, low, high, inner)
        ctx.scale, ctx.adapter_dtype = scale, a.dtype
        return F.linear(x, weight, bias).addmm_(inner, high.t(), alpha=scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, low, high, inner = ctx.saved_tensors
        back = (grad @ high).mul_(ctx.scale)
        grad_x = grad_a = grad_b = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ weight).addmm_(back, low)
        if ctx.needs_input_grad[3]:
            grad_a = (back.t() @ x).to(ctx.adapter_dtype)
        if ctx.needs_input_grad[4]:
            grad_b = (grad.t() @ inner).mul_(ctx.scale).to(ctx.adapter_dtype)
        return grad_x, None, None, grad_a, grad_b, None


class FusedLinear(Linear):
    """peft's lora.Linear, left to peft wherever it is not one plain adapter on a frozen layer.

    Plain: not merged or disabled, no dropout in effect, no variant of LoRA, no quantised base, no
    autocast.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[..., in] -> [..., out] in the dtype of the frozen layer."""
        if args or kwargs or not self._plain(x):
            return super().forward(x, *args, **kwargs)
        base, name = self.base_layer, self.active_adapters[0]
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        out = _LowRank.apply(
            x.reshape(-1, x.shape[-1]), base.weight, base.bias, a, b, self.scaling[name]
        )
        return out.view(*x.shape[:-1], out.shape[-1])

    def _plain(self, x: Tensor) -> bool:
        """Whether `_LowRank` computes what peft would."""
        active = self.active_adapters
        if self.disable_adapters or self.merged or len(active) != 1 or active[0] not in self.lora_A:
            return False
        if active[0] in self.lora_variant or self.lora_bias[active[0]]:
            return False
        dropout = self.lora_dropout[active[0]]
        if self.training and isinstance(dropout, nn.Dropout) and dropout.p:
            return False
        base = self.base_layer
        frozen = not base.weight.requires_grad and (
            base.bias is None or not base.bias.requires_grad
        )
        alike = type(base) is nn.Linear and x.dtype == base.weight.dtype
        return frozen and alike and not torch.is_autocast_enabled(x.device.type)


def fuse(model: nn.Module) -> nn.Module:
    """Make every plain lora.Linear of a peft model a `FusedLinear`, in place; names stay."""
    for module in model.modules():
        if type(module) is Linear:
            module.__class__ = FusedLinear
    return model


def fold(model: PeftModel) -> nn.Module:
    """The base with its adapter folded in for good: a plain model, all of whose weights train."""
    return cast(Any, model).merge_and_unload().requires_grad_(True)


@contextlib.contextmanager
def merged_adapter(model: nn.Module) -> Iterator[nn.Module]:
    """A peft model that computes with plain, merged matrices for a while; any other as it is.

    The merged matrices are copies, in the precision of the base and rounded once; the base's own
    come back untouched, bit for bit. An adapter that is more than such matrices stays as it is.
    """
    if not isinstance(model, PeftModel) or not _merges(model):
        yield model
        return
    layers = [layer for layer in model.modules() if isinstance(layer, Linear)]
    own = [layer.base_layer.weight for layer in layers]
    try:
        with torch.no_grad():
            for layer in layers:
                layer.base_layer.weight = _merged_weight(layer)
        with model.disable_adapter():
            yield model
    finally:
        for layer, weight in zip(layers, own, strict=True):
            layer.base_layer.weight = weight


def _merges(model: PeftModel) -> bool:
    """Whether plain low-rank matrices of linear layers are all that the adapter holds."""
    for module in model.modules():
        if isinstance(module, Linear):
            if module.lora_variant or any(module.lora_bias.values()):
                return False
        elif isinstance(module, (AuxiliaryTrainingWrapper, BaseTunerLayer)):
            return False
    return True


def _merged_weight(layer: Linear) -> nn.Parameter:
    weight = cast(Tensor, layer.base_layer.weight)
    merged = weight.float()
    for name in layer.active_adapters:
        if name in layer.lora_A:
            merged = merged + layer.get_delta_weight(name).float()
    return nn.Parameter(merged.to(weight.dtype), requires_grad=False)
