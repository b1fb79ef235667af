"""The notebooks in JupyterLab, in a real browser: `make browser` runs what is marked so."""

import os
from pathlib import Path

import browsing
import pytest

pytestmark = pytest.mark.browser
TO_THE_END = ("00_start_here", "07_gamma_vs_margin", "14_your_data")  # under profile smoke
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


def test_a_person_finds_profile_demo_and_a_slider_that_moves_the_figure(lab, page):
    browsing.open_notebook(page, lab, "04a_kl_dro")
    state = browsing.run_all(page)
    assert state["errors"] == [] and "04a_kl_dro: done" in state["said"]
    assert "04a_kl_dro: profile demo" in state["said"]
    drawing = page.locator(".jp-OutputArea [role=img]").first
    drawing.wait_for(timeout=browsing.PATIENCE)
    before = drawing.get_attribute("aria-label"), drawing.inner_html()
    slider = page.locator(".jp-OutputArea input[type=range]").first
    slider.press("ArrowRight")
    slider.press("ArrowRight")
    after = drawing.get_attribute("aria-label"), drawing.inner_html()
    drawing.scroll_into_view_if_needed()
    browsing.shut_down(page)
    assert before[0] != after[0] and before[1] != after[1]
