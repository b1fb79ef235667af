"""The command that runs a declared study."""

import argparse
import os
import sys

from robustpo_kit.cli.parsing import Commands


def add_study(commands: Commands) -> None:
    parser = commands.add_parser(
        "study", help="run the study data/studies/NAME.json; what has finished is kept"
    )
    parser.add_argument("name", metavar="NAME")
    parser.add_argument(
        "--limit", type=int, metavar="N", help="stop after so many runs (default: all)"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one a core)")
    parser.add_argument(
        "--tune", action="store_true", help="first: tune its methods on worlds of their own"
    )
    parser.add_argument(
        "--source",
        default="",
        metavar="FILE",
        help="of a study on real preferences: a local file instead of the task's data set",
    )
    parser.set_defaults(run=_study)


def _study(arguments: argparse.Namespace) -> int:
    from robustpo_kit import experiments, paths

    if not sys.stderr.isatty():
        os.environ.setdefault("ROBUSTPO_PROGRESS", "log")
    left = experiments.run_study(
        arguments.name,
        limit=arguments.limit,
        workers=arguments.workers,
        tune=arguments.tune,
        source=arguments.source,
    )
    if left:
        print(f"{left} runs left: the same command goes on")
        return 0
    print(f"-> {paths.show(paths.RESULTS / 'studies' / arguments.name)}")
    return 0
