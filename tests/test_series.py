"""The runner on small notebooks: statuses, order, resume, death in the middle, refusals."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from conftest import DONE
from robustpo_kit import paths, records, series
from robustpo_kit.errors import KitError
from robustpo_kit.records import freshness
from robustpo_kit.series.plan import Plan

REAL = (
    "import matplotlib.pyplot as plt\nimport pandas as pd\n\n"
    "from robustpo_kit.notebook import start",
    'nb = start("00_real", profile=profile, seed=seed, overrides=overrides)',
    'table = pd.DataFrame({"x": [1, 2], "y": [1.0, 4.0]})',
    'nb.save_table("points", table)\nnb.save_table("points", table)',
    'fig, ax = plt.subplots()\n_ = ax.plot(table.x, table.y)\nnb.save_figure("points", fig, table)',
    'nb.finish({"profile": nb.cfg.name, "seed": nb.seed, "epochs": nb.cfg.epochs})',
)


def plan(demo, **changes) -> Plan:
    return Plan(**{"profile": "cpu", "notebooks": demo.notebooks, "time_limit": 120.0} | changes)


def by_number(results) -> dict[str, series.plan.Result]:
    return {result.number: result for result in results}


def needs(monkeypatch, **declared: str) -> None:
    """NEEDS as n00="" or n03="01 02"."""
    monkeypatch.setattr(
        series.plan, "NEEDS", {name[1:]: tuple(value.split()) for name, value in declared.items()}
    )


def leave_marks(demo, number: str) -> str:
    """A cell that appends one line to a file each time it runs."""
    return f'with open("{demo.root}/{number}.ran", "a") as stream:\n    _ = stream.write("x")'


def times_run(demo, number: str) -> int:
    marks = demo.root / f"{number}.ran"
    return len(marks.read_text()) if marks.exists() else 0


# ---------------------------------------------------------------- statuses


def test_statuses_manifest_and_index(demo, monkeypatch, capsys):
    needs(monkeypatch, n00="", n01="", n02="", n03="", n04="", n05="01", n06="05", n07="00")
    sources = [
        demo.notebook("00_real", *REAL),
        demo.notebook("01_raises", 'raise RuntimeError("no such\\nluck")', DONE),
        demo.notebook("02_leaves", "import sys", "sys.exit(0)", DONE),
        demo.notebook("03_hangs", "import time", "time.sleep(1000)", DONE),
        demo.notebook("04_dies", "import os, signal", "os.kill(os.getpid(), signal.SIGKILL)", DONE),
        demo.notebook("05_after", DONE),
        demo.notebook("06_after_that", DONE),
        demo.notebook("07_after_real", DONE),
    ]
    before = [path.read_bytes() for path in sources]
    results = series.runner.run(
        plan(demo, seed=3, overrides={"epochs": 7}, slots=(None, None), time_limit=60.0)
    )
    found = by_number(results)
    assert [result.number for result in results] == ["00", "01", "02", "03", "04", "05", "06", "07"]
    assert [result.status for result in results] == (
        ["ok", "failed", "incomplete", "failed", "failed", "skipped", "skipped", "ok"]
    )
    assert "In [3]: RuntimeError: no such" in found["01"].reason
    assert found["02"].reason == "ended without finish()"
    assert found["03"].reason == "time limit of 60 s" and 60 <= found["03"].seconds < 120
    assert "DeadKernelError" in found["04"].reason
    assert found["05"].reason == "needs 01 (failed)" and found["06"].reason == "needs 05 (skipped)"

    # what the notebook was told, and what it wrote
    name = paths.run_name(3, {"epochs": 7})
    run = paths.RUNS / "cpu" / name
    done = records.read_json(run / "metrics/00.json")
    assert done["metrics"] == {"profile": "cpu", "seed": 3, "epochs": 7}
    assert found["00"].tables == [f"data/results/cpu/{name}/points.csv"]
    assert found["00"].figures == [f"figures/cpu/{name}/points.png"]
    assert (demo.root / found["00"].figures[0]).stat().st_size > 5000
    assert (run / "notebooks/00_real.ipynb").exists()
    assert [path.read_bytes() for path in sources] == before, "a source notebook was written over"

    manifest = records.read_json(run / "manifest.json")
    assert [entry["status"] for entry in manifest["notebooks"]] == [
        result.status for result in results
    ]
    assert manifest["seed"] == 3 and manifest["parameters"]["overrides"] == {"epochs": 7}
    assert manifest["versions"]["torch"]
    index = (run / "index.md").read_text()
    assert "| 00_real | ok |" in index and "points.png`" in index and "time limit of 60 s" in index
    told = capsys.readouterr().out
    assert "2 ok, 3 failed, 1 incomplete, 2 skipped" in told
    assert "RuntimeError" in (run / "logs/01_raises.log").read_text()


def test_a_failed_series_is_not_published_and_a_good_one_is(demo, monkeypatch):
    needs(monkeypatch, n00="", n01="")
    demo.notebook("00_real", *REAL)
    demo.notebook("01_raises", "1 / 0")
    series.runner.run(plan(demo))
    with pytest.raises(KitError, match=r"01_raises"):
        series.report.publish("cpu")
    demo.notebook("01_raises", DONE)
    series.runner.run(plan(demo, resume=True))
    copied = series.report.publish("cpu")
    assert (
        "data/results/reference/points.csv" in copied
        and "data/results/reference/points.json" in copied
    )
    assert "figures/reference/points.png" in copied and "figures/reference/points.csv" in copied
    assert all((demo.root / name).exists() for name in copied)


def test_notebooks_run_after_what_they_need_and_one_a_gpu(demo, monkeypatch):
    needs(monkeypatch, n00="02", n01="", n02="")
    mark = f'import os, time\nwith open("{demo.root}/order", "a") as stream:\n'
    for name in ("00_last", "01_one", "02_other"):
        line = f'"{name[:2]} " + os.environ["CUDA_VISIBLE_DEVICES"] + "\\n"'
        demo.notebook(name, f"{mark}    _ = stream.write({line})", DONE)
    series.runner.run(plan(demo, slots=("4", "5")))
    lines = [line.split() for line in (demo.root / "order").read_text().splitlines()]
    order = [number for number, _ in lines]
    assert sorted(order) == ["00", "01", "02"] and order.index("02") < order.index("00")
    assert {gpu for number, gpu in lines if number in ("01", "02")} == {"4", "5"}


# ---------------------------------------------------------------- resume


def test_resume_keeps_what_is_unchanged_and_nothing_else(demo, monkeypatch):
    needs(monkeypatch, n00="", n01="00", n02="")
    for name in ("00_first", "01_second", "02_alone"):
        demo.notebook(name, leave_marks(demo, name[:2]), DONE)

    def runs(**changes):
        return by_number(series.runner.run(plan(demo, resume=True, **changes)))

    runs()
    assert [times_run(demo, n) for n in ("00", "01", "02")] == [1, 1, 1]
    results = runs()
    assert all(result.kept and result.status == "ok" for result in results.values())
    assert [times_run(demo, n) for n in ("00", "01", "02")] == [1, 1, 1]

    # outputs of the stored notebook are not its source
    path = demo.notebooks / "00_first.ipynb"
    node = json.loads(path.read_text())
    node["cells"][-1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "seen"}]
    path.write_text(json.dumps(node))
    assert runs()["00"].kept

    # a changed notebook runs again, and so does the one that reads its results
    demo.notebook("00_first", leave_marks(demo, "00"), "1 + 1", DONE)
    results = runs()
    assert [result.kept for result in results.values()] == [False, False, True]
    assert [times_run(demo, n) for n in ("00", "01", "02")] == [2, 2, 1]

    # a lost result is made again; without --resume everything is
    (paths.RUNS / "cpu/notebooks/02_alone.ipynb").unlink()
    assert [result.kept for result in runs().values()] == [True, True, False]
    assert not any(result.kept for result in series.runner.run(plan(demo, only=("02",))))
    # another seed is another run, and leaves the first as it was
    assert not runs(seed=1)["02"].kept
    assert runs(seed=1)["02"].kept and runs()["02"].kept


def test_a_number_stands_for_its_parts():
    known = ["03", "04a", "04b", "05"]
    assert series.plan.named(("04", "05"), known, "--only") == {"04a", "04b", "05"}
    assert series.plan.named(("04b",), known, "--only") == {"04b"}
    with pytest.raises(KitError, match="--only: there is no notebook 0; choose among 03, 04a"):
        series.plan.named(("0",), known, "--only")


def test_a_notebook_of_a_study_is_stale_when_its_tables_change(demo, monkeypatch):
    """Its tables are committed, so that no notebook before it says that they are others now."""
    monkeypatch.setattr(paths, "RESULTS", demo.root / "results")
    table = demo.root / "results/studies/small/contrasts.csv"
    table.parent.mkdir(parents=True)
    table.write_text("difference\n0.1\n")
    shows = demo.notebook("00_first", "nb.read_table('contrasts', run='studies/small')")
    other = demo.notebook("01_second", "print(1)")

    def keys():
        return [series.cells.source_key(path, {}, "cpu") for path in (shows, other)]

    before = keys()
    table.write_text("difference\n-0.1\n")
    after = keys()
    assert after[0] != before[0] and after[1] == before[1]


def test_key_covers_parameters_settings_and_imported_modules(demo, monkeypatch):
    path = demo.notebook("00_first", "from robustpo_kit import losses")
    key = series.cells.source_key(path, {"seed": 0, "overrides": {}}, "cpu")
    assert key == series.cells.source_key(path, {"seed": 0, "overrides": {}}, "cpu")
    others = [
        series.cells.source_key(path, {"seed": 1, "overrides": {}}, "cpu"),
        series.cells.source_key(path, {"seed": 0, "overrides": {"epochs": 9}}, "cpu"),
        series.cells.source_key(path, {"seed": 0, "overrides": {}}, "gpu"),
    ]
    package = demo.root / "package"
    package.mkdir()
    for module in ("__init__", "losses", "robust"):
        (package / f"{module}.py").write_text("value = 1\n")
    monkeypatch.setattr(freshness, "PACKAGE", package)
    own = series.cells.source_key(path, {}, "cpu")
    (package / "robust.py").write_text("value = 22\n")
    assert series.cells.source_key(path, {}, "cpu") == own, (
        "a module that the notebook does not import"
    )
    (package / "losses.py").write_text("value = 22\n")
    others.append(series.cells.source_key(path, {}, "cpu"))
    paths.SYNTHETIC.mkdir(parents=True)
    (paths.SYNTHETIC / "replies.jsonl").write_text("{}\n")
    others.append(series.cells.source_key(path, {}, "cpu"))
    assert len({key, own, *others}) == 2 + len(others)


def test_imported_modules_follows_imports_inside_functions():
    found = records.imported_modules(
        "%matplotlib inline\n!ls\nfrom robustpo_kit.notebook import start"
    )
    assert found == {"robustpo_kit.notebook"}
    found = records.closure(found)
    assert {f"robustpo_kit.{name}" for name in ("profiles", "records.files", "paths")} <= found
    assert "robustpo_kit.losses.pairwise" not in found
    found = records.imported_modules("def f():\n    from robustpo_kit import cli")
    assert "robustpo_kit.assets.table" in records.closure(found)


# ---------------------------------------------------------------- death in the middle


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_killed_series_leaves_nothing_running_and_goes_on_where_it_was(demo, how):
    """The kernel, and what a cell had started, end too. (Ctrl-C takes the way of SIGTERM.)"""
    demo.notebook("00_first", leave_marks(demo, "00"), DONE)
    hang = (
        f'import os, subprocess, time\nfrom pathlib import Path\n\nroot = Path("{demo.root}")\n'
        'if not (root / "go").exists():\n'
        '    child = subprocess.Popen(["sleep", "1000"])\n'
        '    (root / "pids.tmp").write_text(f"{os.getpid()} {child.pid}")\n'
        '    os.rename(root / "pids.tmp", root / "pids")\n'
        "    time.sleep(1000)"
    )
    demo.notebook("01_second", hang, leave_marks(demo, "01"), DONE)
    command = [sys.executable, "-m", "robustpo_kit", "series", "--profile", "cpu", "--resume"]
    process = subprocess.Popen(
        command, env=demo.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        wait_for((demo.root / "pids").exists)
        pids = [int(pid) for pid in (demo.root / "pids").read_text().split()]
        process.send_signal(how)
        told = process.communicate(timeout=60)[0]
    finally:
        process.kill()
    wait_for(lambda: not any(alive(pid) for pid in pids))
    if how != signal.SIGKILL:
        assert process.returncode == 130
        assert "interrupted" in told and "1 ok, 1 failed" in told
        assert "interrupted" in (demo.root / "runs/cpu/index.md").read_text()

    (demo.root / "go").touch()
    again = demo.robustpo("series", "--profile", "cpu", "--resume")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "kept" in again.stdout and "2 ok" in again.stdout
    assert times_run(demo, "00") == 1 and times_run(demo, "01") == 1


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--profile", "huge"], "profile: 'huge' is unknown; choose one of smoke, demo, cpu, gpu"),
        (
            ["-P", "profil=cpu"],
            "00_first.ipynb: parameter 'profil' is unknown; it has profile, seed, overrides",
        ),
        (["-P", "seed=1"], "-P seed: use --profile, --seed or --set instead"),
        (["--set", "speed=3"], "overrides: 'speed' is not a setting"),
        (["--set", "epochs"], "--set epochs: expected KEY=VALUE"),
        (["--only", "9"], "--only: there is no notebook 09; choose among 00, 01, 02"),
        (
            ["--only", "02"],
            "--only: 02 needs 01, which has not run under profile cpu; run --only 01,02",
        ),
        (["--workers", "0"], "--workers and --time-limit should be greater than 0"),
        (["--seed", "x"], "argument --seed: invalid int value: 'x'"),
        (["--publish"], "runs/cpu/manifest.json: no such file"),
    ],
)
def test_refused_in_one_line_before_anything_starts(demo, arguments, said):
    for name in ("00_first", "01_second", "02_third"):
        demo.notebook(name, DONE)
    done = demo.robustpo("series", *arguments)
    assert done.returncode == 2
    assert said in done.stderr and done.stderr.count("\n") == 1
    assert done.stdout == "" and not (demo.root / "runs").exists()


def test_only_runs_the_named_ones(demo, monkeypatch):
    needs(monkeypatch, n00="", n01="00")
    for name in ("00_first", "01_second"):
        demo.notebook(name, leave_marks(demo, name[:2]), DONE)
    assert [r.number for r in series.runner.run(plan(demo, only=("00",)))] == ["00"]
    assert [r.status for r in series.runner.run(plan(demo, only=("01",)))] == ["ok"]
    assert (times_run(demo, "00"), times_run(demo, "01")) == (1, 1)


def test_notebook_without_declared_needs_is_refused(demo):
    demo.notebook("55_new", DONE)
    with pytest.raises(KitError, match=r"55_new\.ipynb: its needs are not declared"):
        series.runner.run(plan(demo))
    with pytest.raises(KitError, match="no notebook named"):
        series.plan.sources(demo.root)


def test_circle_of_needs_is_refused(monkeypatch):
    needs(monkeypatch, n00="", n01="02", n02="01")
    assert series.plan.in_order(["00"]) == ["00"]
    with pytest.raises(KitError, match="01, 02 need each other"):
        series.plan.in_order(["00", "01", "02"])


def test_parameters_are_json_clean(demo):
    assert series.plan.parameters(plan(demo, overrides={"listwise": ("dpo_pl",)}))["overrides"] == {
        "listwise": ["dpo_pl"]
    }
    with pytest.raises(KitError, match="not JSON serializable"):
        series.plan.parameters(plan(demo, parameters={"path": {1, 2}}))


def test_two_series_under_one_profile_are_refused(demo):
    demo.notebook("00_first", DONE)
    first, second = plan(demo), plan(demo)
    with (
        series.runner._lock(first),
        pytest.raises(KitError, match="already running under profile cpu"),
    ):
        series.runner.run(second)
    other = dataclasses.replace(first, profile="smoke")
    with series.runner._lock(first), series.runner._lock(other):
        pass


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_kill_tree_of_a_process_that_is_gone():
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    series.execution.kill_tree(process.pid)
