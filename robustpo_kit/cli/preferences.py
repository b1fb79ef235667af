"""Commands on preference data: synthesise, score."""

import argparse
import json
import time
from pathlib import Path

from robustpo_kit import data, paths, records
from robustpo_kit.cli.parsing import (
    Commands,
    add_data,
    add_model,
    add_reading,
    add_seed,
    free_table,
    preferences_of,
    read_preferences,
    write_lines,
)
from robustpo_kit.errors import KitError

SCORERS = ("data", "model", "classifier", "reward", "dtype")  # what decides a file of scores


def add_synthesise(commands: Commands) -> None:
    parser = commands.add_parser(
        "synthesise", help="sample the synthetic replies of a task into data/synthetic/; resumable"
    )
    parser.add_argument(
        "--task",
        required=True,
        help=" | ".join([*data.TASKS, "FILE"]),
    )
    add_reading(parser)
    add_model(parser, "smollm2-135m-instruct")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument(
        "--rows", type=int, default=0, metavar="N", help="a seeded choice of N rows (default: all)"
    )
    parser.add_argument("--extra", action="store_true", help="a further reply, for contamination")
    parser.add_argument("--overwrite", action="store_true", help="replace replies that are there")
    parser.add_argument("--max-new-tokens", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=64, help="prompts a batch")
    add_seed(parser)
    parser.set_defaults(run=_synthesise)


def _synthesise(arguments: argparse.Namespace) -> int:
    from robustpo_kit import mixture, policies
    from robustpo_kit.policies import SamplingConfig

    rows = read_preferences(arguments.task, arguments.split, arguments.on_bad_row)
    if arguments.rows < 0 or not len(rows):
        raise KitError(f"--rows {arguments.rows}, of {len(rows)}: at least one row is expected")
    if arguments.rows:
        rows = rows.split({"rows": arguments.rows}, arguments.seed)["rows"][: arguments.rows]
        rows = rows.select(sorted(range(len(rows)), key=lambda row: len(rows[row].prompt)))
    template = data.template_of(arguments.task)
    policy = policies.load(arguments.model, template=template, dtype=arguments.dtype)
    name, samples, seed = rows.name, 2, arguments.seed
    if arguments.extra:
        name, samples, seed = (
            f"{rows.name}_extra",
            1,
            records.stream_seed(arguments.seed, "extra replies"),
        )
    config = SamplingConfig(
        max_new_tokens=arguments.max_new_tokens, batch_size=arguments.batch_size, samples=samples
    )
    out = mixture.store_path(name)
    if out.exists() and not arguments.overwrite:
        raise KitError(f"{paths.show(out)}: holds replies; --overwrite replaces them")
    origin = {"model": arguments.model, "dtype": arguments.dtype}
    mixture.synthesise(rows, policy, config, out, seed=seed, about=origin)
    print(f"{len(rows)} rows, {samples * len(rows)} replies -> {paths.show(out)}")
    return 0


def add_score(commands: Commands) -> None:
    parser = commands.add_parser(
        "score", help="score every response of a preference file: one JSON line a row"
    )
    add_data(parser, "preferences")
    add_model(parser, None, "adds logps (nats, summed) and lengths: ")
    parser.add_argument(
        "--classifier", metavar="DIR", help="adds c, the probability of the target source"
    )
    parser.add_argument(
        "--reward", metavar="MODEL", help="adds rewards, as `calibrate --reward` takes models"
    )
    parser.add_argument("--dtype", default="float32", help="of the model")
    parser.add_argument("--out", metavar="FILE.jsonl", help="default: standard output")
    parser.set_defaults(run=_score)


def _score(arguments: argparse.Namespace) -> int:
    if not (arguments.model or arguments.classifier or arguments.reward):
        raise KitError("score: name at least one of --model, --classifier, --reward")
    if arguments.out and Path(arguments.out).suffix == ".json":
        raise KitError(
            f"--out {arguments.out}: rows are JSON lines, and their provenance takes NAME.json; "
            "name it NAME.jsonl"
        )
    if arguments.out:
        free_table(arguments.out, data=arguments.data)
    started = time.time()
    rows = preferences_of(arguments)
    columns: dict[str, list[list[float]]] = {}
    if arguments.model:
        from robustpo_kit import policies, training

        template = data.template_of(arguments.data)
        policy = policies.load(arguments.model, template=template, dtype=arguments.dtype)
        logps, lengths = training.score(policy, rows)
        columns |= {"logps": logps.tolist(), "lengths": lengths.tolist()}
    if arguments.classifier:
        from robustpo_kit.calibration import SourceClassifier

        columns["c"] = SourceClassifier.load(arguments.classifier).score_set(rows).tolist()
    if arguments.reward:
        from robustpo_kit import rewards

        columns["rewards"] = rewards.load(arguments.reward).score_set(rows).tolist()
    lines = []
    for position, row in enumerate(rows):
        count = len(row.responses)  # a model's columns are padded to the longest row
        values = {name: column[position][:count] for name, column in columns.items()}
        lines.append(json.dumps({"row_id": row.row_id} | values, ensure_ascii=False))
    write_lines(lines, arguments.out)
    if arguments.out:
        config = {name: getattr(arguments, name) for name in SCORERS} | {"dropped": rows.dropped}
        origin = records.provenance(config, 0, started)
        records.write_origin(Path(arguments.out), origin)
    return 0
