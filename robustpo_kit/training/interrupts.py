"""SIGTERM as a wish: the run ends at its next step, with a checkpoint."""

import signal
import threading
from types import FrameType
from typing import Any

EXIT_CODE = 128 + signal.SIGTERM  # 143: what a shell says of a process that SIGTERM ended


class Terminated(SystemExit):
    """SIGTERM was obeyed: the checkpoint is written, the process should end with code 143."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


class Termination:
    """Notes SIGTERM while it is entered, in place of the process's end; a second one ends it.

    Only the main thread can; in any other one nothing is changed.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: Any = None

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
        self.requested = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
