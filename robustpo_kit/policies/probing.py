"""How a model's log-probs are computed rightly; found out once, when the model is first seen.

The kit's way, which computes a prompt once for all its responses and projects in chunks, is held
against the model's own logits in its own forward: log-probs and a gradient of two ragged responses,
in the shared and in the separate layout. A way that differs by more than rounding is not taken.
"""

import contextlib
import json
import logging
from collections.abc import Hashable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from robustpo_kit.errors import KitError
from robustpo_kit.policies.attention import ATTENTION
from robustpo_kit.policies.batches import collate
from robustpo_kit.policies.logit_scales import logit_scale
from robustpo_kit.policies.own_answers import (
    Answer,
    Probe,
    embedded,
    longer_than_a_chunk,
    own_answer,
    rounding,
    small_windows,
)
from robustpo_kit.policies.passes import batch_token_logps, first_line, takes
from robustpo_kit.policies.projection import LogitScale, unwrap

MASKED_LAYERS = {"full_attention", "sliding_attention"}  # kinds of layer that take block masks
DRAWS = 4  # of rounding
SAFETY = 2.5  # a way may differ from the model by so many times what rounding moved it
PROBES = 2  # a right way may once differ by more: a mixture's router jumps between two experts
KEPT_AS = "_robustpo_fit"  # on the model itself, so that a copy has it too

log = logging.getLogger(__name__)
_examined_before: "dict[Hashable, Fit]" = {}  # by architecture, in this process


def flex_serves(model: nn.Module) -> bool:
    """Whether shared batches of a model may be computed by FlexAttention, which lacks dropout."""
    return fit_of(model).flex


class Fit(NamedTuple):
    """The fastest way to compute a model's log-probs that is right."""

    shared: bool  # a prompt is computed once for all its responses
    scale: LogitScale | None  # of the logits that the kit projects; None: the model's own logits
    flex: bool  # FlexAttention has all that its attention asks for
    reasons: tuple[str, ...] = ()  # why no faster way is taken


def use_block_attention(model: nn.Module) -> bool:
    """Route the model's attention through `block_attention`; False where the architecture cannot.

    Raises KitError where no way of computing the model's log-probs is right.
    """
    return fit_of(model).shared


def fit_of(model: nn.Module) -> Fit:
    """How the log-probs of a model are computed; examined once a model, with a few tokens.

    Raises:
        KitError: naming the architecture and the reason, where no way is right.
    """
    core = unwrap(model)
    fit: Fit | None = getattr(core, KEPT_AS, None)
    if fit is None:
        fit = _fit_of_architecture(core)
        setattr(core, KEPT_AS, fit)
        for reason in fit.reasons:
            log.warning("%s: %s", type(core).__name__, reason)
    return fit


def take_fit(model: nn.Module, fit: Fit) -> None:
    """Compute a model as an equal one, which was examined elsewhere."""
    core = unwrap(model)
    if fit.shared:
        core.set_attn_implementation(ATTENTION)
    setattr(core, KEPT_AS, fit)


def _fit_of_architecture(core: PreTrainedModel) -> Fit:
    """The fit of an equal architecture that was examined before, or of this one."""
    key = _architecture(core)
    if key is None or key not in _examined_before:
        fit = _examined(core)
        if key is not None:
            _examined_before[key] = fit
        return fit
    if _examined_before[key].shared:
        core.set_attn_implementation(ATTENTION)
    return _examined_before[key]


def _architecture(core: PreTrainedModel) -> tuple[Hashable, ...] | None:
    """What decides how a model computes, weights aside; None where it was tampered with."""
    modules = list(core.modules())
    if any("forward" in vars(module) for module in modules):
        return None
    tensors = [*core.parameters(), *core.buffers()]
    kinds = {(tensor.dtype, tensor.device.type) for tensor in tensors}
    settings = json.dumps(core.config.to_dict(), sort_keys=True, default=str)
    attention = core.config._attn_implementation
    return (tuple(map(type, modules)), frozenset(kinds), settings, attention)


def _examined(core: PreTrainedModel) -> Fit:
    if any(parameter.is_meta for parameter in core.parameters()):
        raise _unfit(core, "its weights are not loaded (they lie on the meta device)")
    before = core.config._attn_implementation
    with _quiet(core), small_windows(core):
        try:
            yardsticks = _Yardsticks(core)
            scale, reasons = _scale(core, yardsticks)
            problem = _why_not_shared(core, scale, yardsticks)
            if problem:
                core.set_attn_implementation(before)
                reasons += (f"{problem}; prompts are computed once a response instead",)
            flex = _in_training(core, scale, yardsticks.at(0)[0], shared=not problem)
        except _Unfit as error:
            core.set_attn_implementation(before)
            raise _unfit(core, str(error)) from None
    return Fit(not problem, scale, flex, reasons)


def _unfit(core: PreTrainedModel, reason: str) -> KitError:
    return KitError(
        f"{type(core).__name__}: its log-probs cannot be computed rightly: {reason}; "
        "choose another model"
    )


class _Unfit(Exception):
    """No way is right, and why."""


@contextlib.contextmanager
def _quiet(core: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode and gradients, with the generators left as they were."""
    training = core.training
    device = next(core.parameters()).device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        try:
            core.eval()
            yield
        finally:
            core.train(training)


@contextlib.contextmanager
def _attention(core: PreTrainedModel, name: str) -> Iterator[None]:
    """The attention of that name for a while."""
    before = core.config._attn_implementation
    if before != name:
        core.set_attn_implementation(name)
    try:
        yield
    finally:
        if before != name:
            core.set_attn_implementation(before)


class _Yardsticks:
    """The model's own answers, and how far rounding moves them, one probe after another."""

    def __init__(self, core: PreTrainedModel):
        self.core, self.own_attention = core, core.config._attn_implementation
        self.kept: list[tuple[Probe, Answer, Tensor]] = []
        try:
            longer_than_a_chunk(core, self.at(0)[0])
        except _Unfit:
            raise
        except Exception as error:
            raise _Unfit(f"its own forward fails ({first_line(error)})") from None

    def at(self, number: int) -> tuple[Probe, Answer, Tensor]:
        """Probe, own answer and distance by rounding [2] of a number."""
        while len(self.kept) <= number:
            probe = Probe.draw(self.core, len(self.kept))
            with _attention(self.core, self.own_attention):
                answer, ahead = own_answer(self.core, probe)
                moved = rounding(self.core, probe, answer, DRAWS)
            if ahead:
                raise _Unfit("a token's log-prob depends on the tokens after it (is it a decoder?)")
            self.kept.append((probe, answer, moved))
        return self.kept[number]

    def problem(self, layout: str, scale: LogitScale | None) -> str:
        """Why a way of computing log-probs is not right; empty where it is."""
        reason = ""
        for number in range(PROBES):
            probe, own, moved = self.at(number)
            try:
                found = kit_answer(self.core, probe, layout, scale)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                return first_line(error)
            if layout == "shared" and found.gradient[list(probe.places.responses[0])].any():
                return "a response depends on another one"
            apart = found.distance(own)
            if bool((apart <= SAFETY * moved).all()):
                return ""
            reason = reason or _difference(apart, moved)
        return reason


def _difference(apart: Tensor, moved: Tensor) -> str:
    return (
        f"log-probs differ from the model's own by {apart[0]:.2g} nats a token and their gradient "
        f"by {apart[1]:.2%} (rounding: {moved[0]:.2g} and {moved[1]:.2%})"
    )


def kit_answer(
    core: PreTrainedModel, probe: Probe, layout: str, scale: LogitScale | None
) -> Answer:
    """The kit's answer to a probe, as it scores a batch."""
    device = next(core.parameters()).device
    with embedded(core) as watch:
        watch.places = collate([probe.places], layout=layout).input_ids.to(device)
        batch = collate([probe.row], layout=layout).to(device)
        logps = batch_token_logps(core, batch, scale)
        gradient = watch.gradient(logps[batch.owner == 1].sum())
    return Answer(logps.detach(), gradient)


def _scale(
    core: PreTrainedModel, yardsticks: _Yardsticks
) -> tuple[LogitScale | None, tuple[str, ...]]:
    """The scale of the logits that makes separate rows right, and why it is not a scale."""
    scale = logit_scale(core, yardsticks.at(0)[0].row.prompt)
    problem = "logits are no scaled product of hidden states and head"
    if scale is not None:
        problem = yardsticks.problem("separate", scale)
        if not problem:
            return scale, ()
    own_problem = yardsticks.problem("separate", None)
    if own_problem:
        raise _Unfit(own_problem)
    return None, (f"{problem}; the model's own logits are used, [tokens, vocabulary] in memory",)


def _why_not_shared(
    core: PreTrainedModel, scale: LogitScale | None, yardsticks: _Yardsticks
) -> str:
    """Why the architecture cannot share a prefix, or an empty string; leaves it routed."""
    config = core.config.get_text_config(decoder=True)
    others = set(getattr(config, "layer_types", None) or ()) - MASKED_LAYERS
    if others:
        return f"layers of kind {', '.join(sorted(others))} do not take block masks"
    if not takes(core.base_model, "position_ids"):
        return "positions cannot be given"
    try:
        core.set_attn_implementation(ATTENTION)
    except Exception as error:
        return f"shared prefixes are not supported ({first_line(error)})"
    return yardsticks.problem("shared", scale) or yardsticks.problem("separate", scale)


def _in_training(
    core: PreTrainedModel, scale: LogitScale | None, probe: Probe, *, shared: bool
) -> bool:
    """Pass the probe in training mode; whether FlexAttention has all that its layers ask for."""
    batch = collate([probe.row], layout="shared" if shared else "separate")
    batch = batch.to(next(core.parameters()).device)
    core.train()
    try:
        with torch.no_grad():
            batch_token_logps(core, batch, scale)
    except Exception as error:
        raise _Unfit(f"its forward fails in training ({first_line(error)})") from None
    finally:
        core.eval()
    return batch.blocks is not None and not batch.blocks.beyond_flex
