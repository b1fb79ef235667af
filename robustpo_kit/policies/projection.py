"""Log-probabilities of tokens from hidden states, in chunks: no [B, L, V] tensor exists."""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

# fp32 logits held at once, by kind of device. A CPU is fastest while a chunk stays near its caches.
# A GPU reads the whole head once a chunk: with n rows it does n operations for each byte of it (in
# 16 bits), and needs some 300 to be busy. 512 MiB are 1,024 rows of a vocabulary of 128k, and a few
# such chunks, which live for a moment, are 2 of 80 GiB. Not by what memory is free: a run would
# round otherwise from one day to the next.
CHUNK_BYTES = {"cpu": 32 * 2**20, "cuda": 512 * 2**20}


class LogitScale(NamedTuple):
    """What a model makes of h W^T + b, the product of its hidden states and its head.

    logits = cap * tanh(factor * product / cap), or factor * product without a cap.
    """

    factor: float = 1.0  # Cohere, Granite, MiniCPM
    cap: float | None = None  # the soft-cap of Gemma-2

    def apply(self, product: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits and, where they are soft-capped, the tanh; `product` may be written to."""
        if self.factor != 1:
            product = product.mul_(self.factor)
        if self.cap is None:
            return product, None
        bent = torch.tanh(product / self.cap)
        return bent * self.cap, bent

    def slope_(self, gradient: Tensor, bent: Tensor | None) -> Tensor:
        """The gradient in the product from that in the logits, in its place."""
        if bent is not None:
            gradient.mul_(1 - bent * bent)
        if self.factor != 1:
            gradient.mul_(self.factor)
        return gradient


PLAIN_LOGITS = LogitScale()


def token_logps(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    scale: LogitScale = PLAIN_LOGITS,
    chunk_bytes: int | None = None,
) -> Tensor:
    """Log-probability [N] (fp32, nats) of `labels`, softmax over all V tokens.

    Args:
        hidden: [N, D] last hidden states.
        weight: [V, D] of the head.
        labels: [N] tokens.
        bias: [V] of the head.
        scale: of the logits.
        chunk_bytes: fp32 logits held at once; default: by the device, from `CHUNK_BYTES`.
    """
    if chunk_bytes is None:
        chunk_bytes = CHUNK_BYTES.get(hidden.device.type, CHUNK_BYTES["cpu"])
    rows = max(8, chunk_bytes // (4 * weight.shape[0]))
    return _TokenLogps.apply(hidden, weight, bias, labels, scale, rows)


class _TokenLogps(torch.autograd.Function):
    """log softmax(h W^T + b)[label] by chunks of rows, log-sum-exp in fp32.

    A frozen head (LoRA) leaves only d logp / d h = W[label] - softmax W, which the forward pass
    takes while it holds the chunk's softmax; a trained head recomputes the chunk in the backward
    pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        scale: LogitScale,
        rows: int,
    ) -> Tensor:
        ctx.scale, ctx.rows = scale, rows
        ctx.trained_head = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        grad = None
        if ctx.needs_input_grad[0] and not ctx.trained_head:
            grad = torch.empty_like(hidden)
        logps = torch.empty(len(labels), dtype=torch.float32, device=hidden.device)
        for part in _chunks(len(labels), rows):
            logits, bent = _logits(hidden[part], weight, bias, scale)
            chosen = logits.gather(1, labels[part, None])
            log_sum = torch.logsumexp(logits, dim=1, keepdim=True)
            logps[part] = (chosen - log_sum)[:, 0]
            if grad is not None:
                softmax = logits.sub_(log_sum).exp_()
                residual = scale.slope_(_residual(softmax, labels[part]), bent)
                torch.mm(residual.to(weight.dtype), weight, out=grad[part])
        if ctx.trained_head:
            ctx.save_for_backward(hidden, weight, bias, labels)
        else:
            ctx.save_for_backward(grad)
        return logps

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.trained_head:
            (grad,) = ctx.saved_tensors
            return (grad * grad_out[:, None]).to(grad.dtype), None, None, None, None, None
        hidden, weight, bias, labels = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        grad_bias = torch.zeros(len(weight), dtype=torch.float32, device=weight.device)
        for part in _chunks(len(labels), ctx.rows):
            logits, bent = _logits(hidden[part], weight, bias, ctx.scale)
            softmax = torch.softmax(logits, dim=1)
            residual = _residual(softmax, labels[part]).mul_(grad_out[part, None])
            residual = ctx.scale.slope_(residual, bent)
            grad_hidden[part] = residual.to(weight.dtype) @ weight
            grad_weight += residual.T @ hidden[part].float()
            if bias is not None:
                grad_bias += residual.sum(0)
        bias_gradient = None
        if bias is not None:
            bias_gradient = grad_bias.to(bias.dtype)
        return grad_hidden, grad_weight.to(weight.dtype), bias_gradient, None, None, None


def _chunks(total: int, rows: int) -> list[slice]:
    return [slice(start, start + rows) for start in range(0, total, rows)]


def _logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: LogitScale
) -> tuple[Tensor, Tensor | None]:
    """fp32 logits [n, V] and, where they are soft-capped, the tanh."""
    return scale.apply(F.linear(hidden, weight, bias).float())


def _residual(softmax: Tensor, labels: Tensor) -> Tensor:
    """d logp / d logits [n, V] = 1[label] - softmax, in `softmax`'s place."""
    residual = softmax.neg_()
    return residual.scatter_add_(1, labels[:, None], torch.ones_like(residual[:, :1]))


def unwrap(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside peft's wrapper."""
    if hasattr(model, "get_base_model"):
        return cast(PreTrainedModel, cast(Any, model).get_base_model())
    return cast(PreTrainedModel, model)
