"""Log-probabilities of tokens from hidden states, in chunks: no [B, L, V] tensor exists."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHUNK_BYTES = 32 * 2**20  # fp32 logits held at once


class _TokenLogps(torch.autograd.Function):
    """log softmax(h W^T + b)[label] by chunks of rows, log-sum-exp in fp32.

    A frozen head (LoRA) leaves only d logp / d h = W[label] - softmax W, which the forward pass takes while it holds
    the chunk's softmax; a trained head recomputes the chunk in the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        cap: float | None,
        rows: int,
    ):
        need_h, need_w = ctx.needs_input_grad[0], ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        logps = torch.empty(len(labels), dtype=torch.float32, device=hidden.device)
        grad = torch.empty_like(hidden) if need_h and not need_w else None
        for at in range(0, len(labels), rows):
            part = slice(at, at + rows)
            logits, slope = _logits(hidden[part], weight, bias, cap, grad is not None)
            chosen = logits.gather(1, labels[part, None])
            lse = torch.logsumexp(logits, dim=1, keepdim=True)
            logps[part] = (chosen - lse)[:, 0]
            if grad is not None:
                residual = logits.sub_(lse).exp_().neg_()
                residual.scatter_add_(1, labels[part, None], torch.ones_like(chosen))
                residual = residual if slope is None else residual.mul_(slope)
                torch.mm(residual.to(weight.dtype), weight, out=grad[part])
        ctx.cap, ctx.rows, ctx.trained_head = cap, rows, need_w
        ctx.save_for_backward(*((hidden, weight, bias, labels) if need_w else (grad,)))
        return logps

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor):
        if not ctx.trained_head:
            (grad,) = ctx.saved_tensors
            return (grad * grad_out[:, None]).to(grad.dtype), None, None, None, None, None
        hidden, weight, bias, labels = ctx.saved_tensors
        grad_h = torch.empty_like(hidden)
        grad_w = torch.zeros_like(weight, dtype=torch.float32)
        grad_b = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        for at in range(0, len(labels), ctx.rows):
            part = slice(at, at + ctx.rows)
            logits, slope = _logits(hidden[part], weight, bias, ctx.cap, True)
            residual = torch.softmax(logits, dim=1).neg_()
            residual.scatter_add_(1, labels[part, None], torch.ones_like(logits[:, :1]))
            residual.mul_(grad_out[part, None])
            residual = residual if slope is None else residual.mul_(slope)
            grad_h[part] = residual.to(weight.dtype) @ weight
            grad_w += residual.T @ hidden[part].float()
            if grad_b is not None:
                grad_b += residual.sum(0)
        return (
            grad_h,
            grad_w.to(weight.dtype),
            None if grad_b is None else grad_b.to(bias.dtype),
            None,
            None,
            None,
        )


def _logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, cap: float | None, need_slope: bool
) -> tuple[Tensor, Tensor | None]:
    """fp32 logits [n, V] and, where they are soft-capped, the slope d capped / d raw."""
    logits = F.linear(hidden, weight, bias).float()
    if cap is None:
        return logits, None
    bent = torch.tanh(logits / cap)
    return bent * cap, (1 - bent * bent) if need_slope else None


def token_logps(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> Tensor:
    """Log-probability [N] (fp32, nats) of `labels` [N] given hidden states [N, D] and the head's weight [V, D]."""
    rows = max(8, chunk_bytes // (4 * weight.shape[0]))
    return _TokenLogps.apply(hidden, weight, bias, labels, softcap, rows)


def unwrap(model: nn.Module) -> nn.Module:
    """The transformers model inside peft's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
