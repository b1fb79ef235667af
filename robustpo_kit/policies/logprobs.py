"""Log-probabilities of K responses a prompt: shared-prefix batches, chunked projection.

A prompt and its K responses are one block `[prompt | y1 | ... | yK]`; blocks are packed into one
row without padding. Responses see the prompt and themselves, never each other, and their positions
restart at the end of the prompt, so a prompt is computed once instead of K times. The vocabulary
projection runs over response positions only, in chunks: no [B, L, V] tensor exists.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from robustpo_kit.policies.batches import Batch
from robustpo_kit.policies.projection import CHUNK_BYTES, token_logps, unwrap


def sequence_logps(model: nn.Module, batch: Batch, *, chunk_bytes: int = CHUNK_BYTES) -> Tensor:
    """Summed response log-probabilities [B, K] in nats, fp32; absent columns are 0.

    Args:
        model: a transformers causal language model, with or without peft adapters, on the batch's
            device. A shared batch needs `use_block_attention(model)` once before.
        batch: B prompts, K responses each.
        chunk_bytes: fp32 logits held at once.
    """
    core = unwrap(model)
    head = core.get_output_embeddings()
    hidden = last_hidden_states(core, batch)
    flat = hidden.reshape(-1, hidden.shape[-1]).index_select(0, batch.source)
    logps = token_logps(
        flat,
        head.weight,
        batch.labels,
        bias=getattr(head, "bias", None),
        softcap=getattr(core.config, "final_logit_softcapping", None),
        chunk_bytes=chunk_bytes,
    )
    out = torch.zeros(batch.lengths.numel(), dtype=torch.float32, device=logps.device)
    return out.index_add(0, batch.owner, logps).view(batch.lengths.shape)


def last_hidden_states(core: PreTrainedModel, batch: Batch) -> Tensor:
    """Hidden states [R, T, D] of the decoder in front of its head."""
    decoder = core.base_model
    if batch.blocks is None:
        return decoder(input_ids=batch.input_ids, use_cache=False).last_hidden_state
    # a 4-D mask is handed through untouched by transformers; block_attention reads `blocks` instead
    placeholder = torch.zeros((1, 1, 1, 1), device=batch.input_ids.device)
    return decoder(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        attention_mask=placeholder,
        use_cache=False,
        blocks=batch.blocks,
    ).last_hidden_state
