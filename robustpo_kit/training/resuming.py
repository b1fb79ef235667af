"""A transformers.Trainer whose checkpoints are the kit's own: no pickle, complete or absent."""

from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from accelerate.optimizer import AcceleratedOptimizer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from transformers import Trainer

from robustpo_kit import paths
from robustpo_kit.errors import KitError
from robustpo_kit.records import read_json
from robustpo_kit.training import checkpoints
from robustpo_kit.training.config import TrainConfig
from robustpo_kit.training.generators import pack_generators, unpack_generators
from robustpo_kit.training.identity import Identity, differences, in_words
from robustpo_kit.training.ranks import gather_states, this_rank, world_size
from robustpo_kit.training.step_objective import StepObjective

GATHER = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
SCATTER = StateDictOptions(full_state_dict=True, strict=False)

Value = TypeVar("Value")


class ResumableTrainer(Trainer):
    """Overrides how a Trainer saves and loads, and nothing else."""

    config: TrainConfig
    objective: StepObjective
    run: Identity  # what decides the run
    history: list[dict[str, Any]]  # one row a step
    micro_limit: int  # prompts of a forward pass, as memory has allowed so far
    token_limit: int  # and tokens

    def resume(self) -> str | None:
        """The last complete checkpoint; raises KitError where the folder holds another run's."""
        folder = None
        if self.config.checkpoint:
            folder = checkpoints.last_checkpoint(Path(self.config.checkpoint))
        if folder is None:
            return None
        summary = read_json(folder / checkpoints.SUMMARY)
        if summary["layout"] != self._rank_layout():
            raise KitError(
                f"{paths.show(folder.parent)}: written by {summary['layout']}, and this is "
                f"{self._rank_layout()}; resume it as it was started, or choose another folder"
            )
        self._refuse_another_run(folder.parent, summary["run"])
        self.history = read_json(folder / checkpoints.HISTORY)
        if summary["passes"]["told"] == self._told():
            self.micro_limit, self.token_limit = summary["passes"]["allowed"]
        self.objective.load_state_dict(self._rank_state(folder)["objective"])
        return str(folder)

    def _refuse_another_run(self, root: Path, stored: Identity | str) -> None:
        """Raises KitError that names what differs where a checkpoint is not of this run."""
        if not isinstance(stored, dict):
            raise KitError(
                f"{paths.show(root)}: holds checkpoints of an earlier version of the kit; choose "
                "another folder or delete it"
            )
        found = differences(stored, self.run)
        if found:
            raise KitError(
                f"{paths.show(root)}: holds checkpoints of another run ({in_words(found)}); choose "
                "another folder or delete it"
            )

    def _save_checkpoint(self, model: nn.Module, trial: Any = None) -> None:
        del trial
        state = {"rng": pack_generators(), "objective": self.objective.state_dict()}
        states = gather_states(state)
        weights, optimizer = self._whole_state(model)
        problem = None
        if this_rank() == 0:
            checkpoint = checkpoints.Checkpoint(
                run=self.run,
                layout=self._rank_layout(),
                passes={"told": self._told(), "allowed": [self.micro_limit, self.token_limit]},
                history=self.history,
                trainer=self.state,
                scheduler=_present(self.lr_scheduler).state_dict(),
                optimizer=optimizer,
                weights=weights,
                ranks=states,
            )
            problem = self._problem_of_writing(checkpoint)
        problem = gather_states(problem)[0]
        if problem:
            raise KitError(problem)

    def _problem_of_writing(self, checkpoint: checkpoints.Checkpoint) -> str | None:
        """Write a checkpoint; returns what went wrong, so that every rank can be told."""
        root = Path(_present(self.config.checkpoint))
        try:
            checkpoints.write_checkpoint(root, checkpoint)
        except (OSError, SafetensorError, KitError) as error:
            last = checkpoints.last_checkpoint(root)
            mend = "the run starts again from its first step"
            if last is not None:
                mend = f"the run goes on from {last.name}"
            return (
                f"{paths.show(root)}: checkpoint of step {self.state.global_step} not written "
                f"({error}); free space or choose another folder, then {mend}"
            )
        return None

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> Any:
        """As a Trainer does; between sharding and a checkpoint's weights `before_first_step`."""
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        self.before_first_step()
        if resume_from_checkpoint is not None:
            if self.is_fsdp_enabled:  # a Trainer has loaded other weights long before
                self._load_from_checkpoint(resume_from_checkpoint, self.model_wrapped)
            self._load_optimizer_and_scheduler(resume_from_checkpoint)
        return prepared

    def before_first_step(self) -> None:
        """What a run does once its weights lie as in training, and are those of its start."""

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        weights = load_file(Path(resume_from_checkpoint) / checkpoints.WEIGHTS)
        if self.is_fsdp_enabled:
            set_model_state_dict(_present(model), dict(weights), options=SCATTER)
            return
        with torch.no_grad():
            for name, parameter in self._trained(_present(model or self.model)):
                parameter.copy_(weights[name])

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        state = checkpoints.load_state(Path(checkpoint) / checkpoints.OPTIMIZER)
        if self.is_fsdp_enabled:
            set_optimizer_state_dict(
                self.model_wrapped, self._inner_optimizer(), state, options=SCATTER
            )
        else:
            _present(self.optimizer).load_state_dict(state)
        scheduler = read_json(Path(checkpoint) / checkpoints.SCHEDULER)
        _present(self.lr_scheduler).load_state_dict(scheduler)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            unpack_generators(self._rank_state(Path(checkpoint))["rng"])

    def _load_scaler(self, checkpoint: str | None) -> None:
        """No scaler: bf16 and fp32 need none."""

    def _told(self) -> list[int]:
        """Limits of a forward pass, as the run was told."""
        return [self.config.micro_batch_size, self.config.tokens_per_pass]

    def _rank_layout(self) -> str:
        """How the state of a checkpoint is cut up."""
        wrapper = " under FSDP2" if self.is_fsdp_enabled else ""
        return f"{world_size()} rank(s){wrapper}"

    def _rank_state(self, folder: Path) -> dict[str, Any]:
        return checkpoints.load_state(checkpoints.rank_path(folder, this_rank()))

    def _whole_state(self, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Trained weights and optimizer state, gathered where FSDP2 has cut them up."""
        trained = dict(self._trained(model))
        if self.is_fsdp_enabled:
            state, optimizer = get_state_dict(model, self._inner_optimizer(), options=GATHER)
            whole = cast(dict[str, Tensor], state)  # GATHER leaves no shards and no numbers
            weights = {name: whole[name].contiguous() for name in whole if name in trained}
            return weights, optimizer
        weights = {name: weight.detach().cpu().contiguous() for name, weight in trained.items()}
        return weights, _present(self.optimizer).state_dict()

    def _inner_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer that accelerate has wrapped, whose state FSDP2 gathers and scatters."""
        return cast(AcceleratedOptimizer, self.optimizer).optimizer

    def _trained(self, model: nn.Module) -> list[tuple[str, nn.Parameter]]:
        core = self.accelerator.unwrap_model(model)
        named = core.named_parameters()
        return [(name, parameter) for name, parameter in named if parameter.requires_grad]


def _present(value: Value | None) -> Value:
    """What a Trainer has by the time that it saves or loads, though its type allows None."""
    assert value is not None
    return value
