"""The repository says one thing once: environments agree, the tree is as the README shows it, imports run one way."""

import ast
import graphlib
import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from robustpo_kit.records import freshness

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "robustpo_kit"
CONDA_NAMES = {"matplotlib-base": "matplotlib", "pytorch": "torch"}
ROOT_NAMES = {
    "README.md", "LICENSE", "CITATION.cff", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile", "pyproject.toml",
    "requirements.lock", "environment.yml", "jupytext.toml", "conftest.py", ".ci", ".gitignore",
    ".pre-commit-config.yaml", "notebooks", "robustpo_kit", "data", "figures", "tests",
}  # fmt: skip
# Downloaded with torch where there is a GPU; their versions follow torch's.
GPU_NAMES = re.compile(r"^(nvidia-|cuda-|triton$)")


def tracked(*folders: str) -> list[str]:
    """Files of the checkout, ignored ones left out: those that git lists, or all where there is no git."""
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *folders],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return [name for name in done.stdout.splitlines() if (ROOT / name).exists()]


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def declared() -> dict[str, str]:
    """Name -> specifier of every dependency in pyproject.toml, extras included."""
    extras = project()["optional-dependencies"].values()
    found = [Requirement(line) for line in [*project()["dependencies"], *sum(extras, [])]]
    return {canonicalize_name(r.name): str(r.specifier) for r in found}


def locked() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return {
        canonicalize_name(name): version for name, version in (line.split("==") for line in lines)
    }


# ---------------------------------------------------------------- environments


def test_environment_yml_asks_for_what_pyproject_asks_for():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = next(item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    lines = [item for item in environment["dependencies"] if isinstance(item, str)] + pip
    requirements = [Requirement(line) for line in lines if line not in ("pip", "-e .")]
    found = {
        canonicalize_name(CONDA_NAMES.get(r.name, r.name)): str(r.specifier) for r in requirements
    }
    assert found.pop("python") == project()["requires-python"]
    assert found == declared()
    assert "pip" in lines and pip[-1] == "-e ."
    assert environment["channels"] == ["conda-forge", "nodefaults"]


def test_lock_has_versions_and_nothing_else():
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        assert re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*", line), line
    assert locked()["torch"] == "2.13.0"


def test_lock_satisfies_every_dependency_and_holds_no_stray():
    """Walks the requirements of what is installed: the lock is exactly what the declared packages pull in."""
    waiting = [Requirement(f"{name}{specifier}") for name, specifier in declared().items()]
    seen: set[tuple[str, str]] = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if GPU_NAMES.match(name) or name in ("setuptools", "pip"):
            continue
        assert name in locked(), (
            f"{name} is not in requirements.lock; install it and run `make lock`"
        )
        assert requirement.specifier.contains(locked()[name], prereleases=True), (
            f"{requirement}: {locked()[name]}"
        )
        for extra in {"", *requirement.extras} - {e for n, e in seen if n == name}:
            seen.add((name, extra))
            for line in metadata.requires(name) or []:
                child = Requirement(line)
                if child.marker is None or child.marker.evaluate({"extra": extra}):
                    waiting.append(child)
    assert set(locked()) - {name for name, _ in seen} == set()


def test_no_index_is_named():
    for name in (
        "requirements.lock",
        "environment.yml",
        "pyproject.toml",
        "Makefile",
        ".ci/run",
        ".pre-commit-config.yaml",
    ):
        text = (ROOT / name).read_text()
        assert not re.search(r"https?://|index-url|find-links|file:", text), name


# ---------------------------------------------------------------- the tree


def test_root_holds_what_it_should():
    assert {name.split("/")[0] for name in tracked()} <= ROOT_NAMES
    assert {path.name for path in ROOT.iterdir()} >= ROOT_NAMES


def readme_tree() -> list[str]:
    """Paths of the README's tree: the fenced block whose lines are indented names, folders ending in a slash."""
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
    for name in ("notebooks", "robustpo_kit", "data", "figures", "tests"):
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
    """Fails unless `order` names every room and module, and each imports only what stands before it."""
    found = modules()
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
    doors = {door.parent.name: __import__(f"robustpo_kit.{door.parent.name}", fromlist=["x"]).__all__
             for door in PACKAGE.glob("*/__init__.py")}  # fmt: skip
    files = [path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"]
    for path in [*files, *(ROOT / "notebooks" / "text").glob("*.py")]:
        for room, name in used_from_rooms(path):
            own = path.parent == PACKAGE / room
            assert own or name in doors[room], f"{path.name} takes {name} from inside {room}"


def test_modules_and_classes_stay_short():
    for name, path in modules().items():
        text = path.read_text()
        assert len(text.splitlines()) <= 350, f"{name} is longer than 350 lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef):
                assert node.end_lineno - node.lineno < 200, (
                    f"{name}.{node.name} is longer than 200 lines"
                )


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

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert project()["version"] == __version__ == citation["version"]
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()


# ---------------------------------------------------------------- make


def test_make_help_lists_the_targets():
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in (
        "env",
        "series",
        "test",
        "lab",
        "notebooks",
        "figures",
        "lint",
        "lock",
        "bench",
        "report",
    ):
        assert re.search(rf"^  make {target} ", done.stdout, re.M), target


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        ("#!/bin/sh\nexit 1\n", "needs Python 3.11 or newer"),
        (
            '#!/bin/sh\ncase "$2" in *ensurepip*) exit 1;; esac\nexit 0\n',
            "apt install python3-venv",
        ),
    ],
)
def test_make_says_what_the_interpreter_lacks(tmp_path, script, complaint):
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    python = tmp_path / "python"
    python.write_text(script)
    python.chmod(0o755)
    done = subprocess.run(
        ["make", "env", f"PYTHON={python}"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert complaint in done.stderr
    assert not (tmp_path / ".venv").exists()
