"""Checkpoints as safetensors and JSON: complete or absent, never a pickle."""

import dataclasses
import logging
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from robustpo_kit import paths
from robustpo_kit.errors import KitError
from robustpo_kit.records import atomic_folder, file_digest, read_json, write_json
from robustpo_kit.training.identity import Identity

CHECKPOINTS_KEPT = 2
SUMMARY, HISTORY, SCHEDULER = "checkpoint.json", "history.json", "scheduler.json"
OPTIMIZER, WEIGHTS = "optimizer", "trainable.safetensors"

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on as if it had not stopped."""

    run: Identity  # what decides the run
    layout: str  # ranks, and how state is cut up over them
    passes: dict[str, list[int]]  # prompts and tokens: as "told", and as memory has "allowed"
    history: list[dict[str, Any]]
    trainer: TrainerState
    scheduler: dict[str, Any]
    optimizer: dict[str, Any]
    weights: dict[str, Tensor]  # those that training changes
    ranks: list[dict[str, Any]]  # of each rank: generators, the objective's state


def write_checkpoint(root: Path, checkpoint: Checkpoint) -> None:
    """Write `root`/checkpoint-STEP whole or not at all; the oldest ones go."""
    with atomic_folder(root / f"checkpoint-{checkpoint.trainer.global_step}") as folder:
        for rank, state in enumerate(checkpoint.ranks):
            save_state(rank_path(folder, rank), state)
        save_file(checkpoint.weights, folder / WEIGHTS)
        save_state(folder / OPTIMIZER, checkpoint.optimizer)
        write_json(folder / SCHEDULER, checkpoint.scheduler)
        write_json(folder / HISTORY, checkpoint.history)
        checkpoint.trainer.save_to_json(str(folder / TRAINER_STATE_NAME))
        summary = {
            "run": checkpoint.run,
            "layout": checkpoint.layout,
            "passes": checkpoint.passes,
            "files": {path.name: file_digest(path) for path in sorted(folder.iterdir())},
        }
        write_json(folder / SUMMARY, summary)
    _remove_others(root, checkpoint.trainer.global_step)


def _remove_others(root: Path, step: int) -> None:
    """Remove all but the last ones up to `step`; later ones, of another start, are damaged."""
    folders = checkpoint_folders(root)
    own = [folder for folder in folders if _step(folder) <= step]
    for folder in folders:
        if folder not in own[-CHECKPOINTS_KEPT:]:
            shutil.rmtree(folder, ignore_errors=True)


def rank_path(folder: Path, rank: int) -> Path:
    """Where the state of one rank lies in a checkpoint, for `load_state`."""
    return folder / f"rank{rank}"


def last_checkpoint(root: Path) -> Path | None:
    """The newest checkpoint whose files have their recorded digests; damaged ones are skipped."""
    for folder in reversed(checkpoint_folders(root)):
        try:
            digests = read_json(folder / SUMMARY)["files"]
            if all(file_digest(folder / name) == digests[name] for name in digests):
                return folder
        except (KitError, OSError, KeyError):
            pass
        log.warning("%s: incomplete or damaged; passed over", paths.show(folder))
    return None


def checkpoint_folders(root: Path) -> list[Path]:
    """The folders checkpoint-STEP of a run, by step; other names are somebody's own."""
    named = root.glob("checkpoint-*")
    return sorted(
        (path for path in named if path.name.removeprefix("checkpoint-").isdigit()), key=_step
    )


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("checkpoint-"))


def save_state(path: Path, state: Any) -> None:
    """Write nested state as PATH.json with its tensors in PATH.safetensors; no pickle."""
    tensors: dict[str, Tensor] = {}
    write_json(path.with_name(path.name + ".json"), _encode(state, tensors))
    save_file(tensors, path.with_name(path.name + ".safetensors"))


def load_state(path: Path) -> Any:
    """Read what `save_state` wrote."""
    tensors = load_file(path.with_name(path.name + ".safetensors"))
    return _decode(read_json(path.with_name(path.name + ".json")), tensors)


def _encode(value: Any, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON knows it; tensors are put into `tensors` and named in their place."""
    if isinstance(value, Tensor):
        name = f"t{len(tensors)}"
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"__tensor__": name}
    if isinstance(value, dict):
        # As pairs: the keys of an optimizer's state are numbers.
        pairs = [[_encode(key, tensors), _encode(item, tensors)] for key, item in value.items()]
        return {"__items__": pairs}
    if isinstance(value, tuple):
        return {"__tuple__": [_encode(item, tensors) for item in value]}
    if isinstance(value, list):
        return {"__list__": [_encode(item, tensors) for item in value]}
    return value


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    if "__tensor__" in value:
        return tensors[value["__tensor__"]]
    if "__items__" in value:
        pairs = value["__items__"]
        return {_decode(key, tensors): _decode(item, tensors) for key, item in pairs}
    if "__tuple__" in value:
        return tuple(_decode(item, tensors) for item in value["__tuple__"])
    return [_decode(item, tensors) for item in value["__list__"]]
