"""Execution: one notebook headless in a process of its own, and how to end it with everything that it started.

`python -m robustpo_kit.series.execution TASK.json` is the child process of the series runner: papermill changes the working
directory of its whole process, so two notebooks never share one.
"""

import contextlib
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from robustpo_kit import records


def execute(task_file: Path) -> int:
    """Execute one notebook with papermill; returns the exit code, and writes one line to the task's `failure` file."""
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillException
    from traitlets.config import Config

    task = records.read_json(task_file)
    _die_with(task["runner"])
    with (
        tempfile.TemporaryDirectory(prefix="nb") as private,
        open(task["log"], "a", encoding="utf-8") as log,
    ):
        try:
            papermill.execute_notebook(
                task["source"],
                task["output"],
                parameters=task["parameters"],
                kernel_name="python3",
                cwd=str(Path(task["source"]).parent),
                progress_bar=False,
                stdout_file=log,
                stderr_file=log,
                start_timeout=120,
                config=Config(kernel_transport(private)),
            )
        except papermill.PapermillExecutionError as error:
            said, failure = (
                str(error),
                f"In [{error.exec_count}]: {error.ename}: {_first_line(error.evalue)}",
            )
        except (
            PapermillException,
            CellTimeoutError,
            DeadKernelError,
            RuntimeError,
            ValueError,
        ) as error:
            said, failure = str(error), f"{type(error).__name__}: {_first_line(str(error))}"
        else:
            return 0
        log.write(f"\n{said}\n")
    records.write_text(Path(task["failure"]), failure + "\n")
    return 1


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def kernel_transport(private: str) -> dict[str, Any]:
    """Kernel over sockets in the folder `private`: no port to race for, nothing on the network (not on Windows)."""
    return {} if os.name == "nt" else {"KernelManager": {"transport": "ipc", "ip": f"{private}/k"}}


def _die_with(runner: int) -> None:
    """End this process and its kernel when the runner, its parent, dies by a signal that it cannot catch."""

    def watch() -> None:
        while os.getppid() == runner:
            time.sleep(0.5)
        import psutil

        for member in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def kill_tree(pid: int) -> None:
    """End a process and all its descendants: the kernel is a session of its own, so its group is not enough."""
    import psutil

    try:
        top = psutil.Process(pid)
        family = [*top.children(recursive=True), top]
    except psutil.NoSuchProcess:
        return
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.terminate()
    _, alive = psutil.wait_procs(family, timeout=3)
    for member in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()


if __name__ == "__main__":
    sys.exit(execute(Path(sys.argv[1])))
