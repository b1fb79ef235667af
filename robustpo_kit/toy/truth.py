"""Exact quantities of the toy world: densities, h~, outcomes, KLs."""

from typing import NamedTuple

import torch
from torch import Tensor

from robustpo_kit.toy.world import GOLDEN, World


def mixture_log_density(world: World, shares: Tensor) -> Tensor:
    """[P, R] log of P = sum_i shares_i Q_i (DoRA Def. 2.1, Eq. 1); shares [n] of `World.shares`."""
    return torch.logsumexp(world.log_density + shares.log()[:, None, None], 0)


def bayes_probs(
    world: World,
    prompt_ids: Tensor,
    response_ids: Tensor,
    source_ids: Tensor | None = None,
    *,
    mixture: tuple[float, ...] | None = None,
) -> Tensor:
    """The probability that a response is golden, by the best classifier of a pool from `mixture`.

    Args:
        world: gives the densities.
        prompt_ids: [N].
        response_ids: [N, K].
        source_ids: None for one shared classifier, golden against everything else; [N, K] for that
            of golden against Q_i alone. Golden columns (0), where there is nothing to tell apart,
            get the shared one.
        mixture: alpha, beta_1.. of the pool; None: 1/n each.

    Returns:
        [N, K].
    """
    odds = _other_over_golden(world, mixture)
    if source_ids is None:
        source_ids = torch.zeros_like(response_ids)
    return 1 / (1 + odds[source_ids, prompt_ids[:, None], response_ids])


def _other_over_golden(world: World, mixture: tuple[float, ...] | None) -> Tensor:
    """[n, P, R] odds against golden: entry 0 of everything else, entry i of source i alone."""
    shares = world.shares(mixture)
    golden = shares[GOLDEN] * world.log_density[GOLDEN].exp()
    others = (shares[:, None, None] * world.log_density.exp())[1:]
    return torch.cat([others.sum(0, keepdim=True), others]) / golden


def true_h(
    world: World,
    prompt_ids: Tensor,
    response_ids: Tensor,
    source_ids: Tensor | None = None,
    *,
    mixture: tuple[float, ...] | None = None,
) -> Tensor:
    """h~(z) from the true densities: the closed form that the factor `relative` estimates (Eq. 6).

    Args:
        world: gives the densities.
        prompt_ids: [N].
        response_ids: [N, K].
        source_ids: None for mean_k Q0 / P, with P the whole mixture (Def. 2.1); [N, K] for
            mean_k Q0 / (alpha Q0 + beta_i Q_i) with the source i that column k is labelled with.
            Golden columns (0) are held against P.
        mixture: alpha, beta_1..; None: 1/n each.

    Returns:
        [N].
    """
    shares = world.shares(mixture)
    densities = world.log_density.exp()
    golden = densities[GOLDEN]
    pairs = shares[GOLDEN] * golden + shares[1:, None, None] * densities[1:]  # [n - 1, P, R]
    whole = mixture_log_density(world, shares).exp()[None]
    if source_ids is None:
        source_ids = torch.zeros_like(response_ids)
    rows = prompt_ids[:, None]
    against = torch.cat([whole, pairs])[source_ids, rows, response_ids]
    return (golden[rows, response_ids] / against).mean(-1)


class Outcome(NamedTuple):
    """Exact result of a policy's response against a golden one of the same prompt, each [P]."""

    win: Tensor  # probability that the policy's true reward is higher
    tie: Tensor
    lose: Tensor

    @property
    def rate(self) -> Tensor:
        """Wins plus half of the ties, [P]."""
        return self.win + self.tie / 2


def outcome(world: World, logps: Tensor) -> Outcome:
    """Exact probabilities to win, tie and lose against golden by true reward; logps [P, R]."""
    golden = world.log_density[GOLDEN].exp()
    ranked, order = world.reward.sort(-1)
    below = torch.nn.functional.pad(golden.gather(-1, order).cumsum(-1), (1, 0))
    first = torch.searchsorted(ranked, world.reward)
    last = torch.searchsorted(ranked, world.reward, right=True)
    lower, upper = below.gather(-1, first), below.gather(-1, last)
    mass = logps.exp()
    win, tie = (mass * lower).sum(-1), (mass * (upper - lower)).sum(-1)
    return Outcome(win, tie, 1 - win - tie)


def expected(logps: Tensor, values: Tensor) -> Tensor:
    """[P] expectation of values [P, R] or [R] under the policy logps [P, R]."""
    return (logps.exp() * values).sum(-1)


def kl(logps: Tensor, other: Tensor) -> Tensor:
    """[P] exact KL(policy || other), nats; both [P, R] and normalised."""
    return torch.where(logps.exp() > 0, logps.exp() * (logps - other), 0.0).sum(-1)


def evaluate(
    world: World, logps: Tensor, prompts: Tensor, reference: Tensor | None = None
) -> dict[str, float]:
    """Exact measures of a policy: against golden, reward, style, Bayes' c, KLs in nats.

    Args:
        world: gives the truth.
        logps: [P, R] of the policy, normalised.
        prompts: indices of the prompts that means are taken over.
        reference: [P, R]; with it comes kl_reference.
    """
    result = outcome(world, logps)
    measures = {
        "win_rate": result.rate,
        "win": result.win,
        "tie": result.tie,
        "lose": result.lose,
        "reward": expected(logps, world.reward),
        "style": expected(logps, world.style),
        "confidence": expected(logps, 1 / (1 + _other_over_golden(world, None)[0])),
        "kl_golden": kl(logps, world.log_density[GOLDEN]),
    }
    if reference is not None:
        measures["kl_reference"] = kl(logps, reference)
    return {name: float(value[prompts].mean()) for name, value in measures.items()}
