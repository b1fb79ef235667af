"""Mixture response shift (DoRA Def. 2.1): synthetic replies, their store, and the composition of the training set."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robustpo_kit import paths
from robustpo_kit.data import Preference, PreferenceSet
from robustpo_kit.errors import KitError
from robustpo_kit.policies import SamplingConfig, sample_batch
from robustpo_kit.records import progress, read_json, write_json, write_text

SYNTHETIC_SOURCE = "smollm2"


def store_path(task: str) -> Path:
    """The committed replies of a task: one JSON object a line, and a JSON record beside it.

    TASK holds two replies a prompt (y2, y3), TASK_extra one more, for the golden slot of contaminated samples.
    """
    return paths.SYNTHETIC / f"{task}.jsonl"


def digest(text: str) -> str:
    """Short sha256 of a text, so that a stored reply can be held against its prompt without storing the prompt."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def synthesise(
    preferences: PreferenceSet,
    model: Any,
    tokenizer: Any,
    config: SamplingConfig,
    out: Path,
    *,
    seed: int,
    about: dict,
) -> None:
    """Sample `config.samples` replies a row into `out`; resumable batch by batch, renamed into place at the end.

    A file `out`.part holds finished batches; a killed run continues after the last one.
    """
    part = out.with_suffix(".jsonl.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    done = _finished_batches(part, config.batch_size)
    batches = list(range(0, len(preferences), config.batch_size))
    with open(part, "a", encoding="utf-8") as stream:
        for number, start in enumerate(progress(batches, f"replies {preferences.name}")):
            if number < done:
                continue
            rows = preferences[start : start + config.batch_size]
            for line in _batch_lines(rows, model, tokenizer, config, seed=seed, number=number):
                stream.write(line + "\n")
            stream.flush()
    text = part.read_text(encoding="utf-8")
    write_text(out, text)
    write_json(
        out.with_suffix(".json"),
        about
        | {
            "task": preferences.name,
            "rows": len(preferences),
            "system": preferences.template.system,
            "sampling": dataclasses.asdict(config),
            "seed": seed,
            "sha256": hashlib.sha256(text.encode()).hexdigest(),
        },
    )
    part.unlink()


def _batch_lines(
    rows: Sequence[Preference],
    model: Any,
    tokenizer: Any,
    config: SamplingConfig,
    *,
    seed: int,
    number: int,
) -> Iterator[str]:
    texts = [rows.template.render(row.prompt, tokenizer) for row in rows]
    replies = sample_batch(model, tokenizer, texts, config, seed=seed, number=number)
    for row, text, drawn in zip(rows, texts, replies, strict=True):
        yield json.dumps(
            {
                "row_id": row.row_id,
                "prompt_sha256": digest(text),
                "batch": number,
                "replies": [reply.text for reply in drawn],
                "tokens": [reply.tokens for reply in drawn],
                "finished": [reply.finished for reply in drawn],
            },
            ensure_ascii=False,
        )


def draw(
    rows: PreferenceSet, policy: Any, config: SamplingConfig, *, seed: int, number: int
) -> list[list[str]]:
    """Texts of the replies that batch `number` of a synthesis holds for `rows`; `policy` has model and tokenizer."""
    texts = [rows.template.render(row.prompt, policy.tokenizer) for row in rows]
    replies = sample_batch(policy.model, policy.tokenizer, texts, config, seed=seed, number=number)
    return [[reply.text for reply in drawn] for drawn in replies]


def _finished_batches(part: Path, batch_size: int) -> int:
    """Whole batches already in `part`; a torn last batch is cut off."""
    if not part.exists():
        return 0
    lines = part.read_text(encoding="utf-8").splitlines()
    whole = len(lines) // batch_size
    kept = lines[: whole * batch_size]
    write_text(part, "".join(line + "\n" for line in kept))
    return whole


def load_store(task: str) -> dict[str, dict]:
    """Stored replies by row id; raises KitError when the file is missing or does not match its recorded sha256."""
    path = store_path(task)
    if not path.exists():
        command = (
            f"robustpo synthesise --task {task.removesuffix('_extra')}"
            + " --extra" * task.endswith("_extra")
        )
        raise KitError(
            f"{paths.show(path)}: no stored replies for task '{task}'; make them with `{command}`"
        )
    text = path.read_text(encoding="utf-8")
    if hashlib.sha256(text.encode()).hexdigest() != read_json(path.with_suffix(".json"))["sha256"]:
        raise KitError(
            f"{paths.show(path)}: differs from its recorded sha256; restore it from the repository"
        )
    return {entry["row_id"]: entry for entry in map(json.loads, text.splitlines())}


def with_synthetic(
    preferences: PreferenceSet, store: dict[str, dict], replies: int = 2
) -> PreferenceSet:
    """K = 2 + `replies` rows: human pair and stored replies; rows without usable replies are counted and dropped."""
    kept, dropped = [], dict(preferences.dropped)
    for row in preferences:
        entry = store.get(row.row_id)
        reason = (
            "no synthetic reply" if entry is None else _unusable(row, entry["replies"][:replies])
        )
        if reason:
            dropped[reason] = dropped.get(reason, 0) + 1
            continue
        kept.append(
            dataclasses.replace(
                row,
                responses=(*row.responses, *entry["replies"][:replies]),
                sources=(*row.sources, *[SYNTHETIC_SOURCE] * replies),
            )
        )
    return PreferenceSet(
        kept, name=preferences.name, template=preferences.template, dropped=dropped
    )


def _unusable(row: Preference, replies: Sequence[str]) -> str | None:
    if not all(reply.strip() for reply in replies):
        return "empty synthetic reply"
    if len({*row.responses, *replies}) < len(row.responses) + len(replies):
        return "equal synthetic replies"
    return None


def contaminate(
    preferences: PreferenceSet, share: float, extra: dict[str, dict], *, seed: int
) -> tuple[PreferenceSet, np.ndarray]:
    """Mixture shift in the golden slot: in a `share` of samples a further synthetic reply replaces the golden one.

    `extra` is the store of further replies. The sample still claims that column 0 is golden. Returns the new set and
    the mask [N] of contaminated samples. Raises ValueError for a share outside [0, 1], KitError for a missing reply.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share = {share}: a value between 0 and 1 is expected")
    mask = np.zeros(len(preferences), dtype=bool)
    mask[
        np.random.default_rng(seed).permutation(len(preferences))[: round(share * len(preferences))]
    ] = True
    rows = [
        _contaminated(row, extra) if dirty else row
        for row, dirty in zip(preferences, mask, strict=True)
    ]
    return PreferenceSet(
        rows, name=preferences.name, template=preferences.template, dropped=preferences.dropped
    ), mask


def _contaminated(row: Preference, extra: dict[str, dict]) -> Preference:
    reply = extra.get(row.row_id, {}).get("replies", [""])[0]
    if not reply.strip():
        raise KitError(
            f"row '{row.row_id}', field responses[0]: no further synthetic reply is stored to put there"
        )
    return dataclasses.replace(
        row, responses=(reply, *row.responses[1:]), sources=(SYNTHETIC_SOURCE, *row.sources[1:])
    )


def rank_first(rewards: Any, mask: np.ndarray) -> np.ndarray:
    """The biased reward of contaminated samples: `rewards` [N, K] with column 0 raised to the best of its row."""
    rewards = np.array(rewards, dtype=float)
    rewards[mask, 0] = rewards[mask].max(axis=1)
    return rewards


def composition(preferences: PreferenceSet) -> "Any":
    """Share of each source by column, as a tidy table (column, source, share): Def. 2.1's alpha and beta_i."""
    import pandas as pd

    rows = [
        {"column": column, "source": source}
        for row in preferences
        for column, source in enumerate(row.sources)
    ]
    counts = pd.DataFrame(rows).value_counts(["column", "source"]).rename("count").reset_index()
    counts["share"] = counts["count"] / counts.groupby("column")["count"].transform("sum")
    return counts.sort_values(["column", "source"]).reset_index(drop=True)
