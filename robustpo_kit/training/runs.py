"""A run: rows to tokens, reference, steps, record."""

import contextlib
import dataclasses
import functools
import itertools
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from robustpo_kit import paths
from robustpo_kit.data import PreferenceSet
from robustpo_kit.errors import KitError
from robustpo_kit.policies import Policy, TokenTable, first_rank_loads
from robustpo_kit.records import RunRecord, digest
from robustpo_kit.training.config import TrainConfig
from robustpo_kit.training.identity import Identity, RunInputs, differences, in_words, run_identity
from robustpo_kit.training.interrupts import Terminated
from robustpo_kit.training.launching import trainer_arguments
from robustpo_kit.training.lifeline import Lifeline
from robustpo_kit.training.memory import out_of_memory
from robustpo_kit.training.plan import step_rows, steps
from robustpo_kit.training.ranks import gather_states, this_rank
from robustpo_kit.training.record import run_record
from robustpo_kit.training.reference import reference_key, reference_logps
from robustpo_kit.training.scoring import tokens_of
from robustpo_kit.training.signals import Signals, fitting_rows
from robustpo_kit.training.spoilt import save_batch
from robustpo_kit.training.step import NotFiniteError
from robustpo_kit.training.step_objective import StepObjective
from robustpo_kit.training.trainer import StepTrainer

log = logging.getLogger(__name__)


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
        KitError: Names the row whose responses, rewards or h do not fit the objective; the step and
            rows where something is not finite, and where that batch was saved; what differs from
            the run whose checkpoints the folder holds; where memory or the disk ran out, what to
            do; of several ranks, the one that failed or is gone.
        Terminated: After SIGTERM, once a checkpoint is written: exit code 143. Without a folder for
            checkpoints SIGTERM ends the process as it always does.
    """
    started = time.time()
    rows = fitting_rows(dataset, objective)
    with tempfile.TemporaryDirectory() as scratch:
        folder = config.checkpoint or scratch
        arguments = trainer_arguments(config, folder, steps(len(rows), config))
        with Lifeline():
            trainer = _trainer(policy, rows, objective, config, arguments)
            _take_steps(trainer, rows)
    return run_record(trainer, rows, started)


def _take_steps(trainer: StepTrainer, rows: PreferenceSet) -> None:
    """All steps that are left; errors as `train`."""
    config, resumed = trainer.config, trainer.resume()
    stoppable = trainer.termination if config.checkpoint else contextlib.nullcontext()
    try:
        with stoppable:
            trainer.train(resume_from_checkpoint=resumed)
    except NotFiniteError as error:
        where = _save_spoilt(trainer, rows, error)
        raise KitError(f"{error}; the batch lies in {where}") from None
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise KitError(
            f"out of memory outside of the passes, in the optimizer or a checkpoint ({error}); use "
            "LoRA, bfloat16 weights, a smaller model, or FSDP2 over more devices"
        ) from error
    if trainer.terminated:
        step, root = trainer.state.global_step, paths.show(Path(str(config.checkpoint)))
        log.warning("SIGTERM: checkpoint of step %d in %s; the same run goes on there", step, root)
        raise Terminated


def _save_spoilt(trainer: StepTrainer, rows: PreferenceSet, error: NotFiniteError) -> str:
    """Save the batch of a step that was not finite, by the first rank; returns where."""
    root = Path(trainer.config.checkpoint or paths.RUNS / "not_finite")
    name = f"not_finite-{digest(trainer.run, length=8)}-step{trainer.place + 1}"
    if this_rank() == 0:
        save_batch(root / name, rows, trainer.tokens, trainer.signals, error.rows, error.logps)
    gather_states(None)  # no rank ends before it is written
    shown = trainer.config.checkpoint or paths.show(root)
    return f"{shown}/{name}"


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
    arguments = trainer_arguments(config, folder, steps(len(rows), config))
    return _trainer(policy, rows, objective, config, arguments)


def _trainer(
    policy: Policy,
    rows: PreferenceSet,
    objective: StepObjective,
    config: TrainConfig,
    arguments: TrainingArguments,
) -> StepTrainer:
    """As `prepare`, of rows that fit the objective."""
    if objective.strength and config.window == "micro":
        raise KitError(
            f"window: 'micro' has no whole batch that {objective.spec} could be solved on; use "
            "window='step', or give lam, or gamma0 and tau"
        )
    tokens = tokens_of(policy, rows, config, mismatched=objective.needs_kl)
    signals = Signals.of(rows, tokens, None)
    inputs = RunInputs(policy, tokens, signals, objective, config, arguments)
    run = run_identity(inputs)
    _refuse_other_ranks(run)
    if not objective.needs_reference:
        return StepTrainer(inputs, run)
    cache = Path(config.reference_cache or paths.CACHE / "reference")
    numbers = sorted(set(itertools.chain.from_iterable(step_rows(len(tokens), config))))
    asked = dataclasses.replace(tokens, rows=tuple(tokens.rows[number] for number in numbers))
    key = digest(reference_key(policy, asked))
    own = functools.partial(reference_logps, policy, asked, config=config, cache=cache, key=key)
    score = functools.partial(_in_place, own, numbers, tokens)
    if not first_rank_loads():
        inputs = inputs._replace(signals=inputs.signals.with_reference(score()))
    trainer = StepTrainer(inputs, run)
    if first_rank_loads():
        trainer.score_reference = score
    return trainer


def _in_place(
    score: Callable[..., Tensor], numbers: list[int], tokens: TokenTable, **how: nn.Module
) -> Tensor:
    """Log-probs [N, K] of all rows, those of no step NaN; `score` gives the rows `numbers`."""
    logps = score(**how)
    if len(numbers) == len(tokens):
        return logps
    width = max(len(row.responses) for row in tokens.rows)
    whole = torch.full((len(tokens), width), torch.nan, dtype=logps.dtype)
    whole[numbers, : logps.shape[1]] = logps
    return whole


def _refuse_other_ranks(run: Identity) -> None:
    """Raises KitError, on every rank, where the ranks were not started for the same run."""
    runs = gather_states(run)
    for rank, other in enumerate(runs):
        found = differences(runs[0], other)
        if found:
            raise KitError(f"rank {rank}: is not of the run of rank 0 ({in_words(found)})")
