"""Cells of a notebook, what it stores, and the key of everything that decides its outcome."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

from robustpo_kit import paths, profiles
from robustpo_kit.records import code_key, digest, file_digest, imported_modules

Cell = tuple[str, str, list[str]]  # type, source, tags


def cells(path: Path) -> list[Cell]:
    """The cells of a notebook without their outputs, .ipynb or jupytext .py alike."""
    import jupytext

    return [
        (cell.cell_type, cell.source.strip(), sorted(cell.metadata.get("tags", [])))
        for cell in jupytext.read(path).cells
    ]


def text_in_step(text: Path, notebook: Path) -> bool:
    """Whether the stored notebook has the cells of its text twin, executed from first to last."""
    if not notebook.exists() or cells(text) != cells(notebook):
        return False
    stored = json.loads(notebook.read_text(encoding="utf-8"))
    counts = [cell["execution_count"] for cell in stored["cells"] if cell["cell_type"] == "code"]
    return counts == list(range(1, len(counts) + 1))


def source_key(path: Path, values: dict[str, Any], profile: str) -> str:
    """Key of all that decides what a notebook computes, its outputs aside.

    Args:
        path: The notebook, .ipynb or jupytext .py.
        values: Its parameters; settings changed by `overrides` count as settings.
        profile: The name of its profile.

    Returns:
        A digest of its cells, parameters, settings, of the kit's code that it imports, and of the
        kit's data: its rows, the papers' numbers, and studies where the code speaks of them.
    """
    content = cells(path)
    code = "\n".join(source for kind, source, _ in content if kind == "code")
    settings = profiles.get(profile, values.get("overrides"))
    # profiles.py is left out: this profile's settings are in, and the others' do not matter here.
    code_of_kit = code_key(*imported_modules(code), without=["robustpo_kit.profiles"])
    data = [[paths.show(file), file_digest(file)] for file in _data_files(code)]
    return digest(content, values, settings, code_of_kit, data, length=16)


def _data_files(code: str) -> list[Path]:
    folders = [paths.SYNTHETIC, paths.DATA / "paper"]
    if re.search("stud(y|ies)", code, re.IGNORECASE):
        folders += [paths.STUDIES, *sorted((paths.RESULTS / "studies").glob("*"))]
    files = itertools.chain.from_iterable(sorted(folder.glob("*")) for folder in folders)
    return [file for file in files if file.is_file()]
