"""Records, one after the other, from wherever they lie: an asset, a local file, the Hub."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from robustpo_kit import assets, paths
from robustpo_kit.data.reading import json_lines
from robustpo_kit.errors import KitError


class Record(NamedTuple):
    """One JSON object of a source: its name there, how an error message finds it, its content."""

    name: str  # the number of its line, from 1; in a file that is one JSON object, its key
    where: str
    value: dict[str, Any]


def asset_records(name: str) -> Iterator[Record]:
    """Records of the asset `name`; raises KitError that says how to fetch a missing one."""
    return file_records(assets.resolve(name))


def file_records(path: Path) -> Iterator[Record]:
    """Records of JSON lines (or .gz), or of a .json file that holds one object of objects."""
    if path.suffix == ".json":
        for key, value in json.loads(path.read_text(encoding="utf-8")).items():
            yield Record(key, f"{paths.show(path)}, entry {key}", value)
        return
    for number, where, value in json_lines(path):
        yield Record(str(number), where, value)


def hub_records(source: str, split: str) -> Iterator[Record]:
    """Records of a split of a Hub data set, or of its local mirror folder.

    Raises KitError where it cannot be had.
    """
    from datasets import load_dataset

    try:
        rows = load_dataset(source, split=split)
    except (OSError, ValueError, ConnectionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise KitError(
            f"{source}: neither a local file nor to be had from the Hub ({reason})"
        ) from None
    for number, value in enumerate(rows, start=1):
        yield Record(str(number), f"{source}, row {number}", value)
