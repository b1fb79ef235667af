"""State as safetensors and JSON: complete or absent, never a pickle."""

import hashlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from robustpo_kit import paths
from robustpo_kit.errors import KitError
from robustpo_kit.records import read_json, write_json
from robustpo_kit.training.reference import log

CHECKPOINTS_KEPT = 2


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
    if isinstance(value, Tensor):
        name = f"t{len(tensors)}"
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"__tensor__": name}
    if isinstance(value, dict):
        return {"__items__": [[_encode(k, tensors), _encode(v, tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        return {
            "__tuple__" if isinstance(value, tuple) else "__list__": [
                _encode(v, tensors) for v in value
            ]
        }
    return value


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    if "__tensor__" in value:
        return tensors[value["__tensor__"]]
    if "__items__" in value:
        return {_decode(k, tensors): _decode(v, tensors) for k, v in value["__items__"]}
    if "__tuple__" in value:
        return tuple(_decode(v, tensors) for v in value["__tuple__"])
    return [_decode(v, tensors) for v in value["__list__"]]


def last_checkpoint(root: Path) -> Path | None:
    """The newest checkpoint whose files all have their recorded sha256; a damaged one is passed over, and said."""
    for folder in reversed(checkpoint_folders(root)):
        try:
            files = read_json(folder / "checkpoint.json")["files"]
            if all(file_sha256(folder / name) == digest for name, digest in files.items()):
                return folder
        except (KitError, OSError, KeyError):
            pass
        log.warning("%s: incomplete or damaged; passed over", paths.show(folder))
    return None


def checkpoint_folders(root: Path) -> list[Path]:
    found = [path for path in root.glob("checkpoint-*") if path.name.split("-")[1].isdigit()]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def file_sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def pack_rng() -> dict[str, Any]:
    """Every generator that a forward pass may draw from."""
    kind, keys, *rest = np.random.get_state()
    state = {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *rest),
        "cpu": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def unpack_rng(state: dict[str, Any]) -> None:
    kind, keys, *rest = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
