"""Records, one after the other, from wherever they lie: an asset, a file, a folder, the Hub."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from robustpo_kit import assets, paths
from robustpo_kit.data.containers import OnBadRow, Record, file_records, refuse
from robustpo_kit.errors import KitError

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")  # owner/name, and a configuration
FILE_ENDING = re.compile(r"\.(jsonl?|csv|tsv|parquet|gz)$")
DEFAULT_SPLIT = "train"
SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` leaves in a folder


def asset_records(name: str) -> Iterator[Record]:
    """Records of the asset `name`; raises KitError that says how to fetch a missing one."""
    return file_records(assets.resolve(name))


def records_of(
    source: str | Path, split: str | None = None, bad: OnBadRow = refuse
) -> Iterator[Record]:
    """Records of a file, of a folder that `datasets` saved or can load, or of a Hub data set.

    Args:
        source: a path; or a Hub id, `owner/name` or `owner/name:configuration`.
        split: of a folder or Hub data set; default: its only one, or `train`.
        bad: is told of what is no record.

    Raises:
        KitError: naming the source, and what is missing or cannot be read.
    """
    path, name = Path(source), str(source)
    if path.is_dir() or (not path.exists() and is_hub_id(name)):
        return _dataset_records(name, split)
    if split is not None:
        raise KitError(f"{paths.show(path)}: a file has no split '{split}'; leave --split out")
    return file_records(path, bad)


def is_hub_id(name: str) -> bool:
    """Whether a name could be that of a Hub data set."""
    return bool(HUB_ID.fullmatch(name)) and not FILE_ENDING.search(name)


def _dataset_records(source: str, split: str | None) -> Iterator[Record]:
    import datasets

    shown = paths.show(Path(source)) if Path(source).exists() else source
    try:
        rows = _dataset(source, split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise KitError(
            f"{shown}: neither a local file nor to be had from the Hub ({reason})"
        ) from None
    if isinstance(rows, dict):
        rows = _split_of(rows, split, shown)
    for number, value in enumerate(rows, start=1):
        yield Record(str(number), f"{shown}, row {number}", value)


def _dataset(source: str, split: str | None) -> Any:
    """A data set; of several splits a dict."""
    import datasets

    if any((Path(source) / name).exists() for name in SAVED):
        return datasets.load_from_disk(source)
    name, _, configuration = source.partition(":")
    return datasets.load_dataset(name, configuration or None, split=split)


def _split_of(rows: dict[str, Any], split: str | None, shown: str) -> Any:
    if split is None:
        split = next(iter(rows)) if len(rows) == 1 else DEFAULT_SPLIT
    if split not in rows:
        raise KitError(f"{shown}: no split '{split}'; --split is one of {', '.join(rows)}")
    return rows[split]
