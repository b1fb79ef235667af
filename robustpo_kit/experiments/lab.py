"""Experiments: from one task to disjoint splits, a mixture-shifted training set, trained policies and scored replies.

The notebooks share these steps. What takes long is kept under runs/PROFILE and made again only when its settings or
the kit's code change, so a killed run continues where it stood.
"""

import dataclasses
import functools
import hashlib
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from robustpo_kit import (
    calibration,
    data,
    encoders,
    judging,
    mixture,
    objectives,
    paths,
    policies,
    rewards,
    training,
)
from robustpo_kit.data import PreferenceSet
from robustpo_kit.encoders import FineTune
from robustpo_kit.experiments.keeping import kept
from robustpo_kit.experiments.methods import Trained
from robustpo_kit.policies import Policy, Reply, SamplingConfig, sample
from robustpo_kit.profiles import Profile
from robustpo_kit.records import cores, progress, read_json, write_json

SPLITS = ("classifier", "reward", "judge", "sft", "policy", "eval")


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
        stored = [
            entry for entry in mixture.load_store(self.cfg.task).values() if entry["batch"] == batch
        ]
        config = SamplingConfig(**about["sampling"])
        if self.cfg.model == about["model"]:
            before = [entry["replies"] for entry in stored]
        else:
            stored, config = (
                stored[:2],
                dataclasses.replace(config, max_new_tokens=self.cfg.max_new_tokens),
            )
            before = None
        rows = PreferenceSet(
            [prompts[entry["row_id"]] for entry in stored], template=self.rows.template
        )
        before = before or mixture.draw(rows, policy, config, seed=about["seed"], number=batch)
        now = mixture.draw(rows, policy, config, seed=about["seed"], number=batch)
        return len(rows), float(np.mean([new == old for new, old in zip(now, before, strict=True)]))

    @functools.cached_property
    def splits(self) -> dict[str, PreferenceSet]:
        """Disjoint parts by prompt: classifier, reward, judge, sft, policy, eval."""
        return self.rows.split(
            {name: getattr(self.cfg, f"{name}_rows") for name in SPLITS}, self.seed
        )

    # ---- classifiers and reward models --------------------------------------------------------------------------

    @functools.cached_property
    def encoder(self) -> Any:
        """The BERT of classifiers and reward models."""
        return encoders.load(self.cfg.encoder, seed=self.seed)

    def classifier(
        self, kind: str | None = None, features: str | None = None
    ) -> calibration.SourceClassifier:
        """The source classifier of the profile (it gives h~ its probabilities), or one of another kind or features."""
        kind, features = kind or self.cfg.classifier_kind, features or self.cfg.classifier_features
        config = self.settings("task", "encoder", "classifier_rows", "classifier_epochs", "folds")

        def make(folder: Path) -> None:
            fitted = calibration.fit_classifier(
                self.splits["classifier"],
                kind=kind,
                features=features,
                encoder=self.encoder,
                folds=self.cfg.folds,
                fine_tune=FineTune(epochs=self.cfg.classifier_epochs),
                seed=self.seed,
            )
            fitted.save(folder)

        folder = kept(self.folder / f"classifier-{features}-{kind}", config, make)
        return calibration.SourceClassifier.load(folder, encoder=self.encoder)

    def reward_model(self, split: str = "reward") -> rewards.RewardModel:
        """The proxy reward model of a split: `reward` ranks the training set, `judge` judges replies."""
        config = self.settings(
            "task", "encoder", f"{split}_rows", f"{split}_features", "reward_epochs"
        )

        def make(folder: Path) -> None:
            fitted = rewards.fit_reward_model(
                self.splits[split],
                encoder=self.encoder,
                features=config[f"{split}_features"],
                fine_tune=FineTune(epochs=self.cfg.reward_epochs),
                seed=self.seed + SPLITS.index(split),
            )
            fitted.save(folder)

        return rewards.RewardModel.load(
            kept(self.folder / f"{split}_model", config, make), encoder=self.encoder
        )

    # ---- the training set ---------------------------------------------------------------------------------------

    def training_set(self) -> tuple[PreferenceSet, np.ndarray]:
        """The policy split with standardised proxy rewards, contaminated samples and h~; and the contamination mask."""
        mixed, mask = self.mixed()
        scores = self.reward_model("reward").score_set(mixed)
        ranking = mixture.rank_first((scores - scores.mean()) / scores.std(), mask)
        h = self.h(self.classifier().score_set(mixed))
        return mixed.with_rewards(ranking).with_h(h), mask

    def mixed(self) -> tuple[PreferenceSet, np.ndarray]:
        """The policy split with the profile's share of contaminated samples, and their mask."""
        extra = mixture.load_store(f"{self.cfg.task}_extra")
        return mixture.contaminate(
            self.splits["policy"], self.cfg.contamination, extra, seed=self.seed
        )

    @staticmethod
    def h(probabilities: np.ndarray) -> np.ndarray:
        """h~ [N] of confidences [N, K] at the uniform mixture alpha = beta_i = 1/K."""
        k = probabilities.shape[1]
        factor = calibration.calibration_factor(
            torch.as_tensor(probabilities), alpha=1 / k, beta=1 / k
        )
        return factor.double().numpy()

    # ---- policies -----------------------------------------------------------------------------------------------

    def base_policy(self) -> Policy:
        """The profile's language model, with the task's template."""
        template = (
            data.Template("chat", data.SYSTEM.get(self.cfg.task))
            if self.cfg.task in data.SYSTEM
            else None
        )
        return policies.load(self.cfg.model, template=template, dtype=self.cfg.dtype)

    def sft_policy(self) -> Policy:
        """The model after supervised fine-tuning on golden replies: reference and starting point of every method."""
        names = (
            "task",
            "model",
            "dtype",
            "sft_rows",
            "sft_learning_rate",
            "sft_epochs",
            "lora_targets",
            "lora_rank",
        )
        config = self.settings(*names, "batch_size")

        def make(folder: Path) -> None:
            policy = self.base_policy().add_lora(
                self.cfg.lora_targets, self.cfg.lora_rank, seed=self.seed
            )
            run = self._train_config(self.cfg.sft_learning_rate, self.cfg.sft_epochs, self.seed)
            record = training.train(policy, self.splits["sft"], objectives.build("sft()"), run)
            policy.merge().save(folder / "policy")
            record.to_json(folder / "record.json")

        return policies.load(
            kept(self.folder / "sft", config, make) / "policy", dtype=self.cfg.dtype
        )

    def reward_pairs(self) -> PreferenceSet:
        """Pairs of gamma-PO (Sec. 4.1): the responses of highest and lowest proxy reward; no contamination."""
        rows = self.splits["policy"]
        return rows.with_rewards(self.reward_model("reward").score_set(rows)).pairs("best_worst")

    def trained(
        self,
        name: str,
        spec: str,
        dataset: PreferenceSet,
        *,
        seed: int | None = None,
        keep_scores: bool = False,
    ) -> "Trained":
        """Train one method from the SFT policy, sample and score its replies on the evaluation prompts; kept on disk.

        `name` labels the method in tables, `spec` is its objective, `dataset` the preference data. `keep_scores` also
        keeps the log-probabilities and lengths of the training responses after training.
        """
        seed = self.seed if seed is None else seed
        config = dataclasses.asdict(self.cfg) | {
            "spec": spec,
            "train_seed": seed,
            "rows": hashlib.sha256(repr(dataset.rows).encode()).hexdigest(),
            "seed": self.seed,
        }

        def make(folder: Path) -> None:
            policy = self.sft_policy().add_lora(
                self.cfg.lora_targets, self.cfg.lora_rank, seed=seed
            )
            run = self._train_config(self.cfg.learning_rate, self.cfg.epochs, seed)
            record = training.train(policy, dataset, objectives.build(spec), run)
            record.to_json(folder / "record.json")
            self.replies(policy).to_json(
                folder / "replies.json", orient="records", force_ascii=False
            )
            if keep_scores:
                logps, lengths = training.score(policy, dataset)
                write_json(folder / "scores.json", {"logps": logps.double(), "lengths": lengths})

        slug = f"{name.replace(' ', '-')}-{seed}"
        return Trained.read(name, kept(self.folder / "methods" / slug, config, make))

    def train_all(
        self, specs: Mapping[str, str], dataset: PreferenceSet, *, keep_scores: bool = False
    ) -> list["Trained"]:
        """`trained` for every name and spec, `workers` processes at once; what finished stays when one fails."""
        jobs = [
            (Lab(self.cfg, self.seed), name, spec, dataset, keep_scores)
            for name, spec in specs.items()
        ]
        workers = min(self.cfg.workers or cores(), len(jobs))
        (
            self.sft_policy(),
            self.reward_model("reward"),
            self.reward_model("judge"),
            self.classifier(),
        )  # shared by all
        if workers == 1:
            return [_train(job) for job in progress(jobs, "methods")]
        with ProcessPoolExecutor(
            workers, mp_context=get_context("spawn"), initializer=_one_thread
        ) as pool:
            futures = [pool.submit(_train, job) for job in jobs]
            for future in progress(as_completed(futures), "methods", total=len(jobs)):
                future.result()
        return [_train(job) for job in jobs]

    def window_errors(self, spec: str, dataset: PreferenceSet) -> pd.DataFrame:
        """What taking each micro-batch for a batch of its own does to the gradient of the first step from SFT.

        Columns: micro_batch (prompts), error (relative, Euclidean norm), cosine; both against the whole step's.
        """
        policy = self.sft_policy().add_lora(
            self.cfg.lora_targets, self.cfg.lora_rank, seed=self.seed
        )
        config = self._train_config(self.cfg.learning_rate, 1, self.seed)
        sizes = [2**i for i in range(config.batch_size.bit_length()) if 2**i < config.batch_size]
        whole, *parts = (
            training.step_gradient(
                policy,
                dataset,
                objectives.build(spec),
                dataclasses.replace(config, window=window, micro_batch_size=size),
            )
            for window, size in [("step", config.batch_size), *(("micro", size) for size in sizes)]
        )
        rows = [
            {
                "micro_batch": size,
                "error": float((part - whole).norm() / whole.norm()),
                "cosine": float(torch.cosine_similarity(part, whole, dim=0)),
            }
            for size, part in zip(sizes, parts, strict=True)
        ]
        return pd.DataFrame(rows)

    def sft_replies(self) -> "Trained":
        """The SFT policy itself, as the row that every method is read against."""
        policy = self.sft_policy()  # made first: `kept` below depends on its code and settings

        def make(folder: Path) -> None:
            shutil.copy(self.folder / "sft" / "record.json", folder / "record.json")
            self.replies(policy).to_json(
                folder / "replies.json", orient="records", force_ascii=False
            )

        return Trained.read(
            "sft", kept(self.folder / "methods" / "sft", dataclasses.asdict(self.cfg), make)
        )

    def replies(self, policy: Policy) -> pd.DataFrame:
        """Replies to the evaluation prompts, a row a reply, scored by everything that did not train on them.

        Columns: row_id, prompt_id, reply, words, finished; reward (proxy model), confidence (the classifier's c),
        verdict against the human reply (judge model: win | tie | lose), verdict_length_controlled (the same judge
        without its liking of length), log_ratio = log pi(y|x) - log pi_ref(y|x) in nats, whose mean over own replies
        estimates KL(pi || pi_ref).
        """
        rows = self.splits["eval"]
        drawn = self._sample(
            policy, [rows.template.render(row.prompt, policy.tokenizer) for row in rows]
        )
        flat = [
            (row, reply)
            for row, replies in zip(rows, drawn, strict=True)
            for reply in replies
            if reply.text
        ]
        prompts, texts = [row.prompt for row, _ in flat], [reply.text for _, reply in flat]
        human = [row.responses[row.golden] for row, _ in flat]
        ids = [mixture.digest(row.group) for row, _ in flat]  # tables hold no human text
        model = self.reward_model("judge")
        verdicts = [
            judging.compare(
                judging.RewardJudge(model, bias=bias),
                prompts,
                {"": texts},
                human,
                seed=self.seed,
                prompt_ids=ids,
            )["verdict"]
            for bias in (0.0, -model.length_slope)
        ]
        return pd.DataFrame(
            {
                "row_id": [row.row_id for row, _ in flat],
                "prompt_id": ids,
                "reply": texts,
                "words": [len(text.split()) for text in texts],
                "finished": [reply.finished for _, reply in flat],
                "reward": self.reward_model("reward").score(prompts, texts),
                "confidence": self.classifier().score(prompts, texts),
                "verdict": verdicts[0],
                "verdict_length_controlled": verdicts[1],
                "log_ratio": self._log_ratios(policy, [row for row, _ in flat], texts),
            }
        )

    def _sample(self, policy: Policy, texts: Sequence[str]) -> list[list[Reply]]:
        config = SamplingConfig(
            max_new_tokens=self.cfg.max_new_tokens,
            batch_size=self.cfg.eval_batch,
            samples=self.cfg.eval_samples,
        )
        if not policy.has_adapter:
            return sample(
                policy.model, policy.tokenizer, texts, config, seed=self.seed, desc="replies"
            )
        policy.model.merge_adapter()  # plain matrices while sampling
        try:
            return sample(
                policy.model, policy.tokenizer, texts, config, seed=self.seed, desc="replies"
            )
        finally:
            policy.model.unmerge_adapter()

    def _log_ratios(
        self, policy: Policy, rows: Sequence[data.Preference], replies: Sequence[str]
    ) -> np.ndarray:
        if not policy.has_adapter:
            return np.zeros(len(replies))
        answered = PreferenceSet(
            dataclasses.replace(
                row, row_id=str(i), responses=(reply,), sources=("policy",), rewards=None, golden=0
            )
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


def _train(job: tuple[Lab, str, str, PreferenceSet, bool]) -> "Trained":
    lab, name, spec, dataset, keep_scores = job
    return lab.trained(name, spec, dataset, keep_scores=keep_scores)


def _one_thread() -> None:
    torch.set_num_threads(1)
