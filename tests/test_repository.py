"""The repository says one thing once: the tree is as the README shows it, imports run one way."""

import ast
import graphlib
import importlib
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from robustpo_kit.records import freshness

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "robustpo_kit"
ROOT_NAMES = {
    ".ci", ".github", ".gitignore", ".pre-commit-config.yaml", "CHANGELOG.md", "CITATION.cff",
    "CONTRIBUTING.md", "LICENSE", "MANIFEST.in", "Makefile", "README.md", "SECURITY.md",
    "conftest.py", "data", "docs", "environment.yml", "figures", "jupytext.toml", "notebooks",
    "pyproject.toml", "requirements.lock", "robustpo_kit", "tests",
}  # fmt: skip
FOLDERS = ("notebooks", "robustpo_kit", "data", "figures", "tests", "docs")  # in the README's tree


def tracked(*folders: str) -> list[str]:
    """Files of the checkout, ignored ones left out."""
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *folders],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return [name for name in done.stdout.splitlines() if (ROOT / name).exists()]


# ---------------------------------------------------------------- the tree


def test_root_holds_what_it_should():
    assert {name.split("/")[0] for name in tracked()} <= ROOT_NAMES
    assert {path.name for path in ROOT.iterdir()} >= ROOT_NAMES


def readme_tree() -> list[str]:
    """Paths of the README's tree, a fenced block of indented names; a folder ends in a slash."""
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", (ROOT / "README.md").read_text(), re.S | re.M)
    block = next((block for block in blocks if re.search(r"^\W*robustpo_kit/", block, re.M)), None)
    assert block, "the README shows no tree: a fenced block with a line `robustpo_kit/`"
    stack: list[tuple[int, str]] = []
    found = []
    for line in block.splitlines():
        match = re.match(r"^([\s│├└─|`+-]*)([A-Za-z0-9_.*][A-Za-z0-9_.*/-]*)", line)
        if not match:
            continue
        depth, name = len(match[1]), match[2]
        stack = [(d, folder) for d, folder in stack if d < depth]
        found.append("".join(folder for _, folder in stack) + name)
        if name.endswith("/"):
            stack.append((depth, name))
    return [path.removeprefix("robustpo-kit/") for path in found if path != "robustpo-kit/"]


def test_readme_shows_the_tree_on_disk():
    shown = readme_tree()
    for path in shown:
        assert list(ROOT.glob(path.rstrip("/"))), f"the README shows {path}, which is not there"
    folders = {path for path in shown if path.endswith("/")}
    for name in FOLDERS:
        assert f"{name}/" in folders, f"the README's tree lacks {name}/"
    for name in sorted({place(module) for module in modules()}):
        path = (
            f"robustpo_kit/{name}.py"
            if (PACKAGE / f"{name}.py").exists()
            else f"robustpo_kit/{name}/"
        )
        assert path in shown, f"the README's tree lacks {path}"


# ---------------------------------------------------------------- the package


def picture() -> list[str]:
    """The rooms and modules of CONTRIBUTING's picture, in its order."""
    block = re.search(r"```\n(errors .*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)
    assert block, "CONTRIBUTING.md lost its picture of the modules"
    return block[1].split()


def modules() -> dict[str, Path]:
    """Every module of the kit by its dotted name, doors of rooms (`__init__`) left out."""
    files = [path for path in sorted(PACKAGE.rglob("*.py")) if not path.name.startswith("__")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in files}


def place(module: str) -> str:
    """The room of a module, or a module of the root itself."""
    return module.split(".")[1] if "." in module else "robustpo_kit"


def check_picture(order: list[str]) -> None:
    """Fails unless `order` names every room and module, none of which imports a later one."""
    doors = {f"robustpo_kit.{path.parent.name}": path for path in PACKAGE.glob("*/__init__.py")}
    found = modules() | doors
    assert {place(name) for name in found} == set(order) and len(order) == len(set(order))
    for name, path in found.items():
        for other in freshness.imported_modules(path.read_text()):
            if place(other) not in (place(name), "robustpo_kit"):
                late = order.index(place(other)) > order.index(place(name))
                assert not late, f"{name} imports {other}, which comes after it"


def test_picture_names_every_module_and_imports_run_one_way():
    check_picture(picture())


@pytest.mark.parametrize("change", ["nothing named", "turned round", *picture()])
def test_the_picture_is_really_read(change):
    order = {"nothing named": [], "turned round": picture()[::-1]}.get(change)
    order = [name for name in picture() if name != change] if order is None else order
    with pytest.raises(AssertionError):
        check_picture(order)


def test_no_circle_inside_a_room():
    graph = {
        name: freshness.imported_modules(path.read_text()) - {name}
        for name, path in modules().items()
    }
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) >= len(graph)


def used_from_rooms(path: Path) -> set[tuple[str, str]]:
    """(room, name) for everything that a file takes from a room's door, or from behind it."""
    tree, used = ast.parse(path.read_text()), set()
    rooms = {door.parent.name for door in PACKAGE.glob("*/__init__.py")}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            paths = [
                alias.name.split(".")[1:] for alias in node.names if "robustpo_kit." in alias.name
            ]
            used |= {(path[0], path[1]) for path in paths if path[0] in rooms and len(path) > 1}
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("robustpo_kit"):
            inside = node.module.split(".")[1:]
            names = [alias.name for alias in node.names]
            if inside and inside[0] in rooms:
                used |= {(inside[0], inside[1] if len(inside) > 1 else name) for name in names}
            for name in set(names) & rooms if not inside else ():
                uses = [
                    n
                    for n in ast.walk(tree)
                    if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)
                ]
                used |= {(name, n.attr) for n in uses if n.value.id == name}
    return used


def test_a_room_is_entered_by_its_door():
    rooms = [door.parent.name for door in PACKAGE.glob("*/__init__.py")]
    doors = {room: importlib.import_module(f"robustpo_kit.{room}").__all__ for room in rooms}
    files = [path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    for path in [*files, *(ROOT / "notebooks" / "text").glob("*.py")]:
        for room, name in used_from_rooms(path):
            own = path.parent == PACKAGE / room
            assert own or name in doors[room], f"{path.name} takes {name} from inside {room}"


@pytest.mark.parametrize("folder", ["robustpo_kit", "tests", "notebooks/text"])
def test_code_is_free_of_bad_habits(folder):
    for path in sorted((ROOT / folder).rglob("*.py")):
        text = path.read_text()
        assert "sys.path" not in text or path == Path(__file__), f"{path.name} changes sys.path"
        assert (
            not re.search(r"^\s*(import|from) (pickle|tqdm)\b", text, re.M)
            or path.name == "progress.py"
        ), path.name
        assert folder == "tests" or not re.search(r"(/home/|/root/|/Users/|/work/)", text), (
            f"{path.name}: a path"
        )


def test_version_is_the_same_everywhere():
    from robustpo_kit import __version__

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert project["version"] == __version__ == citation["version"]
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()
