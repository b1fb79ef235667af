"""Foretold and measured peak memory of real runs on a CPU, a process each.

`python tests/memory_table.py --write`, from the repository's root, measures all settings and writes
data/results/memory/memory.csv with its provenance; with the numbers of settings it prints those.

What is measured is the most that a process had resident while it trained, less what it had before
it read the model (it had trained a tiny one by then, so that all code is loaded). It is measured
twice: as it comes, and with freed memory returned to the system at once, which is what the live
tensors take. As it comes, glibc keeps what it cannot return.
"""

import ctypes
import dataclasses
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from transformers import AutoConfig, AutoTokenizer

from robustpo_kit import assets, objectives, policies, records, training
from robustpo_kit.bench.meters import memory_in_use, peak_memory, reset_peak
from robustpo_kit.data import Preference, PreferenceSet

FILE = Path(__file__).parent.parent / "data" / "results" / "memory" / "memory.csv"
MODEL = "smollm2-135m-instruct"
RETURNED = {"MALLOC_MMAP_THRESHOLD_": str(128 * 1024)}  # fixed, or glibc raises it to 32 MiB
RANK = 16


class Case(NamedTuple):
    """One setting; sizes count prompts and words, a word is about a token."""

    lora: str
    dtype: str
    responses: int
    batch: int
    micro_batch: int
    prompt: int
    response: int
    checkpointing: bool = False
    layout: str = "shared"


SETTINGS = (
    Case("none", "float32", 2, 2, 2, 60, 40),
    Case("none", "float32", 4, 4, 2, 60, 40),
    Case("none", "float32", 4, 4, 4, 200, 60, checkpointing=True),
    Case("none", "bfloat16", 2, 4, 4, 300, 60),
    Case("attention", "float32", 2, 4, 4, 60, 40),
    Case("attention", "float32", 4, 4, 2, 300, 60),
    Case("attention", "float32", 2, 4, 4, 60, 40, layout="separate"),
    Case("all-linear", "bfloat16", 4, 4, 4, 200, 60),
)


def preferences(case: Case) -> PreferenceSet:
    """Rows of about as many tokens as words."""
    rows = []
    for number in range(case.batch):
        lengths = range(case.response, case.response + case.responses)
        texts = tuple(f"no{number}" + " the" * length for length in lengths)
        names = tuple(f"source {place}" for place in range(case.responses))
        rewards = tuple(float(place) for place in range(case.responses))
        prompt = "a " * case.prompt + "b"
        rows.append(Preference(f"r{number}", f"g{number}", prompt, texts, names, rewards))
    return PreferenceSet(rows)


def train(source: str, case: Case, config: training.TrainConfig) -> None:
    """Two steps of a model; the peak counts from the loaded model on."""
    policy = policies.load(source, dtype=case.dtype)
    if case.lora != "none":
        policy.add_lora(case.lora, RANK)
    reset_peak()
    with tempfile.TemporaryDirectory() as cache:
        run = dataclasses.replace(config, reference_cache=cache)
        training.train(policy, preferences(case), objective(case), run)


def objective(case: Case) -> training.StepObjective:
    """DPO, of pairs or of lists."""
    return objectives.build("dpo(beta=0.1)" if case.responses == 2 else "dpo_pl(beta=0.1)")


def estimate(case: Case, config: training.TrainConfig) -> training.Estimate:
    """What is foretold of a case."""
    folder = assets.resolve(MODEL)
    model = AutoConfig.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    template = policies.own_template(tokenizer)
    tokens = policies.tokenize(preferences(case), tokenizer, template)
    setting = training.Setting(model, case.dtype, case.lora, RANK, config)
    return training.Estimate(setting, tokens.rows, objective(case))


def measured(case: Case) -> dict[str, float]:
    """One case, in this process: foretold and measured peak, MB without the process."""
    config = training.TrainConfig(
        batch_size=case.batch,
        micro_batch_size=case.micro_batch,
        epochs=2,
        learning_rate=1e-6,
        gradient_checkpointing=case.checkpointing,
        layout=case.layout,
    )
    foretold = estimate(case, config).peak
    train("tiny", case, config)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = memory_in_use()
    train(MODEL, case, config)
    return {"foretold": foretold / 1e6, "measured": (peak_memory() - before) / 1e6}


def row(number: int) -> dict[str, object]:
    """A line of the table: a case, measured in two processes of its own."""
    found = {}
    for name, environment in (("live", RETURNED), ("resident", {})):
        command = [sys.executable, __file__, "--one", str(number)]
        done = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | environment
        )
        found[name] = json.loads(done.stdout.splitlines()[-1])
    foretold = found["live"]["foretold"]
    line = SETTINGS[number]._asdict() | {"foretold_mb": round(foretold)}
    for name, values in found.items():
        line[f"{name}_mb"] = round(values["measured"])
        line[f"foretold_over_{name}"] = round(foretold / values["measured"], 3)
    return line


def write(started: float) -> None:
    """Measure all cases and write the table with its provenance."""
    rows = []
    for number in range(len(SETTINGS)):
        rows.append(row(number))
        print(rows[-1], flush=True)
    config = {"command": "python tests/memory_table.py --write", "model": MODEL, "rank": RANK}
    records.write_table(FILE, pd.DataFrame(rows), records.provenance(config, 0, started))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measured(SETTINGS[int(sys.argv[2])])))
    elif sys.argv[1:] == ["--write"]:
        write(time.time())
    else:
        for argument in sys.argv[1:]:
            print(row(int(argument)))
