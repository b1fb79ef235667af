"""What a run of the series leaves: the index page, and the results that are committed."""

import dataclasses
import shutil
import time

from robustpo_kit import paths, profiles, records
from robustpo_kit.errors import KitError
from robustpo_kit.series.plan import (
    Plan,
    Result,
    parameters,
    sources,
)


def report_run(plan: Plan, results: list[Result], began: float) -> None:
    """Write manifest.json and index.md of this run and print where they are."""
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
    counts = {
        status: sum(r.status == status for r in results)
        for status in ("ok", "failed", "incomplete", "skipped")
    }
    said = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    minutes = (time.time() - began) / 60
    say(f"{said}; {minutes:.1f} min; {paths.show(plan.work / 'index.md')} says what ran")


def index(plan: Plan, results: list[Result]) -> str:
    """The index of a run as Markdown: a table of notebooks, then the tables and figures of each."""
    lines = [
        f"# Series under profile {plan.profile}, seed {plan.seed}",
        "",
        "| notebook | status | minutes | tables | figures | note |",
        "|---|---|---|---|---|---|",
    ]
    for r in results:
        note = "kept from an earlier run" if r.kept else r.reason.replace("|", "\\|")
        counts = f"{len(r.tables)} | {len(r.figures)}"
        lines.append(f"| {r.name} | {r.status} | {r.seconds / 60:.1f} | {counts} | {note} |")
    for r in results:
        if r.tables or r.figures:
            lines += ["", f"## {r.name}", "", *(f"- `{name}`" for name in r.tables + r.figures)]
    return "\n".join(lines) + "\n"


def publish(profile: str) -> list[str]:
    """Copy the tables and figures of a finished series, provenance included, to where they are committed.

    Tables of profile gpu already lie in their committed folder. Raises KitError unless every notebook was ok.
    """
    manifest = records.read_json(paths.work(profile) / "manifest.json")
    bad = [entry["name"] for entry in manifest["notebooks"] if entry["status"] != "ok"]
    missing = set(sources(paths.NOTEBOOKS)) - {entry["name"][:2] for entry in manifest["notebooks"]}
    if bad or missing:
        raise KitError(
            f"publish: not every notebook was ok under {profile} ({', '.join(bad or sorted(missing))})"
        )
    if profile == "smoke":
        raise KitError(
            "publish: smoke results come from random models; publish those of profile cpu or gpu"
        )
    copied = []
    for kind, folder in (
        ("tables", paths.RESULTS / "reference"),
        ("figures", paths.FIGURES / "reference"),
    ):
        if kind == "tables" and profile == "gpu":
            continue
        folder.mkdir(parents=True, exist_ok=True)
        for name in dict.fromkeys(name for entry in manifest["notebooks"] for name in entry[kind]):
            source = paths.ROOT / name
            for file in sorted(source.parent.glob(f"{source.stem}.*")):
                with records.atomic_write(folder / file.name) as temporary:
                    shutil.copyfile(file, temporary)
                copied.append(paths.show(folder / file.name))
    return copied


def say(line: str) -> None:
    print(line, flush=True)
