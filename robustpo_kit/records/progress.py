"""Progress that a person can read, on a terminal or in a log."""

import os
import sys
import time
from collections.abc import Iterable, Iterator


def progress(items: Iterable, desc: str, total: int | None = None) -> Iterator:
    """Iterate with progress a person can read; ROBUSTPO_PROGRESS = bar | log | off (default: bar on a terminal).

    `log` writes at most one line a second to the file ROBUSTPO_PROGRESS_LOG (else stderr).
    """
    mode = os.environ.get("ROBUSTPO_PROGRESS") or ("bar" if sys.stderr.isatty() else "off")
    total = total if total is not None else (len(items) if hasattr(items, "__len__") else None)
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
            _log(f"{desc}: {count}/{total if total is not None else '?'} in {now - started:.0f} s")


def _log(line: str) -> None:
    target = os.environ.get("ROBUSTPO_PROGRESS_LOG")
    if target:
        with open(target, "a", encoding="utf-8") as stream:
            stream.write(line + "\n")
    else:
        print(line, file=sys.stderr)
