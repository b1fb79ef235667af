"""The command that trains a policy."""

import argparse
import dataclasses
import os
from pathlib import Path
from typing import Any

from robustpo_kit import paths, records
from robustpo_kit.cli.parsing import assignments
from robustpo_kit.errors import KitError


def add_train(commands: Any) -> None:
    p = commands.add_parser(
        "train", help="train a policy on a preference file; also under `accelerate launch -m`"
    )
    p.add_argument(
        "--config", metavar="FILE.json", help="any of these settings by name; flags win over it"
    )
    p.add_argument(
        "--data",
        metavar="FILE.jsonl",
        help="preferences: prompt and responses, or chosen and rejected",
    )
    p.add_argument(
        "--objective",
        metavar="SPEC",
        help='e.g. "dpo(beta=0.1)" or "dora(dpo_pl, beta=0.1, lam=1.0)"',
    )
    p.add_argument("--model", help="asset, Hub id, local folder, or tiny")
    p.add_argument("--out", metavar="DIR", help="where the policy and record.json go")
    p.add_argument("--seed", type=int)
    p.add_argument("--dtype", help="float32 | bfloat16")
    p.add_argument("--lora", help="attention | all-linear | none")
    p.add_argument("--rank", type=int, help="of the LoRA adapter")
    p.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a field of TrainConfig, as JSON",
    )
    p.set_defaults(run=_train)


def _train(arguments: argparse.Namespace) -> int:
    from robustpo_kit import objectives, policies, training
    from robustpo_kit.data import PreferenceSet

    given = _train_settings(
        arguments, {field.name for field in dataclasses.fields(training.TrainConfig)}
    )
    out = _free_folder(Path(given.pop("out")))
    model, dtype = given.pop("model"), given.pop("dtype", "float32")
    lora, rank = given.pop("lora", "attention"), given.pop("rank", 16)
    rows, objective = (
        PreferenceSet.from_jsonl(given.pop("data")),
        objectives.build(given.pop("objective")),
    )
    try:
        config = training.TrainConfig(**given)
    except TypeError as error:
        raise KitError(f"train: {error}") from None
    policy = policies.load(model, dtype=dtype)
    if lora != "none" and not policy.has_adapter:
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
    """Settings from the config file, then --set, then flags; raises KitError for one that is unknown or missing."""
    flags = ("data", "objective", "model", "out", "seed", "dtype", "lora", "rank")
    given = records.read_json(Path(arguments.config)) if arguments.config else {}
    if not isinstance(given, dict):
        raise KitError(f"{arguments.config}: expected one JSON object")
    given |= assignments("--set", arguments.set)
    given |= {
        name: getattr(arguments, name) for name in flags if getattr(arguments, name) is not None
    }
    for name in given:
        if name not in fields | set(flags):
            raise KitError(
                f"train: setting '{name}' is unknown; choose among {', '.join(sorted(fields | set(flags)))}"
            )
    for name in ("data", "objective", "model", "out"):
        if name not in given:
            raise KitError(f"train: --{name} is missing")
    return given


def _free_folder(out: Path) -> Path:
    """`out`, unless it holds something that is not a policy: saving a policy replaces the folder."""
    if out.exists() and (
        not out.is_dir() or (any(out.iterdir()) and not (out / "policy.json").exists())
    ):
        raise KitError(
            f"--out {paths.show(out)}: exists and is not a policy of this kit; name another folder"
        )
    return out
