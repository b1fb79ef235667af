"""The command that trains a policy."""

import argparse
import dataclasses
import os
from pathlib import Path
from typing import Any

from robustpo_kit import paths, records
from robustpo_kit.cli.parsing import Commands, add_assignments, add_model, assignments
from robustpo_kit.errors import KitError

REQUIRED = ("data", "objective", "model", "out")
FLAGS = (*REQUIRED, "seed", "dtype", "lora", "rank")


def add_train(commands: Commands) -> None:
    parser = commands.add_parser(
        "train", help="train a policy on a preference file; also under `accelerate launch -m`"
    )
    parser.add_argument(
        "--config", metavar="FILE.json", help="any of these settings by name; flags win over it"
    )
    parser.add_argument(
        "--data",
        metavar="FILE.jsonl",
        help="preferences: prompt and responses, or chosen and rejected",
    )
    parser.add_argument(
        "--objective",
        metavar="SPEC",
        help='e.g. "dpo(beta=0.1)" or "dora(dpo_pl, beta=0.1, lam=1.0)"',
    )
    add_model(parser, None)
    parser.add_argument("--out", metavar="DIR", help="where the policy and record.json go")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--dtype", help="float32 | bfloat16")
    parser.add_argument("--lora", help="attention | all-linear | none")
    parser.add_argument("--rank", type=int, help="of the LoRA adapter")
    add_assignments(parser, "--set", "a field of TrainConfig, as JSON")
    parser.set_defaults(run=_train)


def _train(arguments: argparse.Namespace) -> int:
    from robustpo_kit import objectives, policies, training
    from robustpo_kit.data import PreferenceSet

    fields = {field.name for field in dataclasses.fields(training.TrainConfig)}
    settings = _train_settings(arguments, fields)
    out = _free_folder(settings)
    model, dtype = settings.pop("model"), settings.pop("dtype", "float32")
    lora, rank = settings.pop("lora", "attention"), settings.pop("rank", 16)
    rows = PreferenceSet.from_jsonl(settings.pop("data"))
    spec = settings.pop("objective")
    try:
        config = training.TrainConfig(**settings)
    except TypeError as error:
        raise KitError(f"train: {error}") from None
    objective = objectives.build(spec, seed=config.seed)
    policy = policies.load(model, dtype=dtype).merge()  # what was named is the reference
    if lora != "none":
        policy.add_lora(lora, rank, seed=config.seed)
    record = training.train(policy, rows, objective, config)
    policy.save(out)
    if int(os.environ.get("RANK", "0")) == 0:
        record.to_json(out / "record.json")
        print(training.run_card(record))
        print(f"policy     {paths.show(out)}")
    training.end_ranks()
    return 0


def _train_settings(arguments: argparse.Namespace, fields: set[str]) -> dict[str, Any]:
    """Settings from the config file, then --set, then flags, which win.

    Raises KitError for a setting that is unknown (neither a flag nor one of `fields`) or missing.
    """
    settings: dict[str, Any] = {}
    if arguments.config:
        settings = records.read_json(Path(arguments.config))
    if not isinstance(settings, dict):
        raise KitError(f"{arguments.config}: expected one JSON object")
    settings |= assignments("--set", arguments.set)
    for name in FLAGS:
        if getattr(arguments, name) is not None:
            settings[name] = getattr(arguments, name)
    known = sorted(fields.union(FLAGS))
    for name in settings:
        if name not in known:
            raise KitError(f"train: setting '{name}' is unknown; choose among {', '.join(known)}")
    for name in REQUIRED:
        if name not in settings:
            raise KitError(f"train: --{name} is missing")
    return settings


def _free_folder(settings: dict[str, Any]) -> Path:
    """The setting `out`, unless it holds what the run needs or what is not a policy.

    Saving a policy replaces the folder.
    """
    out = Path(settings.pop("out"))
    for name in ("model", "data", "checkpoint", "reference_cache"):
        named = settings.get(name)
        if named and Path(named).resolve().is_relative_to(out.resolve()):
            raise KitError(
                f"--out {paths.show(out)}: it is replaced at the end and holds {name} {named}; "
                "name another folder"
            )
    is_policy = (out / "policy.json").exists()
    is_empty = out.is_dir() and not any(out.iterdir())
    if out.exists() and not is_policy and not is_empty:
        raise KitError(
            f"--out {paths.show(out)}: exists and is not a policy of this kit; name another folder"
        )
    return out
