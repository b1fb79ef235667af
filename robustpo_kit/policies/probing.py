"""Whether a model obeys the blocks of a packed row; asked of every model when it is loaded."""

import logging

import torch
from torch import nn

from robustpo_kit.policies.attention import ATTENTION
from robustpo_kit.policies.batches import collate
from robustpo_kit.policies.logprobs import sequence_logps
from robustpo_kit.policies.projection import unwrap
from robustpo_kit.policies.tokens import TokenRow

log = logging.getLogger(__name__)


def use_block_attention(model: nn.Module) -> bool:
    """Route the model's attention through `block_attention`; False, logged once, where the architecture cannot.

    The check is a probe of a few tokens: every layer must have been called with the blocks, and positions accepted.
    """
    core = unwrap(model)
    if core.config._attn_implementation == ATTENTION:
        return True
    before = core.config._attn_implementation
    problem = _probe(core)
    if problem:
        core.set_attn_implementation(before)
        log.warning(
            "%s: %s; prompts are computed once a response instead", type(core).__name__, problem
        )
        return False
    return True


def _probe(core: nn.Module) -> str:
    """Why the architecture cannot share a prefix, or an empty string."""
    kinds = set(getattr(core.config, "layer_types", None) or ()) - {
        "full_attention",
        "sliding_attention",
    }
    if kinds:
        return f"layers of kind {', '.join(sorted(kinds))} do not take block masks"
    try:
        core.set_attn_implementation(ATTENTION)
        batch = collate([TokenRow("probe", (1, 2), ((1, 2), (2, 1)), (0, 0))]).to(
            next(core.parameters()).device
        )
        training = core.training
        with torch.no_grad():
            core.eval()
            sequence_logps(core, batch)
            core.train(training)
    except (TypeError, ValueError, AttributeError, NotImplementedError, KeyError) as error:
        return f"shared prefixes are not supported ({type(error).__name__}: {str(error)[:80]})"
    if batch.blocks.calls != core.config.num_hidden_layers:
        return f"{batch.blocks.calls} of {core.config.num_hidden_layers} layers take block masks"
    return ""
