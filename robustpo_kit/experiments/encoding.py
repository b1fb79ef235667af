"""The encoder that classifiers and reward models share, so that a text is embedded once."""

import functools

from robustpo_kit import encoders
from robustpo_kit.encoders import Encoder


@functools.lru_cache(maxsize=2)
def shared_encoder(name: str, seed: int) -> Encoder:
    """The encoder `name`; `seed` decides the weights of "tiny"."""
    return encoders.load(name, seed=seed)
