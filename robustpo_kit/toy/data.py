"""Preference sets drawn from the toy world: what can be wrong with one is a knob, truth is kept."""

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor

from robustpo_kit.data import Preference, PreferenceSet
from robustpo_kit.toy.world import GOLDEN, World


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """One preference set drawn from a world, and everything that can be wrong with it."""

    rows: int = 256
    responses: int = 4  # K; without `mixture`, slot k holds a draw from source k mod n
    mixture: tuple[float, ...] | None = None  # alpha, beta_1..: of every response (Def. 2.1)
    contamination: float = 0.0  # share of rows whose golden slot holds a biased reward's favourite
    contamination_bias: float = 2.0  # of the reward model that ranks contaminated rows
    reward_bias: float = 0.0  # of the reward model that ranks the other rows; 0 = the true reward
    reward_noise: float = 0.0  # sd of Gaussian noise on every reward
    label_noise: float = 0.0  # share of rows whose ranking is turned upside down

    def __post_init__(self) -> None:
        if self.rows < 1 or self.responses < 2:
            raise ValueError(f"rows >= 1 and responses >= 2, got {self.rows} and {self.responses}")
        for name in ("contamination", "label_noise"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if self.reward_noise < 0:
            raise ValueError(f"reward_noise must be >= 0, got {self.reward_noise}")


class ToyData(NamedTuple):
    """A drawn preference set and the truth behind it.

    Column 0 is the golden slot, column 1 that of a turned pair.
    """

    prefs: PreferenceSet
    prompt_ids: Tensor  # [N]
    response_ids: Tensor  # [N, K]
    true_sources: Tensor  # [N, K] where each response really comes from
    claimed_sources: Tensor  # [N, K] what the data set says: the golden slot is golden
    contaminated: Tensor  # [N] bool, the golden slot holds a synthetic reply
    turned: Tensor  # [N] bool, the ranking is upside down


def draw(world: World, config: DataConfig, generator: torch.Generator) -> ToyData:
    """Draw a preference set of `config.rows` rows on the training prompts.

    Contaminated rows (by `contamination`, or because the mixture drew no golden response) hold only
    synthetic replies, and the one that a reward model of bias `contamination_bias` likes best
    stands in the golden slot.
    """
    sources, contaminated = _draw_sources(world, config, generator)
    rows = torch.randint(len(world.train_prompts), (config.rows,), generator=generator)
    prompt_ids = world.train_prompts[rows]
    response_ids = draw_responses(world, prompt_ids, sources, generator)
    rewards = _draw_rewards(world, config, prompt_ids, response_ids, contaminated, generator)
    favourite_first = _favourite_first(rewards, contaminated)
    sources = sources.gather(1, favourite_first)
    response_ids = response_ids.gather(1, favourite_first)
    rewards = rewards.gather(1, favourite_first)
    claimed = sources.clone()
    claimed[:, 0] = GOLDEN
    prefs = _preference_set(world, prompt_ids, response_ids, claimed, rewards)
    prefs = prefs.flip(config.label_noise, seed=int(torch.randint(2**31, (), generator=generator)))
    turned = torch.tensor([row.flipped for row in prefs])
    if config.responses == 2:  # a turned pair changes its columns
        columns = torch.where(turned[:, None], torch.tensor([1, 0]), torch.tensor([0, 1]))
        response_ids = response_ids.gather(1, columns)
        sources, claimed = sources.gather(1, columns), claimed.gather(1, columns)
    return ToyData(prefs, prompt_ids, response_ids, sources, claimed, contaminated, turned)


def proxy_reward(world: World, config: DataConfig) -> Tensor:
    """[P, R] what the reward models of clean and contaminated rows pay on average, noise aside."""
    clean, contaminated = config.reward_bias, config.contamination_bias
    share = config.contamination
    return world.biased_reward((1 - share) * clean + share * contaminated)


def draw_responses(
    world: World, prompt_ids: Tensor, source_ids: Tensor, generator: torch.Generator
) -> Tensor:
    """[N, K] response indices drawn from source_ids [N, K] for prompt_ids [N]."""
    mass = world.log_density[source_ids, prompt_ids[:, None]].exp()  # [N, K, R]
    return torch.multinomial(mass.flatten(0, 1), 1, generator=generator).view_as(source_ids)


def _draw_sources(
    world: World, config: DataConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """True sources [N, K], golden first where there is one; rows with another one there [N]."""
    shape = (config.rows, config.responses)
    if config.mixture is None:
        sources = torch.arange(config.responses).remainder(world.n).expand(shape).clone()
    else:
        shares = world.shares(config.mixture).expand(config.rows, -1)
        sources = torch.multinomial(shares, config.responses, True, generator=generator)
        golden_first = (sources != GOLDEN).long().argsort(dim=1, stable=True)
        sources = sources.gather(1, golden_first)
    spoiled = torch.rand(config.rows, generator=generator) < config.contamination
    synthetic = torch.randint(1, world.n, shape, generator=generator)
    sources = torch.where(spoiled[:, None] & (sources == GOLDEN), synthetic, sources)
    return sources, sources[:, 0] != GOLDEN


def _draw_rewards(
    world: World,
    config: DataConfig,
    prompt_ids: Tensor,
    response_ids: Tensor,
    contaminated: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """[N, K] what the reward models of clean and of contaminated rows give, with noise."""
    rows = prompt_ids[:, None].expand_as(response_ids)
    clean = world.biased_reward(config.reward_bias)[rows, response_ids]
    biased = world.biased_reward(config.contamination_bias)[rows, response_ids]
    rewards = torch.where(contaminated[:, None], biased, clean)
    noise = torch.randn(rewards.shape, generator=generator, dtype=torch.float64)
    return rewards + config.reward_noise * noise


def _favourite_first(rewards: Tensor, contaminated: Tensor) -> Tensor:
    """[N, K] columns in which a contaminated row's best and its golden slot change places."""
    order = torch.arange(rewards.shape[1]).repeat(len(rewards), 1)
    rows = contaminated.nonzero().squeeze(1)
    best = rewards.argmax(1)[rows]
    order[rows, best] = 0
    order[rows, 0] = best
    return order


def _preference_set(
    world: World, prompt_ids: Tensor, response_ids: Tensor, sources: Tensor, rewards: Tensor
) -> PreferenceSet:
    """The rows as everything else in the kit reads them."""
    columns = zip(
        prompt_ids.tolist(),
        response_ids.tolist(),
        sources.tolist(),
        rewards.tolist(),
        strict=True,
    )
    rows = []
    for number, (prompt, responses, names, scores) in enumerate(columns):
        row = Preference(
            row_id=f"toy-{number}",
            group=world.prompts[prompt],
            prompt=world.prompts[prompt],
            responses=tuple(world.responses[response] for response in responses),
            sources=tuple(world.source_names[source] for source in names),
            rewards=tuple(scores),
        )
        rows.append(row)
    return PreferenceSet(rows, name="toy")
