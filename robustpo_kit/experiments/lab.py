"""The laboratory: what notebooks do with the steps of one profile and seed."""

import dataclasses
import functools
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

import numpy as np
import pandas as pd
import torch

from robustpo_kit import calibration, judging, mixture, objectives, policies
from robustpo_kit.calibration import SourceClassifier
from robustpo_kit.data import PreferenceSet
from robustpo_kit.encoders import Encoder
from robustpo_kit.experiments import window
from robustpo_kit.experiments.encoding import shared_encoder
from robustpo_kit.experiments.resampling import resample
from robustpo_kit.experiments.results import Trained
from robustpo_kit.experiments.sampled import sampled_replies
from robustpo_kit.experiments.scoring import GOLD_JUDGE, RepliesStep, scored_replies
from robustpo_kit.experiments.steps import Steps, train_config
from robustpo_kit.experiments.supervised import adapted
from robustpo_kit.experiments.workers import start_worker
from robustpo_kit.measures import Candidates
from robustpo_kit.policies import Policy
from robustpo_kit.profiles import Profile
from robustpo_kit.records import cores, progress
from robustpo_kit.rewards import GoldReward, ProxyReward, RewardModel

Scored = Mapping[str, PreferenceSet] | None  # sets by name, scored by what was trained


@dataclasses.dataclass(frozen=True)
class Lab:
    """One profile and seed; what takes long is kept under runs/PROFILE/seedN."""

    cfg: Profile
    seed: int

    @functools.cached_property
    def steps(self) -> Steps:
        """What is made from what."""
        return Steps(self.cfg, self.seed)

    # ---- data -----------------------------------------------------------------------------------

    @property
    def rows(self) -> PreferenceSet:
        """The task's rows with their synthetic replies (K = 4)."""
        return self.steps.rows

    @property
    def splits(self) -> dict[str, PreferenceSet]:
        """Disjoint parts by prompt: classifier, reward, gold, sft, policy, eval."""
        return self.steps.splits

    def resample(self, batch: int) -> tuple[int, float]:
        """A stored batch sampled again: its prompts, and the share whose replies are the same."""
        limits = {"max_new_tokens": self.cfg.max_new_tokens, "at_most": self.cfg.eval_batch}
        return resample(self.base_policy(), self.cfg.task, batch, **limits)

    def mixed(self, share: float | None = None) -> tuple[PreferenceSet, np.ndarray]:
        """The policy split with a share of contaminated samples (the profile's), and their mask."""
        extra = mixture.load_store(f"{self.cfg.task}_extra")
        share = self.cfg.contamination if share is None else share
        return mixture.contaminate(self.splits["policy"], share, extra, seed=self.seed)

    def cut_replies(self) -> set[tuple[str, int]]:
        """Row id and column of the replies, in the rows and in `mixed`, that the token limit ended.

        Those in a golden slot are of `mixed` alone.
        """
        stores = [mixture.load_store(name) for name in (self.cfg.task, f"{self.cfg.task}_extra")]
        mixed, _ = self.mixed()
        return mixture.cut_replies(self.rows, *stores) | mixture.cut_replies(mixed, *stores)

    def training_set(self) -> tuple[PreferenceSet, np.ndarray]:
        """`mixed` with standardised proxy rewards and h~, and the mask of contaminated samples."""
        mixed, mask = self.mixed()
        scores = self.proxy().score_set(mixed)
        ranking = mixture.rank_first((scores - scores.mean()) / scores.std(), mask)
        h = self.h(self.classifier().score_set(mixed))
        return mixed.with_rewards(ranking).with_h(h), mask

    def reward_pairs(self) -> PreferenceSet:
        """Pairs of gamma-PO (Sec. 4.1): the responses of highest and lowest proxy reward; clean."""
        return self._best_and_worst("policy")

    def _best_and_worst(self, split: str) -> PreferenceSet:
        rows = self.splits[split]
        return rows.with_rewards(self.proxy().score_set(rows)).pairs("best_worst")

    @staticmethod
    def h(probabilities: np.ndarray) -> np.ndarray:
        """h~ [N] of confidences [N, K] at the uniform mixture alpha = beta_i = 1/K: the sum of c.

        gamma_i of Eq. 6 is taken as 1, though a head saw up to n_S / n_golden as many others: c
        stays a posterior under its head's own prior. `calibration_factor(imbalance=)` has it.
        """
        factor = calibration.uniform_factor(torch.as_tensor(probabilities))
        return factor.double().numpy()

    # ---- classifiers and reward models ----------------------------------------------------------

    @property
    def encoder(self) -> Encoder:
        """The BERT of classifiers and reward models."""
        return shared_encoder(self.cfg.encoder, self.seed)

    def classifier(self, kind: str | None = None, features: str | None = None) -> SourceClassifier:
        """The profile's source classifier, whose c makes h~, or one of another kind or features."""
        return self.steps.classifier(kind, features).load()

    def reward_model(self) -> RewardModel:
        """A reward model fitted to the preferences of the split `reward`."""
        return self.steps.reward_model.load()

    def gold(self) -> GoldReward:
        """The gold reward, fitted on the split `gold`: it measures, and nothing trains on it."""
        return self.steps.gold.load()

    def proxy(self) -> ProxyReward:
        """What ranks the training set: gold with the profile's bias and noise."""
        cfg = self.cfg
        biases = (cfg.style_bias, cfg.proxy_noise, self.seed, cfg.proxy_blindness)
        return ProxyReward(self.gold(), *biases)

    def audit(self) -> pd.DataFrame:
        """What the judge of replies, gold, makes of controls on held-out rows (`judging.audit`)."""
        rows, extra = self.splits["eval"], mixture.load_store(f"{self.cfg.task}_extra")
        synthetic = rows[0].sources.index(mixture.SYNTHETIC_SOURCE)
        given = {
            "untrained model": [row.responses[synthetic] for row in rows],
            "contaminant": [extra[row.row_id]["replies"][0] for row in rows],
            "other human source": [row.responses[1] for row in rows],
        }
        judge = judging.RewardJudge(self.gold(), name=GOLD_JUDGE)
        return judging.audit(judge, rows, given=given, seed=self.seed, draws=self.cfg.bootstrap)

    def candidates(self) -> Candidates:
        """The held-out rows with their candidates, for measures without sampling."""
        return self.steps.candidates.load()

    # ---- policies -------------------------------------------------------------------------------

    def base_policy(self) -> Policy:
        """The profile's language model, with the task's template."""
        template = self.steps.template
        return policies.load(self.cfg.model, template=template, dtype=self.cfg.dtype)

    def sft_policy(self) -> Policy:
        """The model after SFT on golden replies: reference and starting point of every method."""
        return self.steps.sft.load()

    def untrained(self) -> list[Trained]:
        """Rows of every table: the golden replies, the base model and SFT, where methods start."""
        starts = [self._read(name, self.steps.start_replies(name)) for name in ("base", "sft")]
        return [self._read("golden", self.steps.golden_replies()), *starts]

    def heldout_pairs(self) -> PreferenceSet:
        """`reward_pairs` of the held-out rows."""
        return self._best_and_worst("eval")

    def trained(
        self, name: str, spec: str, dataset: PreferenceSet, *, scored: Scored = None
    ) -> Trained:
        """One method, trained from the SFT policy, and its scored replies; kept on disk.

        Args:
            name: labels the method in tables.
            spec: its objective.
            dataset: the preference data.
            scored: sets by name, whose log-probabilities and lengths after training are kept, too.
        """
        step = self.steps.method(name, spec, dataset, scored=scored)
        return self._read(name, step)

    def replies_of(self, policy: Policy) -> pd.DataFrame:
        """Replies that a policy with an adapter samples now, scored as those of `trained`."""
        asked, steps = self.splits["eval"], self.steps
        entries = sampled_replies(policy, asked, steps.sampling(), seed=self.seed)
        witness = steps.witness().load()
        return scored_replies(entries, asked, self.proxy(), witness, self.seed)

    def train_all(
        self, specs: Mapping[str, str], dataset: PreferenceSet, *, scored: Scored = None
    ) -> list[Trained]:
        """`trained` for every name and spec, in as many processes as the profile's `workers`.

        What has finished stays when one fails.
        """
        job = functools.partial(_train, Lab(self.cfg, self.seed), dataset, scored)
        workers = min(self.cfg.workers or cores(), len(specs))
        self._make_what_methods_share()
        if workers > 1:
            # spawned: a fork of a process that has used torch's threads can hang
            with ProcessPoolExecutor(workers, get_context("spawn"), start_worker) as pool:
                futures = [pool.submit(job, *named) for named in specs.items()]
                for future in progress(as_completed(futures), "methods", total=len(specs)):
                    future.result()
            return [job(*named) for named in specs.items()]
        return [job(*named) for named in progress(list(specs.items()), "methods")]

    def window_errors(self, spec: str, dataset: PreferenceSet) -> pd.DataFrame:
        """What cutting the first step from SFT into micro-batches does to its gradient.

        See `window.window_errors`.
        """
        cfg = self.cfg.of_method(objectives.build(spec).base)
        policy = adapted(self.sft_policy(), cfg.lora_targets, cfg.lora_rank, seed=self.seed)
        run = dataclasses.replace(train_config(cfg, self.seed), epochs=1)
        return window.window_errors(policy, spec, dataset, run)

    def _make_what_methods_share(self) -> None:
        """Before processes start that would each make it."""
        steps = self.steps
        for step in (
            steps.sft,
            steps.gold,
            steps.classifier(),
            steps.witness(),
        ):
            step.kept()

    def _read(self, name: str, replies: RepliesStep) -> Trained:
        return Trained.read(name, replies.kept(), self.steps.scored(replies).kept())


def _train(lab: Lab, dataset: PreferenceSet, scored: Scored, name: str, spec: str) -> Trained:
    return lab.trained(name, spec, dataset, scored=scored)
