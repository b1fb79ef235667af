"""What took long is kept on disk, and made again when what it was made by has changed."""

import abc
import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from robustpo_kit.data import PreferenceSet
from robustpo_kit.records import (
    atomic_folder,
    digest,
    file_digest,
    key_of_function,
    read_json,
    write_json,
)

STAMP = "made.json"
FOLDERS = ("model", "encoder")  # fields of steps that may name a local folder
PRESETS = ("robustpo_kit.published",)  # names of specs, which steps hold in full


def kept(folder: Path, config: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
    """`folder` as `make` filled it; filled afresh when `config` or the code of `make` changed.

    Args:
        folder: where the artefact is kept; its stamp `made.json` says what it was made by.
        config: everything besides its code that decides what `make` writes; JSON knows all of it.
        make: fills the empty folder that it is given, which is then renamed. Its code is its own
            file and what this file imports.
    """
    stamp = _stamp(config, make)
    file = folder / STAMP
    if file.exists() and digest(read_json(file)) == digest(stamp):  # 1 is not True
        return folder
    with atomic_folder(folder) as temporary:
        make(temporary)
        write_json(temporary / STAMP, stamp)
    return folder


def _stamp(config: Mapping[str, Any], make: Callable[[Path], None]) -> dict[str, Any]:
    """What an artefact is recognised by, as it reads back from JSON: tuples are lists."""
    stamp = {"config": config, "code": key_of_function(make, without=PRESETS)}
    return json.loads(json.dumps(stamp))


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Step(abc.ABC):
    """What takes long, made from nothing but its fields, so that no dependence can be forgotten.

    Every field but `folder` is in the stamp: another step by its key, rows by their content, a
    local model by its files, too, anything else by its value. So is the code of the module that
    defines the step, with all that this module imports: a step stands in a module of its own, which
    imports no more than it needs.
    """

    folder: Path

    @abc.abstractmethod
    def make(self, folder: Path) -> None:
        """Fill the empty `folder`."""

    def kept(self) -> Path:
        """The folder that `make` filled, now or before."""
        return kept(self.folder, self.config, self.make)

    @functools.cached_property
    def key(self) -> str:
        """Changes when a field, the code, or a step that this one is made from changes."""
        return digest(_stamp(self.config, self.make), length=16)

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """The fields by name: settings by value, rows by content, other steps by their keys."""
        own = type(self)
        settings: dict[str, Any] = {
            "step": f"{own.__qualname__} {key_of_function(own, without=PRESETS)}"
        }
        made_from: dict[str, str] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Step):
                made_from[field.name] = value.key
            elif field.name != "folder":
                settings[field.name] = _as_json(value)
            if field.name in FOLDERS and Path(value).is_dir():
                settings[f"files of {field.name}"] = _files_digest(Path(value))
        return {"settings": settings, "made_from": made_from}


def _files_digest(folder: Path) -> str:
    """Every file of a local model by its content, and of the model that an adapter lies on."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    parts = [[str(path.relative_to(folder)), file_digest(path)] for path in files]
    record = folder / "policy.json"  # of `Policy.save`; an adapter names the base that it lies on
    saved = read_json(record) if record.exists() else {}
    if saved.get("adapter") and Path(saved["source"]).is_dir():
        parts.append(["base", _files_digest(Path(saved["source"]))])
    return digest(parts, length=16)


def _as_json(value: Any) -> Any:
    """A field's value as the stamp shows it."""
    if isinstance(value, PreferenceSet):
        return digest(value.rows, value.template)
    if isinstance(value, Mapping):
        return {name: _as_json(own) for name, own in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value
