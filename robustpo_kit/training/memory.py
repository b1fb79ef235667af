"""Memory that runs out: how it is known, and how it is freed."""

import torch


def out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch or Python says that memory ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return "out of memory" in str(error) or "can't allocate memory" in str(error)


def free_memory() -> None:
    """Hand what torch keeps for later back to the device, so that other sizes fit."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
