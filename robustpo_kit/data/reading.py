"""JSON lines as rows; every defect is named by file, row and field."""

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from robustpo_kit import paths
from robustpo_kit.data.rows import Preference
from robustpo_kit.errors import KitError

PAIR = ("chosen", "rejected")  # may stand in the place of `responses`


def json_lines(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Number (from 1), place for messages and object of every line that is not blank.

    Raises:
        KitError: naming the file, and the line that is not one JSON object.
    """
    opener: Callable[..., Any] = open
    if path.suffix == ".gz":
        opener = gzip.open
    try:
        with opener(path, "rt", encoding="utf-8") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    where = f"{paths.show(path)}, row {number}"
                    yield number, where, _json_object(line, where)
    except FileNotFoundError:
        raise KitError(f"{paths.show(path)}: no such file") from None
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise KitError(
            f"{paths.show(path)}: cannot be read as UTF-8 JSON lines ({error})"
        ) from None


def _json_object(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise KitError(f"{where}: not JSON ({error.msg} at column {error.colno})") from None
    if not isinstance(value, dict):
        raise KitError(f"{where}: a JSON {type(value).__name__}; an object is expected")
    return value


def row_from_json(value: dict[str, Any], where: str, number: int) -> Preference:
    """A row from `prompt` and `responses`, or from `prompt`, `chosen`, `rejected`.

    Args:
        value: the object of one line.
        where: file and row, for messages.
        number: of the line; the row's id where none is given.

    Raises:
        KitError: naming `where` and the field that is unknown, missing or of a wrong type.
    """
    _check_names(value, where)
    given = {name: entry for name, entry in value.items() if name not in PAIR}
    if "responses" not in value:
        given["responses"] = [READERS["prompt"](value[name], name, where) for name in PAIR]
    row = {"row_id": number, "group": value["prompt"]} | given
    values = {name: read(row[name], name, where) for name, read in READERS.items() if name in row}
    if not values.get("sources"):
        values["sources"] = tuple(f"source_{k}" for k in range(len(values["responses"])))
    return Preference(**values)


def _check_names(value: dict[str, Any], where: str) -> None:
    known = {*READERS, *PAIR}
    unknown = sorted(set(value) - known)
    if unknown:
        raise KitError(
            f"{where}, field {unknown[0]}: unknown; known fields: {', '.join(sorted(known))}"
        )
    needed = ["prompt"]
    if "responses" not in value:
        needed += PAIR
    for name in needed:
        if name not in value:
            raise KitError(
                f"{where}, field {name}: missing; "
                "give prompt and responses, or prompt, chosen, rejected"
            )


def _label(value: Any, _name: str, _where: str) -> str:
    return str(value)


def _text(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str):
        raise _wrong_type(value, name, where)
    return value


def _texts(value: Any, name: str, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise KitError(f"{where}, field {name}: a list of strings is expected")
    return tuple(value)


def _optional_texts(value: Any, name: str, where: str) -> tuple[str, ...]:
    return _texts(value or [], name, where)


def _numbers(value: Any, name: str, where: str) -> tuple[float, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(_is_number(number) for number in value):
        raise KitError(f"{where}, field {name}: {value!r}; a list of numbers is expected")
    return tuple(float(number) for number in value)


def _number(value: Any, name: str, where: str) -> float | None:
    if value is not None and not _is_number(value):
        raise _wrong_type(value, name, where)
    return value


def _number_or_numbers(value: Any, name: str, where: str) -> float | tuple[float, ...] | None:
    if isinstance(value, list):
        return _numbers(value, name, where)
    return _number(value, name, where)


def _column(value: Any, name: str, where: str) -> int | None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise _wrong_type(value, name, where)
    return value


def _flag(value: Any, name: str, where: str) -> bool:
    if value is not None and not isinstance(value, bool):
        raise _wrong_type(value, name, where)
    return bool(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _wrong_type(value: Any, name: str, where: str) -> KitError:
    return KitError(f"{where}, field {name}: {value!r:.60} has the wrong type")


# a field of Preference -> how it is read; what is not given keeps the field's own default
READERS: dict[str, Callable[[Any, str, str], Any]] = {
    "row_id": _label,
    "group": _label,
    "prompt": _text,
    "responses": _texts,
    "sources": _optional_texts,
    "rewards": _numbers,
    "golden": _column,
    "flipped": _flag,
    "h": _number_or_numbers,
}
