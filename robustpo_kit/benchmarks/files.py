"""Rows of a benchmark's files: a JSON list or JSON lines of objects, defects named by row."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from robustpo_kit import paths
from robustpo_kit.errors import KitError
from robustpo_kit.records import write_text

Fields = Mapping[str, type | tuple[type, ...]]


def read_rows(path: Path, fields: Fields) -> list[dict[str, Any]]:
    """The objects of a file, each with `fields` of those types.

    Args:
        path: a JSON list, or JSON lines (.jsonl).
        fields: what every row must have; further fields stay as they are.

    Raises:
        KitError: naming the file, the row (from 1) and the field.
    """
    shown = paths.show(path)
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        rows = _objects(text, Path(path).suffix == ".jsonl")
    except FileNotFoundError:
        raise KitError(f"{shown}: no such file") from None
    except UnicodeDecodeError:
        raise KitError(f"{shown}: not UTF-8; save it as UTF-8") from None
    except json.JSONDecodeError as error:
        raise KitError(f"{shown}: not JSON ({error.msg}, line {error.lineno})") from None
    if not isinstance(rows, list) or not rows:
        raise KitError(f"{shown}: no rows; a list of JSON objects is expected")
    for number, row in enumerate(rows, start=1):
        _check(row, fields, f"{shown}, row {number}")
    return rows


def _objects(text: str, lines: bool) -> Any:
    """A JSON list, or a list of the lines that are not blank."""
    if not lines:
        return json.loads(text)
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:  # its own line number is that within the line
                raise json.JSONDecodeError(error.msg, "\n" * (number - 1), number - 1) from None
    return rows


def _check(row: Any, fields: Fields, where: str) -> None:
    if not isinstance(row, dict):
        raise KitError(f"{where}: {type(row).__name__}; a JSON object is expected")
    for name, kinds in fields.items():
        if name not in row:
            raise KitError(f"{where}, field {name}: missing; it has {', '.join(sorted(row))}")
        if not isinstance(row[name], kinds):
            allowed = kinds if isinstance(kinds, tuple) else (kinds,)
            names = " or ".join(kind.__name__ for kind in allowed)
            raise KitError(f"{where}, field {name}: {type(row[name]).__name__}, not {names}")


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as an indented JSON list, or as JSON lines (.jsonl), whole or not at all."""
    if Path(path).suffix == ".jsonl":
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        write_text(path, "\n".join(lines) + "\n")
    else:
        write_text(path, json.dumps(list(rows), indent=1, ensure_ascii=False) + "\n")
