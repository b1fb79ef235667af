"""Files written whole or not at all: text, JSON, by a temporary name and a rename."""

import contextlib
import dataclasses
import errno
import glob
import json
import os
import platform
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from robustpo_kit import paths
from robustpo_kit.errors import KitError

FULL = (errno.ENOSPC, errno.EDQUOT)
TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)  # something stands there


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it on success, remove it on failure.

    A link is written through. Leftovers of processes that were killed on this machine are cleared
    up. Raises KitError naming `path` where the disk is full.
    """
    path = _through_links(path)
    temporary = _neighbour(path, "tmp")
    _clear_leftovers(path)
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
    temporary one goes. Of several processes or threads the last one to finish stays, whole. A link
    is written through. Leftovers of processes that were killed on this machine are cleared up.
    Raises KitError naming `folder` where the disk is full.
    """
    folder = _through_links(folder)
    temporary, before = _neighbour(folder, "tmp"), _neighbour(folder, "old")
    _clear_leftovers(folder)
    with _naming_full_disk(folder):
        temporary.mkdir(parents=True)
        try:
            yield temporary
            _take_place(temporary, folder, before)
            _remove(before)  # at once: another process may be between its own two renames
        finally:
            _clear(temporary, folder)
            _clear(before, folder)


def _take_place(temporary: Path, folder: Path, before: Path) -> None:
    """Rename `temporary` to `folder`; what others put there in between goes to `before`, too."""
    while True:
        try:
            os.rename(temporary, folder)
            return
        except OSError as error:
            if error.errno not in TAKEN:
                raise
        _remove(before)
        with contextlib.suppress(FileNotFoundError):  # another one has just moved it
            os.rename(folder, before)


def _through_links(path: Path) -> Path:
    return Path(os.path.realpath(path)) if Path(path).is_symlink() else Path(path)


def _neighbour(path: Path, ending: str) -> Path:
    """A name beside `path` that is this thread's own and says which process it belongs to."""
    own = f"{platform.node()}-{os.getpid()}-{uuid.uuid4().hex}"
    return path.with_name(f".{path.name}.{own}.{ending}")


def _clear_leftovers(path: Path) -> None:
    """Remove the neighbours of `path` whose processes were killed on this machine."""
    name, node = re.escape(path.name), re.escape(platform.node())
    pattern = re.compile(rf"\.{name}\.{node}-(\d+)-[0-9a-f]{{32}}\.(tmp|old)")
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*"):
        owner = pattern.fullmatch(leftover.name)
        if owner and not psutil.pid_exists(int(owner[1])):
            _clear(leftover, path)


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


def _clear(leftover: Path, path: Path) -> None:
    """Remove a temporary file or folder; an old folder goes back if no new one is in its place."""
    if leftover.suffix == ".old" and not path.exists():
        with contextlib.suppress(OSError):  # it was not needed, or another one was faster
            os.rename(leftover, path)
    if leftover.suffix != ".old" or path.exists():
        _remove(leftover)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


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
