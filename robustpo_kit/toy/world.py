"""Toy world: every response can be enumerated, so densities, h~, win rates and KLs are exact.

A prompt is a topic and a tone, a response four symbols. The golden distribution Q0 and the
synthetic sources Q1..Q_{n-1} (DoRA, Def. 2.1) are Gibbs distributions over all responses of a
prompt; the synthetic ones are less keen on the true reward and like a *style* that the biased
reward model likes too. All tensors here are float64.
"""

import dataclasses
import itertools

import torch
from torch import Tensor

from robustpo_kit.records import torch_stream

GOLDEN = 0  # index of Q0 among the sources
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclasses.dataclass(frozen=True)
class WorldConfig:
    """The world's size, and how far its sources lie from golden.

    Strengths are per standard deviation over the responses of a prompt.
    """

    topics: int = 8  # topics x tones = prompts
    tones: int = 6
    symbols: int = 6  # vocabulary of a response
    length: int = 4  # symbols a response
    golden_sharpness: float = 1.5  # Q0 ~ exp(golden_sharpness * reward)
    quality: tuple[float, ...] = (0.9, 0.5, 0.1)  # each synthetic source's liking of the reward
    style: tuple[float, ...] = (0.8, 1.0, 1.2)  # each synthetic source's liking of the style
    golden_style: float = -0.6  # golden's liking of it
    accent: float = 0.5  # share of each source's own taste beside the common style
    shift: float = 1.0  # multiplies every liking of style; 0: sources differ in quality alone
    support: float = 1.0  # share of all texts of `length` symbols that are responses
    held_out: float = 0.25  # share of the prompts that no data set contains
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.quality) != len(self.style) or not self.quality:
            raise ValueError(
                "quality, style: one value a synthetic source each, "
                f"got {self.quality} and {self.style}"
            )
        if min(self.topics, self.tones, self.length) < 1 or not 2 <= self.symbols <= 26:
            raise ValueError("topics, tones, length must be at least 1 and symbols 2 to 26")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out must lie in [0, 1), got {self.held_out}")
        if not 2 <= self.support * self.symbols**self.length <= self.symbols**self.length:
            raise ValueError(
                "support must lie in (0, 1] and leave two responses or more of "
                f"{self.symbols**self.length}, got {self.support}"
            )


@dataclasses.dataclass(frozen=True, eq=False)
class World:
    """An enumerated world of P prompts, R responses and n sources; build it with `build`."""

    config: WorldConfig
    prompts: tuple[str, ...]  # P texts
    responses: tuple[str, ...]  # R texts
    tokens: Tensor  # [R, L] symbol indices of each response
    places: Tensor  # [R] of each response among all texts of L symbols, in their order
    reward: Tensor  # [P, R] true reward, mean 0 and sd 1 over the responses of a prompt
    style: Tensor  # [R] what the biased reward model likes, mean 0 and sd 1
    log_density: Tensor  # [n, P, R] log Q_i(y|x), nats
    train_prompts: Tensor  # indices of the prompts data are drawn from
    held_out_prompts: Tensor  # the others

    @property
    def n(self) -> int:
        """Number of sources, golden included."""
        return len(self.log_density)

    @property
    def source_names(self) -> tuple[str, ...]:
        """Names of the sources, golden first."""
        return ("golden", *(f"synthetic{number}" for number in range(1, self.n)))

    def biased_reward(self, bias: float) -> Tensor:
        """[P, R] what a reward model sees that pays `bias` sds of reward for one of style."""
        return self.reward + bias * self.style

    def shares(self, mixture: tuple[float, ...] | None = None) -> Tensor:
        """[n] alpha, beta_1.. of a mixture over the sources; None: 1/n each, the papers' choice."""
        if mixture is None:
            return torch.full((self.n,), 1 / self.n, dtype=torch.float64)
        shares = torch.tensor(mixture, dtype=torch.float64)
        fits = shares.shape == (self.n,) and bool((shares >= 0).all()) and bool(shares[GOLDEN] > 0)
        if not fits or abs(float(shares.sum()) - 1) > 1e-9:
            raise ValueError(
                f"mixture: {self.n} shares that sum to 1, the golden one above 0; got {mixture}"
            )
        return shares


def held_out(world: World) -> World:
    """The same world with its held-out prompts alone, all of them still held out."""
    rows = world.held_out_prompts
    every = torch.arange(len(rows))
    return dataclasses.replace(
        world,
        prompts=tuple(world.prompts[row] for row in rows.tolist()),
        reward=world.reward[rows],
        log_density=world.log_density[:, rows],
        train_prompts=every[:0],
        held_out_prompts=every,
    )


def _standardise(values: Tensor) -> Tensor:
    """Mean 0 and sd 1 over the last axis."""
    return (values - values.mean(-1, keepdim=True)) / values.std(-1, unbiased=False, keepdim=True)


def _taste(tokens: Tensor, symbols: int, generator: torch.Generator) -> Tensor:
    """[R] a random taste in responses: for symbols, and for symbols that follow one another."""
    single = torch.randn(symbols, generator=generator, dtype=torch.float64)
    follow = torch.randn(symbols, symbols, generator=generator, dtype=torch.float64)
    follows = follow[tokens[:, :-1], tokens[:, 1:]].sum(-1)
    return _standardise(single[tokens].sum(-1) + 0.5 * follows)


def build(config: WorldConfig = WorldConfig()) -> World:
    """The world of a config; the same config gives the same world, bit for bit."""
    generator = torch_stream(config.seed, "toy world")
    texts = torch.tensor(list(itertools.product(range(config.symbols), repeat=config.length)))
    places = _supported(config, texts)
    tokens = texts[places]
    reward = _rewards(config, tokens, generator)
    style = _taste(tokens, config.symbols, generator)
    shared = _standardise(reward.mean(0))
    style = _standardise(style - (style * shared).mean() * shared)  # style is not quality
    energies = _energies(config, tokens, reward, style, generator)
    prompts = [
        f"t{topic} m{tone} >"
        for topic, tone in itertools.product(range(config.topics), range(config.tones))
    ]
    order = torch.randperm(len(prompts), generator=generator)
    held_out = round(config.held_out * len(prompts))
    return World(
        config=config,
        prompts=tuple(prompts),
        responses=tuple(_text(symbols) for symbols in tokens.tolist()),
        tokens=tokens,
        places=places,
        reward=reward,
        style=style,
        log_density=torch.log_softmax(energies, -1),
        train_prompts=order[held_out:].sort().values,
        held_out_prompts=order[:held_out].sort().values,
    )


def _supported(config: WorldConfig, texts: Tensor) -> Tensor:
    """[R] places of the texts that are responses: those that suit a taste of the world's best."""
    count = round(config.support * len(texts))
    if count == len(texts):
        return torch.arange(len(texts))
    taste = _taste(texts, config.symbols, torch_stream(config.seed, "toy support"))
    return taste.argsort(descending=True)[:count].sort().values


def _rewards(config: WorldConfig, tokens: Tensor, generator: torch.Generator) -> Tensor:
    """[P, R] the taste of a prompt's topic, of its tone (by place), and a grammar common to all."""
    topic_size = (config.topics, config.symbols)
    topic_taste = torch.randn(topic_size, generator=generator, dtype=torch.float64)
    tone_size = (config.tones, config.length, config.symbols)
    tone_taste = torch.randn(tone_size, generator=generator, dtype=torch.float64)
    grammar = _taste(tokens, config.symbols, generator)
    rewards = []
    for topic, tone in itertools.product(topic_taste, tone_taste):
        by_place = tone[torch.arange(config.length), tokens].sum(-1)
        rewards.append(_standardise(topic[tokens].sum(-1) + 0.7 * by_place + grammar))
    return torch.stack(rewards)


def _energies(
    config: WorldConfig, tokens: Tensor, reward: Tensor, style: Tensor, generator: torch.Generator
) -> Tensor:
    """[n, P, R] log-densities of the sources up to a constant a prompt, golden first."""
    energies = [config.golden_sharpness * reward + config.shift * config.golden_style * style]
    for quality, strength in zip(config.quality, config.style, strict=True):
        liking = style + config.accent * _taste(tokens, config.symbols, generator)
        energies.append(quality * reward + config.shift * strength * liking)
    return torch.stack(energies)


def _text(symbols: list[int]) -> str:
    return " ".join(LETTERS[symbol] for symbol in symbols)
