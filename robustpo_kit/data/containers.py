"""Files as records: JSON lines, JSON, CSV, Parquet; with gzip or without."""

import csv
import gzip
import io
import itertools
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from robustpo_kit import paths
from robustpo_kit.data.rows import BadRowError
from robustpo_kit.errors import KitError

MAX_ROW = 8_000_000  # bytes of a line, characters of a row: more is no row, but a broken file
MAX_CELL = 16 * MAX_ROW  # of CSV: read, to find the end of its row
BATCH = 256  # rows of a Parquet file at a time
GZIP, BOM = b"\x1f\x8b", "\ufeff"
LABELS = ("row_id", "group")  # of CSV columns: text, whatever stands there
TEXTS = ("prompt", "chosen", "rejected", "completion", "instruction")  # text, or messages as JSON


OBJECTS = ("completions", "info", "summaries")  # always as JSON
TRUTH = ("True", "False", "TRUE", "FALSE")  # as Python and spreadsheets print it
PRINTED = ("[{", "{'")  # so begin lists of dicts and dicts where Python printed them


class Record(NamedTuple):
    """One JSON object of a source: its name there, how an error message finds it, its content."""

    name: str  # the number of its line or row, from 1; in one JSON object of objects, its key
    where: str
    value: dict[str, Any]


OnBadRow: TypeAlias = Callable[[BadRowError], None]  # raises, or counts


def refuse(error: BadRowError) -> None:
    """A bad row is an error."""
    raise error


def file_records(path: Path, bad: OnBadRow = refuse) -> Iterator[Record]:
    """Records of a file, read as its name says: .parquet, .csv, .tsv, .json, else JSON lines.

    Args:
        path: where a .gz behind the ending may stand.
        bad: is told of a line that is no record.

    Raises:
        KitError: naming the file that is missing, damaged or of another format.
    """
    ending = Path(path.name.removesuffix(".gz")).suffix.lower()
    try:
        yield from READERS.get(ending, json_lines)(path, bad)
    except FileNotFoundError:
        raise KitError(f"{paths.show(path)}: no such file") from None
    except (OSError, EOFError, zlib.error, csv.Error, ValueError) as error:
        raise KitError(
            f"{paths.show(path)}: cannot be read, it is damaged or of another format ({error})"
        ) from None


def json_lines(path: Path, bad: OnBadRow = refuse) -> Iterator[Record]:
    """Records of all lines that are not blank; memory for one line at a time."""
    shown = paths.show(path)
    with _opened(path) as stream:
        for number in itertools.count(1):
            line = stream.readline(MAX_ROW)
            if not line:
                return
            where, size = f"{shown}, row {number}", len(line)
            while len(line) == MAX_ROW and not line.endswith(b"\n"):
                line = stream.readline(MAX_ROW)
                size += len(line)
            try:
                if size > MAX_ROW:
                    raise too_long(where, size, "bytes")
                if line.strip():
                    yield Record(str(number), where, _json_object(line, number, where))
            except BadRowError as error:
                bad(error)


def too_long(where: str, size: int, unit: str) -> BadRowError:
    """The error of a row that is longer than any row is."""
    said = f"{size:,} {unit}, at most {MAX_ROW:,} are read; is a line break missing?"
    return BadRowError(where, "", said, "too long")


def _opened(path: Path) -> Any:  # a binary stream, whose types have no common one
    with open(path, "rb") as stream:
        packed = stream.read(2) == GZIP
    return gzip.open(path, "rb") if packed else open(path, "rb")


def _json_object(line: bytes, number: int, where: str) -> dict[str, Any]:
    # a byte that is no UTF-8 becomes a lone surrogate, and the field that has it says so
    text = line.decode(errors="surrogateescape")
    if number == 1:
        text = text.removeprefix(BOM)
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise BadRowError(where, "", f"not JSON ({error})", "not JSON") from None
    return _checked_object(value, where)


def _checked_object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        said = f"a JSON {type(value).__name__}; an object is expected"
        raise BadRowError(where, "", said, "not an object")
    return value


def _json_file(path: Path, bad: OnBadRow) -> Iterator[Record]:
    """JSON lines; one array of objects, or object of objects, which memory must hold; one row."""
    with _opened(path) as stream:
        first, more = stream.readline(MAX_ROW), stream.readline(MAX_ROW)
    if first.rstrip().endswith(b"}") and more.strip():
        yield from json_lines(path, bad)
        return
    with _opened(path) as stream:
        # a byte that is no UTF-8 becomes a lone surrogate, and the field that has it says so
        whole = json.loads(stream.read().decode(errors="surrogateescape").removeprefix(BOM))
    if isinstance(whole, dict) and not _is_of_objects(whole):
        whole = [whole]
    if not isinstance(whole, list | dict):
        said = f"one JSON {type(whole).__name__}; a list of rows, or a row a line, is expected"
        raise KitError(f"{paths.show(path)}: {said}")
    entries = enumerate(whole, start=1) if isinstance(whole, list) else whole.items()
    kind = "row" if isinstance(whole, list) else "entry"
    for name, value in entries:
        where = f"{paths.show(path)}, {kind} {name}"
        try:
            yield Record(str(name), where, _checked_object(value, where))
        except BadRowError as error:
            bad(error)


def _is_of_objects(whole: Any) -> bool:
    """Whether most entries of an object are objects: rows by name, and not one row."""
    if not isinstance(whole, dict):
        return False
    return 2 * sum(isinstance(value, dict) for value in whole.values()) > len(whole)


def _csv_file(path: Path, bad: OnBadRow) -> Iterator[Record]:
    """Rows of a CSV file with a header; cells may hold JSON."""
    before = csv.field_size_limit(MAX_CELL)
    delimiter = "\t" if ".tsv" in path.name.lower() else ","
    try:
        with io.TextIOWrapper(
            _opened(path), encoding="utf-8-sig", errors="surrogateescape", newline=""
        ) as stream:
            rows = csv.DictReader(stream, delimiter=delimiter, strict=True)
            for name, count in Counter(rows.fieldnames or ()).items():
                if count > 1:
                    said = f"column {name} stands in the header {count} times; leave one"
                    raise KitError(f"{paths.show(path)}: {said}")
            for number in itertools.count(1):
                where = f"{paths.show(path)}, row {number}"
                try:
                    yield Record(str(number), where, _cells(_next_row(rows, where), where))
                except StopIteration:
                    return
                except BadRowError as error:
                    bad(error)
    finally:
        csv.field_size_limit(before)


def _next_row(rows: "csv.DictReader[str]", where: str) -> dict[str, str]:
    """Raises BadRowError for what is no row, KitError where a quote swallows all that follows."""
    try:
        return next(rows)
    except csv.Error as error:
        if "unexpected end of data" in str(error):
            raise KitError(f"{where}: a quote opens a cell that never ends; close it") from None
        raise BadRowError(where, "", f"not CSV ({error})", "not CSV") from None


def _cells(row: dict[str, str], where: str) -> dict[str, Any]:
    if None in row or None in row.values():
        width = sum(name is not None for name in row)
        said = f"other than {width} cells, as the header has"
        raise BadRowError(where, "", said, "of another width")
    if (size := sum(map(len, row.values()))) > MAX_ROW:
        raise too_long(where, size, "characters")
    values = {name: _cell(name, text, where) for name, text in row.items()}
    return {name: value for name, value in values.items() if value != "" or name in TEXTS}


def _cell(name: str, text: str, where: str) -> Any:
    """A text, or what it is as JSON; raises BadRowError for lists and dicts as Python prints."""
    if name in LABELS or (name in TEXTS and not text.startswith(PRINTED)):
        return text
    try:
        return json.loads(text.lower() if text in TRUTH else text)
    except (json.JSONDecodeError, RecursionError):
        if name not in (*TEXTS, *OBJECTS) or not text.startswith(PRINTED):
            return text
    said = "no JSON, but what Python prints of a list or dict; write such a table as JSON, or"
    raise BadRowError(where, name, f"{said} as Parquet", "not JSON")


def _parquet_file(path: Path, _bad: OnBadRow) -> Iterator[Record]:
    import pyarrow.parquet

    numbers = itertools.count(1)
    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=BATCH):
            for value, number in zip(batch.to_pylist(), numbers, strict=False):
                yield Record(str(number), f"{paths.show(path)}, row {number}", value)


READERS: dict[str, Callable[[Path, OnBadRow], Iterator[Record]]] = {
    ".json": _json_file,
    ".csv": _csv_file,
    ".tsv": _csv_file,
    ".parquet": _parquet_file,
}
