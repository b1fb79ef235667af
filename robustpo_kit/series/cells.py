"""Cells of a notebook, what it stores, and the key of everything that decides its outcome."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from robustpo_kit import paths, profiles
from robustpo_kit.records import code_key, digest, file_digest, imported_modules


def cells(path: Path) -> list[tuple[str, str, list[str]]]:
    """(type, source, tags) of the cells of a notebook, .ipynb or jupytext .py alike."""
    import jupytext

    found = jupytext.read(path).cells
    return [
        (cell.cell_type, cell.source.strip(), sorted(cell.metadata.get("tags", [])))
        for cell in found
    ]


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
    parts: list[Any] = [
        content,
        values,
        dataclasses.asdict(profiles.get(profile, values.get("overrides"))),
    ]
    # profiles.py is left out: the settings themselves are in, and the others' settings do not matter here.
    parts.append(code_key(*imported_modules(code), without=["robustpo_kit.profiles"]))
    parts += [
        [path.name, file_digest(path)]
        for path in sorted(paths.SYNTHETIC.glob("*"))
        if path.is_file()
    ]
    return digest(parts, length=16)
