"""Commands on benchmarks: answer-benchmark, score-benchmark."""

import argparse
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustpo_kit import records
from robustpo_kit.cli.parsing import (
    Commands,
    add_assignments,
    add_model,
    add_seed,
    assignments,
    comma_list,
    free_table,
)
from robustpo_kit.errors import KitError

if TYPE_CHECKING:
    import pandas as pd

NAMES = ("alpacaeval", "arena-hard", "mt-bench")  # benchmarks.BENCHMARKS, unimported
DECODING = ("temperature", "top_k", "top_p", "max_new_tokens")


def add_answer_benchmark(commands: Commands) -> None:
    parser = commands.add_parser(
        "answer-benchmark", help="answer a benchmark's questions, in the format that it takes"
    )
    parser.add_argument("benchmark", choices=NAMES)
    parser.add_argument(
        "--questions", required=True, metavar="FILE", help="the benchmark's own, as JSON(L)"
    )
    add_model(parser, None, "answers: ")
    parser.add_argument("--name", help="of the model in the answers (default: --model)")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument(
        "--decoding",
        default="dora",
        metavar="PAPER",
        help="of dora, gamma/llama-3-8b-instruct or gamma/mistral-7b-instruct (default: dora)",
    )
    add_assignments(parser, "--set", f"a setting of decoding: {', '.join(DECODING)}")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N questions")
    parser.add_argument("--batch-size", type=int, default=16, help="questions at once")
    add_seed(parser)
    parser.add_argument(
        "--out", required=True, metavar="FILE", help="its provenance is FILE.origin.json"
    )
    parser.set_defaults(run=_answer_benchmark)


def _answer_benchmark(arguments: argparse.Namespace) -> int:
    from robustpo_kit import benchmarks, policies

    started, name = time.time(), arguments.benchmark
    asked = benchmarks.questions(name, Path(arguments.questions))
    asked = asked[: None if arguments.limit is None else max(0, arguments.limit)]
    given = assignments("--set", arguments.set)
    if unknown := set(given) - set(DECODING):
        raise KitError(f"--set {min(unknown)}: unknown; choose among {', '.join(DECODING)}")
    settings = benchmarks.decoding(name, arguments.decoding) | given
    if not asked or not arguments.model:
        raise KitError(f"--limit {arguments.limit}, --model {arguments.model}: nothing to answer")
    out = Path(arguments.out)
    if out.suffix != benchmarks.BENCHMARKS[name].ending:
        raise KitError(f"--out {out.name}: {name} takes a {benchmarks.BENCHMARKS[name].ending}")
    beside = out.with_name(f"{out.name}.origin.json")
    free_table(arguments.out, str(beside), questions=arguments.questions)
    model = arguments.name or arguments.model
    kept = out.with_name(f"{out.name}.part")  # of a command that was stopped; the same one goes on
    answers = benchmarks.answer(
        name,
        asked,
        policies.load(arguments.model, dtype=arguments.dtype),
        settings,
        model=model,
        seed=arguments.seed,
        batch_size=arguments.batch_size,
        kept=kept,
    )
    benchmarks.write_rows(out, answers)
    config = {"benchmark": name, "model": arguments.model, "dtype": arguments.dtype}
    config |= {"decoding": arguments.decoding, "settings": settings}
    config |= {"questions": records.file_digest(Path(arguments.questions))}
    origin = records.provenance(config, arguments.seed, started)
    records.write_origin(out, origin, beside)
    shutil.rmtree(kept)
    print(f"{len(answers)} answers of {model} -> {arguments.out}")
    return 0


def add_score_benchmark(commands: Commands) -> None:
    parser = commands.add_parser(
        "score-benchmark", help="score stored judgments of a benchmark, offline"
    )
    parser.add_argument("benchmark", choices=NAMES)
    parser.add_argument(
        "--judgments", metavar="FILE", help="annotations.json, or JSON lines, or a folder of them"
    )
    parser.add_argument(
        "--repo",
        metavar="DIR",
        help="alpacaeval: a clone of alpaca_eval, scored beside what its leaderboard prints",
    )
    parser.add_argument(
        "--models", type=comma_list, default=[], help="with --repo: these (default: all)"
    )
    parser.add_argument(
        "--gamed",
        metavar="FILE",
        help="alpacaeval: df_gamed.csv (default: from the Hub or its cache); none: without it, for "
        "instructions of your own",
    )
    parser.add_argument("--questions", metavar="FILE", help="mt-bench: adds means by category")
    add_seed(parser, "of the bootstrap (default: 0)")
    parser.add_argument(
        "--out", metavar="FILE.csv", help="the table, with its provenance beside it as JSON"
    )
    parser.set_defaults(run=_score_benchmark)


def _score_benchmark(arguments: argparse.Namespace) -> int:
    started, name = time.time(), arguments.benchmark
    if bool(arguments.judgments) == bool(arguments.repo) or (arguments.repo and name != NAMES[0]):
        raise KitError("score-benchmark: name --judgments FILE, or --repo DIR for alpacaeval")
    if arguments.out:
        free_table(arguments.out, judgments=arguments.judgments)
    table = _alpacaeval(arguments) if name == NAMES[0] else _chats(arguments)
    print(table.round(2).to_string(index=False))
    if arguments.out:
        config = {"benchmark": name, "models": arguments.models}
        config |= {key: getattr(arguments, key) for key in ("judgments", "repo", "gamed")}
        origin = records.provenance(config, arguments.seed, started)
        records.write_table(Path(arguments.out), table, origin)
    return 0


def _alpacaeval(arguments: argparse.Namespace) -> "pd.DataFrame":
    from robustpo_kit import benchmarks

    gamed = None
    if arguments.gamed != "none":
        gamed = benchmarks.read_gamed(Path(arguments.gamed) if arguments.gamed else None)
    if arguments.repo:
        if gamed is None:
            raise KitError("--gamed none: the leaderboard's numbers need df_gamed.csv")
        return benchmarks.reproduced(Path(arguments.repo), gamed, arguments.models)
    rows = benchmarks.judgments(arguments.benchmark, Path(arguments.judgments))
    asked = 0 if gamed is None else gamed["index"].nunique()
    if gamed is not None and len(rows) != asked:
        raise KitError(
            f"--judgments: {len(rows)} of {asked} instructions; their difficulties are told by "
            "their order: give all of them, or --gamed none"
        )
    return benchmarks.alpacaeval(rows, gamed)


def _chats(arguments: argparse.Namespace) -> "pd.DataFrame":
    """Arena-Hard or MT-Bench."""
    from robustpo_kit import benchmarks

    rows = benchmarks.judgments(arguments.benchmark, Path(arguments.judgments))
    if arguments.benchmark == "arena-hard":
        return benchmarks.arena_hard(rows, seed=arguments.seed)
    categories: dict[Any, str] = {}
    if arguments.questions:
        for question in benchmarks.questions("mt-bench", Path(arguments.questions)):
            categories[question.row["question_id"]] = question.row["category"]
    return benchmarks.mt_bench(rows, categories, seed=arguments.seed)
