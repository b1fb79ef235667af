"""The gates: what `make` and CI run, how commits are named, how the package reads."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import reading
from setuptools.command.egg_info import FileList

ROOT = Path(__file__).resolve().parent.parent
SHORT_SUBJECTS_SINCE = "2026-11-21T13:37:00Z"  # earlier ones may be longer


def test_ci_runs_the_gates_by_their_make_targets():
    """`make check` is `.ci/run`, which calls the README's test command among the others."""
    gates = re.findall(r"^make ([a-z]+)", (ROOT / ".ci" / "run").read_text(), re.M)
    assert gates == ["lint", "types", "test", "dist", "browser"]
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^check:.*\n\t@\.ci/run$", makefile, re.M)
    for target in gates:
        assert re.search(rf"^{target}: .*## ", makefile, re.M), target


def test_coverage_has_the_floor_that_contributing_names():
    report = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["coverage"]["report"]
    assert f"its floor of {report['fail_under']} %" in (ROOT / "CONTRIBUTING.md").read_text()
    recipe = re.search(r"^test: .*\n\t(.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert report["fail_under"] >= 95 and "--cov=robustpo_kit" in recipe[1]


@pytest.mark.parametrize(("options", "code"), [(["--cov=covered"], 1), ([], 0)])
def test_the_floor_holds_where_coverage_is_measured_and_nowhere_else(tmp_path, options, code):
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    (tmp_path / "covered.py").write_text("def covered():\n    return 1\n")
    (tmp_path / "test_covered.py").write_text("import covered\n\ndef test_it():\n    covered\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, "."]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stdout
    assert ("FAIL Required test coverage of 97" in done.stdout) is bool(code)


def test_the_sdist_has_what_its_tests_need(monkeypatch):
    tracked = subprocess.run(
        ["git", "ls-files", "tests", "docs", "notebooks", "conftest.py", "Makefile"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if tracked.returncode != 0:
        pytest.skip("not a git checkout")
    monkeypatch.chdir(ROOT)
    listed = FileList()
    for line in (ROOT / "MANIFEST.in").read_text().splitlines():
        listed.process_template_line(line)
    assert set(tracked.stdout.split()) <= {Path(name).as_posix() for name in listed.files}


def test_make_help_lists_the_targets():
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    targets = re.search(r"^\.PHONY: help (.*)$", (ROOT / "Makefile").read_text(), re.M)
    for target in targets[1].split():
        assert re.search(rf"^  make {target} ", done.stdout, re.M), target


def test_check_all_runs_what_a_plain_run_leaves_out(tmp_path):
    """Tests marked slow; a notebook's cells, which have no marks, are in the plain run."""
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^check-all: check .*\n\t\S+ -m pytest .*-m slow tests$", makefile, re.M)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    marked = "import pytest\n@pytest.mark.slow\ndef test_long(): pass\ndef test_short(): pass\n"
    (tmp_path / "test_both.py").write_text(marked)
    cell = {"cell_type": "code", "source": "1", "metadata": {}, "outputs": []}
    notebook = {"nbformat": 4, "nbformat_minor": 4, "metadata": {}, "cells": [cell]}
    (tmp_path / "one.ipynb").write_text(json.dumps(notebook))
    for options, found in (([], ["one.ipynb::Cell 0", "test_both.py::test_short"]),
                           (["-m", "slow"], ["test_both.py::test_long"])):  # fmt: skip
        command = [sys.executable, "-m", "pytest", "-q", "--nbval", "--collect-only", "."]
        done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True)
        assert re.findall(r"^.*::.*$", done.stdout, re.M) == found, done.stdout


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        ("#!/bin/sh\nexit 1\n", "needs Python 3.11 or newer"),
        (
            '#!/bin/sh\ncase "$2" in *ensurepip*) exit 1;; esac\nexit 0\n',
            "apt install python3-venv",
        ),
    ],
)
def test_make_says_what_the_interpreter_lacks(tmp_path, script, complaint):
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    python = tmp_path / "python"
    python.write_text(script)
    python.chmod(0o755)
    done = subprocess.run(
        ["make", "env", f"PYTHON={python}"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert complaint in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_subjects_of_commits_are_short():
    """Of those that are there (a shallow clone has few); merges name what they merge."""
    command = ["git", "log", "--no-merges", f"--since={SHORT_SUBJECTS_SINCE}", "--format=%h %s"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    for line in done.stdout.splitlines():
        revision, _, subject = line.partition(" ")
        assert len(subject) < 72, f"{revision}: a subject of {len(subject)} characters"


@pytest.mark.parametrize("name", reading.LIMITS)
def test_the_package_reads_well(name):
    assert reading.measure(reading.PACKAGE)[name] <= reading.LIMITS[name]


def test_contributing_says_how_the_package_reads():
    """Its table has every measure and limit, and is not older than a tenth of any of them."""
    rows = reading.table_rows((ROOT / "CONTRIBUTING.md").read_text())
    for name, value in reading.measure(reading.PACKAGE).items():
        _, now, limit = rows[name]
        assert limit == (reading.shown(reading.LIMITS[name]) if name in reading.LIMITS else "")
        close = pytest.approx(value, rel=0.1, abs=1)
        assert float(now.replace(",", "")) == close, f"{name}: `make reading` writes the table anew"
