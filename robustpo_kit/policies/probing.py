"""Whether a model obeys the blocks of a packed row; asked of every model when it is loaded."""

import logging
import weakref

import torch
from torch import nn
from transformers import PreTrainedModel

from robustpo_kit.policies.attention import ATTENTION
from robustpo_kit.policies.batches import Blocks, collate
from robustpo_kit.policies.logprobs import sequence_logps
from robustpo_kit.policies.projection import unwrap
from robustpo_kit.policies.tokens import TokenRow

PROBE = TokenRow("probe", (1, 2), ((1, 2), (2, 1)), (0, 0))
MASKED_LAYERS = {"full_attention", "sliding_attention"}  # kinds of layer that take block masks

log = logging.getLogger(__name__)

_unfit: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()  # models that failed, not asked again


def use_block_attention(model: nn.Module) -> bool:
    """Route the model's attention through `block_attention`; False where the architecture cannot.

    A model is asked once, with a forward pass over a few tokens: every layer must have been called
    with the blocks, and positions accepted. What it lacks is logged.
    """
    core = unwrap(model)
    before = core.config._attn_implementation
    if before == ATTENTION:
        return True
    if core in _unfit:
        return False
    problem = _problem(core)
    if problem:
        core.set_attn_implementation(before)
        log.warning(
            "%s: %s; prompts are computed once a response instead", type(core).__name__, problem
        )
        _unfit.add(core)
        return False
    return True


def _problem(core: PreTrainedModel) -> str:
    """Why the architecture cannot share a prefix, or an empty string."""
    others = set(getattr(core.config, "layer_types", None) or ()) - MASKED_LAYERS
    if others:
        return f"layers of kind {', '.join(sorted(others))} do not take block masks"
    try:
        core.set_attn_implementation(ATTENTION)
        obeyed = _layers_that_obey(core)
    except (TypeError, ValueError, AttributeError, NotImplementedError, KeyError) as error:
        return f"shared prefixes are not supported ({type(error).__name__}: {str(error)[:80]})"
    if obeyed != core.config.num_hidden_layers:
        return f"{obeyed} of {core.config.num_hidden_layers} layers take block masks"
    return ""


def _layers_that_obey(core: PreTrainedModel) -> int:
    """Attention layers that were called with the blocks of a batch."""
    batch = collate([PROBE]).to(next(core.parameters()).device)
    assert isinstance(batch.blocks, Blocks)
    training = core.training
    try:
        with torch.no_grad():
            sequence_logps(core.eval(), batch)
    finally:
        core.train(training)
    return batch.blocks.calls
