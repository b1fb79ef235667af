"""The command that trains a policy."""

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustpo_kit import data, paths, published, records
from robustpo_kit.cli.asked import Asked
from robustpo_kit.cli.dry_run import dry_run, missing_data
from robustpo_kit.cli.parsing import (
    Commands,
    add_assignments,
    add_data,
    add_model,
    assignments,
    free_folder,
    is_first_rank,
)
from robustpo_kit.errors import KitError

if TYPE_CHECKING:
    import pandas as pd

REQUIRED = ("data", "objective", "model", "out")
NEEDED = ("model", "data", "heldout", "checkpoint", "reference_cache")  # outside of --out
WRITES = (  # a policy, its tokenizer, and the run
    "README.md", "policy.json", "record.json", "heldout.csv", "heldout.json",
    "*.safetensors", "*.safetensors.index.json", "*config.json",
    "tokenizer*", "*.model", "vocab.*", "merges.txt", "*_tokens*.json", "*chat_template*",
)  # fmt: skip
FLAGS = (*REQUIRED, "heldout", "split", "on_bad_row", "seed", "dtype", "lora", "rank")


def add_train(commands: Commands) -> None:
    parser = commands.add_parser(
        "train", help="train a policy on a preference file; also under `accelerate launch -m`"
    )
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help="a published run, see `robustpo presets`; whatever else is given wins over it",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="train nothing: say parameters, memory, time, what would be fetched, what fits",
    )
    parser.add_argument(
        "--config", metavar="FILE.json", help="any of these settings by name; flags win over it"
    )
    add_data(parser, "preferences", required=False)
    parser.add_argument(
        "--objective",
        metavar="SPEC",
        help='e.g. "dpo(beta=0.1)" or "dora(dpo_pl, beta=0.1, lam=1.0)"',
    )
    parser.add_argument(
        "--heldout",
        metavar="FILE|SHARE|N",
        help="for `robustpo compare`: preferences to other prompts; or how many rows of --data to "
        "set aside (0.1, 100), whole prompts, drawn by a seed of their own (0, whatever --seed), "
        "so that all runs of a file hold out the same rows",
    )
    add_model(parser, None)
    parser.add_argument("--out", metavar="DIR", help="where the policy and record.json go")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--dtype", help="float32 | bfloat16")
    parser.add_argument("--lora", help="attention | all-linear | none")
    parser.add_argument("--rank", type=int, help="of the LoRA adapter")
    add_assignments(parser, "--set", "a field of TrainConfig, as JSON; they stand below")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a policy that was trained otherwise"
    )
    parser.below = _fields
    parser.set_defaults(run=_train)


def _fields() -> str:
    from robustpo_kit import training

    return f"\nfields of TrainConfig, and what they are unless set:\n{training.fields_in_words()}"


def _train(arguments: argparse.Namespace) -> int:
    from robustpo_kit import policies, training

    settings = _train_settings(arguments)
    if arguments.dry_run:
        print(dry_run(_asked(settings, arguments.preset)))
        return 0
    out = _out(settings)
    asked = _asked(settings, arguments.preset)
    if not arguments.overwrite:
        _refuse_other_run(out, asked)
    _refuse_plain_data(asked)
    rows, heldout = asked.rows()
    template = data.template_of(asked.data)
    # what was named is the reference
    policy = policies.load(asked.model, template=template, dtype=asked.dtype).merge()
    if asked.lora != "none":
        policy.add_lora(asked.lora, asked.rank, seed=asked.run.seed)
    before = None if heldout is None else training.score(policy, heldout, asked.run)
    record = training.train(policy, rows, asked.objective, asked.run)
    record.config |= asked.described()
    scored = None
    if heldout is not None and before is not None:
        after = training.score(policy, heldout, asked.run)
        scored = training.heldout_outcomes(heldout, before, after)
    policy.save(out)
    if is_first_rank():
        if scored is not None:
            records.write_table(out / "heldout.csv", scored, {"config": record.config})
            print(_in_words(scored))
        record.to_json(out / "record.json")
        _add_to_card(out, asked, training.run_card(record))
        print(training.run_card(record))
        print(f"policy     {paths.show(out)}")
    training.end_ranks()
    return 0


def _add_to_card(out: Path, asked: Asked, run: str) -> None:
    """Say in the policy's card what it was trained on, and how."""
    told = f"\nTrained by `robustpo train` on `{asked.data}`; record.json has every setting.\n\n"
    lines = "".join(f"    {line}\n" for line in run.splitlines())
    card = out / "README.md"
    records.write_text(card, card.read_text(encoding="utf-8") + told + lines)


def _refuse_other_run(out: Path, asked: Asked) -> None:
    """Raises KitError where a policy lies in `out` that was trained otherwise."""
    from robustpo_kit import training

    if not (out / "policy.json").exists():
        return
    found = ["a policy without a record"]
    if (out / "record.json").exists():
        record = records.RunRecord.from_json(out / "record.json")
        before = {"objective": record.objective, **record.config}
        now = {
            "objective": asked.objective.spec,
            **dataclasses.asdict(asked.run),
            **asked.described(),
        }
        found = training.differences({name: before.get(name) for name in now}, now)
    if found:
        raise KitError(
            f"--out {paths.show(out)}: holds another run ({training.in_words(found)}); name "
            "another folder, or replace it by --overwrite"
        )


def _in_words(scored: "pd.DataFrame") -> str:
    """Means of held-out outcomes in a line."""
    means = scored.groupby("outcome", sort=False)["value"].mean()
    rows = scored["row_id"].nunique()
    return f"held out   {rows} rows; " + ", ".join(f"{k} {v:.3f}" for k, v in means.items())


def _train_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Settings from the preset, the config file, then --set, then flags, which win.

    Raises KitError for a setting that is unknown (neither a flag nor one of TrainConfig's) or
    missing.
    """
    from robustpo_kit.training import TrainConfig

    settings: dict[str, Any] = {}
    if arguments.config:
        settings = records.read_json(Path(arguments.config))
    if not isinstance(settings, dict):
        raise KitError(f"{arguments.config}: expected one JSON object")
    settings |= assignments("--set", arguments.set)
    if isinstance(settings.get("heldout"), int | float):
        settings["heldout"] = str(settings["heldout"])
    for name in FLAGS:
        if getattr(arguments, name) is not None:
            settings[name] = getattr(arguments, name)
    known = sorted({field.name for field in dataclasses.fields(TrainConfig)}.union(FLAGS))
    for name in settings:
        if name not in known:
            raise KitError(f"train: setting '{name}' is unknown; choose among {', '.join(known)}")
    if arguments.preset:
        settings = _over_preset(arguments.preset, settings)
    for name in REQUIRED:
        if name not in settings and not (name == "out" and arguments.dry_run):
            raise KitError(f"train: --{name} is missing")
    return settings


def _over_preset(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """The settings of a preset with `given` in their place; prints what is replaced or left open.

    What no paper states is as in profile `paper`: bfloat16, LoRA in all linear layers. Raises
    KitError for an unknown preset.
    """
    row = published.preset(name)
    settings: dict[str, Any] = {"model": row.model, "data": row.task, "objective": row.spec}
    settings |= {"dtype": "bfloat16", "lora": "all-linear" if row.lora else "none"}
    settings |= {"micro_batch_size": 1, **row.settings, **row.chosen}  # 1: of effect on memory only
    if is_first_rank():
        print(f"preset     {name} ({row.source}); not stated there: {', '.join(row.unstated)}")
        for key in sorted(settings.keys() & given.keys()):
            if settings[key] != given[key]:
                print(f"preset     {key} {given[key]} replaces {settings[key]}")
    return settings | given


def _asked(settings: dict[str, Any], preset: str | None) -> Asked:
    """Settings as a run; raises KitError for what no run takes."""
    from robustpo_kit import objectives, training

    run = dict(settings)
    run.pop("out", None)
    model, source = run.pop("model"), run.pop("data")
    reading = {name: run.pop(name, None) for name in ("split", "on_bad_row", "heldout")}
    dtype, lora = run.pop("dtype", "float32"), run.pop("lora", "attention")
    if lora == "none" and "rank" in run:
        raise KitError(f"--rank {run['rank']}: there is no adapter under --lora none")
    rank, spec = run.pop("rank", 16), run.pop("objective")
    if type(rank) is not int or rank < 1:
        raise KitError(f"rank: {rank!r} should be a whole number of at least 1")
    try:
        config = training.TrainConfig(**run)
    except TypeError as error:
        raise KitError(f"train: {error}") from None
    objective = objectives.build(spec, seed=config.seed)
    return Asked(model, source, preset, dtype, lora, rank, config, objective, **reading)


def _refuse_plain_data(asked: Asked) -> None:
    """Raises KitError, before anything is fetched, where a preset takes more than a task has."""
    if missing := missing_data(asked):
        raise KitError(f"preset '{asked.preset}': its data are {missing}")


def add_presets(commands: Commands) -> None:
    parser = commands.add_parser("presets", help="published runs by name, for `train --preset`")
    parser.set_defaults(run=_presets)


def _presets(_: argparse.Namespace) -> int:
    width = max(map(len, published.PRESETS))
    for name, row in published.PRESETS.items():
        how = "LoRA" if row.lora else "full"
        rate = {**row.settings, **row.chosen}["learning_rate"]
        print(f"{name:<{width}}  {row.spec}  {how} {rate:g}  {row.source}")
    return 0


def _out(settings: dict[str, Any]) -> Path:
    """The setting `out`, if the run can be written there; saving a policy replaces the folder."""
    needed = {name: settings.get(name) for name in NEEDED}
    out = free_folder(settings.pop("out"), "policy.json", "policy of this kit", WRITES, **needed)
    for name, folder in (("out", out), ("checkpoint", settings.get("checkpoint"))):
        if folder:
            _check_room(name, Path(folder).absolute().parent)
    return out


def _check_room(name: str, folder: Path) -> None:
    """Make the folder that will hold another; raises KitError where nothing can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise KitError(
            f"{name}: nothing can be written in {paths.show(folder)} ({error.strerror}); name "
            "another folder"
        ) from None
