"""Commands on this machine: what is missing, and how fast it is."""

import argparse
import importlib.util
import shutil
from pathlib import Path
from typing import Any

from robustpo_kit import paths, records

DISK_GB = 3.0  # models, their float32 copies and the checkpoints of a series under profile cpu


def add_doctor(commands: Any) -> None:
    p = commands.add_parser(
        "doctor", help="versions, devices, assets, free disk; what is missing and what mends it"
    )
    p.add_argument(
        "--fetch", action="store_true", help="download and convert the assets that are missing"
    )
    p.set_defaults(run=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    from robustpo_kit import assets

    if arguments.fetch:
        assets.fetch()
    versions = records.versions()
    print("versions  " + ", ".join(f"{name} {version}" for name, version in versions.items()))
    print(f"device    {records.device_name()}")
    troubles = []
    missing = [
        name for name in ("torch", "transformers", "peft", "papermill") if not _installed(name)
    ]
    if missing:
        troubles.append(f"{', '.join(missing)} not installed: make env")
    free = shutil.disk_usage(_existing(paths.CACHE)).free / 1e9
    print(f"disk      {free:.0f} GB free for the cache ({paths.CACHE})")
    if free < DISK_GB:
        troubles.append(
            f"less than {DISK_GB:.0f} GB free: move the cache with ROBUSTPO_CACHE=FOLDER"
        )
    for row in assets.status():
        print(f"asset     {row['asset']:<22} {row['state']:<8} {row['wheel']:<28} {row['detail']}")
        if row["mend"]:
            troubles.append(f"asset {row['asset']} {row['state']} ({row['detail']}): {row['mend']}")
    for trouble in troubles:
        print(f"mend      {trouble}")
    print("all well" if not troubles else f"{len(troubles)} to mend")
    return 1 if troubles else 0


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


def add_bench(commands: Any) -> None:
    p = commands.add_parser("bench", help="throughput and memory against TRL on the same work")
    p.add_argument(
        "--data",
        metavar="FILE",
        help="HH-RLHF dialogues, .jsonl or .jsonl.gz (default: how-to pairs)",
    )
    p.add_argument(
        "--out",
        metavar="DIR",
        help="where bench.json, bench.csv and bench.png go (default: runs/bench)",
    )
    p.add_argument(
        "--model", default="smollm2-135m-instruct", help="an asset, a folder or a Hub id"
    )
    p.add_argument("--dtype", default="auto", help="bfloat16 | float32 (default: bfloat16)")
    p.add_argument("--pairs", type=int, default=8, help="pairs of an epoch (default: 8)")
    p.add_argument(
        "--alternations", type=int, default=5, help="turns of every contender (default: 5)"
    )
    p.add_argument("--seed", type=int, default=0)
    p.add_argument(
        "--gpu-llama",
        action="store_true",
        help="an 8B Llama of random weights instead; needs a GPU",
    )
    p.set_defaults(run=_bench)


def _bench(arguments: argparse.Namespace) -> int:
    from robustpo_kit import bench

    out = arguments.out or str(paths.RUNS / "bench")
    found = bench.run(
        arguments.data,
        out,
        model="llama-8b" if arguments.gpu_llama else arguments.model,
        pairs=arguments.pairs,
        alternations=arguments.alternations,
        dtype=arguments.dtype,
        seed=arguments.seed,
    )
    print(bench.summary(found))
    print(f"-> {paths.show(Path(out))}")
    return 0
