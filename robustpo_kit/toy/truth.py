"""Exact quantities of the toy world: densities, h~, outcomes, divergences."""

from typing import NamedTuple

import torch
from torch import Tensor

from robustpo_kit.toy.world import GOLDEN, World


def mixture_log_density(world: World, shares: Tensor) -> Tensor:
    """[P, R] log of P = sum_i shares_i Q_i (Def. 2.1, Eq. 1); shares [n] as `World.shares` gives them."""
    return torch.logsumexp(world.log_density + shares.log()[:, None, None], 0)


def log_density_ratio(world: World, source: int) -> Tensor:
    """[P, R] log Q0 / Q_source, nats: the log of the importance weight of Eq. 5."""
    return world.log_density[GOLDEN] - world.log_density[source]


def bayes_probs(
    world: World,
    prompt_ids: Tensor,
    response_ids: Tensor,
    source_ids: Tensor | None = None,
    *,
    mixture: tuple[float, ...] | None = None,
) -> Tensor:
    """[N, K] probability that a response is golden, by the best classifier there can be of a pool drawn from `mixture`.

    prompt_ids [N], response_ids [N, K]; `mixture` alpha, beta_1.. (None: 1/n each). `source_ids` None: one shared
    classifier, golden against everything else; `source_ids` [N, K]: the one of golden against Q_i alone, and for golden
    columns (0), where there is nothing to tell apart, the shared one.
    """
    tables = _other_over_golden(world, mixture)
    source_ids = torch.zeros_like(response_ids) if source_ids is None else source_ids
    return 1 / (1 + tables[source_ids, prompt_ids[:, None], response_ids])


def _other_over_golden(world: World, mixture: tuple[float, ...] | None) -> Tensor:
    """[n, P, R] odds against golden: entry 0 of everything else, entry i of source i alone."""
    shares = world.shares(mixture)
    weighed = (shares[:, None, None] * world.log_density.exp())[1:]
    return torch.cat([weighed.sum(0, keepdim=True), weighed]) / (
        shares[GOLDEN] * world.log_density[GOLDEN].exp()
    )


def true_h(
    world: World,
    prompt_ids: Tensor,
    response_ids: Tensor,
    source_ids: Tensor | None = None,
    *,
    mixture: tuple[float, ...] | None = None,
) -> Tensor:
    """[N] h~(z) from the true densities: the closed form that the factor `relative` estimates (Eq. 6, bounded).

    `source_ids` None: mean_k Q0 / P, with P the whole mixture (Def. 2.1). `source_ids` [N, K]: mean_k Q0 / (alpha Q0 +
    beta_i Q_i) with the source i that column k is labelled with, golden columns as above; `mixture` as there.
    """
    shares = world.shares(mixture)
    densities = world.log_density.exp()
    parts = (
        shares[GOLDEN] * densities[GOLDEN] + shares[1:, None, None] * densities[1:]
    )  # [n - 1, P, R]
    whole = mixture_log_density(world, shares).exp()[None]
    source_ids = torch.zeros_like(response_ids) if source_ids is None else source_ids
    rows = prompt_ids[:, None]
    return (
        densities[GOLDEN][rows, response_ids]
        / torch.cat([whole, parts])[source_ids, rows, response_ids]
    ).mean(-1)


class Outcome(NamedTuple):
    """Exact result of a policy's response against a golden one of the same prompt, each [P]."""

    win: Tensor  # probability that the policy's true reward is higher
    tie: Tensor
    lose: Tensor

    @property
    def rate(self) -> Tensor:
        """Wins plus half of the ties, [P]."""
        return self.win + self.tie / 2


def outcome(world: World, logps: Tensor, opponent: Tensor | None = None) -> Outcome:
    """Exact win, tie and lose probabilities by true reward; logps [P, R]; opponent [P, R], golden by default."""
    opponent = world.log_density[GOLDEN] if opponent is None else opponent
    ranked, order = world.reward.sort(-1)
    below = torch.nn.functional.pad(opponent.exp().gather(-1, order).cumsum(-1), (1, 0))
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


def tilted(logps: Tensor, reward: Tensor, beta: float) -> Tensor:
    """[P, R] the policy that maximises E[reward] - beta KL(. || logps): what DPO reaches with endless true data."""
    if beta <= 0:
        raise ValueError(f"beta must be > 0, got {beta}")
    return torch.log_softmax(logps + reward / beta, -1)


def evaluate(
    world: World, logps: Tensor, prompts: Tensor, reference: Tensor | None = None
) -> dict[str, float]:
    """Exact measures of a policy, means over `prompts`: win rate against golden, reward, style, Bayes' c, KLs."""
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
