"""A run: rows to tokens, reference, steps, record."""

import dataclasses
import hashlib
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustpo_kit import paths
from robustpo_kit.data import PreferenceSet
from robustpo_kit.policies import Policy, TokenTable, tokenize
from robustpo_kit.records import RunRecord
from robustpo_kit.training.config import TrainConfig
from robustpo_kit.training.plan import steps
from robustpo_kit.training.record import run_record
from robustpo_kit.training.reference import reference_logps
from robustpo_kit.training.signals import Signals, fitting_rows
from robustpo_kit.training.trainer import StepTrainer, trainer_arguments


def train(policy: Policy, dataset: PreferenceSet, objective: Any, config: TrainConfig) -> RunRecord:
    """Train `policy` in place on `dataset` by `objective` (objectives.build); resumes from `config.checkpoint`.

    Raises KitError naming the row whose responses, rewards or h do not fit the objective, and the step whose loss is
    not finite.
    """
    started = time.time()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = prepare(policy, dataset, objective, config, config.checkpoint or scratch)
        trainer.train(resume_from_checkpoint=trainer.resume())
    return run_record(trainer, started)


def step_gradient(
    policy: Policy, dataset: PreferenceSet, objective: Any, config: TrainConfig
) -> Tensor:
    """Gradient [P] (fp32, on the CPU) that the first optimizer step would take; the weights stay as they are.

    Errors as `train`. For studies of what cutting a step into micro-batches does to it.
    """
    with tempfile.TemporaryDirectory() as scratch:
        trainer = prepare(
            policy, dataset, objective, dataclasses.replace(config, checkpoint=None), scratch
        )
        trainer.create_optimizer_and_scheduler(1)
        trainer.training_step(trainer.model, 0)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for _, p in policy.trainable()]
    flat = torch.cat([gradient.float().cpu().flatten() for gradient in gradients])
    policy.model.zero_grad(set_to_none=True)
    return flat


def prepare(
    policy: Policy, dataset: PreferenceSet, objective: Any, config: TrainConfig, folder: str
) -> "StepTrainer":
    """The trainer of a run before its first step: rows checked, tokens, reference log-probs."""
    rows = fitting_rows(dataset, objective)
    tokens = tokenize(
        rows,
        policy.tokenizer,
        policy.template,
        max_length=config.max_length,
        max_response=config.max_response,
        mismatched=objective.needs_kl,
    )
    run = _digest(tokens, policy, objective, config)
    arguments = trainer_arguments(config, folder, steps(len(tokens), config))
    reference = None
    if objective.needs_reference:
        cache = Path(config.reference_cache or paths.CACHE / "reference")
        reference = reference_logps(policy, tokens, config=config, cache=cache)
    signals = Signals.of(rows, tokens, reference)
    return StepTrainer(policy, tokens, signals, objective, config, arguments, run)


def _digest(tokens: TokenTable, policy: Policy, objective: Any, config: TrainConfig) -> str:
    """What a checkpoint belongs to: everything that decides the run except where it is written."""
    settings = dataclasses.asdict(config)
    for name in ("checkpoint", "checkpoint_every", "reference_cache"):
        settings.pop(name)
    text = json.dumps(
        [tokens.digest(), policy.fingerprint(), objective.spec, settings], sort_keys=True
    )
    return hashlib.sha256(text.encode()).hexdigest()
