"""Execution: one notebook headless in its own process, and how to end it with all that it started.

`python -m robustpo_kit.series.execution TASK.json` is the child process of the series runner:
papermill changes the working directory of its whole process, so two notebooks never share one.
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
    """Execute one notebook with papermill.

    Args:
        task_file: JSON of `source`, `output`, `log` and `failure` (paths), `parameters`, and
            `runner`, the number of the process whose death ends this one.

    Returns:
        The exit code: 0, or 1 with one line in the file `failure`.
    """
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
            message = str(error)
            failure = f"In [{error.exec_count}]: {error.ename}: {_first_line(error.evalue)}"
        except (
            PapermillException,
            CellTimeoutError,
            DeadKernelError,
            RuntimeError,
            ValueError,
        ) as error:
            message = str(error)
            failure = f"{type(error).__name__}: {_first_line(message)}"
        else:
            return 0
        log.write(f"\n{message}\n")
    records.write_text(Path(task["failure"]), failure + "\n")
    return 1


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def kernel_transport(private: str) -> dict[str, Any]:
    """Settings of a kernel over sockets in the folder `private`: no port to race for."""
    if os.name == "nt":  # which has no such sockets
        return {}
    return {"KernelManager": {"transport": "ipc", "ip": f"{private}/k"}}


def _die_with(runner: int) -> None:
    """End this process and its kernel when its parent, the runner, is killed."""

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
    """End a process and its descendants: the kernel is a session of its own, so not by group."""
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
