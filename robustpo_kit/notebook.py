"""Notebook: what a numbered notebook says at its start and its end, and how it keeps its results.

nb = start("04b_train_dora", profile=profile, seed=seed, overrides=overrides)
nb.save_table("win_rates", table)
nb.save_figure("win_rates", figure, table)
nb.finish({"dora_win_rate": 0.61})
"""

import dataclasses
import math
import os
import re
import time
from pathlib import Path
from typing import Any

from robustpo_kit import kernel, mixture, paths, profiles, records
from robustpo_kit.data import Preference
from robustpo_kit.errors import KitError

_started: list[str] = []  # profiles of the notebooks that this process has started


def resolve_profile(profile: str) -> str:
    """`auto` becomes ROBUSTPO_PROFILE, else demo in a person's kernel and smoke elsewhere.

    A Jupyter server puts JPY_SESSION_NAME into the environment of the kernels that it starts for a
    page; a profile that the caller names is kept.
    """
    if profile != "auto":
        return profile
    a_person_looks = "JPY_SESSION_NAME" in os.environ
    return os.environ.get("ROBUSTPO_PROFILE") or ("demo" if a_person_looks else "smoke")


def interactive() -> bool:
    """Whether a person looks at this notebook: its profile is demo."""
    return (_started[-1] if _started else resolve_profile("auto")) == "demo"


def start(
    name: str, *, profile: str = "auto", seed: int = 0, overrides: dict[str, Any] | None = None
) -> "Notebook":
    """Resolve the profile, seed everything, set display and figure style; prints one stable line.

    Args:
        name: The notebook's file name without its ending, such as "04b_train_dora".
        profile: smoke, demo, cpu, gpu, paper, or auto (see `resolve_profile`).
        seed: Of Python, numpy and torch; 0 or more.
        overrides: Settings of the profile that take another value.

    Raises:
        KitError: For an unknown profile or override, or another name or seed.
    """
    if not re.fullmatch(r"\d\d[a-z]?_[a-z0-9_]+", name):
        raise KitError(f"notebook: name {name!r} should look like 04b_train_dora")
    if type(seed) is not int or seed < 0:
        raise KitError(f"{name}: seed = {seed!r} should be an integer, 0 or more")
    config = profiles.get(resolve_profile(profile), overrides)
    kernel.seed_everything(seed, single_thread=config.name == "smoke")
    kernel.quiet()
    kernel.display_settings()
    kernel.figure_settings()
    _started.append(config.name)
    if interactive():  # a kernel of JupyterLab has found no variables of the kit's
        os.environ.setdefault("ROBUSTPO_PROGRESS", "bar")
    overrides = dict(overrides or {})
    print(f"{name}: profile {config.name}, seed {seed}" + _changes(overrides))
    return Notebook(name=name, cfg=config, seed=seed, overrides=overrides, started=time.time())


@dataclasses.dataclass
class Notebook:
    """One run of one notebook: its settings, and the tables and figures that it has written."""

    name: str
    cfg: profiles.Profile
    seed: int
    overrides: dict[str, Any]
    started: float  # time.time()
    tables: list[str] = dataclasses.field(default_factory=list)
    figures: list[str] = dataclasses.field(default_factory=list)

    @property
    def number(self) -> str:
        """Its `number_of`."""
        return number_of(self.name)

    @property
    def run(self) -> str:
        """Its `paths.run_name`."""
        return paths.run_name(self.seed, self.overrides)

    def record(self) -> dict[str, Any]:
        """Provenance of whatever is written now: this notebook, and `records.provenance`."""
        own = {"notebook": self.name, "profile": self.cfg.name, "overrides": self.overrides}
        return own | records.provenance(self.cfg, self.seed, self.started)

    def save_table(self, name: str, table: Any) -> None:
        """Write a DataFrame as NAME.csv, its provenance as NAME.json, among this profile's tables.

        Raises KitError for an empty table, or one whose index holds data, which would be lost
        (`reset_index()` first).
        """
        _check_name("table", name)
        _check_table(name, table)
        path = paths.tables(self.cfg.name, self.run) / f"{name}.csv"
        records.write_table(path, table, self.record() | {"rows": len(table)})
        self.tables.append(paths.show(path))
        print(f"table {name}: {_count(len(table), 'row')} -> {paths.show(path)}")

    def read_table(self, name: str, *, run: str | None = None) -> Any:
        """The table NAME as a DataFrame; prints where it comes from, and whose it is.

        `attrs["origin"]` says whose, for the figures drawn of it. Where a person looks, a badge
        above the cell's output says it, with the committed table beside a live one.

        Looks at what this run has written (`paths.run_name`), then at the committed one,
        `data/results/reference`.
        Under `smoke` the committed run comes first, because explaining cells show real results.
        `run` names one folder of `data/results` instead, such as "gpu". Raises KitError when nobody
        has written the table yet.
        """
        import pandas as pd

        _check_name("table", name)
        folders = [paths.tables(self.cfg.name, self.run), paths.RESULTS / "reference"]
        if run is not None:
            folders = [paths.RESULTS / run]
        elif self.cfg.name == "smoke":
            folders.reverse()
        for folder in folders:
            path = folder / f"{name}.csv"
            if path.exists():
                origin = self._origin(path)
                whose = f" [{origin}]" if origin else ""
                print(f"table {name} <- {paths.show(path)}{whose}")
                table = pd.read_csv(path)
                table.attrs["origin"] = origin
                if interactive() and origin:
                    beside = [other / path.name for other in folders if other != folder]
                    kernel.show_badge(origin, beside)
                return table
        looked = " or ".join(paths.show(folder) for folder in folders)
        raise KitError(f"table '{name}': not in {looked}; run the series first (`make series`)")

    def read_study(self, name: str, title: str = "contrasts") -> Any:
        """A table of a study as in `read_table`; None, with a line, where it has not ended."""
        if (paths.RESULTS / "studies" / name / f"{title}.csv").exists():
            return self.read_table(title, run=f"studies/{name}")
        print(f"study {name}: declared, not finished; `make study NAME={name}` makes its {title}")
        return None

    def _origin(self, path: Path) -> str:
        """Whose a table is: "study: 24 seeds", "record: cpu, seed 0", "yours: cpu, seed 3".

        A table of the record with many seeds says how many. Of what is looked at and never
        published "live: demo, seed 3". Overrides follow the seed. Nothing where no provenance
        lies beside it.
        """
        beside = path.with_suffix(".json")
        if not beside.exists():
            return ""
        record = records.read_json(beside)
        seeds = record.get("config", {}).get("seeds", [])
        if path.parent.parent == paths.RESULTS / "studies":
            return f"study: {_count(len(seeds), 'seed')}"
        if seeds:
            return f"record: {_count(len(seeds), 'seed')}"
        run = f"{record.get('profile', '?')}, seed {record.get('seed', '?')}"
        if path.parent != paths.tables(self.cfg.name, self.run):
            return f"record: {run}"
        whose = "live" if self.cfg.name in paths.SCRATCH else "yours"
        return f"{whose}: {run}" + _changes(self.overrides)

    def save_figure(self, name: str, figure: Any, table: Any) -> None:
        """Write a figure as NAME.png and NAME.pdf, the table it draws and its provenance beside.

        Raises KitError for what is no figure, and for a table as in `save_table`.
        """
        _check_name("figure", name)
        _check_table(name, table)
        if not getattr(figure, "axes", None):
            raise KitError(f"figure '{name}': expected a matplotlib figure with at least one axes")
        from robustpo_kit import plots

        path = paths.figures(self.cfg.name, self.run) / f"{name}.png"
        plots.save(figure, path.with_suffix(""))
        about = {"rows": len(table)}
        if origin := table.attrs.get("origin"):
            about["origin"] = origin
        records.write_table(path.with_suffix(".csv"), table, self.record() | about)
        self.figures.append(paths.show(path))
        print(f"figure {name} -> {paths.show(path)}")

    def show_row(self, row: Preference) -> None:
        """Print a prompt and its responses, each behind its source.

        What people wrote is printed only where one of them looks, under profile demo or cpu in the
        kernel of a page: stored outputs hold models' words alone.
        """
        own_page = self.cfg.name in ("demo", "cpu") and "JPY_SESSION_NAME" in os.environ
        texts = zip(("prompt", *row.sources), (row.prompt, *row.responses), strict=True)
        for source, text in texts:
            if not (own_page or source == mixture.SYNTHETIC_SOURCE):
                text = f"({_count(len(text.split()), 'word')} by a person: in your own JupyterLab)"
            print(f"{source:14s} {text}")
        print()

    def finish(self, metrics: dict[str, Any] | None = None) -> None:
        """Write the done file: metrics, tables, figures, provenance.

        A notebook without it counts as incomplete. The file is ROBUSTPO_DONE where the runner names
        one, else runs/PROFILE/metrics/NN.json, or the same in the folder of its run.
        """
        target = os.environ.get("ROBUSTPO_DONE") or done_file(
            paths.work(self.cfg.name, self.run), self.number
        )
        done = {
            "schema": 1,
            "metrics": _finite(metrics or {}),
            "tables": self.tables,
            "figures": self.figures,
        }
        records.write_json(Path(target), done | self.record())
        tables, figures = _count(len(self.tables), "table"), _count(len(self.figures), "figure")
        print(f"{self.name}: done, {tables}, {figures}")


def number_of(name: str) -> str:
    """What orders the series in a notebook's name: two digits, of a part of one also a letter."""
    return name.split("_")[0]


def done_file(work: Path, number: str) -> Path:
    """Where notebook `number` of the run in `work` writes its metrics at its end."""
    return work / "metrics" / f"{number}.json"


def _check_name(what: str, name: str) -> None:
    if not re.fullmatch(r"[a-z0-9][a-z0-9_]*", name):
        raise KitError(f"{what}: name {name!r} should be of lower-case letters, digits and _")


def _check_table(name: str, table: Any) -> None:
    import pandas as pd

    if not isinstance(table, pd.DataFrame):
        raise KitError(f"table '{name}': expected a pandas DataFrame, got {type(table).__name__}")
    if table.empty:
        raise KitError(f"table '{name}': is empty; a result has at least one row and one column")
    if table.index.nlevels > 1 or table.index.name is not None:
        raise KitError(
            f"table '{name}': its index {table.index.names} would be lost; call reset_index() first"
        )


def _changes(overrides: dict[str, Any]) -> str:
    """ ", with lam=0.3", or nothing."""
    if not overrides:
        return ""
    return ", with " + ", ".join(f"{key}={value!r}" for key, value in overrides.items())


def _count(number: int, noun: str) -> str:
    plural = "" if number == 1 else "s"
    return f"{number} {noun}{plural}"


def _finite(value: Any) -> Any:
    """`value` with nan and infinities as None: strict JSON knows neither."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if hasattr(value, "tolist"):
        return _finite(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
