"""Log-probabilities of K responses a prompt: shared-prefix batches, chunked projection.

A prompt and its K responses are one block `[prompt | y1 | ... | yK]`; blocks are packed into one
row without padding. Responses see the prompt and themselves, never each other, and their positions
restart at the end of the prompt, so a prompt is computed once instead of K times. The vocabulary
projection runs over response positions only, in chunks: no [B, L, V] tensor exists.
"""

import torch
from torch import Tensor, nn

from robustpo_kit.errors import KitError
from robustpo_kit.policies.batches import Batch
from robustpo_kit.policies.passes import batch_token_logps
from robustpo_kit.policies.probing import fit_of
from robustpo_kit.policies.projection import unwrap


def sequence_logps(model: nn.Module, batch: Batch, *, chunk_bytes: int | None = None) -> Tensor:
    """Summed response log-probabilities [B, K] in nats, fp32; absent columns are 0.

    Args:
        model: a transformers causal language model, with or without peft adapters, on the batch's
            device; examined the first time (`fit_of`).
        batch: B prompts, K responses each.
        chunk_bytes: fp32 logits held at once; default: by the device.

    Raises:
        KitError: where the model's log-probs cannot be computed rightly, or not in this layout.
    """
    fit, core = fit_of(model), unwrap(model)
    if batch.blocks is not None and not fit.shared:
        raise KitError(
            f"layout 'shared': {type(core).__name__} cannot compute a prompt once for all its "
            "responses; choose layout 'separate'"
        )
    logps = batch_token_logps(core, batch, fit.scale, chunk_bytes=chunk_bytes)
    out = torch.zeros(batch.lengths.numel(), dtype=torch.float32, device=logps.device)
    return out.index_add(0, batch.owner, logps).view(batch.lengths.shape)


def scored_tokens(model: nn.Module, batch: Batch) -> Tensor:
    """Log-probability [N] of every scored token, nats, fp32; `batch.owner` says whose each is.

    Raises KitError where the model's log-probs cannot be computed rightly.
    """
    return batch_token_logps(unwrap(model), batch, fit_of(model).scale)
