"""A measurement in a process of its own."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from robustpo_kit import records
from robustpo_kit.data import Preference, PreferenceSet
from robustpo_kit.errors import KitError


def child(task: dict[str, Any], rows: Mapping[str, Iterable[Preference]]) -> Any:
    """What one contender measures in a process of its own.

    Args:
        task: As in `contenders.contender`.
        rows: By name; each becomes a file beside the task.

    Raises:
        KitError: With the last words of a process that failed.
    """
    threads = str(task["config"]["threads"])
    environment = os.environ | {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "ROBUSTPO_PROGRESS": "off",
    }
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "task.json", Path(folder) / "result.json"
        records.write_json(before, task)
        for name, listed in rows.items():
            PreferenceSet(listed).to_jsonl(Path(folder) / f"{name}.jsonl")
        command = [sys.executable, "-m", "robustpo_kit.bench.contenders", str(before), str(after)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise KitError(f"bench: contender {task['contender']} failed: {done.stderr[-600:]}")
        return records.read_json(after)
