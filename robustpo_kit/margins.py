"""gamma-PO's dynamic target margins: the convex problem of Eq. 9, its solution, the queue of gaps.

For n reward gaps m_i the margins are gamma_i = gamma0 q_i with q_i = n p_i > 0 and mean q = 1,
where p minimises
    mean_i softplus(gamma0 q_i - m_i) + tau KL(p || uniform)                               (Eq. 22)
whose optimality (KKT) conditions are, for one multiplier nu,
    gamma0 sigmoid(gamma0 q_i - m_i) + tau (1 + log q_i) = nu  for all i                   (Eq. 23)
Hence every gamma_i lies within gamma0 exp(+-gamma0 / tau): gamma0 / tau is the strength of the
method.
"""

import math
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustpo_kit.losses import check_at_least, check_positive, check_whole

OFFICIAL_START = 8  # normal draws the published code puts into its queue before training
OFFICIAL_EPSILON = 1e-10  # what the published code adds to p inside the logarithm


def target_margins(
    gaps: Tensor,
    *,
    gamma0: float,
    tau: float,
    solver: str = "exact",
    steps: int = 20,
    parity: str | None = None,
) -> Tensor:
    """Target margins gamma_i from reward gaps m_i: of mean gamma0, never falling with the gap.

    Args:
        gaps: [n], reward gaps m.
        gamma0: the mean margin, in units of the gaps, >= 0.
        tau: weight of the KL term > 0; gamma0 / tau is the strength.
        solver: "exact" solves the KKT conditions to rounding, on the CPU in float64;
            "mirror_descent" runs updates of Eq. 24 with rate min(0.5 / tau, 1), and warns where
            its iteration is unstable.
        steps: updates of mirror descent.
        parity: "official" is mirror descent as published: the margins of its last update are never
            read, so `steps=20` are 19 effective ones.

    Returns:
        [n], detached.

    Raises:
        ValueError: an argument is outside its range; the message names it.
    """
    _check(gaps, gamma0, tau, steps, parity)
    if parity == "official":
        return _mirror_descent(gaps.detach(), gamma0, tau, steps - 1, OFFICIAL_EPSILON)
    if solver == "mirror_descent":
        return _mirror_descent(gaps.detach(), gamma0, tau, steps, 0.0)
    if solver != "exact":
        raise ValueError(f"solver: expected 'exact' or 'mirror_descent', got {solver!r}")
    if gamma0 == 0:
        return torch.zeros_like(gaps.detach())
    # a few hundred numbers: scalar root finding would stall an accelerator at every iteration
    m = gaps.detach().to("cpu", torch.float64).numpy()
    return torch.from_numpy(gamma0 * np.exp(_solve_log_q(m, gamma0, tau))).to(gaps)


class GapQueue:
    """First-in-first-out store of past reward gaps, company for each step's own (Algorithm 2).

    Args:
        capacity: gaps that are kept.
        solve_size: gaps in each problem that is solved, the step's own included.
        generator: of all draws, on the CPU; seed 0 if None.
        parity: None starts empty, as the paper says; "official" starts with 8 normal draws, as the
            published code does.
    """

    def __init__(
        self,
        capacity: int = 2048,
        solve_size: int = 256,
        generator: torch.Generator | None = None,
        *,
        parity: str | None = None,
    ) -> None:
        check_whole("capacity", capacity, low=1)
        check_whole("solve_size", solve_size, low=1)
        _check_parity(parity)
        self.capacity, self.solve_size = capacity, solve_size
        self.generator = generator or torch.Generator().manual_seed(0)
        first = 0
        if parity == "official":
            first = OFFICIAL_START
        draws = torch.randn(first, generator=self.generator, dtype=torch.float64)
        self._gaps = draws[-capacity:]

    def __len__(self) -> int:
        return len(self._gaps)

    def push(self, gaps: Tensor) -> None:
        """Append `gaps` [n]; the oldest leave once `capacity` is reached.

        Raises ValueError if they are not finite.
        """
        _check_gaps(gaps)
        arrived = gaps.detach().to("cpu", torch.float64)
        self._gaps = torch.cat([self._gaps, arrived])[-self.capacity :]

    def sample(self, count: int, *, advance: bool = True) -> Tensor:
        """At most `count` stored gaps, drawn without replacement, float64 on the CPU.

        `advance=False` leaves the generator as it was, so that evaluation does not change training.
        """
        before = self.generator.get_state()
        chosen = torch.randperm(len(self._gaps), generator=self.generator)[: max(count, 0)]
        if not advance:
            self.generator.set_state(before)
        return self._gaps[chosen]

    def state_dict(self) -> dict[str, Tensor]:
        """The stored gaps, oldest first, and the generator's state."""
        return {"gaps": self._gaps.clone(), "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over `state` (tensors or lists).

        Raises ValueError for a missing entry or too many gaps.
        """
        if missing := [name for name in ("gaps", "generator") if name not in state]:
            raise ValueError(f"state: entry '{missing[0]}' is missing; not the state of a GapQueue")
        gaps = torch.as_tensor(state["gaps"], dtype=torch.float64).cpu().clone()
        if gaps.dim() != 1 or len(gaps) > self.capacity:
            raise ValueError(
                f"state: expected at most {self.capacity} gaps, got shape {list(gaps.shape)}"
            )
        self._gaps = gaps
        self.generator.set_state(torch.as_tensor(state["generator"], dtype=torch.uint8).cpu())


def dynamic_margins(
    gaps: Tensor,
    queue: GapQueue,
    *,
    gamma0: float,
    tau: float,
    solver: str = "exact",
    steps: int = 20,
    center: bool = False,
    parity: str | None = None,
    training: bool = True,
) -> Tensor:
    """Margins of a step's gaps, solved in company of a draw from the queue that then takes them in.

    The problem has `queue.solve_size` gaps in all: fewer while the queue fills, more if the step
    alone is larger (Algorithm 2).

    Args:
        gaps: [B], the reward gaps of the step.
        queue: of past gaps.
        gamma0, tau, solver, steps, parity: as in `target_margins`.
        center: return gamma_i - gamma0, what gamma-DPO subtracts.
        training: False only reads the queue.

    Returns:
        [B], detached.
    """
    _check(gaps, gamma0, tau, steps, parity)
    company = queue.sample(queue.solve_size - len(gaps), advance=training).to(gaps)
    pool = torch.cat([gaps.detach(), company])
    solved = target_margins(pool, gamma0=gamma0, tau=tau, solver=solver, steps=steps, parity=parity)
    if training:
        queue.push(gaps)
    margins = solved[: len(gaps)]
    if center:
        return margins - gamma0
    return margins


def _mirror_descent(
    gaps: Tensor, gamma0: float, tau: float, updates: int, epsilon: float
) -> Tensor:
    """`updates` steps of Eq. 24 from the uniform p, on log q."""
    rate = min(0.5 / tau, 1.0)
    count = len(gaps)
    log_q = torch.zeros_like(gaps)
    for _ in range(updates):
        q = log_q.exp()
        slope = gamma0 * torch.sigmoid(gamma0 * q - gaps)
        gradient = slope + tau * (1 + torch.log(q + count * epsilon))  # Eq. 23
        log_q = log_q - rate * gradient
        log_q = log_q - torch.logsumexp(log_q, dim=0) + math.log(count)
    margins = gamma0 * log_q.exp()
    # the update map of log q has slopes down to 1 - rate (tau + gamma0 gamma_i / 4); below -1 it
    # cycles. With rate 0.5 / tau this is gamma0 gamma_max > 12 tau.
    largest = float(margins.max())
    if rate * (tau + gamma0 * largest / 4) > 2:
        warnings.warn(
            f"mirror descent is unstable here: gamma0 * gamma_max = {gamma0 * largest:.3g} exceeds "
            f"{4 * (2 / rate - tau):.3g} (12 tau for tau >= 0.5); use solver='exact'",
            RuntimeWarning,
            stacklevel=3,
        )
    return margins


def _solve_log_q(m: np.ndarray, gamma0: float, tau: float) -> np.ndarray:
    """log q [n] of the exact solution: a scalar root in s = (nu - tau) / tau, each q_i inside it.

    At a given s, u_i = log q_i is the root of u + r sigmoid(gamma0 e^u - m_i) = s with
    r = gamma0 / tau, so s - r < u < s; u rises with s, and mean q = 1 lies at some s in [0, r].
    Newton steps, kept inside brackets, on both levels.
    """
    r = gamma0 / tau
    low, high = 0.0, r
    s = r * float(np.mean(_sigmoid(gamma0 - m)))  # exact when tau is large
    u = np.zeros_like(m)
    for _ in range(200):
        u, slope = _solve_inner(u, m, s, gamma0, r)
        q = np.exp(u)
        total = q.sum()
        error = math.log(total / len(m))  # log mean q
        if abs(error) < 1e-14 or high - low < 4e-16 * max(r, 1e-300):
            break
        if error < 0:
            low = s
        else:
            high = s
        # d log(mean q) / ds = sum(q / slope) / sum q
        proposal = s - error * total / float((q / slope).sum())
        if not low < proposal < high:
            proposal = (low + high) / 2
        if proposal == s:
            break
        u = np.clip(u + (proposal - s) / slope, proposal - r, proposal)
        s = proposal
    return u - math.log(np.mean(np.exp(u)))  # the last rounding error of the mean


def _solve_inner(
    u: np.ndarray, m: np.ndarray, s: float, gamma0: float, r: float
) -> tuple[np.ndarray, np.ndarray]:
    """Roots [n] of u + r sigmoid(gamma0 e^u - m) = s from the guess `u`, and slopes there, [n]."""
    low, high = np.full_like(m, s - r), np.full_like(m, s)
    tolerance = 2e-16 * max(1.0, abs(s), abs(s - r))
    for _ in range(200):
        gamma = gamma0 * np.exp(u)
        share = _sigmoid(gamma - m)
        value = u + r * share - s
        slope = 1 + r * gamma * share * (1 - share)
        low, high = np.where(value < 0, u, low), np.where(value > 0, u, high)
        proposal = u - value / slope
        outside = ~((proposal >= low) & (proposal <= high))
        if outside.any():
            proposal = np.where(outside, (low + high) / 2, proposal)
        moved = float(np.abs(proposal - u).max())
        u = proposal
        if moved <= tolerance * 4:
            break
    return u, slope


def _sigmoid(x: np.ndarray) -> np.ndarray:
    # scipy's expit is as fast and rounds otherwise: margins would change in their last digit
    return 0.5 * (1 + np.tanh(0.5 * x))


def _check(gaps: Tensor, gamma0: float, tau: float, steps: int, parity: str | None) -> None:
    _check_gaps(gaps)
    check_at_least("gamma0", gamma0, 0.0)
    check_positive("tau", tau)
    check_whole("steps", steps, low=1)
    _check_parity(parity)


def _check_gaps(gaps: Tensor) -> None:
    if gaps.dim() != 1 or len(gaps) < 1:
        raise ValueError(f"gaps: expected shape [n] with n >= 1, got {list(gaps.shape)}")
    if not bool(torch.isfinite(gaps).all()):
        raise ValueError(
            f"gaps: not finite at position {int((~torch.isfinite(gaps)).nonzero()[0])}"
        )


def _check_parity(parity: str | None) -> None:
    if parity not in (None, "official"):
        raise ValueError(f"parity: expected None or 'official', got {parity!r}")
