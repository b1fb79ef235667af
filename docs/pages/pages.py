"""The pages of the site but the API's: documents, notebooks, moving parts, what tables say.

Formulas become MathML here, and parts bring their module and their state along: nothing is loaded
from elsewhere when the pages are read, and no kernel runs.
"""

import base64
import html
import json
import posixpath
import re
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import latex2mathml.converter
import nbformat
import pandas as pd
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments.formatters import HtmlFormatter

from robustpo_kit import analysis, auditing, plots, widgets

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DOCUMENTS = {"README.md": "index.html", "CONTRIBUTING.md": "docs/contributing.html"} | {
    f"docs/{path.name}": f"docs/{path.stem}.html" for path in sorted((ROOT / "docs").glob("*.md"))
}
HARMS = {"phase_flips": "flipped labels", "phase_contamination": "contaminated rows"}
WORLDS = {  # axes of those studies, as a reader meets them
    "base": "nothing else wrong",
    "K 2": "2 responses a prompt",
    "K 8": "8 responses a prompt",
    "reward bias 1.5": "a reward that likes style",
    "classifier 32 rows": "32 trusted lists",
    "classifier untrusted": "no trusted lists",
}
SHOWN = re.compile(r"widgets\.show\(\s*[\"'](\w+)[\"']")  # a moving part in a cell
DRAWN = re.compile(r"save_figure\(\s*[\"'](\w+)[\"']")


class Text(IPythonRenderer):
    """Markdown of one file: formulas as MathML, links to where the site has the same."""

    def __init__(self, source: str, page: str):
        super().__init__(escape=False)
        self.source, self.page = source, page
        self.pictures: set[str] = set()
        self.headings: Counter[str] = Counter()

    def block_math(self, body: str) -> str:
        return f'<div class="wide">{latex2mathml.converter.convert(body, display="block")}</div>'

    def inline_math(self, body: str) -> str:
        return latex2mathml.converter.convert(body)

    def block_html(self, html: str) -> str:
        """Formulas stand in folded solutions, too, but not in their code."""
        parts = re.split(r"(?s)(<(?:code|pre)\b.*?</(?:code|pre)>)", html)
        parts[::2] = [re.sub(r"\$([^$]+)\$", self._formula, part) for part in parts[::2]]
        return super().block_html("".join(parts))

    def _formula(self, found: re.Match[str]) -> str:
        return self.inline_math(html.unescape(found[1]))

    def heading(self, text: str, level: int, **attrs: Any) -> str:
        words = html.unescape(re.sub(r"<[^>]+>", "", text)).strip().lower()
        part = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")  # as GitHub names it
        self.headings[part] += 1
        if self.headings[part] > 1:
            part += f"-{self.headings[part] - 1}"
        link = f'<a class="anchor-link" href="#{part}" aria-label="this section">#</a>'
        return f'<h{level} id="{part}">{text}{link}</h{level}>\n'

    def link(self, text: str, url: str, title: str | None = None) -> str:
        target = self.place(url)
        return text if target is None else super().link(text, target, title)

    def image(self, text: str, url: str, title: str | None = None) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(self.source), url))
        self.pictures.add(path)
        return super().image(text, relative(path, self.page), title)

    def render_text(self, text: str) -> str:
        """HTML of a Markdown text; a wide table scrolls by itself."""
        made = MarkdownWithMath(renderer=self).render(text)
        wide = made.replace("<table>", '<div class="wide" tabindex="0"><table>')
        return wide.replace("</table>", "</table></div>")

    def place(self, url: str) -> str | None:
        """`url` as a link from this page; None for what the site does not have."""
        if re.match(r"[a-z]+:|#", url):
            return url
        path, _, part = url.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(self.source), path))
        if path.endswith(".ipynb"):
            path, part = f"{path.removesuffix('.ipynb')}.html", part.lower()
        elif path in DOCUMENTS:
            path = DOCUMENTS[path]
        else:
            return None
        return relative(path, self.page) + (f"#{part}" if part else "")


def relative(path: str, page: str) -> str:
    """`path` of the site as `page` of the site links to it."""
    return posixpath.relpath(path, posixpath.dirname(page) or ".")


class Site:
    """Pages of one folder, which share a frame."""

    def __init__(self, folder: Path):
        self.folder = folder
        loader = jinja2.FileSystemLoader(HERE)
        self.frame = jinja2.Environment(loader=loader).get_template("page.html.jinja2")
        self.pages = {
            "index.html": "robustpo-kit",
            "method.html": "Which method",
            "phase.html": "Phase diagram",
            "papers.html": "The papers' tables",
            "parts.html": "Things to move",
            "notebooks/index.html": "Notebooks",
            "docs/index.html": "Documents",
            "api/index.html": "API",
        }

    def write(self, page: str, title: str, body: str, names: tuple[str, ...] = ()) -> None:
        """One page; `names` are the moving parts whose places are in its body."""
        path = self.folder / page
        path.parent.mkdir(parents=True, exist_ok=True)
        menu = {relative(other, page): name for other, name in self.pages.items()}
        style = relative("style.css", page)
        here = relative(page, page) if page in self.pages else None
        frame = {"title": title, "body": body, "menu": menu, "style": style, "here": here}
        path.write_text(self.frame.render(frame, mounted=mounted(names)), encoding="utf-8")

    def copy(self, source: str) -> None:
        """A file of the checkout, at the same place in the site."""
        target = self.folder / source
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / source, target)


def mounted(names: tuple[str, ...]) -> str:
    """The script that brings moving parts to life: their modules as they are, and their states."""
    if not names:
        return ""
    lines, parts = [], []
    for index, name in enumerate(names):
        part = widgets.CATALOGUE[name]
        module = base64.b64encode(part.module.encode()).decode()
        lines.append(f'import part{index} from "data:text/javascript;base64,{module}";')
        state = json.dumps(part.state()).replace("</", "<\\/")
        parts.append(f"[{json.dumps(name)}, part{index}, {state}]")
    shim = (HERE / "mount.js").read_text(encoding="utf-8")
    return "\n".join([*lines, shim, f"mount([{', '.join(parts)}]);"])


def place_of(name: str) -> str:
    """Where a moving part goes, with its caption."""
    caption = html.escape(widgets.CATALOGUE[name].caption)
    return f'<figure class="part" data-part="{name}"><figcaption>{caption}</figcaption></figure>'


# ---------------------------------------------------------------- documents and notebooks


def documents(site: Site) -> None:
    """README, CONTRIBUTING and docs/*.md, and a list of them."""
    titles = {}
    for source, page in DOCUMENTS.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        renderer = Text(source, page)
        titles[page] = title_of(text)
        site.write(page, titles[page], renderer.render_text(text))
        for picture in renderer.pictures:
            site.copy(picture)
    site.write("docs/index.html", "Documents", listed("Documents", titles, "docs/index.html"))


def title_of(text: str) -> str:
    """The first heading of a Markdown text."""
    title = re.search(r"^#\s+(.+)$", text, re.M)
    if title is None:
        raise SystemExit(f"no title: {text[:60]!r}")
    return title[1]


def listed(heading: str, titles: dict[str, str], page: str) -> str:
    items = [
        f'<li><a href="{relative(other, page)}">{html.escape(title)}</a></li>'
        for other, title in titles.items()
        if other != "index.html"
    ]
    return f"<h1>{heading}</h1>\n<ul>\n" + "\n".join(items) + "\n</ul>"


def notebooks(site: Site) -> None:
    """The stored notebooks as pages, their files beside them, and a list."""
    titles = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        page = f"notebooks/{path.stem}.html"
        titles[page] = title_of(notebook.cells[0].source)
        names = prepared(notebook)
        site.copy(f"notebooks/{path.name}")
        file = f'<p class="file"><a href="{path.name}" download>{path.name}</a>, as it was run</p>'
        site.write(page, titles[page], converted(notebook, page) + file, names)
    index = "notebooks/index.html"
    site.write(index, "Notebooks", listed("Notebooks", titles, index))


def prepared(notebook: nbformat.NotebookNode) -> tuple[str, ...]:
    """Give moving parts a place behind their cells, and pictures a text; the names of the parts."""
    names, heading = [], ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            found = re.findall(r"^#+\s+(.+)$", cell.source, re.M)
            heading = found[-1] if found else heading
            continue
        drawn = DRAWN.search(cell.source)
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                alt = f"{drawn[1].replace('_', ' ')}: {heading}" if drawn else heading
                output.metadata.setdefault("image/png", {})["alt"] = alt
        for name in SHOWN.findall(cell.source):
            if name in widgets.CATALOGUE:
                data = {"text/html": place_of(name)}
                cell.outputs.append(nbformat.v4.new_output("display_data", data))
                names.append(name)
    return tuple(dict.fromkeys(names))


def converted(notebook: nbformat.NotebookNode, page: str) -> str:
    """The cells of a notebook as HTML."""
    text = Text(page.replace(".html", ".ipynb"), page)
    exporter = HTMLExporter(
        template_name="basic",
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        filters={"markdown2html": text.render_text},
    )
    return exporter.from_notebook_node(notebook)[0]


# ---------------------------------------------------------------- pages made of tables


def methods(site: Site) -> None:
    """Which method for my data: what the declared phase studies advise, cell by cell."""
    parts = [section("method.html")]
    for study, harm in HARMS.items():
        table = auditing.first_to_try(study)
        order = table["axis"].drop_duplicates().tolist()
        table = table.sort_values(["axis", "dose"], key=lambda column: column.map(rank(order)))
        shown = {
            f"share of {harm}": [f"{dose:.0%}" for dose in table["dose"]],
            "in a world with": table["axis"].map(lambda axis: WORLDS.get(axis, axis)),
            "try first": table["use"],
            "as an objective": table["objective"],
            "because": table["why"],
            "shown to lose": table["loses"],
        }
        parts.append(f"<h2>If {harm} are the worry</h2>{tabled(pd.DataFrame(shown))}")
    site.write("method.html", "Which method", "\n".join(parts))


def rank(order: list[str]) -> Callable[[Any], Any]:
    """Sorts names in the order of a list, and numbers as they are."""
    return lambda value: order.index(value) if isinstance(value, str) else value


def phase(site: Site) -> None:
    """The phase diagram, as a picture and as a part, and what was declared of it."""
    site.copy("figures/reference/phase_map.png")
    said = []
    for study, harm in HARMS.items():
        contrasts = pd.read_csv(ROOT / "data/results/studies" / study / "contrasts.csv")
        for _, row in contrasts[contrasts["kind"] == "primary"].iterrows():
            dose = float(row["where"].removeprefix("dose "))
            over = f"{row['method']} over {row['baseline']}, {dose:.0%} {harm}"
            said.append(f"<li>{html.escape(f'{over}: {analysis.verdict(row)}')}</li>")
    names = tuple(name for name in ("phase",) if name in widgets.CATALOGUE)
    places = "".join(map(place_of, names))
    body = section("phase.html").format(parts=places, declared="\n".join(said))
    site.write("phase.html", "Phase diagram", body, names)


def papers(site: Site) -> None:
    """Every table and figure of both papers beside our numbers, as notebook 99 has them."""
    site.copy("figures/reference/paper_items.png")
    items = analysis.item_table(analysis.item_readings(["reference"]))
    counts = items["verdict"].value_counts()
    heads = {"item": "item", "title": "about", "claim": "the paper's claim", "printed": "it prints"}
    heads |= {"toy": "ours, toy world", "real": "ours, real text", "verdict": "verdict"}
    heads |= {"turn": "what would turn it", "notebook": "notebook"}
    parts = [", ".join(f"{count} {verdict}" for verdict, count in counts.items())]
    for paper, rows in items.groupby("paper", sort=False):
        shown = rows[list(heads)].rename(columns=heads)
        parts.append(f"<h2>{html.escape(plots.PAPERS[paper])}</h2>{tabled(shown)}")
    body = section("papers.html").format(count=len(items), verdicts=parts[0])
    site.write("papers.html", "The papers' tables", body + "\n".join(parts[1:]))


def moving(site: Site) -> None:
    """All moving parts on one page."""
    parts = [section("parts.html")]
    for name, part in widgets.CATALOGUE.items():
        stem = next((ROOT / "notebooks").glob(f"{part.notebook}_*.ipynb")).stem
        link = f'<p>From <a href="notebooks/{stem}.html">notebook {part.notebook}</a>.</p>'
        parts.append(f'<h2 id="{name}">{name.replace("_", " ")}</h2>{place_of(name)}{link}')
    site.write("parts.html", "Things to move", "\n".join(parts), tuple(widgets.CATALOGUE))


def section(page: str) -> str:
    """The words of a page that is made of tables, from words.html."""
    text = (HERE / "words.html").read_text(encoding="utf-8")
    return re.search(rf"<!-- {re.escape(page)} -->\n(.*?)(?=<!-- |\Z)", text, re.S)[1]


def tabled(table: pd.DataFrame) -> str:
    """A table that scrolls by itself where a page is narrow."""
    return f'<div class="wide" tabindex="0">{table.to_html(index=False, border=0, na_rep="")}</div>'


# ---------------------------------------------------------------- all of them


def colours(where: str) -> str:
    """Style sheet of code, on light and on dark ground."""
    light, dark = (
        HtmlFormatter(style=name).get_style_defs(where) for name in ("xcode", "github-dark")
    )
    return f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}"


def write(folder: Path) -> None:
    """All pages, in `folder`, which is made."""
    folder.mkdir(parents=True)
    sheet = colours(".highlight") + (HERE / "site.css").read_text(encoding="utf-8")
    (folder / "style.css").write_text(sheet, encoding="utf-8")
    site = Site(folder)
    for make in (documents, notebooks, methods, phase, papers, moving):
        make(site)
