"""Unpaired replies (KTO's rows: prompt, completion, label) as pairs, within a prompt."""

import json
from collections import deque
from collections.abc import Iterator
from typing import Any

from robustpo_kit.data.containers import OnBadRow, Record
from robustpo_kit.data.rows import BadRowError
from robustpo_kit.data.shapes import read_reply

EQUAL = "wanted in one row and unwanted in another; remove them, or one of them"
ALONE = "no reply to this prompt has the other label; a reply alone prefers nothing"


def paired(records: Iterator[Record], bad: OnBadRow) -> Iterator[Record]:
    """A record with `chosen` and `rejected` for every wanted reply and an unwanted one beside it.

    A reply is in one pair at most: the first wanted one of a prompt with the first unwanted one,
    and so on. Replies that wait for another are in memory, nothing else is.

    Args:
        records: with prompt, completion and a label, true or 1 where the reply is wanted.
        bad: is told of a record of another form, and at the end of every reply left alone.
    """
    waiting: dict[str, tuple[deque[Record], deque[Record]]] = {}
    for record in records:
        try:
            wanted, prompt = _labelled(record)
        except BadRowError as error:
            bad(error)
            continue
        both = waiting.setdefault(prompt, (deque(), deque()))
        if not both[not wanted]:
            both[wanted].append(record)
            continue
        other = both[not wanted].popleft()
        if not any(both):
            del waiting[prompt]
        if record.value["completion"] == other.value["completion"]:
            for half in (other, record):
                bad(BadRowError(half.where, "completion", EQUAL, "equal"))
            continue
        yield _pair(record, other) if wanted else _pair(other, record)
    for both in waiting.values():
        for record in (*both[False], *both[True]):
            bad(BadRowError(record.where, "label", ALONE, "without its opposite"))


def _labelled(record: Record) -> tuple[bool, str]:
    """Whether the reply is wanted, and the prompt as a key; raises BadRowError of no reply."""
    for name in ("prompt", "completion", "label"):
        if name not in record.value:
            raise BadRowError(record.where, name, "missing", "missing")
    label = record.value["label"]
    if label not in (True, False):
        said = f"{label!r:.60}; true or false is expected"
        raise BadRowError(record.where, "label", said, "of a wrong type")
    _, reply = read_reply(record.value["completion"], "completion", record.where)
    if not reply.strip():
        said = "empty; remove the row or give the reply"
        raise BadRowError(record.where, "completion", said, "empty")
    prompt = record.value["prompt"]
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    return bool(label), json.dumps(prompt, sort_keys=True)


def _pair(wanted: Record, unwanted: Record) -> Record:
    value: dict[str, Any] = dict(wanted.value)
    del value["label"]
    chosen, rejected = value.pop("completion"), unwanted.value["completion"]
    return wanted._replace(value=value | {"chosen": chosen, "rejected": rejected})
