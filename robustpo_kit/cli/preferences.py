"""Commands on preference data: synthesise, score, judge."""

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from robustpo_kit import data, paths, records
from robustpo_kit.cli.endpoints import add_endpoint, endpoint_judge
from robustpo_kit.cli.parsing import (
    Commands,
    add_data,
    add_model,
    add_reading,
    add_seed,
    preferences_of,
    read_preferences,
    write_lines,
)
from robustpo_kit.errors import KitError

if TYPE_CHECKING:  # commands import what they need when they run: `robustpo --help` stays quick
    from robustpo_kit.data import PreferenceSet
    from robustpo_kit.judging import EndpointJudge, RewardJudge

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
    started = time.time()
    rows = preferences_of(arguments)
    columns: dict[str, list[list[float]]] = {}
    if arguments.model:
        from robustpo_kit import policies, training

        logps, lengths = training.score(policies.load(arguments.model, dtype=arguments.dtype), rows)
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
        records.write_json(Path(arguments.out).with_suffix(".json"), origin)
    return 0


def add_judge(commands: Commands) -> None:
    parser = commands.add_parser(
        "judge", help="win, tie and lose of each source's replies against those of one column"
    )
    add_data(parser, "responses with sources (who wrote each)")
    parser.add_argument("--judge", metavar="DIR", help="a reward model trained on other rows")
    parser.add_argument(
        "--against", type=int, default=0, metavar="COLUMN", help="the replies to beat (default: 0)"
    )
    taken = "take a judge that fails its audit on these rows; the table is marked"
    parser.add_argument("--unaudited", action="store_true", help=taken)
    parser.add_argument(
        "--control",
        action="append",
        default=[],
        metavar="CONTROL=SOURCE",
        help="a control of the audit that a column holds, as 'untrained model=smollm2'; repeatable",
    )
    parser.add_argument(
        "--tie-band",
        type=float,
        default=0.05,
        help="of a reward model: |preference - 1/2| within it is a tie",
    )
    add_seed(parser, "of the order in which the judge sees two replies (default: 0)")
    parser.add_argument(
        "--out", metavar="FILE.csv", help="the table, with its provenance beside it as JSON"
    )
    add_endpoint(parser)
    parser.set_defaults(run=_judge)


def _judge(arguments: argparse.Namespace) -> int:
    from robustpo_kit import judging

    started = time.time()
    rows = preferences_of(arguments)
    names = _common_sources(rows, arguments.data)
    if not 0 <= arguments.against < len(names) or len(set(names)) < len(names):
        raise KitError(
            f"judge: --against {arguments.against} should name one of the columns of {names}, "
            "all different"
        )
    judge = _judge_of(arguments)
    replies = {}
    for column, name in enumerate(names):
        replies[name] = [row.responses[column] for row in rows]
    baseline = replies.pop(names[arguments.against])
    given = _controls(arguments.control, replies)
    verdicts = judging.compare(
        judge,
        [row.prompt for row in rows],
        replies,
        baseline,
        seed=arguments.seed,
        prompt_ids=[row.group for row in rows],
        row_ids=[row.row_id for row in rows],
    )
    audit = None
    if not arguments.unaudited:
        claimed = rows.map(lambda row: dataclasses.replace(row, golden=arguments.against))
        audit = judging.audit(judge, claimed, given=given, seed=arguments.seed)
    counts: dict[str, int] = getattr(judge, "counts", {})
    if counts:  # before the table, which an audit may refuse
        print(", ".join(f"{name} {count}" for name, count in counts.items()))
    table = judging.win_table(verdicts, audit, unaudited=arguments.unaudited, seed=arguments.seed)
    shown = table[["policy", "prompts", "win", "tie", "lose", "score", "audited"]]
    print(shown.round(3).to_string(index=False))
    if untested := table["untested"].iloc[0]:
        print(f"not tested of the judge, for want of their replies (--control): {untested}")
    if arguments.out:
        against = names[arguments.against]
        controls = None if audit is None else audit.to_dict("records")
        config = {"data": arguments.data, "judge": judge.name, "against": against}
        config |= {"fingerprint": judge.fingerprint, "counts": counts}
        config |= {"judge_files": arguments.judge or arguments.endpoint}
        config |= {
            "dropped": rows.dropped,
            "controls": dict(option.split("=", 1) for option in arguments.control),
        }
        origin = records.provenance(config | {"audit": controls}, arguments.seed, started)
        records.write_table(Path(arguments.out), table, origin)
    return 0


def _judge_of(arguments: argparse.Namespace) -> "RewardJudge | EndpointJudge":
    """The judge that --judge or --endpoint names; raises KitError for neither or both."""
    from robustpo_kit.judging import RewardJudge
    from robustpo_kit.rewards import RewardModel

    if bool(arguments.judge) == bool(arguments.endpoint):
        raise KitError("judge: name one judge, --judge DIR or --endpoint URL")
    if arguments.endpoint:
        return endpoint_judge(arguments)
    return RewardJudge(RewardModel.load(arguments.judge), tie_band=arguments.tie_band)


def _controls(options: Sequence[str], replies: dict[str, list[str]]) -> dict[str, list[str]]:
    """Replies by control of the audit, of options CONTROL=SOURCE; raises KitError naming one."""
    from robustpo_kit.judging import GIVEN

    given = {}
    for option in options:
        control, _, source = option.partition("=")
        if control not in GIVEN or source not in replies:
            raise KitError(
                f"judge: --control '{option}'; CONTROL=SOURCE is expected, one of "
                f"{', '.join(GIVEN)}, and one of {', '.join(replies)}"
            )
        given[control] = replies[source]
    return given


def _common_sources(rows: "PreferenceSet", file: str) -> tuple[str, ...]:
    """Who wrote the columns of `rows`; raises KitError naming a row where others did."""
    names = rows[0].sources
    for row in rows:
        if row.sources != names:
            raise KitError(
                f"{file}, row {row.row_id}: sources {row.sources}, not {names} as in the first row"
            )
    return names
