"""The toy world: small enough to enumerate, so that truth is known."""

from robustpo_kit.toy import (
    data,
    declared,
    language,
    phase,
    rounds,
    runs,
    setting,
    study,
    sweep,
    truth,
    world,
)

__all__ = [
    "data",
    "declared",
    "language",
    "phase",
    "rounds",
    "runs",
    "setting",
    "study",
    "sweep",
    "truth",
    "world",
]
