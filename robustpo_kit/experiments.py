"""Experiments: from one task to disjoint splits, a mixture-shifted training set, trained policies and scored replies.

The notebooks share these steps. What takes long is kept under runs/PROFILE and made again only when its settings or
the kit's code change, so a killed run continues where it stood.
"""

import dataclasses
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from robustpo_kit import calibration, data, encoders, freshness, mixture, objectives, paths, policies, rewards, training
from robustpo_kit.data import PreferenceSet
from robustpo_kit.generation import SamplingConfig, sample
from robustpo_kit.policies import Policy
from robustpo_kit.profiles import Profile
from robustpo_kit.records import RunRecord, read_json, write_json

SPLITS = ("classifier", "reward", "judge", "sft", "policy", "eval")
PROFILE_FREE = {"profiles", "notebook", "series", "plots"}  # modules that no kept artefact depends on


@dataclasses.dataclass(frozen=True)
class Lab:
    """One profile and seed, and the folder that keeps what they made."""

    cfg: Profile
    seed: int

    @property
    def folder(self) -> Path:
        """runs/PROFILE/seedN."""
        return paths.work(self.cfg.name) / f"seed{self.seed}"

    def settings(self, *names: str) -> dict[str, Any]:
        """The named settings of the profile and the seed: what an artefact made from them depends on."""
        return {name: getattr(self.cfg, name) for name in names} | {"seed": self.seed}

    # ---- data ---------------------------------------------------------------------------------------------------

    @functools.cached_property
    def rows(self) -> PreferenceSet:
        """The task's rows with their synthetic replies (K = 4)."""
        return mixture.with_synthetic(data.load(self.cfg.task), mixture.load_store(self.cfg.task))

    def resample(self, batch: int) -> tuple[int, float]:
        """Sample one stored batch again: its prompts, and the share whose replies are the same as before.

        With another model than the stored replies' (the tiny one of smoke), two prompts are sampled twice instead.
        """
        policy = self.base_policy()
        about = read_json(mixture.store_path(self.cfg.task).with_suffix(".json"))
        prompts = {row.row_id: row for row in data.load(self.cfg.task)}
        stored = [entry for entry in mixture.load_store(self.cfg.task).values() if entry["batch"] == batch]
        config = SamplingConfig(**about["sampling"])
        if self.cfg.model == about["model"]:
            before = [entry["replies"] for entry in stored]
        else:
            stored, config = stored[:2], dataclasses.replace(config, max_new_tokens=self.cfg.max_new_tokens)
            before = None
        rows = PreferenceSet([prompts[entry["row_id"]] for entry in stored], template=self.rows.template)
        before = before or mixture.draw(rows, policy, config, seed=about["seed"], number=batch)
        now = mixture.draw(rows, policy, config, seed=about["seed"], number=batch)
        return len(rows), float(np.mean([new == old for new, old in zip(now, before, strict=True)]))

    @functools.cached_property
    def splits(self) -> dict[str, PreferenceSet]:
        """Disjoint parts by prompt: classifier, reward, judge, sft, policy, eval."""
        return self.rows.split({name: getattr(self.cfg, f"{name}_rows") for name in SPLITS}, self.seed)

    # ---- classifiers and reward models --------------------------------------------------------------------------

    @functools.cached_property
    def encoder(self) -> Any:
        """The BERT of classifiers and reward models."""
        return encoders.load(self.cfg.encoder, seed=self.seed)

    def classifier(self) -> Any:
        """The source classifier that gives h~ its probabilities: pooled golden-against-rest, fine-tuned, calibrated."""
        config = self.settings("task", "encoder", "classifier_rows", "classifier_epochs", "folds")

        def make(folder: Path) -> None:
            fitted = calibration.fit_classifier(
                self.splits["classifier"],
                kind="shared",
                features=self.cfg.classifier_features,
                encoder=self.encoder,
                folds=self.cfg.folds,
                epochs=self.cfg.classifier_epochs,
                seed=self.seed,
            )
            fitted.save(folder)

        return calibration.SourceClassifier.load(kept(self.folder / "classifier", config, make), encoder=self.encoder)

    def reward_model(self, split: str = "reward") -> Any:
        """The proxy reward model of a split: `reward` ranks the training set, `judge` judges replies."""
        config = self.settings("task", "encoder", f"{split}_rows", "reward_epochs") | {"split": split}

        def make(folder: Path) -> None:
            fitted = rewards.fit_reward_model(
                self.splits[split],
                encoder=self.encoder,
                epochs=self.cfg.reward_epochs,
                seed=self.seed + SPLITS.index(split),
            )
            fitted.save(folder)

        return rewards.RewardModel.load(kept(self.folder / f"{split}_model", config, make), encoder=self.encoder)

    def score(self, model: Any, rows: PreferenceSet) -> np.ndarray:
        """Scores [N, K] of a classifier or reward model for every response of every row."""
        prompts = [row.prompt for row in rows for _ in row.responses]
        responses = [response for row in rows for response in row.responses]
        return np.asarray(model.score(prompts, responses)).reshape(len(rows), -1)

    # ---- the training set ---------------------------------------------------------------------------------------

    def training_set(self) -> tuple[PreferenceSet, np.ndarray]:
        """The policy split with standardised proxy rewards, contaminated samples and h~; and the contamination mask."""
        mixed, mask = self.mixed()
        scores = self.score(self.reward_model("reward"), mixed)
        ranking = mixture.rank_first((scores - scores.mean()) / scores.std(), mask)
        h = self.h(self.score(self.classifier(), mixed))
        return mixed.with_rewards(ranking).with_h(h), mask

    def mixed(self) -> tuple[PreferenceSet, np.ndarray]:
        """The policy split with the profile's share of contaminated samples, and their mask."""
        extra = mixture.load_store(f"{self.cfg.task}_extra")
        return mixture.contaminate(self.splits["policy"], self.cfg.contamination, extra, seed=self.seed)

    @staticmethod
    def h(probabilities: np.ndarray) -> np.ndarray:
        """h~ [N] of confidences [N, K] at the uniform mixture alpha = beta_i = 1/K."""
        k = probabilities.shape[1]
        factor = calibration.calibration_factor(torch.as_tensor(probabilities), alpha=1 / k, beta=1 / k)
        return factor.double().numpy()

    # ---- policies -----------------------------------------------------------------------------------------------

    def base_policy(self) -> Policy:
        """The profile's language model, with the task's template."""
        template = data.Template("chat", data.SYSTEM.get(self.cfg.task)) if self.cfg.task in data.SYSTEM else None
        return policies.load(self.cfg.model, template=template, dtype=self.cfg.dtype)

    def sft_policy(self) -> Policy:
        """The model after supervised fine-tuning on golden replies: reference and starting point of every method."""
        names = ("task", "model", "dtype", "sft_rows", "sft_learning_rate", "sft_epochs", "lora_targets", "lora_rank")
        config = self.settings(*names, "batch_size")

        def make(folder: Path) -> None:
            policy = self.base_policy().add_lora(self.cfg.lora_targets, self.cfg.lora_rank, seed=self.seed)
            run = self._train_config(self.cfg.sft_learning_rate, self.cfg.sft_epochs, self.seed)
            record = training.train(policy, self.splits["sft"], objectives.build("sft()"), run)
            policy.merge().save(folder / "policy")
            record.to_json(folder / "record.json")

        return policies.load(kept(self.folder / "sft", config, make) / "policy", dtype=self.cfg.dtype)

    def trained(self, name: str, spec: str, dataset: PreferenceSet, *, seed: int | None = None) -> "Trained":
        """Train one method from the SFT policy, sample and score its replies on the evaluation prompts; kept on disk.

        `name` labels the method in tables, `spec` is its objective, `dataset` the preference data.
        """
        seed = self.seed if seed is None else seed
        config = dataclasses.asdict(self.cfg) | {
            "spec": spec,
            "train_seed": seed,
            "rows": hashlib.sha256(repr(dataset.rows).encode()).hexdigest(),
            "seed": self.seed,
        }

        def make(folder: Path) -> None:
            policy = self.sft_policy().add_lora(self.cfg.lora_targets, self.cfg.lora_rank, seed=seed)
            run = self._train_config(self.cfg.learning_rate, self.cfg.epochs, seed)
            record = training.train(policy, dataset, objectives.build(spec), run)
            record.to_json(folder / "record.json")
            self.replies(policy).to_json(folder / "replies.json", orient="records", force_ascii=False)

        return Trained.read(name, kept(self.folder / "methods" / f"{name}-{seed}", config, make))

    def sft_replies(self) -> "Trained":
        """The SFT policy itself, as the row that every method is read against."""
        policy = self.sft_policy()  # made first: `kept` below depends on its code and settings

        def make(folder: Path) -> None:
            shutil.copy(self.folder / "sft" / "record.json", folder / "record.json")
            self.replies(policy).to_json(folder / "replies.json", orient="records", force_ascii=False)

        return Trained.read("sft", kept(self.folder / "methods" / "sft", dataclasses.asdict(self.cfg), make))

    def replies(self, policy: Policy) -> pd.DataFrame:
        """Replies to the evaluation prompts: row_id, group, reply, tokens, finished, log-probabilities, scores.

        `reward` is the proxy's score, `judge` and `judge_human` the judge's of reply and human reply, `confidence` the
        classifier's probability of golden; `log_ratio` is log pi(y|x) - log pi_ref(y|x) in nats, its mean over the
        policy's own replies the usual estimate of KL(pi || pi_ref).
        """
        rows = self.splits["eval"]
        texts = [rows.template.render(row.prompt, policy.tokenizer) for row in rows]
        config = SamplingConfig(
            max_new_tokens=self.cfg.max_new_tokens, batch_size=self.cfg.eval_batch, samples=self.cfg.eval_samples
        )
        merged = policy.has_adapter
        if merged:
            policy.model.merge_adapter()  # plain matrices while sampling; taken apart again below
        drawn = sample(policy.model, policy.tokenizer, texts, config, seed=self.seed, desc="replies")
        if merged:
            policy.model.unmerge_adapter()
        flat = [(row, reply) for row, replies in zip(rows, drawn, strict=True) for reply in replies if reply.text]
        table = pd.DataFrame(
            {
                "row_id": [row.row_id for row, _ in flat],
                "group": [row.group for row, _ in flat],
                "reply": [reply.text for _, reply in flat],
                "tokens": [reply.tokens for _, reply in flat],
                "finished": [reply.finished for _, reply in flat],
            }
        )
        prompts = [row.prompt for row, _ in flat]
        judge = self.reward_model("judge")
        table["reward"] = self.reward_model("reward").score(prompts, table["reply"])
        table["judge"] = judge.score(prompts, table["reply"])
        table["judge_human"] = judge.score(prompts, [row.responses[row.golden] for row, _ in flat])
        table["confidence"] = self.classifier().score(prompts, table["reply"])
        table["log_ratio"] = self._log_ratios(policy, [row for row, _ in flat], list(table["reply"]))
        return table

    def _log_ratios(self, policy: Policy, rows: Sequence[data.Preference], replies: Sequence[str]) -> np.ndarray:
        if not policy.has_adapter:
            return np.zeros(len(replies))
        answered = PreferenceSet(
            dataclasses.replace(row, row_id=str(i), responses=(reply,), sources=("policy",), rewards=None, golden=0)
            for i, (row, reply) in enumerate(zip(rows, replies, strict=True))
        )
        own, _ = training.score(policy, answered)
        with policy.reference():
            reference, _ = training.score(policy, answered)
        return (own - reference)[:, 0].double().cpu().numpy()

    def _train_config(self, learning_rate: float, epochs: int, seed: int) -> training.TrainConfig:
        return training.TrainConfig(
            batch_size=self.cfg.batch_size,
            micro_batch_size=self.cfg.micro_batch_size,
            epochs=epochs,
            learning_rate=learning_rate,
            seed=seed,
        )


@dataclasses.dataclass(frozen=True)
class Trained:
    """A method after training: its run record and its scored replies."""

    name: str
    record: RunRecord
    replies: pd.DataFrame

    @classmethod
    def read(cls, name: str, folder: Path) -> "Trained":
        """Read what `Lab.trained` kept."""
        replies = pd.DataFrame(read_json(folder / "replies.json"))
        return cls(name, RunRecord.from_json(folder / "record.json"), replies)


def all_replies(methods: Sequence[Trained]) -> pd.DataFrame:
    """The replies of several methods as one tidy table with a `method` column, without the reply text."""
    parts = [trained.replies.drop(columns="reply").assign(method=trained.name) for trained in methods]
    return pd.concat(parts, ignore_index=True)


def kept(folder: Path, config: dict[str, Any], make: Callable[[Path], None]) -> Path:
    """`folder` as `make` filled it once; made afresh when `config` or the kit's code changed, and by rename."""
    key = json.loads(json.dumps({"config": config, "code": code_key()}))
    stamp = folder / "made.json"
    if stamp.exists() and read_json(stamp) == key:
        return folder
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        make(temporary)
        write_json(temporary / "made.json", key)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


@functools.cache
def code_key() -> str:
    """Hash of the kit's modules that artefacts depend on: change the code, and they are made again."""
    own = Path(__file__)
    modules = sorted(freshness.imported_modules(own.read_text(encoding="utf-8")) - PROFILE_FREE)
    parts = [freshness.file_hash(own.parent / f"{name}.py") for name in modules] + [freshness.file_hash(own)]
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]
