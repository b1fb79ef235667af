"""Toy world: every response can be enumerated, so densities, h~, win rates and divergences are exact.

A prompt is a topic and a tone, a response four symbols. The golden distribution Q0 and the synthetic sources
Q1..Q_{n-1} (DoRA, Def. 2.1) are Gibbs distributions over all responses of a prompt; the synthetic ones are less
keen on the true reward and like a *style* that the biased reward model likes too. All tensors here are float64.
"""

import dataclasses
import itertools
from typing import NamedTuple

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from robustpo_kit import logprobs, policies

GOLDEN = 0  # index of Q0 among the sources
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SPECIAL = {
    "pad": "<pad>",
    "bos": "<s>",
    "eos": "</s>",
    "unk": "<unk>",
    "cls": "[CLS]",
    "sep": "[SEP]",
    "mask": "[MASK]",
}


@dataclasses.dataclass(frozen=True)
class WorldConfig:
    """The world's size and how far its sources lie from golden; strengths are per standard deviation of a response."""

    topics: int = 8  # topics x tones = prompts
    tones: int = 6
    symbols: int = 6  # vocabulary of a response
    length: int = 4  # symbols a response
    golden_sharpness: float = 1.5  # Q0 ~ exp(golden_sharpness * reward)
    quality: tuple[float, ...] = (0.9, 0.5, 0.1)  # how much each synthetic source follows the true reward
    style: tuple[float, ...] = (0.8, 1.0, 1.2)  # how much each synthetic source likes the style
    golden_style: float = -0.6  # how much golden likes it
    accent: float = 0.5  # share of each source's own taste beside the common style
    shift: float = 1.0  # multiplies every liking of style: 0 = the sources differ from golden in quality alone
    held_out: float = 0.25  # share of the prompts that no data set contains
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.quality) != len(self.style) or not self.quality:
            raise ValueError(f"quality, style: one value a synthetic source each, got {self.quality} and {self.style}")
        if min(self.topics, self.tones, self.length) < 1 or not 2 <= self.symbols <= 26:
            raise ValueError("topics, tones, length must be at least 1 and symbols 2 to 26")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out must lie in [0, 1), got {self.held_out}")


@dataclasses.dataclass(frozen=True, eq=False)
class World:
    """An enumerated world of P prompts, R responses and n sources; build it with `build`."""

    config: WorldConfig
    prompts: tuple[str, ...]  # P texts
    responses: tuple[str, ...]  # R texts
    tokens: Tensor  # [R, L] symbol indices of each response
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
        return ("golden", *(f"synthetic{i}" for i in range(1, self.n)))

    def biased_reward(self, bias: float) -> Tensor:
        """[P, R]: what a reward model sees that pays `bias` standard deviations of reward for one of style."""
        return self.reward + bias * self.style

    def shares(self, mixture: tuple[float, ...] | None = None) -> Tensor:
        """[n] alpha, beta_1.. of a mixture over the sources; None: 1/n each, the papers' choice."""
        if mixture is None:
            return torch.full((self.n,), 1 / self.n, dtype=torch.float64)
        shares = torch.tensor(mixture, dtype=torch.float64)
        if (
            shares.shape != (self.n,)
            or (shares < 0).any()
            or abs(float(shares.sum()) - 1) > 1e-9
            or shares[GOLDEN] == 0
        ):
            raise ValueError(f"mixture: {self.n} shares that sum to 1, the golden one above 0; got {mixture}")
        return shares


def _standardise(values: Tensor) -> Tensor:
    """Mean 0 and sd 1 over the last axis."""
    return (values - values.mean(-1, keepdim=True)) / values.std(-1, unbiased=False, keepdim=True)


def _taste(tokens: Tensor, symbols: int, generator: torch.Generator) -> Tensor:
    """[R] a random taste in responses: a liking for symbols and for symbols that follow one another."""
    single = torch.randn(symbols, generator=generator, dtype=torch.float64)
    follow = torch.randn(symbols, symbols, generator=generator, dtype=torch.float64)
    return _standardise(single[tokens].sum(-1) + 0.5 * follow[tokens[:, :-1], tokens[:, 1:]].sum(-1))


def build(config: WorldConfig = WorldConfig()) -> World:
    """The world of a config; the same config gives the same world, bit for bit."""
    generator = torch.Generator().manual_seed(config.seed)
    tokens = torch.tensor(list(itertools.product(range(config.symbols), repeat=config.length)))
    topic_taste = torch.randn(config.topics, config.symbols, generator=generator, dtype=torch.float64)
    tone_taste = torch.randn(config.tones, config.length, config.symbols, generator=generator, dtype=torch.float64)
    grammar = _taste(tokens, config.symbols, generator)
    prompts, rewards = [], []
    for topic, tone in itertools.product(range(config.topics), range(config.tones)):
        prompts.append(f"t{topic} m{tone} >")
        by_place = tone_taste[tone][torch.arange(config.length), tokens].sum(-1)
        rewards.append(_standardise(topic_taste[topic][tokens].sum(-1) + 0.7 * by_place + grammar))
    reward = torch.stack(rewards)
    style = _taste(tokens, config.symbols, generator)
    shared = _standardise(reward.mean(0))
    style = _standardise(style - (style * shared).mean() * shared)  # to like style is not to like what is good
    energies = [config.golden_sharpness * reward + config.shift * config.golden_style * style]
    for quality, strength in zip(config.quality, config.style, strict=True):
        liking = style + config.accent * _taste(tokens, config.symbols, generator)
        energies.append(quality * reward + config.shift * strength * liking)
    order = torch.randperm(len(prompts), generator=generator)
    held_out = round(config.held_out * len(prompts))
    return World(
        config=config,
        prompts=tuple(prompts),
        responses=tuple(" ".join(LETTERS[t] for t in row) for row in tokens.tolist()),
        tokens=tokens,
        reward=reward,
        style=style,
        log_density=torch.log_softmax(torch.stack(energies), -1),
        train_prompts=order[held_out:].sort().values,
        held_out_prompts=order[:held_out].sort().values,
    )


# --- exact quantities -------------------------------------------------------------------------------------------


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
    return torch.cat([weighed.sum(0, keepdim=True), weighed]) / (shares[GOLDEN] * world.log_density[GOLDEN].exp())


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
    parts = shares[GOLDEN] * densities[GOLDEN] + shares[1:, None, None] * densities[1:]  # [n - 1, P, R]
    whole = mixture_log_density(world, shares).exp()[None]
    source_ids = torch.zeros_like(response_ids) if source_ids is None else source_ids
    rows = prompt_ids[:, None]
    return (densities[GOLDEN][rows, response_ids] / torch.cat([whole, parts])[source_ids, rows, response_ids]).mean(-1)


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


def evaluate(world: World, logps: Tensor, prompts: Tensor, reference: Tensor | None = None) -> dict[str, float]:
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


# --- language models in the world --------------------------------------------------------------------------------


def tokenizer(world: World) -> PreTrainedTokenizerFast:
    """A tokenizer of whole symbols, made in memory; it adds no special tokens by itself."""
    words = [*SPECIAL.values(), *sorted({word for prompt in world.prompts for word in prompt.split()})]
    words += LETTERS[: world.config.symbols]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=SPECIAL["unk"]))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **{f"{k}_token": word for k, word in SPECIAL.items()})


class Enumeration(NamedTuple):
    """The exact distribution of a language model over the responses of every prompt."""

    logps: Tensor  # [P, R] log-probabilities given that the response is one of the world's, nats
    mass: Tensor  # [P] probability of that: four symbols and the end


@torch.no_grad()
def policy_logps(policy: policies.Policy, world: World, *, prompts_at_once: int = 8) -> Enumeration:
    """Enumerate a causal language model: every prefix is computed once, children share their parent's key-value cache.

    Before normalisation an entry equals `logprobs.sequence_logps` of that response, end of sequence included.
    """
    model, words = logprobs.unwrap(policy.model), policy.tokenizer
    symbols = torch.tensor(words.convert_tokens_to_ids(list(LETTERS[: world.config.symbols])), device=policy.device)
    ids = torch.tensor(words([policy.template.render(prompt, words) for prompt in world.prompts])["input_ids"])
    training, parts = model.training, []
    model.eval()
    for part in ids.to(policy.device).split(prompts_at_once):
        out = model(input_ids=part, use_cache=True)
        logps = torch.zeros(len(part), 1, dtype=torch.float64, device=policy.device)
        for _ in range(world.config.length):
            step = torch.log_softmax(out.logits[:, -1].double(), -1)[:, symbols]  # [nodes, symbols]
            logps = (logps.reshape(-1, 1) + step).reshape(len(part), -1)
            cache = out.past_key_values
            cache.batch_repeat_interleave(len(symbols))
            out = model(input_ids=symbols.repeat(len(step))[:, None], past_key_values=cache, use_cache=True)
        end = torch.log_softmax(out.logits[:, -1].double(), -1)[:, words.eos_token_id]
        parts.append((logps + end.view(len(part), -1)).cpu())
    model.train(training)
    total = torch.cat(parts)
    return Enumeration(torch.log_softmax(total, -1), total.logsumexp(-1).exp())
