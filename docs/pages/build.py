"""Build the site: `python docs/pages/build.py FOLDER`, as `make site` does.

README and documents, the executed notebooks, the moving parts, what tables say of methods and of
the papers, and by pdoc a page for every public module: the root's, and what a room's door lists.
"""

import importlib
import inspect
import os
import re
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parents[1] / "robustpo_kit"


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


def api(folder: Path) -> None:
    """Pages of the public modules."""
    import pages
    import pdoc
    import pdoc.render

    pdoc.render.configure(
        docformat="google", template_directory=HERE, footer_text="robustpo-kit", favicon="data:,"
    )
    pdoc.render.env.globals["colours"] = pages.colours(".pdoc-code")
    wanted = "|".join(re.escape(name) for name in public_modules())
    pdoc.pdoc("robustpo_kit", f"!(?!({wanted})$)", output_directory=folder)


def build(folder: Path) -> None:
    """Write the site to `folder`; what was there before is gone."""
    import pages

    shutil.rmtree(folder, ignore_errors=True)
    pages.write(folder)
    api(folder / "api")


if __name__ == "__main__":
    # read by robustpo_kit.paths at import: the pages show these and no folder of this machine
    os.environ |= {"ROBUSTPO_ROOT": ".", "ROBUSTPO_CACHE": "~/.cache/robustpo-kit"}
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    target = Path(sys.argv[1])
    build(target)
    print(f"{target / 'index.html'}: {len(list(target.rglob('*.html')))} pages")
