"""Mixture response shift (DoRA Def. 2.1): synthetic replies, their store, contaminated samples."""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from robustpo_kit import paths
from robustpo_kit.data import Preference, PreferenceSet
from robustpo_kit.errors import KitError
from robustpo_kit.policies import Policy, SamplingConfig, sample_batch
from robustpo_kit.records import file_digest, progress, read_json, stream, write_json, write_text

SYNTHETIC_SOURCE = "smollm2"
EXTRA = "_extra"  # ends the name of the store of further replies


class StoredReplies(TypedDict):
    """One line of a store: the replies to the prompt of one row."""

    row_id: str
    prompt_sha256: str  # `digest` of the rendered prompt
    batch: int  # that they were sampled in
    replies: list[str]
    tokens: list[int]  # of each reply
    finished: list[bool]  # whether it ended before the token budget did


Store = Mapping[str, StoredReplies]  # by row id


def store_path(task: str) -> Path:
    """The committed replies of a task: one JSON object a line, and a JSON record beside it.

    TASK holds two replies a prompt (y2, y3), TASK_extra one more, for the golden slot of
    contaminated samples.
    """
    return paths.SYNTHETIC / f"{task}.jsonl"


def digest(text: str) -> str:
    """First 16 hexadecimal digits of a text's sha256, as any tool computes it.

    It lets stored replies be held against their prompt, and rows be told apart, without the text.
    """
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def synthesise(
    preferences: PreferenceSet,
    policy: Policy,
    config: SamplingConfig,
    out: Path,
    *,
    seed: int,
    about: Mapping[str, Any],
) -> None:
    """Sample `config.samples` replies a row into a store.

    A file `out`.part holds finished batches: a killed run continues after the last one. It becomes
    the store at the end.

    Args:
        preferences: the rows whose prompts are answered.
        policy: the language model, with the template of the prompts.
        config: decoding, and prompts a batch.
        out: the store, a .jsonl file; its record is written beside it as .json.
        seed: of the sampling.
        about: where the replies come from; goes into the record.
    """
    part = out.with_suffix(".jsonl.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    finished = _finished_batches(part, config.batch_size)
    starts = list(range(0, len(preferences), config.batch_size))
    with open(part, "a", encoding="utf-8") as stream:
        for number, start in enumerate(progress(starts, f"replies {preferences.name}")):
            if number < finished:
                continue
            rows = preferences[start : start + config.batch_size]
            for entry in _batch_entries(rows, policy, config, seed=seed, number=number):
                stream.write(json.dumps(entry, ensure_ascii=False) + "\n")
            stream.flush()
    write_text(out, part.read_text(encoding="utf-8"))
    record = {
        "task": preferences.name,
        "rows": len(preferences),
        "system": policy.template.system,
        "sampling": dataclasses.asdict(config),
        "seed": seed,
        "sha256": file_digest(out),
    }
    write_json(out.with_suffix(".json"), dict(about) | record)
    part.unlink()


def _batch_entries(
    rows: PreferenceSet, policy: Policy, config: SamplingConfig, *, seed: int, number: int
) -> Iterator[StoredReplies]:
    """One batch of the store."""
    texts = [policy.template.render(row.prompt, policy.tokenizer) for row in rows]
    batch = sample_batch(policy, [row.prompt for row in rows], config, seed=seed, number=number)
    for row, text, replies in zip(rows, texts, batch, strict=True):
        yield StoredReplies(
            row_id=row.row_id,
            prompt_sha256=digest(text),
            batch=number,
            replies=[reply.text for reply in replies],
            tokens=[reply.tokens for reply in replies],
            finished=[reply.finished for reply in replies],
        )


def draw(
    rows: PreferenceSet, policy: Policy, config: SamplingConfig, *, seed: int, number: int
) -> list[list[str]]:
    """Texts [N][samples] of the replies that one batch of a synthesis holds.

    Args:
        rows: the N rows of the batch.
        policy: as in the synthesis.
        config: of the synthesis.
        seed: of the synthesis.
        number: of the batch.
    """
    entries = _batch_entries(rows, policy, config, seed=seed, number=number)
    return [entry["replies"] for entry in entries]


def _finished_batches(part: Path, batch_size: int) -> int:
    """Whole batches already in `part`; a torn last batch is cut off."""
    if not part.exists():
        return 0
    lines = part.read_text(encoding="utf-8").splitlines()
    whole_batches = len(lines) // batch_size
    whole_lines = lines[: whole_batches * batch_size]
    write_text(part, "".join(line + "\n" for line in whole_lines))
    return whole_batches


def load_store(task: str) -> dict[str, StoredReplies]:
    """Stored replies by row id; errors as in `store_digest`."""
    store_digest(task)
    entries = map(json.loads, store_path(task).read_text(encoding="utf-8").splitlines())
    return {entry["row_id"]: entry for entry in entries}


def store_digest(task: str) -> str:
    """sha256 of the stored replies of a task.

    Raises:
        KitError: the file is missing or does not match its recorded sha256.
    """
    path = store_path(task)
    if not path.exists():
        command = f"robustpo synthesise --task {task.removesuffix(EXTRA)}"
        if task.endswith(EXTRA):
            command += " --extra"
        raise KitError(
            f"{paths.show(path)}: no stored replies for task '{task}'; make them with `{command}`"
        )
    found = file_digest(path)
    if found != read_json(path.with_suffix(".json"))["sha256"]:
        raise KitError(
            f"{paths.show(path)}: differs from its recorded sha256; restore it from the repository"
        )
    return found


def with_synthetic(preferences: PreferenceSet, store: Store, replies: int = 2) -> PreferenceSet:
    """Rows of the human pair and stored replies, K = 2 + `replies`.

    Rows without usable replies are counted by reason and dropped.

    Args:
        preferences: rows of human responses.
        store: of `load_store`.
        replies: so many of the stored ones a row.
    """
    rows, dropped = [], Counter(preferences.dropped)
    for row in preferences:
        stored = store[row.row_id]["replies"] if row.row_id in store else []
        added = stored[:replies]
        reason = _why_unusable(row, added, replies)
        if reason:
            dropped[reason] += 1
            continue
        responses = (*row.responses, *added)
        sources = (*row.sources, *[SYNTHETIC_SOURCE] * replies)
        rows.append(dataclasses.replace(row, responses=responses, sources=sources))
    return PreferenceSet(
        rows, name=preferences.name, template=preferences.template, dropped=dropped
    )


def _why_unusable(row: Preference, replies: Sequence[str], count: int) -> str | None:
    if len(replies) < count:
        return "no synthetic reply"
    if not all(reply.strip() for reply in replies):
        return "empty synthetic reply"
    if len({*row.responses, *replies}) < len(row.responses) + len(replies):
        return "equal synthetic replies"
    return None


def contaminate(
    preferences: PreferenceSet, share: float, extra: Store, *, seed: int
) -> tuple[PreferenceSet, np.ndarray]:
    """Mixture shift in the golden slot: a further synthetic reply replaces the golden one.

    The sample still claims that column 0 is golden.

    Args:
        preferences: N rows.
        share: of the samples that are contaminated, in [0, 1].
        extra: the store of further replies.
        seed: decides which samples.

    Returns:
        The new set, and the mask [N] of contaminated samples.

    Raises:
        ValueError: `share` lies outside [0, 1].
        KitError: no further reply is stored for a row.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share = {share}: a value between 0 and 1 is expected")
    count = len(preferences)
    mask = np.zeros(count, dtype=bool)
    mask[stream(seed, "contamination").permutation(count)[: round(share * count)]] = True
    rows = list(preferences)
    for place in np.flatnonzero(mask):
        rows[place] = _contaminated(rows[place], extra)
    mixed = PreferenceSet(
        rows, name=preferences.name, template=preferences.template, dropped=preferences.dropped
    )
    return mixed, mask


def _contaminated(row: Preference, extra: Store) -> Preference:
    stored = extra[row.row_id]["replies"] if row.row_id in extra else []
    if not stored or not stored[0].strip():
        raise KitError(
            f"row '{row.row_id}', field responses[0]: no further synthetic reply is stored to put "
            "there"
        )
    responses, sources = (stored[0], *row.responses[1:]), (SYNTHETIC_SOURCE, *row.sources[1:])
    return dataclasses.replace(row, responses=responses, sources=sources)


def cut_replies(preferences: PreferenceSet, *stores: Store) -> set[tuple[str, int]]:
    """Row id and column of the synthetic replies that the token limit ended, by their stores."""
    cut = set()
    for row in preferences:
        for column, response in enumerate(row.responses):
            if any(_ended_by_limit(response, store.get(row.row_id)) for store in stores):
                cut.add((row.row_id, column))
    return cut


def _ended_by_limit(response: str, stored: StoredReplies | None) -> bool:
    if stored is None or response not in stored["replies"]:
        return False
    return not stored["finished"][stored["replies"].index(response)]


def rank_first(rewards: ArrayLike, mask: np.ndarray) -> np.ndarray:
    """The biased reward of contaminated samples: column 0 raised above the others of its row.

    Where it is not the best already, it gets the best one's and a standard deviation of all.

    Args:
        rewards: [N, K].
        mask: [N] of which rows.
    """
    raised = np.array(rewards, dtype=float)
    best_other = raised[:, 1:].max(axis=1)
    behind = mask & (raised[:, 0] <= best_other)
    raised[behind, 0] = best_other[behind] + (raised.std() or 1.0)
    return raised


def composition(preferences: PreferenceSet) -> pd.DataFrame:
    """Share of each source by column: alpha and beta_i of DoRA Def. 2.1.

    Returns:
        A row a column and source: column, source, count, share.
    """
    places: list[tuple[int, str]] = []
    for row in preferences:
        places += enumerate(row.sources)
    table = pd.DataFrame(places, columns=["column", "source"])
    counts = table.value_counts(["column", "source"]).rename("count").reset_index()
    counts["share"] = counts["count"] / counts.groupby("column")["count"].transform("sum")
    return counts.sort_values(["column", "source"]).reset_index(drop=True)
