"""Weights that the first rank alone reads; FSDP2 hands its shards to the others.

So says `fsdp_cpu_ram_efficient_loading` of a launch file. Until the weights are sharded, what is
asked of them is answered by the first rank, for all.
"""

import os
from collections.abc import Callable
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from accelerate import PartialState, init_empty_weights
from torch import nn
from transformers.integrations.fsdp import is_fsdp_enabled

from robustpo_kit.errors import KitError

Value = TypeVar("Value")


def join_ranks() -> None:
    """Meet the other ranks of a launch under FSDP, which transformers would do only later."""
    if "ACCELERATE_USE_FSDP" in os.environ and "RANK" in os.environ and not dist.is_initialized():
        PartialState()


def first_rank_loads() -> bool:
    """Whether the first rank alone has weights, as long as they are not sharded."""
    return is_fsdp_enabled() and dist.get_world_size() > 1


def of_first_rank(make: Callable[[], Value]) -> Value:
    """What `make` gives where there are weights, on every rank; all ranks must ask.

    Raises KitError on every rank where it fails on the first.
    """
    if not first_rank_loads():
        return make()
    answer: list[Value | None] = [None]
    problem: list[str | None] = [None]
    if dist.get_rank() == 0:
        try:
            answer[0] = make()
        except Exception as error:
            problem[0] = str(error)
            dist.broadcast_object_list([*answer, *problem])
            raise
    both = [*answer, *problem]
    dist.broadcast_object_list(both)
    if both[1] is not None:
        raise KitError(cast(str, both[1]))
    return cast(Value, both[0])


def without_weights(make: Callable[[], nn.Module]) -> nn.Module:
    """The model that `make` builds, its weights reserved and never written: they take no memory.

    They do not lie on the meta device, where accelerate cannot tell one from another.
    """
    with init_empty_weights(include_buffers=False):
        model = make()
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            reserved = torch.empty_like(weight, device="cpu")
            setattr(module, name, nn.Parameter(reserved, weight.requires_grad))
    return model
