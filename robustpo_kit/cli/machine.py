"""Commands on this machine: what is missing, and how fast it is."""

import argparse
import importlib.util
import shutil
from pathlib import Path
from typing import Any

from robustpo_kit import paths, records
from robustpo_kit.cli.parsing import Commands, add_seed, comma_list
from robustpo_kit.errors import KitError

NEEDED_PACKAGES = ("torch", "transformers", "peft", "papermill")
BENCH_PARTS = ("training", "layouts", "sampling")
DISK_GB = 3.0  # models, their float32 copies and the checkpoints of a series under profile cpu


def add_doctor(commands: Commands) -> None:
    parser = commands.add_parser(
        "doctor", help="versions, devices, assets, free disk; what is missing and what mends it"
    )
    parser.add_argument(
        "--fetch", action="store_true", help="download and convert the assets that are missing"
    )
    parser.set_defaults(run=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    from robustpo_kit import assets

    if arguments.fetch:
        assets.fetch()
    versions = records.versions()
    print("versions  " + ", ".join(f"{name} {version}" for name, version in versions.items()))
    print(f"device    {records.device_name()}")
    troubles = _package_troubles() + _disk_troubles() + _asset_troubles(assets.status())
    for trouble in troubles:
        print(f"mend      {trouble}")
    if troubles:
        print(f"{len(troubles)} to mend")
        return 1
    print("all well")
    return 0


def _package_troubles() -> list[str]:
    missing = [name for name in NEEDED_PACKAGES if importlib.util.find_spec(name) is None]
    if not missing:
        return []
    return [f"{', '.join(missing)} not installed: make env"]


def _disk_troubles() -> list[str]:
    existing = next(folder for folder in (paths.CACHE, *paths.CACHE.parents) if folder.exists())
    free_gb = shutil.disk_usage(existing).free / 1e9
    print(f"disk      {free_gb:.0f} GB free for the cache ({paths.CACHE})")
    if free_gb >= DISK_GB:
        return []
    return [f"less than {DISK_GB:.0f} GB free: move the cache with ROBUSTPO_CACHE=FOLDER"]


def _asset_troubles(status: list[dict[str, Any]]) -> list[str]:
    troubles = []
    for row in status:
        print(f"asset     {row['asset']:<22} {row['state']:<8} {row['wheel']:<28} {row['detail']}")
        if row["mend"]:
            troubles.append(f"asset {row['asset']} {row['state']} ({row['detail']}): {row['mend']}")
    return troubles


def add_bench(commands: Commands) -> None:
    parser = commands.add_parser("bench", help="throughput and memory against TRL on the same work")
    parser.add_argument(
        "--data",
        metavar="FILE",
        help="HH-RLHF dialogues, .jsonl or .jsonl.gz (default: how-to pairs)",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="where bench.json, bench.csv and bench.png go (default: runs/bench)",
    )
    parser.add_argument(
        "--model",
        default="smollm2-135m-instruct",
        help="an asset, a folder, a Hub id, tiny, or llama-8b (random weights, needs a GPU); "
        "several with commas, each in a folder of its name",
    )
    parser.add_argument("--dtype", default="auto", help="bfloat16 | float32 (default: bfloat16)")
    parser.add_argument("--pairs", type=int, default=8, help="pairs of an epoch (default: 8)")
    parser.add_argument(
        "--alternations", type=int, default=5, help="turns of every contender (default: 5)"
    )
    add_seed(parser)
    parser.add_argument(
        "--parts", default=",".join(BENCH_PARTS), help="(default: all, training,layouts,sampling)"
    )
    parser.add_argument(
        "--backends",
        default="kit,transformers",
        help="of sampling: kit | continuous | vllm | transformers; those that refuse are left out, "
        "the last is what the others are compared with",
    )
    parser.add_argument(
        "--penalty", type=float, default=1.1, help="repetition penalty of sampling (default: 1.1)"
    )
    parser.set_defaults(run=_bench)


def _bench(arguments: argparse.Namespace) -> int:
    models, parts = comma_list(arguments.model), comma_list(arguments.parts)
    for part in parts:
        if part not in BENCH_PARTS:
            raise KitError(f"--parts: '{part}' is unknown; choose from {', '.join(BENCH_PARTS)}")
    for model in models:
        out = Path(arguments.out or paths.RUNS / "bench")
        if len(models) > 1:
            out /= model.rsplit("/")[-1]
        for part in parts:
            print(_bench_part(part, model, out, arguments))
        print(f"-> {paths.show(out)}")
    return 0


def _bench_part(part: str, model: str, out: Path, arguments: argparse.Namespace) -> str:
    """Summary of one part of the bench, which writes its files into `out`."""
    from robustpo_kit import bench

    shared: dict[str, Any] = {"model": model, "seed": arguments.seed}
    if part == "training":
        shared |= {"pairs": arguments.pairs, "dtype": arguments.dtype}
        turns = arguments.alternations
        return bench.summary(bench.run(arguments.data, str(out), alternations=turns, **shared))
    if part == "layouts":
        turns = arguments.alternations
        found = bench.run_layouts(arguments.data, str(out), alternations=turns, **shared)
        return bench.layouts_summary(found)
    backends = tuple(comma_list(arguments.backends))
    found = bench.run_sampling(
        str(out),
        backends=backends,
        alternations=arguments.alternations,
        penalty=arguments.penalty,
        **shared,
    )
    return bench.sampling_summary(found)
