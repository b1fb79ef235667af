"""Freshness: which of the kit's modules decide an artefact, as a key.

A module is found by its path; a name that leads to no file is an error, never a module less. Of a
room (a package whose `__init__` is its door) only those modules count that define the names used.
Code is its syntax tree without docstrings and without the texts of errors, so that prose, comments
and layout throw nothing away.
"""

import ast
import functools
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from robustpo_kit import paths
from robustpo_kit.errors import KitError
from robustpo_kit.records.digests import digest

KIT = "robustpo_kit"
DOOR = "__init__.py"
PACKAGE = Path(__file__).resolve().parents[1]
# Modules that decide no artefact of a function, and why.
REPORTING = {
    "robustpo_kit.errors": "says what went wrong",
    "robustpo_kit.records.machine": "says what computes",
    "robustpo_kit.records.progress": "says how far a run is",
    "robustpo_kit.records.provenance": "says where a result comes from",
}


def _on_disk(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


AT_IMPORT = {file: _on_disk(file) for file in PACKAGE.rglob("*.py")}  # what a process may have read


class UnknownModuleError(KitError, LookupError):
    """A module of the kit is named, and there is no such file or no such name in it."""


def code_key(*modules: str, without: Iterable[str] = ()) -> str:
    """Key of the code of `modules` and of all of the kit that they import.

    Args:
        modules: Dotted names of modules of the kit, such as "robustpo_kit.margins".
        without: Dotted names that are left out, because the artefact does not depend on them.

    Raises:
        UnknownModuleError: Naming a module that is not there.
    """
    names = sorted(closure(modules) - set(without))
    return digest([[name, _tree_digest(module_file(name))] for name in names], length=16)


def key_of_function(function: Callable[..., Any], *, without: Iterable[str] = ()) -> str:
    """Key of the code that `function` runs: its own file, and what this file imports of the kit.

    The modules of `REPORTING` are left out, whoever imports them. A process runs the code that it
    has read, whatever becomes of the file: a module that was edited since is refused, for its key
    would be that of code which this process does not have.

    Raises:
        KitError: Naming a module that was edited after this process had started.
        UnknownModuleError: As `code_key`, whose argument `without` is.
    """
    return _key_of_file(Path(inspect.getfile(function)), (*without, *REPORTING))


@functools.cache
def _key_of_file(file: Path, without: tuple[str, ...]) -> str:
    imported = imported_modules(file.read_text(encoding="utf-8"))
    _refuse_edited({file} | {module_file(name) for name in closure(imported) - set(without)})
    return digest(_tree_digest(file), code_key(*imported, without=without), length=16)


def _refuse_edited(files: set[Path]) -> None:
    for file in sorted(files & set(AT_IMPORT)):
        if _on_disk(file) != AT_IMPORT[file]:
            raise KitError(
                f"{paths.show(file)}: edited after this process (or kernel) had started, which "
                "runs the code from before; start it again"
            )


def closure(modules: Iterable[str]) -> set[str]:
    """`modules` and the kit's modules that they import, directly or through one another."""
    waiting, reached = set(modules), set[str]()
    while waiting:
        name = waiting.pop()
        reached.add(name)
        waiting |= imported_modules(module_file(name).read_text(encoding="utf-8")) - reached
    return reached


def module_file(name: str) -> Path:
    """The file of the kit's module `name`, a room's door for a room; raises UnknownModuleError."""
    path = PACKAGE.joinpath(*name.split(".")[1:])
    for file in (path / DOOR, path.with_suffix(".py")):
        if _is_of_the_kit(name) and file.is_file():
            return file
    raise UnknownModuleError(f"{name}: no such module of the kit")


def imported_modules(code: str) -> set[str]:
    """The kit's modules that `code` (of a module, or of a notebook's cells) imports directly.

    Raises UnknownModuleError for a name that the kit does not have, and for a relative import,
    which the code alone does not resolve.
    """
    lines = [line for line in code.splitlines() if not line.lstrip().startswith(("%", "!"))]
    tree = ast.parse("\n".join(lines))
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name == KIT:
                    raise UnknownModuleError(
                        f"line {node.lineno}: import {KIT} hides what is used of it; "
                        f"write from {KIT} import ..."
                    )
                if _is_of_the_kit(alias.name):
                    imported |= _modules_of(alias.name)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise UnknownModuleError(
                    f"line {node.lineno}: a relative import; write from {KIT}. ... import ..."
                )
            module = node.module or ""
            if _is_of_the_kit(module):
                for alias in node.names:
                    imported |= _imported(module, alias.name, alias.asname or alias.name, tree)
    return imported


def _is_of_the_kit(module: str) -> bool:
    return module.split(".")[0] == KIT


def _imported(module: str, name: str, alias: str, tree: ast.Module) -> set[str]:
    """What `from module import name as alias` brings in, given what the code does with it."""
    source = _source(module, name)
    if source != f"{module}.{name}" or module_file(source).name != DOOR:
        return {source}
    attributes = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _names(node.value, alias):
            attributes.append(node.attr)
    mentions = sum(_names(node, alias) for node in ast.walk(tree))
    if len(attributes) < mentions or not attributes:  # the room is handed on as a whole
        return _modules_of(source)
    return {_source(source, attribute) for attribute in attributes}


def _names(node: ast.AST, alias: str) -> bool:
    return isinstance(node, ast.Name) and node.id == alias


def _source(module: str, name: str) -> str:
    """The module that defines `name` of `module`; a door hands on what others define."""
    file = module_file(module)
    if file.name != DOOR:
        return module
    bindings = _bindings(file)  # before the room's files: a function may have the name of a module
    if name in bindings and bindings[name] != (module, name):
        origin = bindings[name]
        return module if origin is None else _source(*origin)
    if _is_module(f"{module}.{name}"):
        return f"{module}.{name}"
    raise UnknownModuleError(f"{module}: has no '{name}'")


def _modules_of(module: str) -> set[str]:
    """A plain module itself; of a room, its door and every module that the door hands on."""
    file = module_file(module)
    if file.name != DOOR:
        return {module}
    origins = [origin for origin in _bindings(file).values() if origin is not None]
    return {module} | {_source(*origin) for origin in origins}


def _is_module(name: str) -> bool:
    try:
        return bool(module_file(name))
    except UnknownModuleError:
        return False


def _bindings(door: Path) -> dict[str, tuple[str, str] | None]:
    """Names that a door binds: (module, name) of what it imports from the kit, None for its own."""
    bindings: dict[str, tuple[str, str] | None] = {}
    for node in ast.parse(door.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and _is_of_the_kit(node.module or ""):
            for alias in node.names:
                bindings[alias.asname or alias.name] = (str(node.module), alias.name)
        elif isinstance(node, ast.Assign):
            bindings |= {target.id: None for target in node.targets if isinstance(target, ast.Name)}
    return bindings


def _tree_digest(path: Path) -> str:
    return _tree_digest_at(path, *_on_disk(path))


@functools.cache
def _tree_digest_at(path: Path, _size: int, _modified: int) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            if _is_text(body[0].value):
                body[0] = ast.Pass()  # a docstring
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            node.exc.args = [argument for argument in node.exc.args if not _is_text(argument)]
    return digest(ast.dump(tree))


def _is_text(node: ast.expr) -> bool:
    """Whether it is a text, or one with values in it."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str)
    return isinstance(node, ast.JoinedStr)
