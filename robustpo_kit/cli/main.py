"""The command `robustpo`: a thin door to the package; what fails for the user's reasons is one line and exit code 2."""

import argparse
import os
import sys
from collections.abc import Sequence

from robustpo_kit import __version__
from robustpo_kit.cli.machine import add_bench, add_doctor
from robustpo_kit.cli.notebooks import add_notebooks, add_series
from robustpo_kit.cli.parsing import Parser
from robustpo_kit.cli.preferences import add_judge, add_score, add_synthesise
from robustpo_kit.cli.training import add_train
from robustpo_kit.errors import KitError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. ROBUSTPO_DEBUG=1 shows the whole traceback of an error."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        return arguments.run(arguments)
    except (KitError, ValueError) as error:
        if os.environ.get("ROBUSTPO_DEBUG"):
            raise
        print(f"robustpo: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("robustpo: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `robustpo ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="robustpo", description="Robust preference optimization of language models."
    )
    parser.add_argument("--version", action="version", version=f"robustpo-kit {__version__}")
    commands = parser.add_subparsers(
        dest="command", required=True, parser_class=Parser, metavar="COMMAND"
    )
    for add in (
        add_series,
        add_doctor,
        add_notebooks,
        add_synthesise,
        add_train,
        add_score,
        add_judge,
        add_bench,
    ):
        add(commands)
    return parser
