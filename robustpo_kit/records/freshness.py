"""Freshness: which of the kit's modules decide an artefact, as a key, so that nothing runs twice or goes stale.

A module is found by its path; a name that leads to no file is an error, never a module less. Of a room (a
package whose `__init__` is its door) only those modules count that the names used come from. Code is its syntax
tree without docstrings, so that prose, comments and layout throw nothing away.
"""

import ast
import functools
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path

from robustpo_kit.records.digests import digest

KIT = "robustpo_kit"
PACKAGE = Path(__file__).resolve().parents[1]


class UnknownModuleError(LookupError):
    """A module of the kit is named, and there is no such file or no such name in it."""


def code_key(*modules: str, without: Iterable[str] = ()) -> str:
    """Key of the code of the kit's `modules` ("robustpo_kit.margins") and of all that they import, but `without`.

    Raises UnknownModuleError naming a module that is not there.
    """
    names = sorted(closure(modules) - set(without))
    return digest([[name, _tree_digest(module_file(name))] for name in names], length=16)


def key_of_function(function: Callable, *, without: Iterable[str] = ()) -> str:
    """Key of the code that `function` runs: of its own file, and of the kit's modules that this file imports."""
    return _key_of_file(Path(inspect.getfile(function)), tuple(without))


@functools.cache  # a process runs the code that it has read, whatever becomes of the file
def _key_of_file(file: Path, without: tuple[str, ...]) -> str:
    imported = imported_modules(file.read_text(encoding="utf-8"))
    return digest(_tree_digest(file), code_key(*imported, without=without), length=16)


def closure(modules: Iterable[str]) -> set[str]:
    """`modules` and the kit's modules that they import, directly or through one another."""
    waiting, found = set(modules), set()
    while waiting:
        name = waiting.pop()
        found.add(name)
        waiting |= imported_modules(module_file(name).read_text(encoding="utf-8")) - found
    return found


def module_file(name: str) -> Path:
    """The file of the kit's module `name`, a room's door for a room; raises UnknownModuleError."""
    path = PACKAGE.joinpath(*name.split(".")[1:])
    for file in (path / "__init__.py", path.with_suffix(".py")):
        if name.split(".")[0] == KIT and file.is_file():
            return file
    raise UnknownModuleError(f"{name}: no such module of the kit")


def imported_modules(code: str) -> set[str]:
    """The kit's modules that `code` (of a module, or of a notebook's cells) imports directly."""
    lines = [line for line in code.splitlines() if not line.lstrip().startswith(("%", "!"))]
    tree = ast.parse("\n".join(lines))
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            inside = [alias.name for alias in node.names if alias.name.split(".")[0] == KIT]
            found |= {module for name in inside for module in _modules_of(name)}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == KIT:
            for alias in node.names:
                found |= _imported(node.module, alias.name, alias.asname or alias.name, tree)
    return found


def _imported(module: str, name: str, alias: str, tree: ast.Module) -> set[str]:
    """What `from module import name as alias` brings in, given what the code does with it."""
    if not _is_module(f"{module}.{name}"):
        return {_source(module, name)}
    room = f"{module}.{name}"
    if module_file(room).name != "__init__.py":
        return {room}
    attributes = [
        n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and _names(n.value, alias)
    ]
    mentions = sum(_names(node, alias) for node in ast.walk(tree))
    if len(attributes) < mentions or not attributes:  # handed on as a whole
        return _modules_of(room)
    return {_source(room, attribute) for attribute in attributes}


def _names(node: ast.AST, alias: str) -> bool:
    return isinstance(node, ast.Name) and node.id == alias


def _source(module: str, name: str) -> str:
    """The module that `name` of `module` comes from: a door hands it on from where it is defined."""
    if _is_module(f"{module}.{name}"):
        return f"{module}.{name}"
    file = module_file(module)
    if file.name != "__init__.py":
        return module
    bound = _bindings(file)
    if name not in bound:
        raise UnknownModuleError(f"{module}: has no '{name}'")
    return module if bound[name] is None else _source(*bound[name])


def _modules_of(module: str) -> set[str]:
    """A plain module itself; of a room, its door and every module that the door hands on."""
    file = module_file(module)
    if file.name != "__init__.py":
        return {module}
    return {module} | {
        _source(*origin) for origin in _bindings(file).values() if origin is not None
    }


def _is_module(name: str) -> bool:
    try:
        return bool(module_file(name))
    except UnknownModuleError:
        return False


def _bindings(door: Path) -> dict[str, tuple[str, str] | None]:
    """Names that a door binds: (module, name) for those of the kit that it imports, None for its own."""
    bound: dict[str, tuple[str, str] | None] = {}
    for node in ast.parse(door.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == KIT:
            bound |= {
                alias.asname or alias.name: (str(node.module), alias.name) for alias in node.names
            }
        elif isinstance(node, ast.Assign):
            bound |= {target.id: None for target in node.targets if isinstance(target, ast.Name)}
    return bound


def _tree_digest(path: Path) -> str:
    stat = path.stat()
    return _tree_digest_at(path, stat.st_size, stat.st_mtime_ns)


@functools.cache
def _tree_digest_at(path: Path, _size: int, _modified: int) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_text(body[0]):
            body[0] = ast.Pass()  # a docstring
    return digest(ast.dump(tree))


def _is_text(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
