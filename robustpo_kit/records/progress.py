"""Progress that a person can read, on a terminal or in a log."""

import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

Item = TypeVar("Item")
SECONDS = {"log": 1.0, "seldom": 30.0}  # between two lines


def progress(items: Iterable[Item], desc: str, total: int | None = None) -> Iterator[Item]:
    """Iterate over `items` with progress that a person can read.

    ROBUSTPO_PROGRESS says how: `bar`, `log` or `off`; without it, a bar on a terminal, and else,
    where no notebook or test has taken stderr, a line every 30 seconds. `log` writes at most one
    line a second, and the last one, to the file ROBUSTPO_PROGRESS_LOG, else to stderr.
    """
    mode = os.environ.get("ROBUSTPO_PROGRESS") or _unasked()
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
        at_end = mode == "log" and count == total
        if at_end or now - last >= SECONDS.get(mode, math.inf):
            last = now
            of_total = "?" if total is None else total
            seconds = now - started
            left = _left(count, total, seconds)
            _log(f"{desc}: {count}/{of_total} in {seconds:.0f} s{left}")


def _unasked() -> str:
    """How progress is shown where nothing says how."""
    if sys.stderr.isatty():
        return "bar"
    return "seldom" if sys.stderr is sys.__stderr__ else "off"


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
