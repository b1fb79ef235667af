"""SIGTERM as a wish: the run ends at its next step, with a checkpoint."""

import signal
import threading
import time
from types import FrameType
from typing import Any

ECHO_S = 5.0  # a SIGTERM that follows another one so soon is its echo
EXIT_CODE = 128 + signal.SIGTERM  # 143: what a shell says of a process that SIGTERM ended


class Terminated(SystemExit):
    """SIGTERM was obeyed: the checkpoint is written, the process should end with code 143."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


class Termination:
    """Notes SIGTERM while it is entered, in place of the process's end; a later one ends it.

    One that follows at once is the same wish: a scheduler that signals a whole group reaches a
    rank directly, and once more through its launcher.
    Only the main thread can; in any other one nothing is changed.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: Any = None
        self._first = 0.0  # when SIGTERM came, by time.monotonic

    def __enter__(self) -> "Termination":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        now = time.monotonic()
        if not self.requested:
            self.requested, self._first = True, now
        elif now - self._first > ECHO_S:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTERM)
