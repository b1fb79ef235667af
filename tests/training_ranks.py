"""Two ranks in trouble: a script that forks them for every trouble named, all at once.

`python tests/training_ranks.py FOLDER TROUBLE ...` writes FOLDER/TROUBLE/end.json: the exit codes
of both ranks, the seconds at which each ended, and what each wrote to standard error. No launcher
watches the ranks, so that what ends them is the kit.
"""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from training_setting import FSDP2, dataset_for, gpus_by_name, tiny

from robustpo_kit import objectives, training
from robustpo_kit.errors import KitError
from robustpo_kit.training import ExactStep, TrainConfig
from robustpo_kit.training.ranks import this_rank

TROUBLED = 1  # the rank
PATIENCE_S = 300


def run(folder: Path, **settings) -> training.StepTrainer:
    """Four steps of two rows with checkpoints."""
    objective = objectives.build("dora(dpo_pl(beta=0.1), lam=0.7)")
    config = TrainConfig(
        batch_size=2,
        micro_batch_size=1,
        checkpoint=str(folder / "checkpoints"),
        checkpoint_every=1,
        reference_cache=str(folder / "cache"),
        learning_rate=1e-3,
    )
    config = dataclasses.replace(config, **settings)
    return training.train(tiny(), dataset_for(objective), objective, config)


@contextlib.contextmanager
def in_step(number: int, trouble: Callable[[], None], rank: int = TROUBLED):
    """`trouble` happens to one rank in a forward pass of a step; the rank's own first pass."""
    real, passes = ExactStep.logps, []

    def logps(self, model, cut, places):
        passes.append(1)
        if len(passes) == number and this_rank() == rank:
            trouble()
        return real(self, model, cut, places)

    ExactStep.logps = logps
    yield


def starve() -> None:
    raise torch.OutOfMemoryError("out of memory (injected)")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed(folder: Path) -> None:
    """kill -9 in the third step."""
    with in_step(3, die):
        run(folder)


def killed_and_stuck(folder: Path) -> None:
    """The same, and the other rank waits for something that knows no end."""
    with in_step(3, die), in_step(3, lambda: time.sleep(10 * PATIENCE_S), rank=0):
        run(folder)


def starved(folder: Path) -> None:
    """Out of memory with one prompt at a time."""
    with in_step(3, starve):
        run(folder)


def starved_in_fsdp2(folder: Path) -> None:
    """Out of memory while the other rank waits in a hook."""
    gpus_by_name()
    with in_step(2, starve):
        run(folder, micro_batch_size=2, batch_size=4)


def starved_in_scoring(folder: Path) -> None:
    """Out of memory for a single row of the reference."""
    real = training.forward.sequence_logps

    def logps(model, batch):
        return starve() if this_rank() == TROUBLED else real(model, batch)

    training.forward.sequence_logps = logps
    run(folder)


def spoilt(folder: Path) -> None:
    """A loss of the authors' step that is not finite on one rank alone."""
    real = ExactStep.logps

    def logps(self, model, cut, places):
        found = real(self, model, cut, places)
        return (
            found * float("nan") if this_rank() == TROUBLED and self.forward_passes > 1 else found
        )

    ExactStep.logps = logps
    run(folder, window="micro")


def full_disk(folder: Path) -> None:
    """No space left in the second checkpoint; the first rank writes."""
    real, written = training.checkpoints.save_file, []

    def save_file(tensors, path):
        written.append(path)
        if len(written) > 6:
            Path(path).write_bytes(b"half")
            raise OSError(28, os.strerror(28), str(path))
        real(tensors, path)

    training.checkpoints.save_file = save_file
    run(folder)


def terminated(folder: Path) -> None:
    """SIGTERM for one of them."""
    with in_step(2, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        run(folder)


def of_other_runs(folder: Path) -> None:
    """Started with another seed."""
    run(folder, seed=int(os.environ["RANK"]))


TROUBLES = {
    trouble.__name__: trouble
    for trouble in (
        killed,
        killed_and_stuck,
        starved,
        starved_in_fsdp2,
        starved_in_scoring,
        spoilt,
        full_disk,
        terminated,
        of_other_runs,
    )
}


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


def start_rank(name: str, rank: int, port: str, folder: Path) -> int:
    """Fork a rank; the command line's exit codes, its errors in a file."""
    child = os.fork()
    if child:
        return child
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    if name.endswith("fsdp2"):
        os.environ |= FSDP2
    sys.stderr = open(folder / f"{rank}.err", "w", buffering=1)  # noqa: SIM115  # until the end
    code = 0
    try:
        TROUBLES[name](folder)
    except KitError as error:
        print(f"robustpo: {error}", file=sys.stderr)
        code = 2
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    os._exit(code)


def main(root: Path, names: list[str]) -> None:
    """All troubles at once; whoever has not ended in time is killed: exit code -9."""
    ranks, ends = {}, {name: {"codes": [0, 0], "seconds": [0.0, 0.0]} for name in names}
    started = time.monotonic()
    for name in names:
        (root / name).mkdir(parents=True)
        for rank in (0, 1):
            (root / name / f"{rank}.err").touch()
        port = free_port()
        for rank in (0, 1):
            ranks[start_rank(name, rank, port, root / name)] = (name, rank)
    while ranks:
        child, status = os.waitpid(-1, os.WNOHANG)
        if child:
            name, rank = ranks.pop(child)
            ends[name]["codes"][rank] = os.waitstatus_to_exitcode(status)
            ends[name]["seconds"][rank] = time.monotonic() - started
        elif time.monotonic() - started > PATIENCE_S:
            for late in ranks:
                os.kill(late, signal.SIGKILL)
        time.sleep(0.05)
    for name, end in ends.items():
        errors = [(root / name / f"{rank}.err").read_text() for rank in (0, 1)]
        end |= {"errors": errors}
        (root / name / "end.json").write_text(json.dumps(end))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2:])
