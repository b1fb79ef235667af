"""Build the pages of the public modules: `python docs/build.py FOLDER`, as `make docs` does.

Public is what a room's door lists in `__all__`, and the modules of the root. The front page lists
them and the notebooks. Nothing is loaded from elsewhere when the pages are read.
"""

import importlib
import inspect
import os
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "robustpo_kit"


def public_modules() -> list[str]:
    """The package, the modules of its root, its rooms, and the modules that a room's door lists."""
    names = ["robustpo_kit"]
    for path in sorted(PACKAGE.iterdir()):
        if path.suffix == ".py" and not path.name.startswith("__"):
            names.append(f"robustpo_kit.{path.stem}")
        elif (path / "__init__.py").is_file():
            door = importlib.import_module(f"robustpo_kit.{path.name}")
            names.append(door.__name__)
            listed = [getattr(door, name) for name in door.__all__]
            names += [value.__name__ for value in listed if inspect.ismodule(value)]
    return names


def notebook_titles() -> dict[str, str]:
    """Name -> title of every notebook, from its text twin."""
    titles = {}
    for path in sorted((ROOT / "notebooks" / "text").glob("*.py")):
        title = re.search(r"^# # (.+)$", path.read_text(encoding="utf-8"), re.M)
        if title is None:
            raise SystemExit(f"{path.name}: no title")
        titles[path.stem] = title[1]
    return titles


def build(folder: Path) -> None:
    """Write the pages to `folder`; what was there before is gone."""
    import pdoc
    import pdoc.render

    pdoc.render.configure(
        docformat="google", template_directory=ROOT / "docs", footer_text="robustpo-kit"
    )
    pdoc.render.env.globals["notebooks"] = notebook_titles()
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "notebooks").mkdir(parents=True)
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        shutil.copy(path, folder / "notebooks")
    names = public_modules()
    wanted = "|".join(re.escape(name) for name in names)
    pdoc.pdoc("robustpo_kit", f"!(?!({wanted})$)", output_directory=folder)


if __name__ == "__main__":
    # read by robustpo_kit.paths at import: the pages show these and no folder of this machine
    os.environ |= {"ROBUSTPO_ROOT": ".", "ROBUSTPO_CACHE": "~/.cache/robustpo-kit"}
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    target = Path(sys.argv[1])
    build(target)
    print(f"{target / 'index.html'}: {len(list(target.rglob('*.html')))} pages")
