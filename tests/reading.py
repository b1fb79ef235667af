"""How the package reads, measured on its syntax trees: `python tests/reading.py [FOLDER]` prints the table.

test_repository.py holds the limits, and the table of CONTRIBUTING.md against what is measured.
"""

import ast
import sys
from pathlib import Path

import numpy as np

PACKAGE = Path(__file__).resolve().parents[1] / "robustpo_kit"
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def nested(node: ast.AST) -> bool:
    """A comprehension with two `for`, or with another one inside."""
    if not isinstance(node, COMPREHENSIONS):
        return False
    inside = [child for child in ast.walk(node) if isinstance(child, COMPREHENSIONS) and child is not node]
    return len(node.generators) > 1 or bool(inside)


def measure(package: Path) -> dict[str, float]:
    """The measures by name; per 1,000 lines counts every line of a module."""
    texts = [path.read_text() for path in sorted(package.rglob("*.py"))]
    trees = [ast.parse(text) for text in texts]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    lines = np.array([len(text.splitlines()) for text in texts])
    total = lines.sum()
    functions = [node for node in nodes if isinstance(node, FUNCTIONS)]
    sizes = [node.end_lineno - node.lineno + 1 for node in functions]
    docstrings = sum(
        node.body[0].end_lineno - node.body[0].lineno + 1
        for node in nodes
        if isinstance(node, (*FUNCTIONS, ast.ClassDef, ast.Module)) and node.body and is_docstring(node.body[0])
    )
    every = [line for text in texts for line in text.splitlines()]
    words = [len(node.name.strip("_").split("_")) for node in functions]
    return {
        "modules": len(texts),
        "lines": int(total),
        "most modules in one folder": max(len(list(f.glob("*.py"))) for f in [package, *package.glob("*/")]),
        "module lines, median": float(np.median(lines)),
        "module lines, p90": float(np.quantile(lines, 0.9)),
        "module lines, max": int(lines.max()),
        "function lines, median": float(np.median(sizes)),
        "function lines, p90": float(np.quantile(sizes, 0.9)),
        "function lines, max": max(sizes),
        "docstring lines per 100 lines": round(100 * docstrings / total, 1),
        "lines over 100 characters, %": round(100 * sum(len(line) > 100 for line in every) / total, 1),
        "conditional expressions per 1,000 lines": round(
            1000 * sum(isinstance(node, ast.IfExp) for node in nodes) / total, 1
        ),
        "nested comprehensions per 1,000 lines": round(1000 * sum(map(nested, nodes)) / total, 1),
        "words in a function's name": round(float(np.mean(words)), 2),
    }


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else PACKAGE
    for name, value in measure(folder).items():
        print(f"| {name} | {value:g} |")
