"""A fitted scorer on disk: safetensors, tables and a JSON that names their sha256."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.torch import load_file
from safetensors.torch import save as save_tensors
from torch import Tensor

from robustpo_kit import paths, records
from robustpo_kit.encoders.encoder import Encoder, load
from robustpo_kit.encoders.fine_tuning import PairScorer, score_pairs
from robustpo_kit.encoders.linear import LinearScorer, Pair
from robustpo_kit.errors import KitError

MADE_BY = "robustpo_kit.encoders"  # marks a stored scorer


@dataclass(frozen=True, eq=False)
class Bundle:
    """A stored scorer: what is known of it, its tensors, its tables, the encoder under it."""

    about: dict[str, Any]
    tensors: dict[str, Tensor]
    tables: dict[str, pd.DataFrame]
    encoder: Encoder

    def scorer(self, prefix: str, fine_tune: Mapping[str, Any]) -> LinearScorer | PairScorer:
        """The scorer whose tensors start with `prefix`.

        Raises KitError when tensors are missing or do not fit.
        """
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
                    f"stored scorer '{prefix}': tensor {name} is missing or misshapen; "
                    "train it again"
                )
        scorer.load_state_dict({name: state[name] for name in own}, strict=False)
        return scorer.eval()


@dataclass(frozen=True)
class Learned:
    """What a fitted scorer learned from, and is not asked about.

    Rows are known by their texts; ids are often but the numbers of a file's lines.
    """

    row_ids: frozenset[str] = frozenset()
    texts: frozenset[str] | None = frozenset()  # digests; None: stored without, ids must do

    @classmethod
    def of(
        cls, prompts: Iterable[str], responses: Iterable[str], row_ids: Iterable[str]
    ) -> "Learned":
        """Of the responses [N] to prompts [N] in the rows of these ids [N]."""
        return cls(frozenset(row_ids), frozenset(_text_digests(prompts, responses)))

    @classmethod
    def stored(cls, about: Mapping[str, Any], row_ids: Iterable[str]) -> "Learned":
        """Of a stored scorer: what `about` holds of texts, and the ids."""
        texts = about.get("learned_texts")
        return cls(frozenset(row_ids), None if texts is None else frozenset(texts))

    def about(self) -> dict[str, list[str]]:
        """What `stored` reads."""
        return {} if self.texts is None else {"learned_texts": sorted(self.texts)}

    def rows_among(
        self, prompts: Sequence[str], responses: Sequence[str], row_ids: Sequence[str] | None
    ) -> list[str]:
        """Ids of rows, all of whose responses that are given were learned from.

        Args:
            prompts: [N].
            responses: [N].
            row_ids: [N] the rows that the responses come from; None: nothing is looked for.
        """
        if row_ids is None:
            return []
        if self.texts is None:
            return sorted(self.row_ids.intersection(row_ids))
        is_known = dict.fromkeys(row_ids, True)
        for name, text in zip(row_ids, _text_digests(prompts, responses), strict=True):
            is_known[name] &= text in self.texts
        return [name for name, known in is_known.items() if known]

    def refusal(self, seen: Sequence[str]) -> str:
        """What is said of rows that `rows_among` found."""
        how = ""
        if self.texts is None:
            how = ", going by ids alone: it was stored without its texts; fit it again, or"
        return f"row '{seen[0]}' ({len(seen)} in all) was trained on{how or ';'}"


def _text_digests(prompts: Iterable[str], responses: Iterable[str]) -> list[str]:
    return [records.digest(*pair, length=16) for pair in zip(prompts, responses, strict=True)]


def unseen_pairs(
    prompts: Sequence[str],
    responses: Sequence[str],
    row_ids: Sequence[str] | None,
    learned: Learned,
) -> list[Pair]:
    """The N pairs (prompt, response) to score, which a fitted scorer must not have learned from.

    Args:
        prompts: [N].
        responses: [N].
        row_ids: [N] the rows that the responses come from; None: they are not looked at.
        learned: what the scorer learned from.

    Raises:
        ValueError: lengths differ, or all that is given of a row was learned from.
    """
    if len(prompts) != len(responses):
        raise ValueError(
            f"prompts, responses: {len(prompts)} and {len(responses)}; equally many are expected"
        )
    seen = learned.rows_among(prompts, responses, row_ids)
    if seen:
        raise ValueError(f"{learned.refusal(seen)} score rows of another split")
    return list(zip(prompts, responses, strict=True))


def raw_scores(
    model: LinearScorer | PairScorer,
    encoder: Encoder,
    pairs: Sequence[Pair],
    features: Callable[[Encoder, Sequence[Pair]], np.ndarray],
) -> np.ndarray:
    """[N] scores of (prompt, response) pairs, not calibrated; a linear head reads `features`."""
    if isinstance(model, LinearScorer):
        return model(features(encoder, pairs))
    return score_pairs(model, encoder, pairs)


def save_bundle(
    folder: Path,
    name: str,
    tensors: Mapping[str, Tensor],
    about: Mapping[str, Any],
    encoder: Encoder,
    tables: Mapping[str, pd.DataFrame],
) -> None:
    """Write NAME.safetensors, a CSV a table, and, last, NAME.json that holds their sha256.

    Args:
        folder: where to; made where it is missing.
        name: of the two files.
        tensors: of one or several scorers, by prefix.
        about: what JSON knows: settings, calibration.
        encoder: that the scorers were trained on.
        tables: by name; columns `row_id` and `group` are read as text.
    """
    whole = {key: value.contiguous() for key, value in tensors.items()}
    contents = {f"{name}.safetensors": save_tensors(whole)}
    for key, table in tables.items():
        contents[f"{key}.csv"] = table.to_csv(index=False).encode()
    for file, content in contents.items():
        with records.atomic_write(folder / file) as temporary:
            temporary.write_bytes(content)
    value = {
        "made_by": MADE_BY,
        "encoder": encoder.about(),
        "versions": records.versions(),
        "files": {file: records.file_digest(folder / file) for file in contents},
        "about": dict(about),
    }
    records.write_json(folder / f"{name}.json", value)


def load_bundle(folder: Path, name: str, encoder: Encoder | None) -> Bundle:
    """Read what `save_bundle` wrote; a scorer's own `load` has the same arguments and errors.

    Args:
        folder: where from.
        name: of the JSON and the safetensors file.
        encoder: that the scorers were trained on; None loads the recorded one.

    Raises:
        KitError: naming the file that is missing, changed or no stored scorer.
    """
    path = folder / f"{name}.json"
    value = records.read_json(path)
    if value.get("made_by") != MADE_BY:
        raise KitError(
            f"{paths.show(path)}, field made_by: not a scorer stored by this version; "
            "give the folder that `save` wrote, or fit it again"
        )
    for file, sha256 in value["files"].items():
        _check_file(folder / file, sha256)
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
            f"{paths.show(path)}, field encoder: trained on '{stored['name']}' with other weights "
            f"than those of '{encoder.name}'; pass the encoder it was trained on"
        )
    csv_files = [folder / file for file in value["files"] if file.endswith(".csv")]
    tables = {file.stem: _read_csv(file) for file in csv_files}
    return Bundle(value["about"], load_file(folder / f"{name}.safetensors"), tables, encoder)


def _check_file(path: Path, sha256: str) -> None:
    try:
        found = records.file_digest(path)
    except FileNotFoundError:
        raise KitError(f"{paths.show(path)}: no such file; save the scorer again") from None
    if found != sha256:
        raise KitError(
            f"{paths.show(path)}: differs from its recorded sha256; save the scorer again"
        )


def _read_csv(file: Path) -> pd.DataFrame:
    text = {"row_id": str, "group": str}
    return pd.read_csv(file, dtype=text, keep_default_na=False, na_values=[""])
