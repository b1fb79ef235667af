"""JSON lines as rows; every defect is named by file, row and field."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from robustpo_kit import paths
from robustpo_kit.data.rows import Preference
from robustpo_kit.errors import KitError


def json_lines(path: Path) -> Iterator[tuple[int, str, dict]]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as stream:
            for number, line in enumerate(stream, start=1):
                if not line.strip():
                    continue
                where = f"{paths.show(path)}, row {number}"
                try:
                    value = json.loads(line)
                except json.JSONDecodeError as error:
                    raise KitError(
                        f"{where}: not JSON ({error.msg} at column {error.colno})"
                    ) from None
                if not isinstance(value, dict):
                    raise KitError(f"{where}: a JSON {type(value).__name__}; an object is expected")
                yield number, where, value
    except FileNotFoundError:
        raise KitError(f"{paths.show(path)}: no such file") from None
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise KitError(
            f"{paths.show(path)}: cannot be read as UTF-8 JSON lines ({error})"
        ) from None


_FIELDS = {
    "row_id",
    "group",
    "prompt",
    "responses",
    "sources",
    "rewards",
    "golden",
    "flipped",
    "h",
    "chosen",
    "rejected",
}


def row_from_json(value: dict, where: str, number: int) -> Preference:
    unknown = set(value) - _FIELDS
    if unknown:
        raise KitError(
            f"{where}, field {sorted(unknown)[0]}: unknown; known fields: {', '.join(sorted(_FIELDS))}"
        )
    pair = "responses" not in value
    needed = ("prompt", "chosen", "rejected") if pair else ("prompt", "responses")
    for field in needed:
        if field not in value:
            raise KitError(
                f"{where}, field {field}: missing; give prompt and responses, or prompt, chosen, rejected"
            )
    _typed(value, "prompt", str, where)
    for field in ("chosen", "rejected") if pair else ():
        _typed(value, field, str, where)
    responses = [value["chosen"], value["rejected"]] if pair else value["responses"]
    _texts(responses, "responses", where)
    sources = value.get("sources") or [f"source_{k}" for k in range(len(responses))]
    _texts(sources, "sources", where)
    rewards = value.get("rewards")
    if rewards is not None and not (
        isinstance(rewards, list) and all(_is_number(r) for r in rewards)
    ):
        raise KitError(f"{where}, field rewards: {rewards!r}; a list of numbers is expected")
    for field, kind in (("golden", int), ("flipped", bool), ("h", (int, float))):
        if value.get(field) is not None:
            _typed(value, field, kind, where)
    return Preference(
        row_id=str(value.get("row_id", number)),
        group=str(value.get("group", value["prompt"])),
        prompt=value["prompt"],
        responses=tuple(responses),
        sources=tuple(sources),
        rewards=None if rewards is None else tuple(float(r) for r in rewards),
        golden=value.get("golden", 0),
        flipped=bool(value.get("flipped", False)),
        h=value.get("h"),
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _typed(value: dict, field: str, kind: Any, where: str) -> None:
    good = isinstance(value[field], kind) and (kind is bool or not isinstance(value[field], bool))
    if not good:
        raise KitError(f"{where}, field {field}: {value[field]!r:.60} has the wrong type")


def _texts(value: Any, field: str, where: str) -> None:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise KitError(f"{where}, field {field}: a list of strings is expected")
