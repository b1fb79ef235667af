"""Files written whole or not at all: text, JSON, by a temporary name and a rename."""

import contextlib
import dataclasses
import errno
import glob
import json
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from robustpo_kit import paths
from robustpo_kit.errors import KitError

FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it on success, remove it on failure.

    Raises KitError naming `path` where the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with _naming_full_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `folder`; on success it takes the place of `folder`.

    What stood in `folder` goes only once the new one is complete; on failure it stays, and the
    temporary one goes. Leftovers of processes that were killed on this machine are cleared up.
    Raises KitError naming `folder` where the disk is full.
    """
    folder = Path(folder)
    prefix = f".{folder.name}.{platform.node()}-"
    temporary = folder.with_name(f"{prefix}{os.getpid()}.tmp")
    before = temporary.with_suffix(".old")
    for leftover in folder.parent.glob(f"{glob.escape(prefix)}*"):
        owner = int(leftover.stem.removeprefix(prefix))
        if owner == os.getpid() or not psutil.pid_exists(owner):
            _clear(leftover, folder)
    with _naming_full_disk(folder):
        temporary.mkdir(parents=True)
        try:
            yield temporary
            if folder.exists():
                os.replace(folder, before)
            os.replace(temporary, folder)
        finally:
            _clear(temporary, folder)
            _clear(before, folder)


@contextlib.contextmanager
def _naming_full_disk(path: Path) -> Iterator[None]:
    """Turn what Python or safetensors says of a full disk into a KitError that names `path`."""
    try:
        yield
    except Exception as error:
        said = os.strerror(errno.ENOSPC) in str(error)
        if said or (isinstance(error, OSError) and error.errno in FULL):
            raise KitError(
                f"{paths.show(path)}: not written, the disk is full; free some space and try again"
            ) from error
        raise


def _clear(leftover: Path, folder: Path) -> None:
    """Remove a temporary folder; an old one goes back to its place if no new one has taken it."""
    if leftover.suffix == ".old" and leftover.exists() and not folder.exists():
        os.replace(leftover, folder)
    else:
        shutil.rmtree(leftover, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` by rename."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON by rename; dataclasses become objects."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, default=_plain) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; raises KitError that names the file when it is missing or not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise KitError(f"{paths.show(path)}: no such file") from None
    except json.JSONDecodeError as error:
        raise KitError(f"{paths.show(path)}: not JSON (line {error.lineno}: {error.msg})") from None


def _plain(value: Any) -> Any:
    """Numbers of numpy and torch, and paths, as JSON knows them."""
    if isinstance(value, Path):
        return paths.show(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"not JSON: {type(value).__name__}")
