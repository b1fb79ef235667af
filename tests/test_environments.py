"""pyproject.toml, environment.yml and requirements.lock agree, and bring all that is imported."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "robustpo_kit"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA_NAMES = {"matplotlib-base": "matplotlib", "python-build": "build"}
# Not in the lock: what makes environments, and what torch brings where there is a GPU.
UNLOCKED = re.compile(r"^(pip|setuptools|triton|nvidia-.*|cuda-.*)$")


def declared_requirements() -> list[Requirement]:
    """Every dependency in pyproject.toml, extras included."""
    lines = list(PROJECT["dependencies"])
    for extra in PROJECT["optional-dependencies"].values():
        lines += extra
    return [Requirement(line) for line in lines]


def name_of(requirement: Requirement) -> str:
    return canonicalize_name(CONDA_NAMES.get(requirement.name, requirement.name))


def locked_versions() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [line.split("==") for line in lines]
    return {canonicalize_name(name): version for name, version in pins}


def walk(requirements: Iterable[Requirement]) -> Iterator[Requirement]:
    """`requirements` and all that they lead to, by the metadata of what is installed."""
    waiting, seen = list(requirements), set()
    while waiting:
        requirement = waiting.pop()
        name = name_of(requirement)
        if UNLOCKED.match(name):
            continue
        yield requirement
        for extra in {"", *requirement.extras}:
            if (name, extra) not in seen:
                seen.add((name, extra))
                waiting += required_by(name, extra)


def required_by(name: str, extra: str) -> list[Requirement]:
    """What a distribution asks for on this machine, of those that `extra` adds where it is set."""
    children = [Requirement(line) for line in metadata.requires(name) or []]
    return [
        child
        for child in children
        if child.marker is None or child.marker.evaluate({"extra": extra})
    ]


def test_environment_yml_asks_for_what_pyproject_asks_for():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = next(item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    lines = [item for item in environment["dependencies"] if isinstance(item, str)] + pip
    asked = [Requirement(line) for line in lines if line not in ("pip", "-e .")]
    specifiers = {name_of(requirement): requirement.specifier for requirement in asked}
    assert specifiers.pop("python") == PROJECT["requires-python"]
    assert specifiers == {name_of(r): r.specifier for r in declared_requirements()}
    assert "pip" in lines and pip[-1] == "-e ."
    assert environment["channels"] == ["conda-forge", "nodefaults"]


def test_lock_has_versions_and_nothing_else():
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        assert re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*", line), line
    assert locked_versions()["torch"] == "2.13.0"


def test_lock_satisfies_every_dependency_and_holds_no_stray():
    """The lock is exactly what the declared packages pull in."""
    locked, names = locked_versions(), set()
    for requirement in walk(declared_requirements()):
        name = name_of(requirement)
        assert name in locked, f"{name} is not in requirements.lock; install it and run `make lock`"
        satisfied = requirement.specifier.contains(locked[name], prereleases=True)
        assert satisfied, f"{requirement}: {locked[name]}"
        names.add(name)
    assert set(locked) == names


PEERS = {  # asked for by name alone
    ("bench", "trl"),
    ("bench", "flash_pref"),
    ("judging", "openai"),
    ("policies", "vllm"),
}


def third_party_imports(path: Path) -> set[str]:
    """Top-level names outside the standard library that a module imports, at its start or later."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    return names - sys.stdlib_module_names - {"robustpo_kit"}


def test_metadata_asks_for_what_the_package_imports():
    """Dependencies without extras bring every import of the package, but those of its peers."""
    brought = {name_of(r) for r in walk(Requirement(line) for line in PROJECT["dependencies"])}
    distributions = metadata.packages_distributions()
    for path in PACKAGE.rglob("*.py"):
        for name in third_party_imports(path):
            owners = {canonicalize_name(owner) for owner in distributions.get(name, ())}
            peer = (path.parent.name, name) in PEERS
            assert peer or owners & brought, f"{path.name} imports {name}, which nothing brings"


@pytest.mark.parametrize(
    "name",
    [
        "requirements.lock",
        "environment.yml",
        "pyproject.toml",
        "Makefile",
        ".ci/run",
        ".ci/try-wheel",
        ".pre-commit-config.yaml",
    ],
)
def test_no_index_is_named(name):
    assert not re.search(r"https?://|index-url|find-links|file:", (ROOT / name).read_text())
