"""The record of a training run, as it lies beside what was trained."""

import dataclasses
from pathlib import Path
from typing import Any

from robustpo_kit import paths
from robustpo_kit.errors import KitError
from robustpo_kit.records.files import read_json, write_json


@dataclasses.dataclass
class RunRecord:
    """The record of one training run; `history` holds one flat row an optimizer step."""

    objective: str
    config: dict[str, Any]
    seed: int
    versions: dict[str, str]
    device: str
    duration_s: float
    metrics: dict[str, Any]
    history: list[dict[str, Any]]

    def to_json(self, path: Path) -> None:
        """Write the record to `path`."""
        write_json(path, self)

    @classmethod
    def from_json(cls, path: Path) -> "RunRecord":
        """Read a record; raises KitError naming the file and the field that is missing."""
        value = read_json(path)
        names = [field.name for field in dataclasses.fields(cls)]
        missing = [name for name in names if name not in value]
        if missing:
            raise KitError(f"{paths.show(path)}: field '{missing[0]}' is missing; not a run record")
        return cls(**{name: value[name] for name in names})
