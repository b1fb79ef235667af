"""The pages that `make site` builds: every notebook, part and public name has its place, no link
is broken, nothing is loaded from elsewhere; in the browser: that they are quiet, can be read, move.
"""

import importlib
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import browsing
import pytest

from robustpo_kit import auditing, widgets

ROOT = Path(__file__).resolve().parent.parent
LOADED = {"script": "src", "img": "src", "iframe": "src", "link": "href", "source": "src"}


class Page(HTMLParser):
    """Links, ids and loaded files of one page."""

    def __init__(self, path: Path):
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.ids: set[str] = set()
        text = path.read_text(encoding="utf-8")
        self.feed(text)
        self.loads += re.findall(r"(?:@import\s+|url\()[\"']?((?:https?:)?//[^\"')]+)", text)

    def handle_starttag(self, tag, attributes):
        given = {name: value or "" for name, value in attributes}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if LOADED.get(tag) in given:
            self.loads.append(given[LOADED[tag]])


def link_problems(folder: Path) -> list[str]:
    """Broken links of the pages in `folder`, and files that they would load from elsewhere."""
    pages = {path: Page(path) for path in sorted(folder.rglob("*.html"))}
    problems = []
    for path, page in pages.items():
        where = path.relative_to(folder)
        for address in page.loads:
            if not address.startswith("data:") and urlsplit(address).netloc:
                problems.append(f"{where} loads {address}")
        for address in page.links + page.loads:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                problems.append(f"{where} links to {address}, which is not there")
            elif parts.fragment and unquote(parts.fragment) not in pages[target].ids:
                problems.append(f"{where} links to {address}, which has no such part")
    return problems


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site that ROBUSTPO_SITE names, as `make browser` does, else one that is built now."""
    if given := os.environ.get("ROBUSTPO_SITE"):
        return Path(given).resolve()
    folder = tmp_path_factory.mktemp("pages") / "site"
    command = [sys.executable, str(ROOT / "docs" / "pages" / "build.py"), str(folder)]
    subprocess.run(command, check=True, cwd=ROOT)
    return folder


def test_no_link_is_broken_and_nothing_is_loaded_from_elsewhere(site):
    assert link_problems(site) == []


def test_no_page_names_a_folder_of_this_machine(site):
    for path in [*site.rglob("*.html"), site / "api" / "search.js"]:
        text = path.read_text(encoding="utf-8")
        assert str(ROOT) not in text and str(Path.home()) + "/" not in text, path.name


def test_every_public_name_has_its_place(site):
    for door in sorted((ROOT / "robustpo_kit").glob("*/__init__.py")):
        room = importlib.import_module(f"robustpo_kit.{door.parent.name}")
        page = Page(site / "api" / "robustpo_kit" / f"{door.parent.name}.html")
        for name in room.__all__:
            inside = site / "api" / "robustpo_kit" / door.parent.name / f"{name}.html"
            assert name in page.ids or inside.is_file(), f"{room.__name__}.{name} has no place"
    for path in (ROOT / "robustpo_kit").glob("[a-z]*.py"):
        assert (site / "api" / "robustpo_kit" / f"{path.stem}.html").is_file(), (
            f"{path.name} has no page"
        )


def test_tables_are_described_and_their_values_left_out(site):
    text = (site / "api" / "robustpo_kit" / "losses.html").read_text()
    assert "BASES</a></code> is the table of losses" in text
    assert "Base(loss=" not in text and "&lt;function dpo" not in text


def test_every_notebook_and_module_is_listed(site):
    links = set(Page(site / "notebooks" / "index.html").links)
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"{path.stem}.html" in links and (site / "notebooks" / path.name).is_file()
    links = set(Page(site / "api" / "index.html").links)
    for path in site.glob("api/robustpo_kit/**/*.html"):
        assert path.relative_to(site / "api").as_posix() in links


def test_formulas_are_mathml_and_no_dollars_stay(site):
    text = (site / "notebooks" / "04a_kl_dro.html").read_text()
    prose = re.sub(r"(?s)<(pre|code|script|style)\b.*?</\1>|<[^>]+>", " ", text)
    assert text.count("<math") > 10 and not re.search(r"\$|\\frac|\\tilde", prose)


def test_every_moving_part_stands_on_its_page_and_in_its_notebook(site):
    for name, part in widgets.CATALOGUE.items():
        (page,) = site.glob(f"notebooks/{part.notebook}_*.html")
        text = next((ROOT / "notebooks" / "text").glob(f"{part.notebook}_*.py")).read_text()
        stored = next((ROOT / "notebooks").glob(f"{part.notebook}_*.ipynb")).read_text()
        places = [site / "parts.html"]
        if "widgets.show" in text and "widgets.show" in stored:
            places.append(page)
        for place in places:
            assert f'data-part="{name}"' in place.read_text(), f"{place.name} lacks {name}"


def test_the_page_of_methods_says_what_the_tables_say(site):
    text = (site / "method.html").read_text()
    for study in ("phase_flips", "phase_contamination"):
        for row in auditing.first_to_try(study).itertuples():
            assert f"<td>{row.use}</td>" in text and f"<td>{row.why}</td>" in text


@pytest.mark.parametrize(
    ("page", "complaint"),
    [
        ('<a href="other.html">', "which is not there"),
        ('<a href="#part">', "which has no such part"),
        ('<script src="https://cdn.example/x.js"></script>', "index.html loads https:"),
        ("<style>@import 'https://cdn.example/x.css'</style>", "index.html loads https:"),
        ('<p id="part"><a href="index.html#part"><a href="https://example.org">', None),
    ],
)
def test_the_check_of_links_can_fail(tmp_path, page, complaint):
    (tmp_path / "index.html").write_text(page)
    problems = link_problems(tmp_path)
    assert bool(problems) == (complaint is not None)
    assert complaint is None or complaint in problems[0]


# ---------------------------------------------------------------- in the browser

NARROW, WIDE = 400, 1200
FAINT = (Path(__file__).parent / "faint.js").read_text()


@pytest.fixture(scope="module")
def chromium():
    with browsing.browser() as context:
        yield context


@pytest.fixture
def tab(chromium):
    page = chromium.new_page()
    yield page
    page.close()


def problems(tab, path: Path) -> list[str]:
    """What is wrong with one page as a browser shows it, narrow and dark as well."""
    watch, found = browsing.Watch(tab), []
    for width, scheme in ((WIDE, "light"), (NARROW, "dark")):
        tab.set_viewport_size({"width": width, "height": 900})
        tab.emulate_media(color_scheme=scheme)
        tab.goto(path.as_uri())
        found += [f"faint in {scheme}: {text}" for text in tab.evaluate(FAINT)]
        broad = tab.evaluate("document.documentElement.scrollWidth")
        if broad > width:
            found.append(f"{broad} pixels broad where {width} are")
    found += [f"console: {text}" for text in watch.errors]
    return found + [f"asks for {url}" for url in watch.strays]


@pytest.mark.browser
def test_pages_are_quiet_and_can_be_read_narrow_and_dark(site, tab):
    own = [path for path in sorted(site.rglob("*.html")) if "api" not in path.parts]
    some = [site / "api" / f"{name}.html" for name in ("index", "robustpo_kit/losses")]
    found = {path: problems(tab, path) for path in [*own, *some]}
    assert {str(path.relative_to(site)): said for path, said in found.items() if said} == {}


@pytest.mark.browser
@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("<p style='color: #999; background: #fff'>pale", "faint in light"),
        ("<svg><text y=20 fill='#123'>a</text></svg>", "faint in dark"),
        ("<svg><rect width=90 height=90 /><text x=9 y=20>a</text></svg>", "faint in light"),
        ("<p style='width: 900px'>broad", "pixels broad"),
        ("<script>console.error('no')</script>", "console: no"),
        ("<script>missing()</script>", "console: missing is not defined"),
        ("<img src='https://elsewhere.invalid/x.png'>", "asks for https://elsewhere.invalid"),
        ("<p style='color: #222; background: #fff'>all is well", None),
    ],
)
def test_the_look_at_a_page_can_fail(tmp_path, tab, body, complaint):
    (tmp_path / "page.html").write_text(f"<!doctype html><meta name=viewport>{body}")
    found = problems(tab, tmp_path / "page.html")
    assert bool(found) == (complaint is not None), found
    assert complaint is None or any(complaint in text for text in found)


@pytest.mark.browser
def test_the_keyboard_reaches_every_control_of_the_moving_parts(site, tab):
    tab.goto((site / "parts.html").as_uri())
    tab.locator("figure.part svg").last.wait_for()
    controls = "main :is(a[href], input, select, button, summary)"
    count = tab.evaluate(
        f"() => [...document.querySelectorAll('{controls}')].filter((c, i) => {{"
        "  c.dataset.at = i; return c.checkVisibility(); }).length"
    )
    seen = set()
    for _ in range(2 * count + 40):
        tab.keyboard.press("Tab")
        seen.add(tab.evaluate("document.activeElement.dataset.at"))
    assert count >= len(widgets.CATALOGUE) and len(seen - {None}) == count


@pytest.mark.browser
@pytest.mark.parametrize("name", widgets.CATALOGUE)
def test_a_key_on_a_slider_moves_the_drawing(site, tab, name):
    tab.goto((site / "parts.html").as_uri())
    part = tab.locator(f'[data-part="{name}"]')
    drawing = part.locator("[role=img]").first
    drawing.wait_for()
    before = drawing.inner_html(), drawing.get_attribute("aria-label")
    controls = part.locator("input[type=range], select")
    controls.first.focus()
    for _ in range(3):
        tab.keyboard.press("ArrowRight" if controls.first.get_attribute("type") else "ArrowDown")
    after = drawing.inner_html(), drawing.get_attribute("aria-label")
    assert after[0] != before[0] and after[1] != before[1]
