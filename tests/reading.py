"""How the package reads, measured on its syntax trees: `python tests/reading.py [FOLDER]`.

`--write FILE` puts the measures into the last column of FILE's table, as `make reading` does.
test_gates.py holds the limits, and holds that table against what is measured.
"""

import ast
import re
import sys
from pathlib import Path

import numpy as np

PACKAGE = Path(__file__).resolve().parents[1] / "robustpo_kit"
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
# The most that the tests allow.
LIMITS = {
    "module lines, max": 350,
    "class lines, max": 200,
    "function lines, p90": 30,
    "conditional expressions per 1,000 lines": 12,
    "nested comprehensions per 1,000 lines": 0.5,
}


def measure(package: Path) -> dict[str, float]:
    """The measures by name; shares and rates are of lines that are not blank."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(package.rglob("*.py"))]
    nodes = [node for text in texts for node in ast.walk(ast.parse(text))]
    lines = [line for text in texts for line in text.splitlines() if line.strip()]
    thousands = len(lines) / 1000
    functions = [node for node in nodes if isinstance(node, FUNCTIONS)]
    modules = np.array([len(text.splitlines()) for text in texts])
    sizes = np.array([extent(node) for node in functions])
    classes = [extent(node) for node in nodes if isinstance(node, ast.ClassDef)]
    words = [len(node.name.strip("_").split("_")) for node in functions]
    folders = [package, *package.glob("*/")]
    return {
        "modules": len(texts),
        "most modules in one folder": max(len(list(folder.glob("*.py"))) for folder in folders),
        "lines that are not blank": len(lines),
        "module lines, median": float(np.median(modules)),
        "module lines, p90": float(np.quantile(modules, 0.9)),
        "module lines, max": int(modules.max()),
        "class lines, max": max(classes, default=0),
        "function lines, median": float(np.median(sizes)),
        "function lines, p90": float(np.quantile(sizes, 0.9)),
        "function lines, max": int(sizes.max()),
        "docstring lines per 100 lines": sum(map(docstring_lines, nodes)) / len(lines) * 100,
        "lines over 100 characters, %": sum(len(line) > 100 for line in lines) / len(lines) * 100,
        "conditional expressions per 1,000 lines": sum(
            isinstance(node, ast.IfExp) for node in nodes
        )
        / thousands,
        "nested comprehensions per 1,000 lines": sum(map(is_nested, nodes)) / thousands,
        "words in a function's name": float(np.mean(words)),
    }


def extent(node: ast.AST) -> int:
    """Lines from the first to the last of a function or class, decorators left out."""
    return node.end_lineno - node.lineno + 1


def docstring_lines(node: ast.AST) -> int:
    """Lines of the docstring of a module, class or function."""
    if not isinstance(node, (*FUNCTIONS, ast.ClassDef, ast.Module)):
        return 0
    if ast.get_docstring(node, clean=False) is None:
        return 0
    return extent(node.body[0])


def is_nested(node: ast.AST) -> bool:
    """Whether it is a comprehension with two `for`, or with another one inside."""
    if not isinstance(node, COMPREHENSIONS):
        return False
    inside = [child for child in ast.walk(node) if isinstance(child, COMPREHENSIONS)]
    return len(node.generators) > 1 or len(inside) > 1


def shown(value: float) -> str:
    """A measure as the table has it: one decimal, none where it is whole."""
    return f"{round(value, 1):,.10g}"


def table_rows(text: str) -> dict[str, list[str]]:
    """Measure -> cells of its row (before, now, limit) in the table of a Markdown text."""
    rows = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and len(cells) == 4:
            rows[cells[0]] = cells[1:]
    return rows


def write_table(path: Path, measured: dict[str, float]) -> None:
    """Put `measured` into the column `now` of the table in `path`."""
    text = path.read_text(encoding="utf-8")
    for name, value in measured.items():
        row = re.compile(rf"^(\| {re.escape(name)} \| [^|]* \| )[^|]*( \|)", re.M)
        text, count = row.subn(rf"\g<1>{shown(value)}\g<2>", text)
        if count != 1:
            raise SystemExit(f"{path.name}: {count} rows '{name}' where one is expected")
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"]:
        write_table(Path(sys.argv[2]), measure(PACKAGE))
    else:
        measured = measure(Path(sys.argv[1]) if len(sys.argv) > 1 else PACKAGE)
        for name, value in measured.items():
            print(f"| {name} | {shown(value)} |")
