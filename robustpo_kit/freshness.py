"""Freshness: what decides the outcome of a notebook, as a hash, so that nothing runs twice or goes stale."""

import ast
import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from robustpo_kit import paths, profiles

PACKAGE = Path(__file__).resolve().parent


def cells(path: Path) -> list[tuple[str, str, list[str]]]:
    """(type, source, tags) of the cells of a notebook, .ipynb or jupytext .py alike."""
    import jupytext

    found = jupytext.read(path).cells
    return [(cell.cell_type, cell.source.strip(), sorted(cell.metadata.get("tags", []))) for cell in found]


def text_in_step(text: Path, notebook: Path) -> bool:
    """Whether the stored notebook has the cells of its text twin and was executed from the first to the last."""
    if not notebook.exists() or cells(text) != cells(notebook):
        return False
    stored = json.loads(notebook.read_text(encoding="utf-8"))
    counts = [cell["execution_count"] for cell in stored["cells"] if cell["cell_type"] == "code"]
    return counts == list(range(1, len(counts) + 1))


def source_key(path: Path, values: dict[str, Any], profile: str) -> str:
    """Hash of a notebook's cells (not its outputs), parameters, settings, kit modules that it imports and kit data."""
    content = cells(path)
    code = "\n".join(source for kind, source, _ in content if kind == "code")
    parts: list[Any] = [content, values, dataclasses.asdict(profiles.get(profile, values.get("overrides")))]
    # profiles.py is left out: the settings themselves are in, and the others' settings do not matter here.
    modules = sorted(imported_modules(code) - {"profiles"})
    parts += [[name, file_hash(PACKAGE / f"{name}.py")] for name in modules]
    parts += [[path.name, file_hash(path)] for path in sorted(paths.SYNTHETIC.glob("*")) if path.is_file()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def imported_modules(code: str) -> set[str]:
    """The kit's modules that `code` imports, directly or through one another."""
    python = "\n".join(line for line in code.splitlines() if not line.lstrip().startswith(("%", "!")))
    waiting, found = _named_modules(python), set()
    while waiting:
        name = waiting.pop()
        found.add(name)
        waiting |= _named_modules((PACKAGE / f"{name}.py").read_text(encoding="utf-8")) - found
    return found


def _named_modules(code: str) -> set[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    inside = [name.split(".")[1] for name in names if name.startswith("robustpo_kit.")]
    return {name for name in inside if (PACKAGE / f"{name}.py").exists()}


@functools.cache
def _hash_at(path: Path, size: int, modified: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def file_hash(path: Path) -> str:
    """sha256 of a file, read again only when its size or time has changed."""
    stat = path.stat()
    return _hash_at(path, stat.st_size, stat.st_mtime_ns)
