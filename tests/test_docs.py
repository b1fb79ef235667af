"""The pages that `make docs` builds: every public name has its place, no link is broken, nothing
is loaded from elsewhere."""

import importlib
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

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
    folder = tmp_path_factory.mktemp("pages") / "site"
    command = [sys.executable, str(ROOT / "docs" / "build.py"), str(folder)]
    subprocess.run(command, check=True, cwd=ROOT)
    return folder


def test_no_link_is_broken_and_nothing_is_loaded_from_elsewhere(site):
    assert link_problems(site) == []


def test_no_page_names_a_folder_of_this_machine(site):
    for path in [*site.rglob("*.html"), site / "search.js"]:
        text = path.read_text(encoding="utf-8")
        assert str(ROOT) not in text and str(Path.home()) + "/" not in text, path.name


def test_every_public_name_has_its_place(site):
    for door in sorted((ROOT / "robustpo_kit").glob("*/__init__.py")):
        room = importlib.import_module(f"robustpo_kit.{door.parent.name}")
        page = Page(site / "robustpo_kit" / f"{door.parent.name}.html")
        for name in room.__all__:
            inside = site / "robustpo_kit" / door.parent.name / f"{name}.html"
            assert name in page.ids or inside.is_file(), f"{room.__name__}.{name} has no place"
    for path in (ROOT / "robustpo_kit").glob("[a-z]*.py"):
        assert (site / "robustpo_kit" / f"{path.stem}.html").is_file(), f"{path.name} has no page"


def test_tables_are_described_and_their_values_left_out(site):
    text = (site / "robustpo_kit" / "losses.html").read_text()
    assert "BASES</a></code> is the table of losses" in text
    assert "Base(loss=" not in text and "&lt;function dpo" not in text


def test_the_front_page_lists_every_notebook_and_module(site):
    links = set(Page(site / "index.html").links)
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"notebooks/{path.name}" in links
    for path in site.glob("robustpo_kit/**/*.html"):
        assert path.relative_to(site).as_posix() in links


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
