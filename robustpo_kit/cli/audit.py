"""The command that looks at a preference file before anything is trained on it."""

import argparse
import dataclasses
import time
from typing import TYPE_CHECKING

from robustpo_kit import records
from robustpo_kit.cli.asked import Asked
from robustpo_kit.cli.dry_run import dry_run
from robustpo_kit.cli.parsing import (
    Commands,
    add_model,
    add_reading,
    add_seed,
    free_folder,
    read_preferences,
)
from robustpo_kit.errors import KitError

if TYPE_CHECKING:
    from robustpo_kit.auditing import Beside
    from robustpo_kit.data import PreferenceSet

RECORD = "audit.json"  # marks a folder as an audit's, which another one may replace
NONE = "none"
COSTED = "dpo(beta=0.1)"  # whose training is costed
WITHOUT = {
    "encoder": "Models see no embeddings",
    "model": "Tokens, strength and cost were not looked at",
}
FILES = ("file", "heldout", "trusted")
SETTINGS = (*FILES, "split", "on_bad_row", "model", "encoder", "rows")


def add_audit(commands: Commands) -> None:
    parser = commands.add_parser(
        "audit", help="what is wrong with a preference file, as a page and tables"
    )
    about = "preferences: JSON lines, JSON, CSV or Parquet, a `datasets` folder, a Hub id or a task"
    parser.add_argument("file", metavar="FILE", help=about)
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="where index.html and the tables go"
    )
    add_reading(parser)
    parser.add_argument(
        "--heldout", metavar="FILE", help="rows that training must not share a prompt with"
    )
    parser.add_argument(
        "--trusted",
        metavar="FILE",
        help="rows whose labels, and sources where they have them, are right: pairs of the file "
        "itself that were drawn by lot and checked, or others",
    )
    add_model(parser, "smollm2-135m-instruct", "whose tokens, strength and cost are told: ")
    parser.add_argument(
        "--encoder", default="minilm-l6", help="of texts, or none (default: minilm-l6)"
    )
    parser.add_argument(
        "--rows", type=int, default=2000, metavar="N", help="that models look at (default: 2000)"
    )
    add_seed(parser)
    parser.set_defaults(run=_audit)


def _audit(arguments: argparse.Namespace) -> int:
    from robustpo_kit import auditing

    started = time.time()
    files = {name: getattr(arguments, name) for name in FILES}
    writes = (RECORD, "index.html", *(f"{name}.csv" for name in auditing.TABLES))
    out = free_folder(arguments.out, RECORD, "audit", writes, **files)
    if arguments.rows < 1:
        raise KitError(f"--rows {arguments.rows}: at least one row is expected")
    rows, *others = (_read(arguments, name) for name in FILES)
    assert rows is not None
    beside, skipped = _beside(arguments, *others)
    found = auditing.audit(rows, beside, limit=arguments.rows, seed=arguments.seed)
    found.notes += skipped
    trainable = beside.policy is not None and not found.facts.unranked
    cost = _cost(arguments, rows) if trainable else ""
    config = {name: getattr(arguments, name) for name in SETTINGS} | {"dropped": rows.dropped}
    origin = records.provenance(config, arguments.seed, started)
    with records.atomic_folder(out) as folder:
        records.write_text(folder / "index.html", auditing.page(found, cost, arguments.file))
        for name, table in found.tables.items():
            table.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")
        records.write_json(folder / RECORD, origin | {"notes": found.notes})
    print(auditing.lead(found.facts))
    for line in found.advice():
        print(f"- {line.advice} [{line.grade}]")
    print(f"-> {out / 'index.html'}")
    return 0


def _read(arguments: argparse.Namespace, name: str) -> "PreferenceSet | None":
    source = getattr(arguments, name)
    if source is None:
        return None
    split = arguments.split if name == "file" else None
    return read_preferences(source, split, arguments.on_bad_row)


def _beside(
    arguments: argparse.Namespace,
    heldout: "PreferenceSet | None",
    trusted: "PreferenceSet | None",
) -> tuple["Beside", list[str]]:
    """What there is beside the file, and what was skipped, as neither is fetched."""
    from robustpo_kit import auditing, encoders, policies

    found = auditing.Beside(heldout, trusted)
    skipped: list[str] = []
    if _is_here("encoder", arguments.encoder, skipped):
        found = dataclasses.replace(found, encoder=encoders.load(arguments.encoder))
    if _is_here("model", arguments.model, skipped):
        policy = policies.load(arguments.model, dtype="bfloat16")
        found = dataclasses.replace(found, policy=policy)
    return found, skipped


def _is_here(flag: str, name: str, skipped: list[str]) -> bool:
    """Whether a model is to be taken; says in `skipped` why not."""
    from robustpo_kit import assets

    if name == "tiny" or (name != NONE and assets.local(name) is not None):
        return True
    why = "not asked for" if name == NONE else "not on this machine: `robustpo doctor --fetch`"
    skipped.append(f"{WITHOUT[flag]} (--{flag} {name}: {why}).")
    return False


def _cost(arguments: argparse.Namespace, rows: "PreferenceSet") -> str:
    """What training on the file would take: the report of `train --dry-run`."""
    from robustpo_kit import objectives, training

    run = training.TrainConfig(micro_batch_size=1)
    asked = Asked(
        arguments.model,
        arguments.file,
        None,
        "bfloat16",
        "attention",
        16,
        run,
        objectives.build(COSTED),
        arguments.split,
        arguments.on_bad_row,
    )
    return f"one epoch of {COSTED}, LoRA in attention, bfloat16\n{dry_run(asked, rows)}"
