"""The command that sets replies against each other by a judge."""

import argparse
import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustpo_kit import records
from robustpo_kit.cli.endpoints import add_endpoint, endpoint_judge
from robustpo_kit.cli.parsing import Commands, add_data, add_seed, free_table, preferences_of
from robustpo_kit.errors import KitError

if TYPE_CHECKING:  # commands import what they need when they run: `robustpo --help` stays quick
    import pandas as pd

    from robustpo_kit.data import PreferenceSet
    from robustpo_kit.judging import EndpointJudge, Judge, RewardJudge

AUDIT = ".audit.csv"  # beside the table
AUDITED = 60  # rows that an endpoint's audit asks about, some 46 calls each


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
    parser.add_argument(
        "--audit-rows",
        type=int,
        metavar="N",
        help=f"that the judge's audit asks about (default: {AUDITED} of an endpoint, else all)",
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
    for place in _places(arguments):
        free_table(str(place), data=arguments.data)
    judge = _judge_of(arguments)
    replies = {name: [row.responses[n] for row in rows] for n, name in enumerate(names)}
    baseline = replies.pop(names[arguments.against])
    claimed = rows.map(lambda row: dataclasses.replace(row, golden=arguments.against))
    audited, given = _audited(claimed, _controls(arguments.control, replies), arguments)

    def compare(judge: "Judge") -> "pd.DataFrame":
        return judging.compare(
            judge,
            [row.prompt for row in rows],
            replies,
            baseline,
            seed=arguments.seed,
            prompt_ids=[row.group for row in rows],
            row_ids=[row.row_id for row in rows],
        )

    def audit(judge: "Judge") -> "pd.DataFrame":
        return judging.audit(judge, audited, given=given, seed=arguments.seed)

    if isinstance(judge, judging.EndpointJudge):
        _refuse_few(audited, arguments)
        works = [compare] if arguments.unaudited else [audit, compare]
        _say_calls(judge, works, arguments.max_calls)
    against = names[arguments.against]
    config = {"data": arguments.data, "judge": judge.name, "against": against}
    config |= {"fingerprint": judge.fingerprint, "dropped": rows.dropped}
    config |= {"judge_files": arguments.judge or arguments.endpoint}
    config |= {"controls": dict(option.split("=", 1) for option in arguments.control)}
    table_of_audit, config["audit"] = None, None
    if not arguments.unaudited:  # first: a judge that it refuses is asked nothing more
        table_of_audit = audit(judge)
        config["audit"] = table_of_audit.to_dict("records")
        _write_audit(table_of_audit, arguments.out, _origin(config, judge, arguments, started))
        _refuse_unfit(table_of_audit, judge)
    verdicts = compare(judge)
    _say_counts(judge)
    table = judging.win_table(
        verdicts, table_of_audit, unaudited=arguments.unaudited, seed=arguments.seed
    )
    shown = ["policy", "prompts", "win", "tie", "lose", "score", "unanswered", "audited"]
    print(table[[name for name in shown if name in table]].round(3).to_string(index=False))
    if untested := table["untested"].iloc[0]:
        print(f"not tested of the judge, for want of their replies (--control): {untested}")
    if arguments.out:
        origin = _origin(config, judge, arguments, started)
        records.write_table(Path(arguments.out), table, origin)
    return 0


def _origin(
    config: dict[str, Any], judge: "Judge", arguments: argparse.Namespace, started: float
) -> dict[str, Any]:
    """The provenance of what is written now."""
    counts = {"counts": getattr(judge, "counts", {})}
    return records.provenance(config | counts, arguments.seed, started)


def _say_counts(judge: "Judge") -> None:
    """What was asked of an endpoint, and how much of it came to nothing."""
    if counts := getattr(judge, "counts", {}):
        print(", ".join(f"{name} {count}" for name, count in counts.items()))


def _refuse_few(audited: "PreferenceSet", arguments: argparse.Namespace) -> None:
    """Raise KitError, before a call is paid for, where too few groups of rows admit no judge."""
    from robustpo_kit import judging

    groups = len({row.group for row in audited})
    if not arguments.unaudited and groups < judging.LEAST:
        raise KitError(
            f"judge: {groups} groups of rows to audit it on (--audit-rows), {judging.LEAST} are "
            "needed; give more, or --unaudited; nothing was asked"
        )


def _refuse_unfit(table: "pd.DataFrame", judge: "Judge") -> None:
    """Raise KitError where an audit admits no judge."""
    from robustpo_kit import judging

    try:
        judging.check_admitted(table, table, unaudited=False)
    except ValueError as error:
        _say_counts(judge)
        raise KitError(str(error).replace("unaudited=True", "--unaudited")) from None


def _places(arguments: argparse.Namespace) -> list[Path]:
    """The tables that are written."""
    out = Path(arguments.out or "")
    if not arguments.out:
        return []
    return [out] if arguments.unaudited else [out, out.with_suffix(AUDIT)]


def _audited(
    rows: "PreferenceSet", given: dict[str, list[str]], arguments: argparse.Namespace
) -> tuple["PreferenceSet", dict[str, list[str]]]:
    """The rows that an audit asks about, whole groups by lot, and their replies of controls."""
    most = arguments.audit_rows or (AUDITED if arguments.endpoint else len(rows))
    if most < 1:
        raise KitError(f"--audit-rows {most}: at least one row is expected")
    if len(rows) <= most:
        return rows, given
    chosen = rows.split({"audited": most}, arguments.seed)["audited"]
    places = {row.row_id: place for place, row in enumerate(rows)}
    mine = [places[row.row_id] for row in chosen]
    return chosen, {name: [texts[place] for place in mine] for name, texts in given.items()}


def _say_calls(
    judge: "EndpointJudge",
    works: Sequence[Callable[["EndpointJudge"], "pd.DataFrame"]],
    most: int | None,
) -> None:
    """Say how many calls will be made; raises KitError where --max-calls is fewer."""
    calls = judge.calls(works)
    every = sum(calls)
    said = f"{every} calls to make"
    if len(works) > 1:
        said += f", {calls[0]} of them the audit's (--audit-rows)"
    if most is not None and every > most:
        raise KitError(f"--max-calls {most}: {said}; nothing was asked")
    print(said)


def _write_audit(table: "pd.DataFrame | None", out: str | None, origin: dict[str, Any]) -> None:
    """The audit beside the table that --out names, whether the judge passes or not."""
    if table is not None and out:
        place = Path(out).with_suffix(AUDIT)
        records.write_table(place, table, origin)
        print(f"audit of the judge -> {place}")


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
