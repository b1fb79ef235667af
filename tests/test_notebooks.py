"""Stored notebooks are complete, clean and in step; refresh is stable; nbval can fail."""

import ast
import json
import os
import re
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from robustpo_kit import kernel, notebook, paths, plots, records, series
from robustpo_kit.data import Preference
from robustpo_kit.errors import KitError

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
STORED = sorted(NOTEBOOKS.glob("*.ipynb"))
LARGEST = 300_000  # bytes
ABSOLUTE_PATH = re.compile(r"(?<![\w./~])/(home|root|Users|tmp|work|opt|usr|var|mnt)/")


# ---------------------------------------------------------------- what a stored notebook must be


def problems(path: Path) -> list[str]:
    """What is wrong with a stored notebook; empty when all is well."""
    raw = path.read_text(encoding="utf-8")
    node = nbformat.reads(raw, as_version=4)
    nbformat.validate(node)
    found = []
    if len(raw.encode()) > LARGEST:
        found.append(f"larger than {LARGEST} bytes")
    if node.metadata != {
        "kernelspec": series.refresh.KERNELSPEC,
        "language_info": {"name": "python"},
    }:
        found.append("metadata")
    if [cell.id for cell in node.cells] != [f"{path.stem}-{i:02d}" for i in range(len(node.cells))]:
        found.append("cell ids")
    code = [cell for cell in node.cells if cell.cell_type == "code"]
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        found.append(
            "not executed from first to last"
        )  # nbval compares nothing in a cell that was never run
    found += _parameter_problems(code)
    found += [problem for cell in code for problem in _source_problems(cell.source)]
    found += [problem for cell in code for problem in _output_problems(cell.outputs)]
    if not any(
        f"{path.stem}: profile smoke, seed 0\n" in output.get("text", "")
        for c in code
        for output in c.outputs
    ):
        found.append("no start() under profile smoke")
    if not any(f"{path.stem}: done," in output.get("text", "") for output in code[-1].outputs):
        found.append("no finish() in the last code cell")
    if node.cells[0].cell_type != "markdown" or not node.cells[0].source.startswith("# "):
        found.append("no title")
    return found


def _parameter_problems(code: list) -> list[str]:
    tags = [tag for cell in code for tag in cell.metadata.get("tags", [])]
    found = [
        f"tag {tag}"
        for tag in tags
        if tag in ("injected-parameters", "raises-exception", "nbval-skip")
    ]
    cells = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        return [*found, "not exactly one parameters cell"]
    values = {}
    for statement in ast.parse(cells[0].source).body:
        try:
            (target,) = statement.targets
            values[target.id] = ast.literal_eval(statement.value)
        except (AttributeError, ValueError):
            found.append(
                "parameters cell: not a literal"
            )  # it would keep the default when papermill injects
    for name, default in {"profile": "auto", "seed": 0, "overrides": {}}.items():
        if values.get(name) != default:
            found.append(f"parameters cell: {name} is not {default!r}")
    return found


def _source_problems(source: str) -> list[str]:
    checks = {
        "empty code cell": not source.strip(),
        "trailing semicolon": bool(
            re.search(r";\s*$", source)
        ),  # nbval shows the value all the same
        "tqdm import": bool(re.search(r"^\s*(import|from) tqdm", source, re.M)),
        "def or class": bool(re.search(r"^(def|class) ", source, re.M))
        and "# built here for the reader" not in source,
    }
    return [name for name, bad in checks.items() if bad]


def _output_problems(outputs: list) -> list[str]:
    found = []
    for output in outputs:
        text = output.get("text", "") + "".join(
            value for mime, value in output.get("data", {}).items() if mime.startswith("text/")
        )
        checks = {
            "error output": output.output_type == "error",
            "stderr output": output.get("name") == "stderr",
            "widget": any("widget" in mime for mime in output.get("data", {})),
            "absolute path": bool(ABSOLUTE_PATH.search(text)),
            "address of an object": bool(re.search(r"0x[0-9a-f]{6,}", text)),
            "URL": "://" in text,
        }
        found += [name for name, bad in checks.items() if bad]
    return found


def test_every_declared_notebook_is_there_and_no_other():
    assert {notebook.number_of(path.name) for path in STORED} == set(series.plan.NEEDS)
    assert {path.stem for path in STORED} == {
        path.stem for path in (NOTEBOOKS / "text").glob("*.py")
    }


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_stored_notebook_is_clean(path):
    assert problems(path) == []


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_stored_notebook_is_in_step_with_its_text(path):
    text = NOTEBOOKS / "text" / f"{path.stem}.py"
    assert series.cells.cells(text) == series.cells.cells(path), "run `make notebooks`"
    assert series.cells.text_in_step(text, path)


# ------------------------------------------------------------ refresh; proof that the checks bite

CELLS = (
    "import os\n\nimport matplotlib.pyplot as plt\nimport pandas as pd\n\n"
    "from robustpo_kit.notebook import start",
    'nb = start("00_demo", profile=profile, seed=seed, overrides=overrides)',
    'table = pd.DataFrame({"x": [1, 2, 3], "slope": [1.0, 4.12345, 9.0]})\n'
    'nb.save_table("demo", table)\ntable',
    "fig, ax = plt.subplots()\n_ = ax.plot(table.x, table.slope)\n"
    'nb.save_figure("demo", fig, table)',
    'print(os.environ["ROBUSTPO_PROFILE"], os.environ["ROBUSTPO_PROGRESS"], '
    'os.environ["OMP_NUM_THREADS"])',
    'nb.finish({"slope": 4.0})',
)


@pytest.fixture(scope="module")
def refreshed(tmp_path_factory):
    """A demo project, its notebook stored twice: the bytes of both times, and the second file."""
    from conftest import DemoProject

    project = DemoProject(tmp_path_factory.mktemp("refreshed"))
    project.text("00_demo", *CELLS)
    stored = project.notebooks / "00_demo.ipynb"
    first = project.robustpo("notebooks")
    assert first.returncode == 0, first.stderr
    before = stored.read_bytes()
    again = project.robustpo("notebooks", "--all")
    assert again.returncode == 0, again.stderr
    return project, before, stored


def test_refresh_gives_the_same_bytes_and_a_clean_notebook(refreshed):
    project, before, stored = refreshed
    assert stored.read_bytes() == before
    assert b"image/png" in before and b"matplotlib" not in before.replace(b"import matplotlib", b"")
    assert problems(stored) == []
    unchanged = project.robustpo("notebooks")
    assert unchanged.stdout == "nothing changed\n"


def test_refresh_writes_nothing_when_a_cell_fails(refreshed):
    project, before, stored = refreshed
    text = project.notebooks / "text" / "00_demo.py"
    good = text.read_text()
    try:
        project.text("00_demo", *CELLS[:2], 'raise ValueError("not today")')
        done = project.robustpo("notebooks")
        assert done.returncode == 2
        assert "00_demo.py: code cell 4: ValueError: not today" in done.stderr
        assert stored.read_bytes() == before
    finally:
        text.write_text(good)
    assert project.robustpo("notebooks", "--only", "7").returncode == 2


def tampered(stored: Path, change) -> Path:
    """A copy of a stored notebook under another folder, after `change(node)`."""
    node = json.loads(stored.read_text())
    change(node)
    folder = stored.parent.parent / "tampered"
    folder.mkdir(exist_ok=True)
    path = folder / stored.name
    path.write_text(json.dumps(node))
    return path


def test_nbval_passes_on_the_stored_notebook_under_profile_smoke(refreshed):
    project, _, stored = refreshed
    done = project.pytest("notebooks/00_demo.ipynb")
    assert done.returncode == 0, done.stdout
    assert "7 passed" in done.stdout
    assert (
        "smoke off 1" in stored.read_text()
    )  # what the kernel of nbval printed too, since it compared equal


def test_notebooks_keep_their_order_with_several_workers(demo):
    demo.notebook("00_first", "import time", "time.sleep(3)", 'open("../written", "w").close()')
    demo.notebook("01_second", "import os", 'assert os.path.exists("../written")')
    done = demo.pytest("-n", "2", "notebooks")
    assert done.returncode == 0, done.stdout
    assert "7 passed" in done.stdout


def _change_number(node):
    outputs = [
        output for cell in node["cells"] for output in cell.get("outputs", []) if "data" in output
    ]
    plain = next(
        output["data"] for output in outputs if "4.123" in "".join(output["data"]["text/plain"])
    )
    plain["text/plain"] = "".join(plain["text/plain"]).replace("4.123", "4.124")


def _change_line(node):
    for cell in node["cells"]:
        for output in cell.get("outputs", []):
            if output.get("name") == "stdout":
                output["text"] = "".join(output["text"]).replace("3 rows", "4 rows")


@pytest.mark.parametrize("change", [_change_number, _change_line])
def test_nbval_fails_on_a_tampered_output(refreshed, change):
    project, _, stored = refreshed
    path = tampered(stored, change)
    assert path.read_text() != json.dumps(json.loads(stored.read_text()))
    done = project.pytest(f"tampered/{path.name}")
    assert done.returncode == 1
    assert "1 failed" in done.stdout and "mismatch" in done.stdout


def _code(node, position):
    return [cell for cell in node["cells"] if cell["cell_type"] == "code"][position]


def _print(node, text, name="stdout"):
    _code(node, 1)["outputs"].append({"output_type": "stream", "name": name, "text": text})


TAMPERINGS = {
    "metadata": lambda n: n["metadata"].update(papermill={}),
    "cell ids": lambda n: n["cells"][0].update(id="other"),
    "not executed from first to last": lambda n: _code(n, 2).update(execution_count=None),
    "tag injected-parameters": lambda n: _code(n, 1)["metadata"].update(
        tags=["injected-parameters"]
    ),
    "tag raises-exception": lambda n: _code(n, 1)["metadata"].update(tags=["raises-exception"]),
    "not exactly one parameters cell": lambda n: _code(n, 0)["metadata"].clear(),
    "parameters cell: not a literal": lambda n: _code(n, 0)["source"].append(
        "\nrows = len(profile)"
    ),
    "parameters cell: seed is not 0": lambda n: _code(n, 0).update(
        source='profile = "auto"\nseed = 1\noverrides = {}'
    ),
    "empty code cell": lambda n: _code(n, 1).update(source=""),
    "trailing semicolon": lambda n: _code(n, 1).update(source="1;"),
    "tqdm import": lambda n: _code(n, 1).update(source="from tqdm import tqdm"),
    "def or class": lambda n: _code(n, 1).update(source="def f():\n    pass"),
    "error output": lambda n: _code(n, 1)["outputs"].append(
        {"output_type": "error", "ename": "E", "evalue": "", "traceback": []}
    ),
    "stderr output": lambda n: _print(n, "careful", "stderr"),
    "absolute path": lambda n: _print(n, "saved /home/someone/x.csv"),
    "address of an object": lambda n: _print(n, "<object at 0x7f58fc3f89d0>"),
    "URL": lambda n: _print(n, "see https://example.org"),
    "no finish() in the last code cell": lambda n: _code(n, -1).update(outputs=[]),
    "no start() under profile smoke": lambda n: _code(n, 2).update(outputs=[]),
    "no title": lambda n: n["cells"][0].update(source="a title"),
    f"larger than {LARGEST} bytes": lambda n: n["cells"][0].update(source="# " + "x" * LARGEST),
}


@pytest.mark.parametrize("problem", TAMPERINGS)
def test_static_check_sees(refreshed, problem):
    _, _, stored = refreshed
    assert problem in problems(tampered(stored, TAMPERINGS[problem]))


def test_text_out_of_step_is_seen(refreshed, tmp_path):
    project, _, stored = refreshed
    text = project.notebooks / "text" / "00_demo.py"
    assert series.cells.text_in_step(text, stored)
    changed = tmp_path / "00_demo.py"
    changed.write_text(text.read_text().replace("9.0", "9.5"))
    assert not series.cells.text_in_step(changed, stored)
    assert not series.cells.text_in_step(text, tmp_path / "absent.ipynb")
    assert not series.cells.text_in_step(
        text, tampered(stored, TAMPERINGS["not executed from first to last"])
    )


# ---------------------------------------------------------------- start, tables, figures, finish


def begin(**changes):
    return notebook.start("04b_train_dora", **changes)


def test_profile_named_by_the_caller_beats_the_variable(demo, settings, monkeypatch, capsys):
    assert begin().cfg.name == "smoke"
    monkeypatch.setenv("ROBUSTPO_PROFILE", "gpu")
    assert begin().cfg.name == "gpu"
    assert begin(profile="cpu", seed=3, overrides={"epochs": 9}).cfg.epochs == 9
    monkeypatch.delenv("ROBUSTPO_PROFILE")
    assert begin(profile="auto").cfg.name == "smoke"
    assert "04b_train_dora: profile cpu, seed 3, with epochs=9\n" in capsys.readouterr().out


def test_start_refuses(demo):
    with pytest.raises(KitError, match="profile: 'tiny' is unknown"):
        begin(profile="tiny")
    with pytest.raises(KitError, match="overrides: 'speed' is not a setting"):
        begin(overrides={"speed": 1})
    with pytest.raises(KitError, match="seed = 1.5 should be an integer"):
        begin(seed=1.5)
    with pytest.raises(KitError, match="should look like 04b_train_dora"):
        notebook.start("train")


def test_start_seeds_everything(demo, settings):
    import random

    import numpy as np
    import torch

    def draw(seed):
        begin(seed=seed)
        return random.random(), np.random.rand(), torch.rand(1).item()

    first = draw(5)
    assert first == draw(5)
    assert not set(first) & set(draw(6))
    assert torch.get_num_threads() == 1


def test_table_goes_out_and_comes_back_with_its_record(demo, settings, capsys):
    nb = begin(profile="cpu", seed=2)
    table = pd.DataFrame({"method": ["erm", "dora"], "win_rate": [0.5, 0.61]})
    nb.save_table("wins", table)
    pd.testing.assert_frame_equal(nb.read_table("wins"), table)
    record = records.read_json(demo.root / "data/results/cpu/seed2/wins.json")
    assert (record["notebook"], record["profile"], record["seed"]) == ("04b_train_dora", "cpu", 2)
    assert record["config"]["name"] == "cpu" and record["rows"] == 2
    told = capsys.readouterr().out
    assert "table wins: 2 rows -> data/results/cpu/seed2/wins.csv\n" in told
    assert "table wins <- data/results/cpu/seed2/wins.csv [yours: cpu, seed 2]\n" in told


def test_no_run_replaces_what_another_wrote(demo, settings):
    """Seeds, overrides and both have folders of their own; seed 0 as it comes is the profile's."""
    runs = [{}, {"seed": 1}, {"overrides": {"epochs": 7}}, {"seed": 1, "overrides": {"epochs": 7}}]
    started = [begin(profile="cpu", **run) for run in runs]
    for number, nb in enumerate(started):
        nb.save_table("t", pd.DataFrame({"x": [number]}))
        nb.finish({"x": number})
    assert [nb.read_table("t").x[0] for nb in started] == [0, 1, 2, 3]
    folders = [f"data/results/cpu/{nb.run}/t.csv".replace("//", "/") for nb in started]
    assert [nb.tables for nb in started] == [[folder] for folder in folders]
    assert [nb.run.split("-")[0] for nb in started] == ["", "seed1", "seed0", "seed1"]
    for number, nb in enumerate(started):
        done = paths.work("cpu", nb.run) / "metrics/04b.json"
        assert records.read_json(done)["metrics"] == {"x": number}


def test_a_table_says_whose_it_is(demo, settings, capsys):
    """Yours, the run of record's, or a study's; no word of one without provenance."""
    study = {"config": {"seeds": [4, 5]}}
    places = {
        "reference": {"profile": "cpu", "seed": 0},
        "studies/small": study,
        "gpu": {"profile": "gpu", "seed": 1},
        "toy": {"seed": 0, "config": {"seeds": [0, 1, 2]}},
    }
    for place, record in places.items():
        folder = paths.RESULTS / place
        folder.mkdir(parents=True)
        (folder / "t.csv").write_text("x\n1\n")
        (folder / "t.json").write_text(json.dumps(record))
    nb = begin(profile="smoke")
    for place in places:
        nb.read_table("t", run=place)
    told = [line.split(" <- ")[1] for line in capsys.readouterr().out.splitlines() if "<-" in line]
    assert [line.split("[")[1] for line in told] == [
        "record: cpu, seed 0]",
        "study: 2 seeds]",
        "record: gpu, seed 1]",
        "record: 3 seeds]",
    ]


def test_read_table_prefers_this_run_except_under_smoke(demo, settings):
    def write(folder, value):
        records.write_table(
            demo.root / folder / "t.csv",
            pd.DataFrame({"x": [value]}),
            {"profile": folder, "seed": 0},
        )

    write("data/results/reference", 1)
    write("data/results/cpu", 2)
    write("runs/smoke/tables", 3)
    write("data/results/gpu", 4)
    assert begin(profile="cpu").read_table("t").x[0] == 2
    assert begin(profile="paper").read_table("t").x[0] == 1
    assert begin(profile="smoke").read_table("t").x[0] == 1
    assert begin(profile="smoke").read_table("t", run="gpu").x[0] == 4
    (demo.root / "data/results/reference/t.csv").unlink()
    assert begin(profile="smoke").read_table("t").x[0] == 3
    with pytest.raises(
        KitError, match=r"table 't': not in data/results/paper or data/results/reference"
    ):
        begin(profile="paper").read_table("t")


def test_a_persons_kernel_runs_the_demo_and_shows_its_own_beside_the_record(
    demo, settings, monkeypatch, capsys
):
    monkeypatch.setattr(notebook, "_started", [])
    monkeypatch.delenv("ROBUSTPO_PROFILE")
    monkeypatch.delenv("ROBUSTPO_PROGRESS")
    assert begin().cfg.name == "smoke" and not notebook.interactive()
    monkeypatch.setenv("JPY_SESSION_NAME", "/notebooks/04b_train_dora.ipynb")
    monkeypatch.setenv("ROBUSTPO_PROGRESS", "")  # so that what `start` sets is undone
    monkeypatch.delenv("ROBUSTPO_PROGRESS")
    shown = []
    monkeypatch.setattr(kernel, "show_badge", lambda *given: shown.append(given))
    committed = demo.root / "data/results/reference/t.csv"
    records.write_table(committed, pd.DataFrame({"x": [1]}), {"profile": "cpu", "seed": 0})
    nb = begin(seed=3, overrides={"lam": 0.3})
    assert nb.cfg.name == "demo" and notebook.interactive()
    assert os.environ["ROBUSTPO_PROGRESS"] == "bar"
    assert nb.read_table("t").attrs["origin"] == "record: cpu, seed 0"
    nb.save_table("t", pd.DataFrame({"x": [2]}))
    own = nb.read_table("t")
    assert own.x[0] == 2 and own.attrs["origin"] == "live: demo, seed 3, with lam=0.3"
    assert nb.tables[0].startswith("runs/demo/tables/seed3-")
    assert shown[1] == ("live: demo, seed 3, with lam=0.3", [committed])


def test_a_badge_shows_the_record_beside_a_live_table(demo, monkeypatch):
    from IPython import display

    shown = []
    monkeypatch.setattr(display, "display", lambda found: shown.append(found.data))
    committed = demo.root / "t.csv"
    records.write_table(committed, pd.DataFrame({"x": [0.25]}), {"profile": "cpu", "seed": 0})
    kernel.show_badge("live: demo, seed 3", [committed, demo.root / "none.csv"])
    kernel.show_badge("record: cpu, seed 0", [committed])
    assert "live: demo, seed 3</span>" in shown[0] and "0.25" in shown[0]
    assert "beside it, record: cpu, seed 0, 1 rows" in shown[0] and "details" not in shown[1]


@pytest.mark.parametrize(
    ("name", "table", "said"),
    [
        ("Wins", pd.DataFrame({"x": [1]}), "name 'Wins' should be of lower-case letters"),
        ("../wins", pd.DataFrame({"x": [1]}), "should be of lower-case letters"),
        ("wins", pd.DataFrame({"x": []}), "table 'wins': is empty"),
        ("wins", [1, 2], "expected a pandas DataFrame, got list"),
        (
            "wins",
            pd.DataFrame({"x": [1]}, index=pd.Index(["a"], name="method")),
            r"call reset_index\(\) first",
        ),
    ],
)
def test_save_table_refuses(demo, settings, name, table, said):
    with pytest.raises(KitError, match=said):
        begin().save_table(name, table)
    assert not (demo.root / "runs").exists()


def test_figure_is_saved_with_its_table_and_the_same_bytes(demo, settings):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    nb = begin(profile="cpu")
    table = pd.DataFrame({"x": [1, 2], "y": [3, 4]})
    saved = []
    for _ in range(2):
        figure, axes = plt.subplots()
        axes.plot(table.x, table.y)
        nb.save_figure("line", figure, table)
        plt.close(figure)
        saved.append((demo.root / "figures/line.png").read_bytes())
    assert saved[0] == saved[1] and b"Software" not in saved[0]
    assert plt.rcParams["axes.prop_cycle"].by_key()["color"] == list(plots.PALETTE)
    assert (demo.root / "figures/line.csv").read_text() == "x,y\n1,3\n2,4\n"
    assert records.read_json(demo.root / "figures/line.json")["profile"] == "cpu"
    with pytest.raises(KitError, match="expected a matplotlib figure"):
        nb.save_figure("line", object(), table)


def test_peoples_words_are_shown_in_their_own_kernel_alone(demo, settings, monkeypatch, capsys):
    row = Preference("r", "g", "How?", ("like this", "so then"), ("human_correct", "smollm2"))
    begin().show_row(row)
    begin(profile="cpu").show_row(row)
    hidden = capsys.readouterr().out
    assert "so then" in hidden and "How?" not in hidden and "like this" not in hidden
    assert "human_correct  (2 words by a person" in hidden
    monkeypatch.setenv("JPY_SESSION_NAME", "a page")
    begin(profile="smoke").show_row(row)
    assert "How?" not in capsys.readouterr().out
    for profile in ("demo", "cpu"):
        begin(profile=profile).show_row(row)
        assert "prompt         How?\nhuman_correct  like this\n" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted((NOTEBOOKS / "text").glob("*.py")), ids=lambda p: p.stem)
def test_every_notebook_begins_with_the_glossary_and_ends_with_exercises(path):
    text = path.read_text(encoding="utf-8")
    head = text.split("\n# %%")[0]
    assert "[glossary](../docs/glossary.md)" in head
    exercises = text.split("# ## Exercises")[1]
    tries = re.findall(r"^# \d\. ", exercises, re.M) + re.findall("Change this and see", text)
    assert len(tries) >= 2 and "<details>" in exercises


def test_finish_writes_the_done_file(demo, settings, monkeypatch):
    import numpy as np

    nb = begin(profile="cpu")
    nb.finish({"rate": np.float64(0.5), "none": float("nan"), "by": {"seed": [1, float("inf")]}})
    done = records.read_json(demo.root / "runs/cpu/metrics/04b.json")
    assert done["metrics"] == {"rate": 0.5, "none": None, "by": {"seed": [1, None]}}
    assert done["schema"] == 1 and done["tables"] == done["figures"] == []
    monkeypatch.setenv("ROBUSTPO_DONE", str(demo.root / "elsewhere.json"))
    nb.finish()
    assert records.read_json(demo.root / "elsewhere.json")["metrics"] == {}


def test_tests_run_under_smoke():
    environment = kernel.kernel_environment("smoke")
    assert {name: os.environ[name] for name in ("ROBUSTPO_PROFILE", "ROBUSTPO_PROGRESS")} == {
        "ROBUSTPO_PROFILE": "smoke",
        "ROBUSTPO_PROGRESS": "off",
    }
    assert environment["OMP_NUM_THREADS"] == "1" and environment["CUDA_VISIBLE_DEVICES"] == ""
    assert "CUDA_VISIBLE_DEVICES" not in kernel.kernel_environment("gpu")
    assert NOTEBOOKS.parent == paths.ROOT
    assert sys.version_info >= (3, 11)
