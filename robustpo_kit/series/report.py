"""What a run of the series leaves: the index page, and the results that are committed."""

import collections
import dataclasses
import itertools
import shutil
import time
from pathlib import Path

from robustpo_kit import paths, profiles, records
from robustpo_kit.errors import KitError
from robustpo_kit.notebook import number_of
from robustpo_kit.series.plan import STATUSES, Plan, Result, parameters, sources


def report_run(plan: Plan, results: list[Result], began: float) -> None:
    """Write manifest.json and index.md of this run and print where they are.

    Args:
        plan: What was run.
        results: One a notebook, in the order of their numbers.
        began: time.time() at the start.
    """
    manifest = records.provenance(profiles.get(plan.profile, plan.overrides), plan.seed, began)
    manifest |= {
        "schema": 1,
        "profile": plan.profile,
        "parameters": parameters(plan),
        "began": began,
    }
    manifest["notebooks"] = [dataclasses.asdict(result) for result in results]
    records.write_json(plan.work / "manifest.json", manifest)
    records.write_text(plan.work / "index.md", index(plan, results))
    counts = collections.Counter(result.status for result in results)
    summary = ", ".join(f"{counts[status]} {status}" for status in STATUSES if counts[status])
    minutes = (time.time() - began) / 60
    say(f"{summary}; {minutes:.1f} min; {paths.show(plan.work / 'index.md')} says what ran")


def index(plan: Plan, results: list[Result]) -> str:
    """The index of a run as Markdown: a table of notebooks, then the tables and figures of each."""
    lines = [
        f"# Series under profile {plan.profile}, seed {plan.seed}",
        "",
        "| notebook | status | minutes | tables | figures | note |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        note = result.reason.replace("|", "\\|")
        if result.kept:
            note = "kept from an earlier run"
        counts = f"{len(result.tables)} | {len(result.figures)}"
        minutes = f"{result.seconds / 60:.1f}"
        lines.append(f"| {result.name} | {result.status} | {minutes} | {counts} | {note} |")
    for result in results:
        files = result.tables + result.figures
        if files:
            lines += ["", f"## {result.name}", "", *(f"- `{name}`" for name in files)]
    return "\n".join(lines) + "\n"


def publish(profile: str, run: str = "") -> list[str]:
    """Copy the tables and figures of a finished series to where they are committed.

    Their provenance goes with them. Tables of profile gpu lie in their committed folder already.
    Returns the files written; raises KitError unless every notebook was ok.
    """
    notebooks = records.read_json(paths.work(profile, run) / "manifest.json")["notebooks"]
    bad = [entry["name"] for entry in notebooks if entry["status"] != "ok"]
    missing = set(sources(paths.NOTEBOOKS)) - {number_of(entry["name"]) for entry in notebooks}
    if bad or missing:
        names = ", ".join(bad or sorted(missing))
        raise KitError(f"publish: not every notebook was ok under {profile} ({names})")
    if profile in paths.SCRATCH:
        raise KitError(
            f"publish: {profile} results come from random models or few rows; publish those of "
            "profile cpu or gpu"
        )
    copied = []
    if profile != "gpu":
        copied += _copy([entry["tables"] for entry in notebooks], paths.RESULTS / "reference")
    copied += _copy([entry["figures"] for entry in notebooks], paths.FIGURES / "reference")
    return copied


def _copy(named: list[list[str]], folder: Path) -> list[str]:
    """Copy every file `named`, and those that differ from it in the ending alone, into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    copied = []
    for name in dict.fromkeys(itertools.chain(*named)):
        source = paths.ROOT / name
        for file in sorted(source.parent.glob(f"{source.stem}.*")):
            with records.atomic_write(folder / file.name) as temporary:
                shutil.copyfile(file, temporary)
            copied.append(paths.show(folder / file.name))
    return copied


def say(line: str) -> None:
    """Print a line at once, for a log that is followed."""
    print(line, flush=True)
