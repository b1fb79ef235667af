"""One digest for everything that is recognised by its content: settings, rows, tensors, files."""

import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

LENGTH = 64  # hexadecimal characters of a sha256


def digest(*parts: Any, length: int = LENGTH) -> str:
    """sha256 of `parts` by content, as `length` hexadecimal characters.

    A part is anything that JSON knows, bytes, a dataclass, a tensor, an array, or a list, tuple or dict of
    those (the order of a dict's keys does not matter). Raises TypeError for anything else.
    """
    sha = hashlib.sha256()
    _feed(sha, parts)
    return sha.hexdigest()[:length]


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes; a file is read again only when its size or time has changed."""
    stat = Path(path).stat()
    return _file_digest_at(Path(path), stat.st_size, stat.st_mtime_ns)


@functools.cache
def _file_digest_at(path: Path, _size: int, _modified: int) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _feed(sha: Any, value: Any) -> None:
    """Every value goes in behind its kind and size, so that no two values share their bytes."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        sha.update(b"{%d" % len(value))
        for key in sorted(value, key=str):
            _feed(sha, str(key))
            _feed(sha, value[key])
    elif isinstance(value, list | tuple):
        sha.update(b"[%d" % len(value))
        for item in value:
            _feed(sha, item)
    elif isinstance(value, bytes):
        sha.update(b"b%d:" % len(value) + value)
    elif hasattr(value, "detach") or isinstance(value, np.ndarray):
        _feed_array(sha, value)
    else:
        text = json.dumps(value)  # TypeError where JSON does not know the value
        sha.update(b"j%d:" % len(text) + text.encode())


def _feed_array(sha: Any, value: Any) -> None:
    """Kind, shape and bytes of a tensor or an array; bfloat16, which numpy lacks, by its bits."""
    kind, shape = str(value.dtype), list(value.shape)
    if hasattr(value, "detach"):
        import torch

        value = value.detach().cpu().contiguous().view(-1)
        value = value.view(torch.int16).numpy() if kind == "torch.bfloat16" else value.numpy()
    sha.update(f"a{kind}{shape}".encode() + np.ascontiguousarray(value).tobytes())
