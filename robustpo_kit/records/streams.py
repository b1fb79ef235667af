"""Streams of randomness by name: two names, or two seeds, share no draws.

A stream is spawned from the seed and the digest of its names by numpy's SeedSequence, so that seed
0 of one purpose is not seed 1 of another, as sums like `seed + fold` would have it. Only digests
can collide: of 256 bits in numpy's streams, of 32 in torch's on the CPU, which keeps no more of a
seed.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from robustpo_kit.records.digests import digest

if TYPE_CHECKING:
    import torch


def stream(seed: int, *names: Any) -> np.random.Generator:
    """A numpy generator for one purpose, such as `stream(seed, "classifier", "fold", 2)`.

    Args:
        seed: The run's seed, a whole number of 0 or more.
        names: The purpose, one name or several, of what `digest` knows; at least one.

    Raises:
        ValueError: For another seed, or without a name.
    """
    return np.random.default_rng(_sequence(seed, names))


def stream_seed(seed: int, *names: Any) -> int:
    """A seed in [0, 2^63) of the same kind, for what takes a number, such as a trainer's arguments.

    Args and errors as `stream`.
    """
    return int(_sequence(seed, names).generate_state(1, np.uint64)[0] >> np.uint64(1))


def torch_stream(seed: int, *names: Any) -> "torch.Generator":
    """A torch.Generator on the CPU of the same kind; arguments and errors as `stream`."""
    import torch

    return torch.Generator().manual_seed(stream_seed(seed, *names))


def _sequence(seed: int, names: tuple[Any, ...]) -> np.random.SeedSequence:
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"seed: expected a whole number of 0 or more, got {seed!r}")
    if not names:
        raise ValueError("names: a stream is named by its purpose; got no name")
    return np.random.SeedSequence([int(seed), int(digest(*names), 16)])
