"""The ranks of a distributed run; one rank where there is no process group."""

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn


class AnotherRankStarved(Exception):
    """A rank ran out of memory, so that every rank takes the step again."""


def world_size() -> int:
    return dist.get_world_size() if _has_group() else 1


def this_rank() -> int:
    return dist.get_rank() if _has_group() else 0


def gather_states(state: Any) -> list[Any]:
    """The state of every rank, on every rank; small things only, they travel as objects."""
    states = [state] * world_size()
    if world_size() > 1:
        dist.all_gather_object(states, state)
    return states


def on_any_rank(condition: bool, device: torch.device) -> bool:
    """Whether `condition` holds on one rank or more; all ranks must ask."""
    if world_size() == 1:
        return condition
    votes = torch.tensor(float(condition), device=device)
    dist.all_reduce(votes)
    return bool(votes.item())


def end_ranks() -> None:
    """Wait for the other ranks and leave the process group.

    A rank that just exits can abort those that still talk.
    """
    if _has_group():
        dist.barrier()
        dist.destroy_process_group()


def _has_group() -> bool:
    return dist.is_available() and dist.is_initialized()


class Exchange:
    """How the ranks of a step share log-probs and gradients: the kit sums both, each exactly once.

    With one rank there is nothing to share.
    """

    hooks_reduce = False  # whether a wrapper's own hooks reduce gradients in the backward pass

    def __init__(self, device: torch.device):
        self.device = device

    def micro_batch(self, model: nn.Module, *, last: bool) -> AbstractContextManager[Any]:
        """What surrounds the passes of one micro-batch, of the last one of a step or of another."""
        del model, last
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss` to the parameters'."""
        loss.backward()

    def gather(self, values: Tensor) -> Tensor:
        """Values of the whole step, in place: each rank fills in its own, the rest is zero."""
        if world_size() > 1:
            self.agree_on_memory()
            dist.all_reduce(values)
        return values

    def agree_on_memory(self, *, starved: bool = False) -> None:
        """Before ranks exchange anything: raises on all of them where one has run out of memory."""
        if world_size() > 1 and on_any_rank(starved, self.device):
            raise AnotherRankStarved

    def sum_gradients(self, model: nn.Module) -> None:
        """Sum the gradients over ranks: the objective already divided by the whole step's size."""
        if world_size() == 1:
            return
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        gradients = [_gradient(parameter) for parameter in trained]
        self.agree_on_memory()
        for gradient in gradients:
            dist.all_reduce(gradient)


class HookedExchange(Exchange):
    """FSDP2 and DeepSpeed: their hooks average gradients in a step's last backward pass.

    The hooks exchange tensors in both passes, so that a rank that has run out of memory cannot ask
    the others to start again.
    """

    hooks_reduce = True

    def __init__(self, accelerator: Accelerator, *, deepspeed: bool):
        super().__init__(accelerator.device)
        self.accelerator, self.deepspeed = accelerator, deepspeed

    def micro_batch(self, model: nn.Module, *, last: bool) -> AbstractContextManager[Any]:
        """Gradients are reduced at the last micro-batch only."""
        if self.deepspeed:
            # It takes its optimizer step inside the backward pass, unless told to wait.
            self.accelerator.gradient_state._set_sync_gradients(last)
            return contextlib.nullcontext()
        if last or world_size() == 1:
            return contextlib.nullcontext()
        return self.accelerator.no_sync(model)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss`; the hooks will average over ranks where a sum is meant."""
        self.accelerator.backward(loss * world_size())

    def agree_on_memory(self, *, starved: bool = False) -> None:
        """Nothing: the hooks have exchanged tensors already."""

    def sum_gradients(self, model: nn.Module) -> None:
        """Nothing: the hooks have done it."""


def _gradient(parameter: nn.Parameter) -> Tensor:
    """A parameter's gradient; zeros where this rank had no row for it."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
