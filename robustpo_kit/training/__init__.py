"""One exact optimizer step (`step`), and runs made of them on a transformers.Trainer (`runs`)."""

from robustpo_kit.training.checkpoints import last_checkpoint
from robustpo_kit.training.config import TrainConfig, fields_in_words
from robustpo_kit.training.estimate import Estimate, Setting, devices_needed, nearest_fit
from robustpo_kit.training.forward import response_logps
from robustpo_kit.training.heldout import check_heldout, heldout_outcomes
from robustpo_kit.training.identity import differences, in_words
from robustpo_kit.training.interrupts import Terminated
from robustpo_kit.training.plan import micro_batches, step_rows
from robustpo_kit.training.ranks import Exchange, end_ranks
from robustpo_kit.training.record import run_card
from robustpo_kit.training.reference import reference_logps
from robustpo_kit.training.runs import prepare, step_gradient, train
from robustpo_kit.training.scoring import Scorer, score, score_tokens
from robustpo_kit.training.signals import Signals, fitting_rows
from robustpo_kit.training.step import ExactStep
from robustpo_kit.training.step_objective import StepObjective
from robustpo_kit.training.trainer import StepTrainer
from robustpo_kit.training.whole_step import WholeStep

__all__ = [
    "Estimate",
    "ExactStep",
    "Exchange",
    "Scorer",
    "Setting",
    "Signals",
    "StepObjective",
    "StepTrainer",
    "Terminated",
    "TrainConfig",
    "WholeStep",
    "check_heldout",
    "devices_needed",
    "differences",
    "end_ranks",
    "fields_in_words",
    "fitting_rows",
    "heldout_outcomes",
    "in_words",
    "last_checkpoint",
    "micro_batches",
    "nearest_fit",
    "prepare",
    "reference_logps",
    "response_logps",
    "run_card",
    "score",
    "score_tokens",
    "step_gradient",
    "step_rows",
    "train",
]
