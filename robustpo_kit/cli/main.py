"""The command `robustpo`: a thin door to the package.

What fails for the user's reasons is one line on standard error, and exit code 2.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from robustpo_kit import __version__
from robustpo_kit.cli.audit import add_audit
from robustpo_kit.cli.benchmarks import add_answer_benchmark, add_score_benchmark
from robustpo_kit.cli.calibration import add_calibrate
from robustpo_kit.cli.comparison import add_compare
from robustpo_kit.cli.judging import add_judge
from robustpo_kit.cli.machine import add_bench, add_doctor
from robustpo_kit.cli.notebooks import add_notebooks, add_series
from robustpo_kit.cli.parsing import Parser
from robustpo_kit.cli.preferences import add_score, add_synthesise
from robustpo_kit.cli.studies import add_study
from robustpo_kit.cli.training import add_presets, add_train
from robustpo_kit.errors import KitError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; ROBUSTPO_DEBUG=1 shows the whole traceback of an error.

    Args:
        argv: The command and its arguments; without them, those of the process.

    Returns:
        The exit code: 0; 1 where the command says so; 2 for an error of use; 130 on Ctrl-C.
    """
    arguments = _parser().parse_args(argv)
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
    except OSError as error:
        if os.environ.get("ROBUSTPO_DEBUG") or error.filename is None:
            raise
        print(f"robustpo: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="robustpo",
        description="Robust preference optimization of language models.",
        epilog="ROBUSTPO_PROGRESS=bar|log|off says how progress is shown (default: a bar on a "
        "terminal, else a line every 30 seconds); ROBUSTPO_DEBUG=1 shows an error's traceback.",
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
        add_audit,
        add_train,
        add_presets,
        add_calibrate,
        add_compare,
        add_score,
        add_judge,
        add_answer_benchmark,
        add_score_benchmark,
        add_study,
        add_bench,
    ):
        add(commands)
    return parser
