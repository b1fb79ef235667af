"""The arguments that name a language model behind an endpoint as judge."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from robustpo_kit.cli.parsing import add_assignments, assignments
from robustpo_kit.errors import KitError

if TYPE_CHECKING:
    from robustpo_kit.judging import EndpointJudge

FORMS = ("dialogue", "summary", "dialogue-single", "summary-single")  # judging.FORMS, unimported


def add_endpoint(parser: argparse.ArgumentParser) -> None:
    """The flags of a judge that is asked over HTTP."""
    group = parser.add_argument_group(
        "a language model as judge", "by DoRA's App. C.4, over any OpenAI-compatible endpoint"
    )
    group.add_argument("--endpoint", metavar="URL", help="as http://localhost:8000/v1")
    group.add_argument("--judge-model", metavar="NAME", help="as the endpoint calls it")
    group.add_argument(
        "--form", choices=FORMS, default="dialogue", help="the question (default: dialogue)"
    )
    group.add_argument(
        "--one-order",
        action="store_true",
        help="ask in one order, drawn at random, as the paper does; else in both",
    )
    group.add_argument(
        "--key-variable",
        default="OPENAI_API_KEY",
        metavar="NAME",
        help="of the environment, that holds the key (default: OPENAI_API_KEY)",
    )
    group.add_argument("--workers", type=int, default=8, help="calls at once (default: 8)")
    group.add_argument(
        "--max-calls", type=int, metavar="N", help="ask nothing where more would be made"
    )
    group.add_argument(
        "--max-tokens", type=int, metavar="N", help="read and written; stop before the next call"
    )
    about = "of each request: temperature=0 and max_tokens=256 unless set, null leaves it out"
    add_assignments(group, "--request", about)
    group.add_argument(
        "--cache", type=Path, metavar="DIR", help="of answers (default: in the kit's cache)"
    )


def endpoint_judge(arguments: argparse.Namespace) -> "EndpointJudge":
    """The judge that the flags describe; raises KitError where one is missing."""
    from robustpo_kit.judging import REQUEST, Endpoint, EndpointJudge

    if not arguments.judge_model:
        raise KitError("judge: --judge-model is missing; the endpoint's name of its model")
    cache = {"cache": arguments.cache} if arguments.cache else {}
    endpoint = Endpoint(
        arguments.endpoint,
        arguments.judge_model,
        REQUEST | assignments("--request", arguments.request),
        key_variable=arguments.key_variable,
        workers=arguments.workers,
        max_calls=arguments.max_calls,
        max_tokens=arguments.max_tokens,
        **cache,
    )
    return EndpointJudge(endpoint, arguments.form, both_orders=not arguments.one_order)
