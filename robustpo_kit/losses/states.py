"""What losses remember between steps, plain numbers in checkpoints."""

from torch import Tensor

from robustpo_kit.losses.checks import check_between

NOISE = 1e-4  # nats a token: differences below it are rounding


class Numbers:
    """A state that is the attributes `NAMES`."""

    NAMES: tuple[str, ...] = ()

    def state_dict(self) -> dict[str, float]:
        """Plain numbers."""
        return {name: getattr(self, name) for name in self.NAMES}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take over `state`; raises ValueError for a missing entry."""
        if missing := [name for name in self.NAMES if name not in state]:
            kind = type(self).__name__
            raise ValueError(f"state: entry '{missing[0]}' is missing; not of {kind}")
        for name in self.NAMES:
            setattr(self, name, float(state[name]))


class BetaState(Numbers):
    """Moving mean and deviation of the reward gap, what beta-DPO remembers between steps.

    Both move by `momentum` from 0 and 1 (Wu et al. 2024, Eq. 9).
    """

    NAMES: tuple[str, ...] = ("momentum", "mean", "std")

    def __init__(self, momentum: float = 0.9) -> None:
        check_between("momentum", momentum, 0.0, 1.0)
        self.momentum, self.mean, self.std = momentum, 0.0, 1.0

    def update(self, gaps: Tensor) -> None:
        """Move mean and deviation towards those of `gaps` [B]; a single gap moves only the mean."""
        self._move(gaps, self.momentum)

    def _move(self, gaps: Tensor, keep: float) -> None:
        self.mean = keep * self.mean + (1 - keep) * float(gaps.mean())
        if len(gaps) > 1:
            self.std = keep * self.std + (1 - keep) * float(gaps.std())


class AlphaState(BetaState):
    """The same without a start: after t steps mean and deviation weigh these t steps alone.

    Moving means from 0 over 1 - momentum^t, as Adam corrects its own: what AlphaDPO remembers.
    """

    NAMES = (*BetaState.NAMES, "steps")

    def __init__(self, momentum: float = 0.9) -> None:
        super().__init__(momentum)
        self.steps = 0.0

    def update(self, gaps: Tensor) -> None:
        """Move mean and deviation towards those of `gaps` [B]; a single gap moves neither."""
        if len(gaps) > 1:
            self.steps += 1
            rest = self.momentum**self.steps
            self._move(gaps, (self.momentum - rest) / (1 - rest))

    def standardised(self, gaps: Tensor) -> Tensor:
        """`gaps` [B] in deviations from the mean; 0 before the first step."""
        if self.steps == 0:
            return gaps * 0
        return (gaps - self.mean) / (self.std + NOISE)


class EtaState(Numbers):
    """The share of right labels by RE-PO, from `eta`; it keeps `momentum` of itself a step."""

    NAMES = ("momentum", "eta")

    def __init__(self, eta: float = 0.9, momentum: float = 0.9) -> None:
        check_between("eta", eta, 0.0, 1.0, open_low=True)
        check_between("momentum", momentum, 0.0, 1.0)
        self.eta, self.momentum = eta, momentum

    def update(self, right: Tensor) -> None:
        """Move eta towards the mean of `right` [B], probabilities that labels are right."""
        self.eta = self.momentum * self.eta + (1 - self.momentum) * float(right.mean())
