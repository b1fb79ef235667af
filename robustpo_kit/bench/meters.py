"""Clock and memory of this process, or of its GPU."""

import resource
import sys
import time
from pathlib import Path

import torch


def clock() -> float:
    """Seconds: of the wall on a GPU, of this process's CPU time otherwise."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def synchronize() -> None:
    """Wait for what the GPU still does."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def memory_in_use() -> int:
    """Bytes in use: allocated on the GPU, else resident in this process."""
    if torch.cuda.is_available():
        return torch.cuda.memory_allocated()
    return _status("VmRSS") or _maxrss()


def reset_peak() -> None:
    """Forget the peak so far; nothing outside Linux without a GPU."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Most bytes in use since `reset_peak` (outside Linux: since the process began)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return _status("VmHWM") or _maxrss()


def _status(field: str) -> int:
    path = Path("/proc/self/status")
    if not path.exists():
        return 0
    lines = path.read_text().splitlines()
    line = next(line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024  # in kB


def _maxrss() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if sys.platform == "darwin":  # in bytes; elsewhere in KiB
        return peak
    return peak * 1024
