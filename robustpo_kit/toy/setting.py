"""What runs of one setting share: world, data, the policy after SFT, weights of its rows."""

import contextlib
import dataclasses
import functools
import gc
import math
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from tokenizers import processors
from torch import Tensor
from transformers import BertConfig, BertModel, TrainerCallback

from robustpo_kit import calibration, encoders, objectives, policies, training
from robustpo_kit.data import PreferenceSet
from robustpo_kit.encoders import FineTune
from robustpo_kit.policies import Policy
from robustpo_kit.records import stream_seed, torch_stream
from robustpo_kit.toy.data import DataConfig, ToyData, draw
from robustpo_kit.toy.language import policy_logps, tokenizer
from robustpo_kit.toy.truth import Enumeration, bayes_probs, true_h, true_slot_weight
from robustpo_kit.toy.world import World, WorldConfig, build

CLASSIFIER_BATCH = 64  # responses a step

# h of rows: h~ by the classifier and by the truth, the slot weight by both, 0 for bad rows, or 1
H_SOURCES = ("estimated", "oracle", "slot", "slot_oracle", "mask", "ones")


@dataclasses.dataclass(frozen=True)
class Setting:
    """What runs of several objectives share: a seed is one world, one data set, one start."""

    seed: int = 0  # takes the place of the world's own
    world: WorldConfig = WorldConfig()
    data: DataConfig = DataConfig()
    hidden: int = 32  # of the policy (Llama) and of the classifier (BERT), two layers each
    init_gain: float = 7.0  # a Llama this narrow starts too close to zero to learn within 100 steps
    sft_epochs: int = 8  # on the golden slot
    sft_learning_rate: float = 1e-2
    classifier_rows: int = 384  # another draw: it never scores what it was trained on
    trusted: bool = True  # the classifier's golden rows are golden; False: contaminated, too
    classifier_epochs: int = 5
    classifier_steps: int = 60  # at least, by more epochs: or little data meant little training
    classifier_folds: int = 2


class SettingData(NamedTuple):
    """What a setting draws."""

    world: World
    policy_data: ToyData
    classifier_data: ToyData  # of the same kind, except for what `trusted` says


class Start(NamedTuple):
    """Where the runs of a setting start."""

    world: World
    data: ToyData
    policy: Policy  # after SFT; copy before training
    distribution: Enumeration  # its own


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
        torch.manual_seed(stream_seed(setting.seed, "toy encoder"))
        model = BertModel(config, add_pooling_layer=False)
    limit = config.max_position_embeddings
    return encoders.Encoder(
        "toy", model, words, torch.float32, torch.device("cpu"), limit, setting.seed
    )


@functools.lru_cache(maxsize=2)
def draw_data(setting: Setting) -> SettingData:
    """The world, the policy's data and the classifier's."""
    world = build(dataclasses.replace(setting.world, seed=setting.seed))
    policy_data = draw(world, setting.data, torch_stream(setting.seed, "toy data"))
    config = dataclasses.replace(setting.data, rows=setting.classifier_rows)
    if setting.trusted:
        config = dataclasses.replace(config, contamination=0.0)
    classifier_data = draw(world, config, torch_stream(setting.seed, "toy classifier data"))
    return SettingData(world, policy_data, classifier_data)


@functools.lru_cache(maxsize=2)
def start(setting: Setting, sft_h: str = "ones") -> Start:
    """The policy after SFT on the golden slot, contaminated as it may be, and weighed by `sft_h`.

    Args:
        setting: of the run.
        sft_h: one of H_SOURCES, divided by its mean.
    """
    world, data, _ = draw_data(setting)
    policy, rows, spec = fresh_policy(world, setting), data.prefs, "sft()"
    if sft_h != "ones":
        h = weights(setting, sft_h)
        rows, spec = rows.with_h((h / h.mean()).numpy()), "reweight(sft())"
    train(
        policy,
        rows,
        spec,
        epochs=setting.sft_epochs,
        learning_rate=setting.sft_learning_rate,
        batch_size=32,
        seed=stream_seed(setting.seed, "sft"),
    )
    return Start(world, data, policy, policy_logps(policy, world))


@functools.lru_cache(maxsize=2)
def classifier(setting: Setting) -> calibration.SourceClassifier:
    """A classifier trained on the other draw."""
    world, _, classifier_data = draw_data(setting)
    config = FineTune(
        learning_rate=3e-3,
        head_learning_rate=1e-2,
        epochs=_classifier_epochs(setting),
        batch_size=CLASSIFIER_BATCH,
        frozen_layers=0,
        max_length=world.config.length + 8,
    )
    return calibration.fit_classifier(
        classifier_data.prefs,
        features="fine_tuned",
        encoder=fresh_encoder(world, setting),
        folds=setting.classifier_folds,
        fine_tune=config,
        seed=setting.seed,
    )


def confidences(setting: Setting, rows: PreferenceSet) -> Tensor:
    """c [N, K] by `classifier`; a finite world says the same twice, whichever draw a row is of."""
    flat = calibration.flat_responses(rows)
    c = classifier(setting).score(list(flat["prompt"]), list(flat["response"]))
    return torch.from_numpy(c.reshape(len(rows), -1))


@functools.lru_cache(maxsize=2)
def estimate(setting: Setting) -> Estimate:
    """c and h~ of the policy's data by `classifier`, and the truth."""
    world, data, _ = draw_data(setting)
    probs = confidences(setting, data.prefs)
    return Estimate(
        probs,
        calibration.uniform_factor(probs),
        bayes_probs(world, data.prompt_ids, data.response_ids),
        true_h(world, data.prompt_ids, data.response_ids),
    )


def weights(setting: Setting, source: str) -> Tensor:
    """h [N] of the policy's data, by a name of H_SOURCES; `mask` is 1 for clean rows, else 0."""
    world, data, _ = draw_data(setting)
    if source == "ones":
        return torch.ones(len(data.prefs), dtype=torch.float64)
    if source == "estimated":
        return estimate(setting).h
    if source == "oracle":
        return true_h(world, data.prompt_ids, data.response_ids)
    if source == "mask":
        return (~data.contaminated).double()
    slot = torch.tensor([[row.golden] for row in data.prefs])
    if source == "slot_oracle":
        slot_ids = data.response_ids.gather(1, slot)[:, 0]
        return true_slot_weight(world, setting.data, data.prompt_ids, slot_ids)
    return slot_weights(estimate(setting).probs.gather(1, slot)[:, 0], setting.data.responses)


def slot_weights(c: Tensor, responses: int) -> Tensor:
    """The slot weight [N] of rows whose golden slot has c [N], by a classifier of K responses."""
    ratios = calibration.slot_ratios(c.numpy(), imbalance=responses - 1)  # golden is one of K
    return torch.from_numpy(calibration.slot_weights(ratios).weights)


def _classifier_epochs(setting: Setting) -> int:
    share = 1 - 1 / setting.classifier_folds
    batches = math.ceil(setting.classifier_rows * setting.data.responses * share / CLASSIFIER_BATCH)
    return max(setting.classifier_epochs, math.ceil(setting.classifier_steps / batches))


def train(
    policy: Policy,
    prefs: PreferenceSet,
    spec: str,
    *,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
    window: int | None = None,
    watch: Sequence[TrainerCallback] = (),
) -> list[dict[str, Any]]:
    """A run for a toy: separate rows, as four tokens gain nothing from a shared prefix.

    Args:
        policy: is trained.
        prefs: as the objective takes them.
        spec: of the objective.
        epochs, learning_rate, batch_size, seed: of the run.
        window: prompts that an aggregator sees at once; None: those of the step.
        watch: is told of each step.

    Returns:
        A row of means a step.
    """
    with tempfile.TemporaryDirectory() as scratch, _cheap_collection():
        config = training.TrainConfig(
            batch_size=batch_size,
            micro_batch_size=window or batch_size,
            window="step" if window is None else "micro",
            epochs=epochs,
            learning_rate=learning_rate,
            seed=seed,
            layout="separate",
            reference_cache=scratch,
        )
        objective = objectives.build(spec, seed=seed)
        trainer = training.prepare(policy, prefs, objective, config, scratch)
        for callback in watch:
            trainer.add_callback(callback)
        trainer.train()
        return trainer.history


@contextlib.contextmanager
def _cheap_collection() -> Iterator[None]:
    """Trainer collects garbage at its end, 0.3 s over imported modules: leave out what is there."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
