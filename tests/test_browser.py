"""The notebooks in JupyterLab, in a real browser: `make browser` runs what is marked so."""

import os
from pathlib import Path

import browsing
import pytest

pytestmark = pytest.mark.browser
TO_THE_END = ("00_start_here", "04a_kl_dro", "07_gamma_vs_margin", "14_your_data")
SHOTS = os.environ.get("ROBUSTPO_SHOTS")  # a folder for pictures of what the browser shows


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab") / "project"
    folder.mkdir()
    with browsing.jupyterlab(browsing.project(folder, smoke=TO_THE_END)) as address:
        yield address


@pytest.fixture(scope="module")
def chromium():
    with browsing.browser() as context:
        yield context


@pytest.fixture
def page(chromium, request):
    page = chromium.new_page()
    page.set_viewport_size({"width": 1280, "height": 900})
    yield page
    if SHOTS:
        page.screenshot(path=Path(SHOTS) / f"{request.node.name}.png")
    page.close()


def test_make_lab_opens_where_the_series_starts(lab, page):
    page.goto(lab.format(""))
    page.get_by_role("heading", name="00 ·").first.wait_for(timeout=browsing.PATIENCE)
    assert "/tree/notebooks/00_start_here.ipynb" in page.url


@pytest.mark.parametrize("name", TO_THE_END)
def test_a_notebook_runs_to_its_end(lab, page, name):
    browsing.open_notebook(page, lab, name)
    state = browsing.run_all(page)
    assert state["errors"] == []
    assert state["counts"] == list(range(1, len(state["counts"]) + 1))
    browsing.shut_down(page)
    assert f"{name}: profile smoke" in state["said"] and f"{name}: done" in state["said"]


def test_a_notebook_that_fails_is_seen_to_fail(lab, page):
    browsing.open_notebook(page, lab, "07_gamma_vs_margin")
    source = "window.jupyterapp.shell.currentWidget.content.widgets[1].model.sharedModel.source"
    page.evaluate(f"{source} = 'raise KeyError(7)'")
    assert browsing.run_all(page)["errors"] == ["KeyError: 7"]
