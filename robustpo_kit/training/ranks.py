"""The ranks of a distributed run; one rank where there is no process group."""

import torch.distributed as dist


class AnotherRankStarved(Exception):
    """A rank ran out of memory, so that every rank takes the step again."""


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def this_rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


def end_ranks() -> None:
    """Wait for the other ranks and leave the process group: a rank that just exits can abort those that still talk."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
