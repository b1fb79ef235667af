"""Processes that train methods beside one another."""

import multiprocessing
import os
import threading
from multiprocessing.process import BaseProcess

import torch


def start_worker() -> None:
    """What a process of a pool does first: one thread, since threads that wait for others lose."""
    torch.set_num_threads(1)
    if os.environ.get("ROBUSTPO_PROGRESS") == "bar":
        os.environ["ROBUSTPO_PROGRESS"] = "off"  # bars of several processes write over one another
    end_with_parent()


def end_with_parent() -> None:
    """From now on this process ends when its parent does, even by SIGKILL.

    A pool's processes would go on through its queue, and then wait for ever.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)  # what is under way is written whole or not at all
