"""One digest for everything that is recognised by its content: settings, rows, tensors, files."""

import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

SHA256_CHARACTERS = 64  # hexadecimal


def digest(*parts: Any, length: int = SHA256_CHARACTERS) -> str:
    """sha256 of `parts` by content, the same in every process and on every machine.

    Args:
        parts: Anything that JSON knows, bytes, dataclasses, tensors, arrays, and lists, tuples and
            dicts of those. As in JSON, a tuple counts as a list, a dataclass as the dict of its
            fields, and a dict's keys as their text in any order.
        length: How many hexadecimal characters to return.

    Raises:
        TypeError: For a part of another type, an array of objects included.
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


def _feed(sha: "hashlib._Hash", value: Any) -> None:
    """Every value goes in behind its kind and size, so that no two values share their bytes."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        if len({str(key) for key in value}) < len(value):
            raise TypeError("digest: two keys of a dict have the same text, so it has no order")
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


def _feed_array(sha: "hashlib._Hash", value: Any) -> None:
    """Kind, shape and bytes of a tensor or an array."""
    kind, shape = str(value.dtype), list(value.shape)
    if getattr(value.dtype, "hasobject", False):
        raise TypeError("digest: an array of objects holds addresses, not values; pass a list")
    if hasattr(value, "detach"):
        import torch

        value = value.detach().cpu().contiguous().view(-1)
        if kind == "torch.bfloat16":  # numpy lacks it: by its bits
            value = value.view(torch.int16)
        value = value.numpy()
    sha.update(f"a{kind}{shape}".encode() + np.ascontiguousarray(value).tobytes())
