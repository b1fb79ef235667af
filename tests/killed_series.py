"""A series that is killed at random moments ends with the tables of one that was left alone.

`python tests/killed_series.py --kills 10 --seed 0` runs the series under profile smoke in two
copies of the project: once as it is, and once killed so many times, with all its processes, at
moments drawn over the time that the first took, before it may end. Prints how many tables both
have; exit status 1 where one differs or is missing.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from notebook_mutation import here, whole_copy

COMMAND = (sys.executable, "-m", "robustpo_kit", "series", "--profile", "smoke", "--resume")


def started(folder: Path, workers: int) -> "subprocess.Popen[bytes]":
    """The series in a copy, in a process group of its own."""
    return subprocess.Popen(
        [*COMMAND, "--workers", str(workers)],
        cwd=folder, env=here(folder), start_new_session=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip


def tables(folder: Path) -> dict[str, bytes]:
    """The tables of a copy's run, figures' too, by their names."""
    found = [*folder.glob("data/results/smoke/**/*.csv"), *folder.glob("figures/smoke/**/*.csv")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        alone, killed = Path(one), Path(other)
        for folder in (alone, killed):
            whole_copy(folder)
        began = time.time()
        if started(alone, options.workers).wait():
            sys.exit("the series failed without any kill")
        longest = time.time() - began
        print(f"left alone: {longest:.0f} s", flush=True)
        draw = random.Random(options.seed)
        for number in range(options.kills):
            moment = draw.uniform(0, longest / 3)
            series = started(killed, options.workers)
            try:
                series.wait(timeout=moment)
            except subprocess.TimeoutExpired:
                os.killpg(series.pid, signal.SIGKILL)
                series.wait()
                print(f"kill {number + 1} after {moment:.0f} s", flush=True)
        if started(killed, options.workers).wait():
            sys.exit("the series failed after the kills")
        expected, found = tables(alone), tables(killed)
    differ = sorted(name for name in expected if found.get(name) != expected[name])
    print(f"{len(expected)} tables, {len(expected) - len(differ)} of them equal")
    sys.exit(" ".join(differ) if differ or not expected else 0)


if __name__ == "__main__":
    main()
