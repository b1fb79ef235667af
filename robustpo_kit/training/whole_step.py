"""Whole optimizer steps under TRL's DPOTrainer: the kit's objectives, exact under accumulation.

    class RobustTrainer(WholeStep, DPOTrainer):
        pass

TRL takes the mean of its micro-batches' losses, so that whatever couples the samples of a step (DRO
and DoRA, Eq. 9; gamma-PO's target margins) would be another objective. Here the log-probs of all
micro-batches of a step, over all ranks, are computed first, without gradients; the objective sees
them at once; then each micro-batch is backpropagated with its slope d loss / d logps, which gives
the gradient of the one big batch (see `step`). A forward pass more is what that costs.
"""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from robustpo_kit.errors import KitError
from robustpo_kit.losses import Scores
from robustpo_kit.training.checkpoints import load_state, save_state
from robustpo_kit.training.generators import pack_generators, unpack_generators
from robustpo_kit.training.ranks import gather_states, this_rank, world_size
from robustpo_kit.training.step_objective import StepObjective, StepValue

STEP = "whole_step"  # what a micro-batch of a step carries to `compute_loss`
STATE = "objective"  # in the folder of a checkpoint
REFERENCE = ("ref_chosen_logps", "ref_rejected_logps")  # TRL's names
# Settings of DPOConfig that change the loss, and so would be ignored: at TRL's own defaults alone.
REPLACED = {
    "loss_type": ["sigmoid"],
    "label_smoothing": 0.0,
    "ld_alpha": None,
    "f_divergence_type": "reverse_kl",
    "use_weighting": False,
}


@dataclasses.dataclass(frozen=True)
class _Share:
    """What a micro-batch knows of its step."""

    slope: Tensor  # [b, 2] d loss / d logps
    loss: Tensor  # of the whole step, scalar
    generators: dict[str, Any]  # as they were before the first pass, so that both drop the same


class WholeStep(Trainer):
    """A mixin that stands before `trl.DPOTrainer` and takes `objective`, of `objectives.build`.

    Any objective of pairs will do; one with h~ (DoRA) reads the data set's column `h`. The loss of
    TRL's own is computed for its metrics and thrown away; `args.beta` scales those alone.
    Evaluation stays TRL's: `eval_loss` is its DPO loss, whatever the objective.
    """

    objective: StepObjective

    def __init__(self, *arguments: Any, objective: StepObjective, **keywords: Any):
        """As DPOTrainer; raises KitError for an objective, setting or data set that does not fit.

        Args:
            arguments, keywords: of DPOTrainer.
            objective: from `objectives.build`; its state moves with every step, and is saved with
                checkpoints.
        """
        if objective.responses != "pair" or objective.needs_kl:
            raise KitError(
                f"objective: {objective.spec} does not take pairs of chosen and rejected, which is "
                "what DPOTrainer has; `robustpo train` takes it"
            )
        self.objective = objective
        super().__init__(*arguments, **keywords)
        self._refuse_settings()
        if objective.needs_h:
            if "h" not in next(iter(self.train_dataset)):  # type: ignore[arg-type]  # TRL wants one
                raise KitError(
                    f"train_dataset: has no column h, which {objective.spec} needs; "
                    "`robustpo calibrate` adds it"
                )
            self.data_collator = _with_factors(self.data_collator)

    def _refuse_settings(self) -> None:
        for name, default in REPLACED.items():
            if getattr(self.args, name) != default:
                raise KitError(
                    f"args: {name} = {getattr(self.args, name)!r} is of TRL's loss, whose place "
                    f"{self.objective.spec} takes; leave it out"
                )
        if getattr(self, "aux_loss_enabled", False):
            raise KitError("args: router_aux_loss_coef adds to TRL's loss; set it to 0")

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: list[str] = self._signature_columns  # type: ignore[assignment]  # set by now
        if "h" not in columns:
            columns.append("h")

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """The micro-batches of one optimizer step, with their slopes."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            self._look_ahead(batches)
        return batches, items

    def _look_ahead(self, batches: list[dict[str, Any]]) -> None:
        """Give each micro-batch its `_Share` of the whole step, over all ranks."""
        self.model_wrapped.train()
        generators, parts = [], []
        for batch in batches:
            generators.append(pack_generators())
            parts.append(self._scored(batch))
        mine = [torch.cat(columns) for columns in zip(*parts, strict=True)]
        ranks = gather_states([column.cpu() for column in mine])
        whole = [torch.cat(columns) for columns in zip(*ranks, strict=True)]
        value, slope = self._of_step(*whole)
        place = sum(len(rank[0]) for rank in ranks[: this_rank()])
        for batch, part, state in zip(batches, parts, generators, strict=True):
            logps = part[0]
            own = slope[place : place + len(logps)].to(logps)
            batch[STEP] = _Share(own, value.loss.detach().to(logps), state)
            place += len(logps)
        recorded = self._metrics["train"]  # type: ignore[attr-defined]  # DPOTrainer's
        for name, metric in value.metrics.items():
            recorded[f"objective/{name}"].append(float(metric))

    def _of_step(
        self, logps: Tensor, reference: Tensor, lengths: Tensor, h: Tensor
    ) -> tuple[StepValue, Tensor]:
        """The objective on a whole step [B, 2], h [B], and its slope [B, 2]."""
        if not bool(torch.isfinite(logps).all()):
            raise KitError(
                f"step {self.state.global_step + 1}: log-probs are not finite; lower the learning "
                "rate or check the rows"
            )
        leaf = logps.requires_grad_(True)
        scores = Scores(leaf, reference, lengths)
        value = self.objective.step_loss(scores, h if self.objective.needs_h else None)
        (slope,) = torch.autograd.grad(value.loss, leaf)
        return value, slope

    def _scored(self, batch: dict[str, Any]) -> list[Tensor]:
        """Log-probs, reference log-probs and lengths [b, 2], h [b] of a micro-batch.

        The reference's stay in the batch, so that they are computed once.
        """
        h = batch.pop("h", None)
        inputs: dict[str, Any] = self._prepare_inputs(batch)
        outside = ("completion_mask", *REFERENCE)
        known = {name: value for name, value in inputs.items() if name not in outside}
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = self.model_wrapped(
                **known, use_cache=False, labels=labels, fused_lm_head=True
            )
        logps = _logps(outputs, inputs)
        if not self.objective.needs_reference:
            batch |= dict.fromkeys(REFERENCE, torch.zeros_like(logps[:, 0]))
        elif REFERENCE[0] not in inputs:
            trl: Any = self
            found = trl.compute_ref_log_probs(trl.ref_model or self.model, inputs)
            batch |= dict(zip(REFERENCE, found, strict=True))
        reference = torch.stack([batch[name].to(logps) for name in REFERENCE], dim=1)
        lengths = _side_by_side(inputs["completion_mask"][:, 1:].sum(dim=1))
        factors = torch.ones(len(logps)) if h is None else h
        return [logps, reference, lengths, factors.to(logps)]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """In training: the step's loss, with the gradient of this micro-batch's share of it."""
        inputs.pop("h", None)
        share = inputs.pop(STEP, None)
        if share is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        unpack_generators(share.generators)
        seen: list[Any] = []
        trl: Any = self
        given, trl.precompute_ref_logps = trl.precompute_ref_logps, True
        try:
            super().compute_loss(_watched(model, seen), inputs)  # type: ignore[arg-type]  # callable
        finally:
            trl.precompute_ref_logps = given
        # a Trainer divides by the micro-batches, and the mean over ranks is taken of gradients
        times = self.current_gradient_accumulation_steps * world_size()
        moved = times * (_logps(seen[0], inputs) * share.slope).sum()
        return share.loss + moved - moved.detach()

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            folder = f"checkpoint-{self.state.global_step}"
            path = Path(self._get_output_dir(trial)) / folder / STATE
            save_state(path, self.objective.state_dict())

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.objective.load_state_dict(load_state(Path(resume_from_checkpoint) / STATE))


def _with_factors(collate: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """A collator that keeps the column h, or its mean where it is the ratio of each response.

    Rows of an evaluation may have none: its loss is TRL's.
    """

    def collate_all(examples: list[dict[str, Any]]) -> dict[str, Any]:
        factors = torch.tensor([example.get("h", 1.0) for example in examples], dtype=torch.float32)
        return collate(examples) | {"h": factors.reshape(len(examples), -1).mean(dim=1)}

    return collate_all


def _watched(model: nn.Module, seen: list[Any]) -> Callable[..., Any]:
    """The model, whose outputs are noted."""

    def forward(**keywords: Any) -> Any:
        seen.append(model(**keywords))
        return seen[-1]

    return forward


def _logps(outputs: Any, inputs: dict[str, Any]) -> Tensor:
    """Summed log-probs [b, 2] of chosen and rejected."""
    positions = inputs["completion_mask"].shape[1] - 1  # a learnt prompt stands before them
    return _side_by_side(outputs.log_probs[:, -positions:].sum(dim=1))


def _side_by_side(values: Tensor) -> Tensor:
    """[2b], TRL's chosen over its rejected, as [b, 2]."""
    return torch.stack(values.chunk(2), dim=1)
