"""A loss of the table with its options, and what it remembers between steps."""

import inspect
from typing import Any

import torch
from torch import Tensor

from robustpo_kit.losses import BASES, LossState, Scores, check_whole
from robustpo_kit.records import torch_stream


def chosen_options(options: dict[str, Any], *names: str) -> dict[str, Any]:
    """Those of `names` that are given."""
    return {name: options[name] for name in names if name in options}


def seeded_generator(options: dict[str, Any], purpose: str) -> torch.Generator:
    """A generator on the CPU for `purpose`, from the option `seed`, 0 if none is given."""
    seed = options.get("seed", 0)
    check_whole("seed", seed)
    return torch_stream(seed, purpose)


class BaseLoss:
    """The per-sample loss of an objective: `name` in the table and its `options`."""

    def __init__(self, name: str, options: dict[str, Any]) -> None:
        self.name, self.options, self.row = name, dict(options), BASES[name]
        self._state: LossState | None = None
        self._generator: torch.Generator | None = None
        if self.row.takes("generator"):
            self._generator = seeded_generator(self.options, name)
        if self.row.state is not None:
            keywords = inspect.signature(self.row.state).parameters
            self._state = self.row.state(**chosen_options(self.options, *keywords))

    def per_sample(self, scores: Scores, margin: Tensor | None, training: bool) -> Tensor:
        """The loss of every sample [B]; `training=False` leaves what it remembers alone."""
        arguments = {
            **self.options,
            "margin": margin,
            "state": self._state,
            "generator": self._generator,
            "training": training,
        }
        taken = {name: value for name, value in arguments.items() if self.row.takes(name)}
        return self.row.loss(scores, **taken)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers; empty for a loss that remembers nothing."""
        state: dict[str, Any] = {}
        if self._state is not None:
            state |= self._state.state_dict()
        if self._generator is not None:
            state["generator"] = self._generator.get_state()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        if self._state is not None:
            self._state.load_state_dict(state)
        if self._generator is not None:
            generator = torch.as_tensor(state["generator"], dtype=torch.uint8)
            self._generator.set_state(generator.cpu())
