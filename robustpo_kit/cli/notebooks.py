"""Commands on the numbered notebooks."""

import argparse

from robustpo_kit import paths
from robustpo_kit.cli.parsing import (
    Commands,
    add_assignments,
    add_seed,
    assignments,
    comma_list,
    notebook_numbers,
)
from robustpo_kit.errors import KitError


def add_series(commands: Commands) -> None:
    parser = commands.add_parser("series", help="run the numbered notebooks headless")
    profiles = "smoke | demo | cpu | gpu | paper (default: cpu)"
    parser.add_argument("--profile", default="cpu", help=profiles)
    add_seed(parser)
    parser.add_argument(
        "--only",
        default="",
        metavar="04,05",
        help="these notebooks alone; what they need must have run",
    )
    parser.add_argument(
        "--resume", action="store_true", help="keep notebooks that are finished and unchanged"
    )
    add_assignments(parser, "--set", "a setting of the profile, as JSON")
    add_assignments(parser, "-P", "a further notebook parameter, as JSON")
    parser.add_argument(
        "--time-limit",
        type=float,
        default=3600.0,
        metavar="SECONDS",
        help="a notebook (default: 3600)",
    )
    slots = parser.add_mutually_exclusive_group()
    slots.add_argument(
        "--gpus", default="", metavar="0,1", help="run as many notebooks at once, one a GPU"
    )
    slots.add_argument(
        "--workers", type=int, default=1, metavar="N", help="notebooks at once (default: 1)"
    )
    published = "run nothing: copy the last run's results to be committed"
    parser.add_argument("--publish", action="store_true", help=published)
    parser.set_defaults(run=_series)


def _series(arguments: argparse.Namespace) -> int:
    from robustpo_kit import series

    if arguments.publish:
        run = paths.run_name(arguments.seed, assignments("--set", arguments.set))
        print("\n".join(series.report.publish(arguments.profile, run)))
        return 0
    if arguments.workers < 1 or arguments.time_limit <= 0:
        raise KitError("--workers and --time-limit should be greater than 0")
    results = series.runner.run(
        series.plan.Plan(
            profile=arguments.profile,
            seed=arguments.seed,
            overrides=assignments("--set", arguments.set),
            parameters=assignments("-P", arguments.P),
            only=notebook_numbers(arguments.only),
            resume=arguments.resume,
            time_limit=arguments.time_limit,
            slots=tuple(comma_list(arguments.gpus)) or (None,) * arguments.workers,
        )
    )
    return int(any(result.status != "ok" for result in results))


def add_notebooks(commands: Commands) -> None:
    parser = commands.add_parser(
        "notebooks", help="execute the text notebooks that changed into notebooks/*.ipynb"
    )
    parser.add_argument("--only", default="", metavar="04,05")
    parser.add_argument("--all", action="store_true", help="execute unchanged ones too")
    parser.set_defaults(run=_notebooks)


def _notebooks(arguments: argparse.Namespace) -> int:
    from robustpo_kit import series

    numbers = list(notebook_numbers(arguments.only))
    executed = series.refresh.refresh(only=numbers or None, everything=arguments.all)
    print(f"{len(executed)} executed" if executed else "nothing changed")
    return 0
