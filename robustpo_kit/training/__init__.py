"""Training on a transformers.Trainer subclass whose unit is the whole optimizer step.

Every objective sees the [B, K] log-probabilities of all prompts of a step, over every micro-batch and rank; the trainer
takes d loss / d logps from it and backpropagates sum(g * logps) a micro-batch. So gradient accumulation and several
ranks give the gradient of the one big batch. Where the coupling is a log-sum-exp, gradients of micro-batches are
accumulated with a running weight, as an online softmax does; a second forward pass is taken only for other couplings
(target margins, KL terms, means of h) when the step has several micro-batches on a rank, and for every coupling under
FSDP2 and DeepSpeed, whose gradients are not at hand between micro-batches.
"""

from robustpo_kit.training.checkpoints import last_checkpoint
from robustpo_kit.training.config import TrainConfig
from robustpo_kit.training.plan import micro_batches, step_rows
from robustpo_kit.training.ranks import end_ranks
from robustpo_kit.training.record import logp_kind, run_card
from robustpo_kit.training.reference import reference_logps, response_logps, score
from robustpo_kit.training.runs import prepare, step_gradient, train
from robustpo_kit.training.signals import Signals
from robustpo_kit.training.trainer import StepTrainer

__all__ = [
    "Signals",
    "StepTrainer",
    "TrainConfig",
    "end_ranks",
    "last_checkpoint",
    "logp_kind",
    "micro_batches",
    "prepare",
    "reference_logps",
    "response_logps",
    "run_card",
    "score",
    "step_gradient",
    "step_rows",
    "train",
]
