"""Runs in the toy world: SFT, classifier, one preference objective, exact evaluation, all by the kit's own code."""

import contextlib
import copy
import dataclasses
import functools
import gc
import math
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from tokenizers import processors
from torch import Tensor
from transformers import BertConfig, BertModel

from robustpo_kit import calibration, encoders, objectives, policies, training
from robustpo_kit.data import PreferenceSet
from robustpo_kit.encoders import FineTune
from robustpo_kit.policies import Policy
from robustpo_kit.records import RunRecord
from robustpo_kit.toy import truth
from robustpo_kit.toy.data import DataConfig, ToyData, draw
from robustpo_kit.toy.language import policy_logps, tokenizer
from robustpo_kit.toy.truth import bayes_probs, evaluate
from robustpo_kit.toy.world import GOLDEN, World, WorldConfig, build

H_SOURCES = ("estimated", "oracle")


CLASSIFIER_BATCH = 64  # responses a step


@dataclasses.dataclass(frozen=True)
class Setting:
    """What runs of several objectives share. One seed is one world, one data set, one start of the models."""

    seed: int = 0  # takes the place of the world's own
    world: WorldConfig = WorldConfig()
    data: DataConfig = DataConfig()
    hidden: int = 32  # of the policy (Llama) and of the classifier (BERT), two layers each
    init_gain: float = 7.0  # a Llama this narrow starts too close to zero to learn within 100 steps
    sft_epochs: int = 8  # on the golden slot
    sft_learning_rate: float = 1e-2
    classifier_rows: int = (
        384  # another draw of the same kind: the classifier never scores what it was trained on
    )
    trusted: bool = True  # the classifier's golden responses are golden for sure; False: contaminated like the data
    classifier_epochs: int = 5
    classifier_steps: int = (
        60  # at least, by more epochs: or little data would also mean little training
    )
    classifier_folds: int = 2


@dataclasses.dataclass(frozen=True)
class Run:
    """One objective in one setting."""

    objective: str = "dpo_pl(beta=0.1)"  # a spec of objectives.build
    h: str = "estimated"  # where an objective that needs h~ gets it: estimated (by the classifier) | oracle (densities)
    setting: Setting = Setting()
    epochs: int = 3
    learning_rate: float = 2e-3
    batch_size: int = 32  # prompts an optimizer step

    def __post_init__(self) -> None:
        if self.h not in H_SOURCES:
            raise ValueError(f"h = '{self.h}': one of {', '.join(H_SOURCES)} is expected")

    @property
    def method(self) -> str:
        """Short name: the aggregator (with the margin, where there is one), and +oracle for h~ from the densities."""
        built = objectives.build(self.objective)
        name = built.aggregator if built.margin is None else f"{built.aggregator}_gamma"
        return f"{name}+oracle" if built.needs_h and self.h == "oracle" else name


class Start(NamedTuple):
    """Where the runs of a setting start."""

    world: World
    data: ToyData
    policy: Policy  # after SFT; copy before training
    logps: Tensor  # [P, R] its exact distribution
    mass: float  # mean probability of a response of the world under it


class Estimate(NamedTuple):
    """What a trained classifier makes of a data set, beside the truth."""

    probs: Tensor  # [N, K] c
    h: Tensor  # [N] estimated h~
    true_probs: Tensor  # [N, K] Bayes' c
    true_h: Tensor  # [N]


def fresh_policy(world: World, setting: Setting) -> Policy:
    """An untrained Llama over the world's symbols."""
    policy = policies.tiny(tokenizer(world), hidden=setting.hidden, seed=setting.seed)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(setting.init_gain)
    return policy


def fresh_encoder(world: World, setting: Setting) -> encoders.Encoder:
    """An untrained BERT over the world's symbols, which reads [CLS] prompt [SEP] response [SEP]."""
    words = tokenizer(world)
    words.backend_tokenizer.post_processor = processors.BertProcessing(
        (words.sep_token, words.sep_token_id), (words.cls_token, words.cls_token_id)
    )
    words.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=setting.hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * setting.hidden,
        initializer_range=0.2,  # as for the policy: at 0.02 it would hardly leave its start
        max_position_embeddings=world.config.length + 8,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setting.seed)
        model = BertModel(config, add_pooling_layer=False)
    limit = config.max_position_embeddings
    return encoders.Encoder(
        "toy", model, words, torch.float32, torch.device("cpu"), limit, setting.seed
    )


@functools.lru_cache(maxsize=2)
def drawn(setting: Setting) -> tuple[World, ToyData, ToyData]:
    """The world, the policy's data and the classifier's: two draws of one kind, except for what `trusted` says."""
    world = build(dataclasses.replace(setting.world, seed=setting.seed))
    generator = torch.Generator().manual_seed(setting.seed)
    data = draw(world, setting.data, generator)
    config = dataclasses.replace(setting.data, rows=setting.classifier_rows)
    if setting.trusted:
        config = dataclasses.replace(config, contamination=0.0)
    other = draw(world, config, generator)
    prefs = other.prefs.map(lambda row: dataclasses.replace(row, row_id=f"classifier-{row.row_id}"))
    return world, data, other._replace(prefs=prefs)


@functools.lru_cache(maxsize=2)
def start(setting: Setting) -> Start:
    """The policy after SFT on the golden slot, contaminated as it may be."""
    world, data, _ = drawn(setting)
    policy = fresh_policy(world, setting)
    _train(
        policy,
        data.prefs,
        "sft()",
        epochs=setting.sft_epochs,
        learning_rate=setting.sft_learning_rate,
        batch_size=32,
        seed=setting.seed,
    )
    found = policy_logps(policy, world)
    return Start(world, data, policy, found.logps, float(found.mass.mean()))


@functools.lru_cache(maxsize=2)
def estimate(setting: Setting) -> Estimate:
    """c and h~ of the policy's data by a classifier trained on the other draw, and their true values."""
    world, data, other = drawn(setting)
    config = FineTune(
        learning_rate=3e-3,
        head_learning_rate=1e-2,
        epochs=_classifier_epochs(setting),
        batch_size=CLASSIFIER_BATCH,
        frozen_layers=0,
        max_length=world.config.length + 8,
    )
    classifier = calibration.fit_classifier(
        other.prefs,
        features="fine_tuned",
        encoder=fresh_encoder(world, setting),
        folds=setting.classifier_folds,
        fine_tune=config,
        seed=setting.seed,
    )
    probs = torch.from_numpy(classifier.score_set(data.prefs))
    return Estimate(
        probs,
        calibration.uniform_factor(probs),
        bayes_probs(world, data.prompt_ids, data.response_ids),
        truth.true_h(world, data.prompt_ids, data.response_ids),
    )


def _classifier_epochs(setting: Setting) -> int:
    share = 1 - 1 / setting.classifier_folds
    batches = math.ceil(setting.classifier_rows * setting.data.responses * share / CLASSIFIER_BATCH)
    return max(setting.classifier_epochs, math.ceil(setting.classifier_steps / batches))


def _train(
    policy: Policy,
    prefs: PreferenceSet,
    spec: str,
    *,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
) -> RunRecord:
    """training.train with what suits a toy: separate rows, as four tokens gain nothing from a shared prefix."""
    with tempfile.TemporaryDirectory() as cache, _cheap_collection():
        config = training.TrainConfig(
            batch_size=batch_size,
            micro_batch_size=batch_size,
            epochs=epochs,
            learning_rate=learning_rate,
            seed=seed,
            layout="separate",
            reference_cache=cache,
        )
        return training.train(policy, prefs, objectives.build(spec), config)


@contextlib.contextmanager
def _cheap_collection() -> Iterator[None]:
    """Trainer collects garbage at its end, a third of a second over imported modules: leave out what is there."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def run(config: Run) -> dict[str, object]:
    """One run from SFT to exact evaluation: a flat row of settings and measures.

    `win_rate` to `kl_reference` are exact means over the held-out prompts, given that the response is one of the
    world's; `mass` is the probability of that. `seen_win_rate` is over the prompts of the data.
    """
    setting, objective = config.setting, objectives.build(config.objective)
    world, data, first, reference, _ = start(setting)
    prefs, h_rank = data.prefs, float("nan")
    if objective.needs_h:
        found = estimate(setting) if config.h == "estimated" else None
        exact = truth.true_h(world, data.prompt_ids, data.response_ids)
        h = exact if found is None else found.h
        h_rank = _rank_correlation(h, exact)
        prefs = prefs.with_h(h.numpy())
    if objective.responses == "pair":
        prefs = prefs.pairs("best_worst")
    policy = Policy(copy.deepcopy(first.model), first.tokenizer, first.template)
    record = _train(
        policy,
        prefs,
        config.objective,
        epochs=config.epochs,
        learning_rate=config.learning_rate,
        batch_size=config.batch_size,
        seed=setting.seed,
    )
    after = policy_logps(policy, world)
    row = settings_row(setting) | {"method": config.method, "objective": objective.spec}
    row |= {"h": config.h if objective.needs_h else "none", "h_rank": h_rank}
    row |= evaluate(world, after.logps, world.held_out_prompts, reference)
    row["seen_win_rate"] = evaluate(world, after.logps, world.train_prompts)["win_rate"]
    row["sft_win_rate"] = evaluate(world, reference, world.held_out_prompts)["win_rate"]
    row["mass"] = float(after.mass.mean())
    row |= {
        name: float(np.mean([step[name] for step in record.history]))
        for name in ("ess", "max_weight")
    }
    return row


def settings_row(setting: Setting) -> dict[str, object]:
    """The knobs of a setting, as columns of a table."""
    first = {"seed": setting.seed, "shift": setting.world.shift}
    return (
        first
        | data_row(setting.data)
        | {"classifier_rows": setting.classifier_rows, "trusted": setting.trusted}
    )


def data_row(config: DataConfig) -> dict[str, object]:
    """The knobs of a data set, as columns of a table."""
    row = dataclasses.asdict(config)
    row["mixture"] = (
        "slots" if config.mixture is None else "/".join(f"{x:g}" for x in config.mixture)
    )
    return row


def h_quality(setting: Setting) -> dict[str, object]:
    """How well the classifier's c and h~ agree with the truth, as a flat row.

    Rank correlations (Spearman) with true h~ and Bayes' c on rows the classifier has not seen; AUC of c for responses
    that really are golden and of h~ for rows that are not contaminated (NaN without any), beside the best possible.
    """
    _, data, _ = drawn(setting)
    found = estimate(setting)
    golden = (data.true_sources == GOLDEN).flatten()
    clean = ~data.contaminated
    return settings_row(setting) | {
        "h_rank": _rank_correlation(found.h, found.true_h),
        "c_rank": _rank_correlation(found.probs.flatten(), found.true_probs.flatten()),
        "auc": _auc(golden, found.probs.flatten()),
        "bayes_auc": _auc(golden, found.true_probs.flatten()),
        "clean_auc": _auc(clean, found.h),
        "bayes_clean_auc": _auc(clean, found.true_h),
    }


def _rank_correlation(first: Tensor, second: Tensor) -> float:
    return float(spearmanr(first.numpy(), second.numpy()).statistic)


def _auc(labels: Tensor, scores: Tensor) -> float:
    return (
        float(roc_auc_score(labels.numpy(), scores.numpy()))
        if 0 < labels.double().mean() < 1
        else float("nan")
    )
