"""Exact quantities of the toy world: densities, h~, outcomes, KLs."""

from typing import NamedTuple

import torch
from torch import Tensor

from robustpo_kit.toy.data import DataConfig
from robustpo_kit.toy.world import GOLDEN, World


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


def true_h(world: World, *ids: Tensor, mixture: tuple[float, ...] | None = None) -> Tensor:
    """h~(z) [N] from the true densities: the closed form that the factor `relative` estimates.

    With c the probabilities that `bayes_probs` has for the same arguments, c / alpha is Q0 / P of
    the whole mixture P (DoRA Def. 2.1, Eq. 6), and Q0 / (alpha Q0 + beta_i Q_i) for the source i
    that a column is labelled with; h~ is its mean over the columns.
    """
    return bayes_probs(world, *ids, mixture=mixture).mean(-1) / world.shares(mixture)[GOLDEN]


def true_slot_weight(
    world: World, config: DataConfig, prompt_ids: Tensor, slot_ids: Tensor
) -> Tensor:
    """The exact ratio [N] of a clean golden slot's density to the data's (see calibration.slots).

    A contaminated slot holds the reply that the biased reward likes best of K synthetic ones; its
    probability is that of the largest of K independent draws.

    Args:
        world: gives the densities.
        config: of the data set, with slots of fixed sources and rewards without noise.
        prompt_ids: [N].
        slot_ids: [N] the responses in the golden slot.

    Raises:
        ValueError: a mixture or noise, under which the best reply has no closed form.
    """
    if config.mixture is not None or config.reward_noise:
        raise ValueError("slot_oracle: known for data of fixed slots, without reward noise")
    density = world.log_density.exp()
    synthetic = density[1:].mean(0)  # [P, R] what replaces a golden draw
    ranked = world.biased_reward(config.contamination_bias).argsort(-1)
    largest = torch.ones_like(synthetic)  # probability that all draws rank at most here
    for column in range(config.responses):
        source = column % world.n
        drawn = synthetic if source == GOLDEN else density[source]
        largest = largest * drawn.gather(-1, ranked).cumsum(-1)
    steps = torch.nn.functional.pad(largest, (1, 0)).diff(dim=-1)
    favourite = torch.zeros_like(steps).scatter(-1, ranked, steps)
    golden = density[GOLDEN]
    shifted = (1 - config.contamination) * golden + config.contamination * favourite
    return (golden / shifted)[prompt_ids, slot_ids]


class Enumeration(NamedTuple):
    """The exact distribution of a policy over the responses of every prompt."""

    logps: Tensor  # [P, R] log-probabilities given that the response is one of the world's, nats
    mass: Tensor  # [P] probability of that; whatever else a policy writes is invalid


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
    world: World,
    policy: Enumeration,
    prompts: Tensor,
    *,
    reference: Enumeration | None = None,
    proxy: Tensor | None = None,
) -> dict[str, float]:
    """Exact measures of a policy, an invalid response counted as the worst there can be.

    win_rate, win, tie, lose, gold and proxy are unconditional: an invalid response loses to every
    golden one and has the least reward of its prompt. What ends in _valid, and style, confidence
    and kl_golden, are given that the response is valid; `mass` is the probability of that.
    KLs are in nats: kl_golden = KL(policy || golden), kl_from_golden = KL(golden || policy), which
    sees the mass, kl_reference = KL(policy || reference) with all that is invalid as one outcome.

    Args:
        world: gives the truth.
        policy: over all prompts.
        prompts: indices of the prompts that means are taken over.
        reference: with it comes kl_reference.
        proxy: [P, R] the reward that ranked the data; with it come proxy and proxy_valid.
    """
    result, mass = outcome(world, policy.logps), policy.mass
    golden, gold = world.log_density[GOLDEN], expected(policy.logps, world.reward)
    win, tie = mass * result.win, mass * result.tie
    measures = {
        "win_rate": mass * result.rate,
        "win": win,
        "tie": tie,
        "lose": 1 - win - tie,
        "gold": _or_worst(gold, mass, world.reward),
        "mass": mass,
        "win_rate_valid": result.rate,
        "gold_valid": gold,
        "style": expected(policy.logps, world.style),
        "confidence": expected(policy.logps, 1 / (1 + _other_over_golden(world, None)[0])),
        "kl_golden": kl(policy.logps, golden),
        "kl_from_golden": kl(golden, policy.logps) - mass.log(),
    }
    if reference is not None:
        measures["kl_reference"] = kl(_with_invalid(policy), _with_invalid(reference))
    if proxy is not None:
        paid = expected(policy.logps, proxy)
        measures |= {"proxy": _or_worst(paid, mass, proxy), "proxy_valid": paid}
    return {name: float(value[prompts].mean()) for name, value in measures.items()}


def _or_worst(valid: Tensor, mass: Tensor, reward: Tensor) -> Tensor:
    """[P] an expectation given a valid response, with the least reward for an invalid one."""
    return mass * valid + (1 - mass) * reward.min(-1).values


def _with_invalid(policy: Enumeration) -> Tensor:
    """[P, R + 1] log-probabilities of every response, and of anything else."""
    rest = (1 - policy.mass).clamp_min(torch.finfo(torch.float64).tiny)
    return torch.cat([policy.logps + policy.mass.log()[:, None], rest.log()[:, None]], -1)
