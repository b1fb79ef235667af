"""The state of every random generator that a forward pass may draw from, as tensors and numbers."""

import random
from typing import Any

import numpy as np
import torch


def pack_generators() -> dict[str, Any]:
    """The state as it is, to be taken up again by `unpack_generators`."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    state = {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest),
        "cpu": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def unpack_generators(state: dict[str, Any]) -> None:
    """Set every generator to what `pack_generators` gave."""
    kind, keys, *rest = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
