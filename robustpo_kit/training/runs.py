"""A run: rows to tokens, reference, steps, record."""

import dataclasses
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from robustpo_kit import paths
from robustpo_kit.data import PreferenceSet
from robustpo_kit.policies import Policy, TokenTable, tokenize
from robustpo_kit.records import RunRecord, digest
from robustpo_kit.training.config import TrainConfig
from robustpo_kit.training.plan import steps
from robustpo_kit.training.record import run_record
from robustpo_kit.training.reference import reference_logps
from robustpo_kit.training.signals import Signals, fitting_rows
from robustpo_kit.training.step_objective import StepObjective
from robustpo_kit.training.trainer import StepTrainer, trainer_arguments

WHERE_ONLY = ("checkpoint", "checkpoint_every", "reference_cache")  # settings that decide no weight


def train(
    policy: Policy, dataset: PreferenceSet, objective: StepObjective, config: TrainConfig
) -> RunRecord:
    """Train a policy in place; goes on from the last checkpoint where there is one.

    Args:
        policy: Its trainable parameters change.
        dataset: Rows as the objective takes them.
        objective: From `objectives.build`; its state moves.
        config: Of the run.

    Returns:
        The record: config, versions, one row of means an optimizer step.

    Raises:
        KitError: Names the row whose responses, rewards or h do not fit the objective, the step and
            rows whose log-probs or loss are not finite, or the checkpoints of another run.
    """
    started = time.time()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = prepare(policy, dataset, objective, config, config.checkpoint or scratch)
        trainer.train(resume_from_checkpoint=trainer.resume())
    return run_record(trainer, started)


def step_gradient(
    policy: Policy, dataset: PreferenceSet, objective: StepObjective, config: TrainConfig
) -> Tensor:
    """The gradient of a run's first optimizer step, for studies of how a step is cut up.

    Args:
        policy: Its weights stay as they are.
        dataset: Rows as the objective takes them.
        objective: Its state moves, as by a step.
        config: Of the run.

    Returns:
        [P] fp32 on the CPU, P = trainable parameters.

    Raises:
        KitError: As `train`.
    """
    config = dataclasses.replace(config, checkpoint=None)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = prepare(policy, dataset, objective, config, scratch)
        trainer.create_optimizer_and_scheduler(1)
        trainer.take_step(trainer.scorer, 0)
    gradients = [_gradient(parameter).flatten() for _, parameter in policy.trainable()]
    policy.model.zero_grad(set_to_none=True)
    return torch.cat(gradients)


def _gradient(parameter: torch.nn.Parameter) -> Tensor:
    gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    return gradient.float().cpu()


def prepare(
    policy: Policy,
    dataset: PreferenceSet,
    objective: StepObjective,
    config: TrainConfig,
    folder: str,
) -> StepTrainer:
    """The trainer of a run before its first step: rows checked, tokens, reference log-probs.

    Args:
        policy: To be trained in place.
        dataset: Rows as the objective takes them.
        objective: From `objectives.build`.
        config: Of the run.
        folder: Where transformers may write.

    Raises:
        KitError: Names a row that does not fit the objective.
    """
    rows = fitting_rows(dataset, objective)
    tokens = tokenize(
        rows,
        policy.tokenizer,
        policy.template,
        max_length=config.max_length,
        max_response=config.max_response,
        mismatched=objective.needs_kl,
    )
    run = run_digest(tokens, policy, objective, config)
    arguments = trainer_arguments(config, folder, steps(len(tokens), config))
    reference = None
    if objective.needs_reference:
        cache = Path(config.reference_cache or paths.CACHE / "reference")
        reference = reference_logps(policy, tokens, config=config, cache=cache)
    signals = Signals.of(rows, tokens, reference)
    return StepTrainer(policy, tokens, signals, objective, config, arguments, run)


def run_digest(
    tokens: TokenTable, policy: Policy, objective: StepObjective, config: TrainConfig
) -> str:
    """What a checkpoint belongs to: all that decides the run, except where it is written."""
    settings = dataclasses.asdict(config)
    for name in WHERE_ONLY:
        settings.pop(name)
    return digest(tokens.digest(), policy.fingerprint(), objective.spec, settings)
