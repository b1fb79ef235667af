"""A fitted scorer on disk: safetensors, tables and a JSON that names their sha256."""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from robustpo_kit import paths, records
from robustpo_kit.encoders.encoder import Encoder, load
from robustpo_kit.encoders.heads import LinearScorer, PairScorer
from robustpo_kit.errors import KitError


@dataclass(frozen=True, eq=False)
class Bundle:
    """A stored scorer: what is known about it, its tensors, its tables, and the encoder it was trained on."""

    about: dict[str, Any]
    tensors: dict[str, Tensor]
    tables: dict[str, pd.DataFrame]
    encoder: Encoder

    def scorer(self, prefix: str, fine_tune: Mapping[str, Any]) -> LinearScorer | PairScorer:
        """The scorer whose tensors start with `prefix`; raises KitError when tensors are missing or do not fit."""
        state = {
            name.removeprefix(prefix): value
            for name, value in self.tensors.items()
            if name.startswith(prefix)
        }
        if set(state) == {"weight", "bias"}:
            return LinearScorer(state["weight"].numpy(), float(state["bias"]))
        scorer = PairScorer(self.encoder, fine_tune["frozen_layers"], fine_tune["max_length"])
        own = scorer.trained_state()
        for name, value in own.items():
            if name not in state or state[name].shape != value.shape:
                raise KitError(
                    f"stored scorer '{prefix}': tensor {name} is missing or misshapen; train it again"
                )
        scorer.load_state_dict({name: state[name] for name in own}, strict=False)
        return scorer.eval()


def save_bundle(
    folder: Path,
    name: str,
    tensors: Mapping[str, Tensor],
    about: Mapping[str, Any],
    encoder: Encoder,
    tables: Mapping[str, pd.DataFrame],
) -> None:
    """Write NAME.safetensors, a CSV a table, and, last, NAME.json that holds their sha256."""
    files = {
        f"{name}.safetensors": save_tensors(
            {key: value.contiguous() for key, value in tensors.items()}
        )
    }
    files |= {f"{key}.csv": table.to_csv(index=False).encode() for key, table in tables.items()}
    for file, content in files.items():
        with records.atomic_write(folder / file) as temporary:
            temporary.write_bytes(content)
    value = {
        "made_by": "robustpo_kit.scorers",
        "encoder": encoder.about(),
        "versions": records.versions(),
        "files": {file: hashlib.sha256(content).hexdigest() for file, content in files.items()},
        "about": dict(about),
    }
    records.write_json(folder / f"{name}.json", value)


def load_bundle(folder: Path, name: str, encoder: Encoder | None) -> Bundle:
    """Read what `save_bundle` wrote; `encoder` None loads the recorded one. Raises KitError naming the file."""
    path = folder / f"{name}.json"
    value = records.read_json(path)
    if value.get("made_by") != "robustpo_kit.scorers":
        raise KitError(
            f"{paths.show(path)}, field made_by: not a stored scorer; give the folder that `save` wrote"
        )
    content = {
        file: _read_checked(folder / file, digest) for file, digest in value["files"].items()
    }
    stored = value["encoder"]
    if encoder is None:
        encoder = load(
            stored["name"],
            dtype=stored["dtype"],
            max_length=stored["max_length"],
            seed=stored["seed"],
        )
    if encoder.about()["fingerprint"] != stored["fingerprint"]:
        raise KitError(
            f"{paths.show(path)}, field encoder: trained on '{stored['name']}' with other weights than those of "
            f"'{encoder.name}'; pass the encoder it was trained on"
        )
    tables = {file[:-4]: _read_csv(data) for file, data in content.items() if file.endswith(".csv")}
    return Bundle(value["about"], load_tensors(content[f"{name}.safetensors"]), tables, encoder)


def _read_checked(path: Path, digest: str) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise KitError(f"{paths.show(path)}: no such file; save the scorer again") from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise KitError(
            f"{paths.show(path)}: differs from its recorded sha256; save the scorer again"
        )
    return content


def _read_csv(content: bytes) -> pd.DataFrame:
    text = {"row_id": str, "group": str}
    return pd.read_csv(io.BytesIO(content), dtype=text, keep_default_na=False, na_values=[""])
