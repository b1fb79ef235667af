"""Progress that a person can read, on a terminal or in a log."""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

Item = TypeVar("Item")


def progress(items: Iterable[Item], desc: str, total: int | None = None) -> Iterator[Item]:
    """Iterate over `items` with progress that a person can read.

    ROBUSTPO_PROGRESS says how: `bar`, `log` or `off`; without it, a bar on a terminal. `log` writes
    at most one line a second to the file ROBUSTPO_PROGRESS_LOG, else to stderr.
    """
    mode = os.environ.get("ROBUSTPO_PROGRESS")
    if not mode:
        mode = "bar" if sys.stderr.isatty() else "off"
    if total is None and isinstance(items, Sized):
        total = len(items)
    if mode == "bar":
        from tqdm.auto import tqdm

        yield from tqdm(items, desc=desc, total=total, leave=False)
        return
    last = started = time.monotonic()
    for count, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if mode == "log" and (now - last >= 1 or count == total):
            last = now
            of_total = "?" if total is None else total
            seconds = now - started
            left = _left(count, total, seconds)
            _log(f"{desc}: {count}/{of_total} in {seconds:.0f} s{left}")


def _left(count: int, total: int | None, seconds: float) -> str:
    """The time left at the pace so far, in words; nothing where the total is unknown or reached."""
    if total is None or count >= total:
        return ""
    return f", {(total - count) * seconds / count:.0f} s left"


def _log(line: str) -> None:
    target = os.environ.get("ROBUSTPO_PROGRESS_LOG")
    if target:
        with open(target, "a", encoding="utf-8") as stream:
            stream.write(line + "\n")
    else:
        print(line, file=sys.stderr)
