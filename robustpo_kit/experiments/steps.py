"""The steps of one profile and seed: the settings, rows and steps that each is made from."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path

from robustpo_kit import data, mixture, objectives, paths
from robustpo_kit.data import Preference, PreferenceSet, Template
from robustpo_kit.encoders import FineTune
from robustpo_kit.experiments.candidates import CandidatesStep
from robustpo_kit.experiments.classifier import ClassifierStep
from robustpo_kit.experiments.gold import GoldStep
from robustpo_kit.experiments.method import MethodStep
from robustpo_kit.experiments.reward import RewardStep
from robustpo_kit.experiments.sampled import GoldenRepliesStep, StartRepliesStep
from robustpo_kit.experiments.scoring import RepliesStep, ScoredRepliesStep
from robustpo_kit.experiments.supervised import SftStep
from robustpo_kit.policies import SamplingConfig
from robustpo_kit.profiles import Profile
from robustpo_kit.records import stream_seed
from robustpo_kit.training import TrainConfig

SPLITS = ("classifier", "reward", "gold", "sft", "policy", "eval")


@dataclasses.dataclass(frozen=True)
class Steps:
    """What a profile and a seed decide: the splits of the task's rows, and the steps."""

    cfg: Profile
    seed: int

    @property
    def folder(self) -> Path:
        """runs/PROFILE/seedN."""
        return folder_of(self.cfg, self.seed)

    @functools.cached_property
    def rows(self) -> PreferenceSet:
        """The task's rows with their synthetic replies (K = 4)."""
        return mixture.with_synthetic(data.load(self.cfg.task), mixture.load_store(self.cfg.task))

    @functools.cached_property
    def splits(self) -> dict[str, PreferenceSet]:
        """Disjoint parts by prompt, by the names of SPLITS."""
        sizes = {name: getattr(self.cfg, f"{name}_rows") for name in SPLITS}
        return self.rows.split(sizes, self.seed)

    @property
    def template(self) -> Template | None:
        """The task's template, that of its synthetic replies; None stands for the model's own."""
        return data.template_of(self.cfg.task)

    def classifier(self, kind: str | None = None, features: str | None = None) -> ClassifierStep:
        """The profile's source classifier, or one of another kind or features."""
        kind = kind or self.cfg.classifier_kind
        features = features or self.cfg.classifier_features
        return ClassifierStep(
            folder=self.folder / f"classifier-{features}-{kind}",
            rows=self.splits["classifier"],
            encoder=self.cfg.encoder,
            kind=kind,
            features=features,
            fine_tune=FineTune(
                learning_rate=self.cfg.classifier_rate,
                head_learning_rate=self.cfg.classifier_head_rate,
                epochs=self.cfg.classifier_epochs,
                frozen_layers=self.cfg.classifier_frozen,
            ),
            folds=self.cfg.folds,
            seed=self.seed,
        )

    def witness(self) -> ClassifierStep:
        """The classifier of reported confidence: of other features than the one whose c weighs."""
        other = {"frozen": "fine_tuned", "fine_tuned": "frozen"}[self.cfg.classifier_features]
        return self.classifier("shared", other)

    @functools.cached_property
    def reward_model(self) -> RewardStep:
        """A Bradley-Terry reward model."""
        return RewardStep(
            folder=self.folder / "reward_model",
            rows=self.splits["reward"],
            encoder=self.cfg.encoder,
            encoder_seed=self.seed,
            features=self.cfg.reward_features,
            epochs=self.cfg.reward_epochs,
            seed=stream_seed(self.seed, "reward model", "reward"),
        )

    @functools.cached_property
    def gold(self) -> GoldStep:
        """The gold reward."""
        return GoldStep(
            folder=self.folder / "gold",
            rows=self.splits["gold"],
            encoder=self.cfg.encoder,
            encoder_seed=self.seed,
            features=self.cfg.gold_features,
            epochs=self.cfg.reward_epochs,
            kappa=self.cfg.kappa,
            synthetic=(mixture.SYNTHETIC_SOURCE,),
            seed=stream_seed(self.seed, "gold reward"),
        )

    @functools.cached_property
    def candidates(self) -> CandidatesStep:
        """The held-out rows with their candidates, scored by what no method changes."""
        return CandidatesStep(
            folder=self.folder / "candidates",
            rows=self.splits["eval"],
            sft=self.sft,
            gold=self.gold,
            synthetic=(mixture.SYNTHETIC_SOURCE,),
        )

    @functools.cached_property
    def sft(self) -> SftStep:
        """Supervised fine-tuning."""
        return sft_step(self.cfg, self.seed, self.splits["sft"])

    def start_replies(self, name: str) -> StartRepliesStep:
        """The replies of the SFT policy, by the name of sft, or of the base model."""
        return StartRepliesStep(
            folder=self.folder / "methods" / name,
            sft=self.sft,
            base=name == "base",
            prompts=self.splits["eval"],
            sampling=self.sampling(),
            sampling_seed=self.seed,
        )

    def golden_replies(self) -> GoldenRepliesStep:
        """The human replies."""
        folder = self.folder / "methods" / "golden"
        return GoldenRepliesStep(folder=folder, prompts=self.splits["eval"])

    def method(
        self,
        name: str,
        spec: str,
        dataset: PreferenceSet,
        *,
        scored: Mapping[str, PreferenceSet] | None = None,
    ) -> MethodStep:
        """Training by `spec` on `dataset`, whose h~ is left out where the objective needs none."""
        objective = objectives.build(spec, seed=self.seed)
        cfg = self.cfg.of_method(objective.base)
        if not objective.needs_h:
            dataset = dataset.map(_without_h)  # another classifier leaves this method as it is
        return MethodStep(
            folder=self.folder / "methods" / f"{name.replace(' ', '-')}-{self.seed}",
            sft=self.sft,
            spec=objective.spec,  # in full, whatever becomes of a preset's name
            rows=dataset,
            lora_targets=cfg.lora_targets,
            lora_rank=cfg.lora_rank,
            run=train_config(cfg, self.seed),
            scored=scored or {},
            prompts=self.splits["eval"],
            sampling=self.sampling(),
            sampling_seed=self.seed,
        )

    def scored(self, replies: RepliesStep) -> ScoredRepliesStep:
        """The replies of a method, scored by the reward models and the classifier."""
        return ScoredRepliesStep(
            folder=self.folder / "replies" / replies.folder.name,
            replies=replies,
            prompts=self.splits["eval"],
            gold=self.gold,
            style_bias=self.cfg.style_bias,
            noise=self.cfg.proxy_noise,
            blindness=self.cfg.proxy_blindness,
            classifier=self.witness(),
            seed=self.seed,
        )

    def sampling(self) -> SamplingConfig:
        """How a method's replies are drawn."""
        return SamplingConfig(
            max_new_tokens=self.cfg.max_new_tokens,
            batch_size=self.cfg.eval_batch,
            samples=self.cfg.eval_samples,
            repetition_penalty=self.cfg.repetition_penalty,
        )


def folder_of(cfg: Profile, seed: int) -> Path:
    """Where the steps of a profile and a seed are kept: runs/PROFILE/seedN."""
    return paths.work(cfg.name) / f"seed{seed}"


def sft_step(cfg: Profile, seed: int, rows: PreferenceSet) -> SftStep:
    """Supervised fine-tuning on `rows` of the profile's task, with the task's template."""
    cfg = cfg.of_method("sft")
    return SftStep(
        folder=folder_of(cfg, seed) / "sft",
        rows=rows,
        model=cfg.model,
        dtype=cfg.dtype,
        template=data.template_of(cfg.task),
        lora_targets=cfg.lora_targets,
        lora_rank=cfg.lora_rank,
        run=dataclasses.replace(
            train_config(cfg, seed),
            learning_rate=cfg.sft_learning_rate,
            epochs=cfg.sft_epochs,
            seed=stream_seed(seed, "sft"),
        ),
    )


def train_config(cfg: Profile, seed: int) -> TrainConfig:
    """A preference training run by a profile's settings."""
    return TrainConfig(
        batch_size=cfg.batch_size,
        micro_batch_size=min(cfg.micro_batch_size, cfg.batch_size),
        epochs=cfg.epochs,
        learning_rate=cfg.learning_rate,
        max_length=cfg.max_length,
        max_grad_norm=cfg.max_grad_norm,
        seed=seed,
    )


def _without_h(row: Preference) -> Preference:
    return dataclasses.replace(row, h=None)
