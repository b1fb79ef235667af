"""Freshness on a small package: what a piece of code depends on, and what changes its key."""

import pytest

from robustpo_kit.errors import KitError
from robustpo_kit.records import UnknownModuleError, code_key, freshness, key_of_function
from robustpo_kit.training import train

ROOM = (
    "from robustpo_kit.room.left import left\n"
    "from robustpo_kit.room.right import right as second\n\n"
    'LIMIT = 3\n\n__all__ = ["left", "second"]\n'
)
FILES = {
    "__init__.py": '"""The kit."""\n',
    "plain.py": '"""Doc."""\n\n\ndef f(x):\n    """What f is."""\n    return x + 1  # why\n',
    "far.py": "FAR = 1\n",
    "near.py": "from robustpo_kit.far import FAR\n",
    "late.py": "def f():\n    from robustpo_kit import near\n",
    "room/__init__.py": ROOM,
    "room/left.py": "def left():\n    return 1\n",
    "room/right.py": "from robustpo_kit.far import FAR\n\n\ndef right():\n    return FAR\n",
    "room/inside.py": "INSIDE = 1\n",
    "room/second.py": "OTHER = 1\n",  # the door's name `second` comes from `right`, not from here
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(freshness, "PACKAGE", tmp_path)
    freshness._key_of_file.cache_clear()
    return tmp_path


def edit(path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def imported(code: str) -> set[str]:
    """Modules without the package's own name."""
    return {name.removeprefix("robustpo_kit.") for name in freshness.imported_modules(code)}


# ---------------------------------------------------------------- keys


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""Doc."""', '"""Another text, of another length."""'),
        ('"""What f is."""', "'''Said otherwise.'''"),
        ("# why", "# because"),
        ("\n\n\ndef", "\n\n\n\n\ndef"),
        ("x + 1", "(x  +  1)"),
    ],
)
def test_prose_and_layout_leave_the_key(package, old, new):
    before = code_key("robustpo_kit.plain")
    edit(package / "plain.py", old, new)
    assert code_key("robustpo_kit.plain") == before


ERRORS = """
def g(x):
    if x < 0:
        raise ValueError(f"x = {x}: too small", x)
"""


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("too small", "should be 0 or more", True),
        ('f"x = {x}: too small"', '"x is negative"', True),
        ("x < 0", "x < 1", False),
        ("ValueError", "TypeError", False),
        (", x)", ", -x)", False),
    ],
)
def test_the_text_of_an_error_leaves_the_key_and_its_reason_does_not(package, old, new, same):
    (package / "errors_too.py").write_text(ERRORS)
    before = code_key("robustpo_kit.errors_too")
    edit(package / "errors_too.py", old, new)
    assert (code_key("robustpo_kit.errors_too") == before) is same


@pytest.mark.parametrize(("old", "new"), [("x + 1", "x + 2"), ("def f(x)", "def f(x, y=0)")])
def test_code_changes_the_key(package, old, new):
    before = code_key("robustpo_kit.plain")
    edit(package / "plain.py", old, new)
    assert code_key("robustpo_kit.plain") != before


@pytest.mark.parametrize("name", ["near", "late", "room.right"])
def test_a_key_covers_what_a_module_imports_in_turn(package, name):
    before = code_key(f"robustpo_kit.{name}")
    without = code_key(f"robustpo_kit.{name}", without=["robustpo_kit.far"])
    edit(package / "far.py", "1", "2")
    assert code_key(f"robustpo_kit.{name}") != before
    assert code_key(f"robustpo_kit.{name}", without=["robustpo_kit.far"]) == without


def test_a_key_does_not_cover_the_rest(package):
    before = code_key("robustpo_kit.room.left", "robustpo_kit.plain")
    for name in ("far", "near", "room/right", "room/inside"):
        edit(package / f"{name}.py", "1" if name == "far" else "\n", "2\n")
    edit(package / "room/__init__.py", "LIMIT = 3", "LIMIT = 4")
    assert code_key("robustpo_kit.room.left", "robustpo_kit.plain") == before


@pytest.fixture
def study(tmp_path_factory):
    """A function outside of the package that uses a part of it; its file."""
    path = tmp_path_factory.mktemp("outside") / "study.py"
    path.write_text("def study():\n    from robustpo_kit.room import left\n\n    return left\n")
    namespace: dict = {}
    exec(compile(path.read_text(), path, "exec"), namespace)
    return namespace["study"], path


def new_key(function) -> str:
    """Its key, as a new process computes it."""
    freshness._key_of_file.cache_clear()
    return key_of_function(function)


def test_a_functions_key_covers_its_file_and_its_imports(package, study):
    function, path = study

    def key() -> str:
        return new_key(function)

    first = key()
    edit(package / "room/right.py", "return FAR", "return 2 * FAR")
    assert key() == first
    edit(package / "room/left.py", "return 1", "return 2")
    second = key()
    assert second != first
    edit(path, "return left", "return left()")
    assert key() not in (first, second)


def test_a_process_does_not_stamp_code_that_it_has_not_read(package, study, monkeypatch):
    """An edit between import and first use gave what the old code made the new code's key."""
    function, _ = study
    read = {file: freshness._on_disk(file) for file in package.rglob("*.py")}
    monkeypatch.setattr(freshness, "AT_IMPORT", read)
    first = new_key(function)
    edit(package / "far.py", "1", "222")  # of no concern to the function
    assert new_key(function) == first
    edit(package / "room/left.py", "return 1", "return 222")
    assert key_of_function(function) == first  # taken before the edit
    with pytest.raises(KitError, match=r"left\.py: edited after this process .*start it again"):
        new_key(function)


def test_every_module_of_the_kit_is_known_at_import():
    files = set(freshness.PACKAGE.rglob("*.py"))
    assert set(freshness.AT_IMPORT) == files and len(files) > 100


@pytest.mark.parametrize("name", freshness.REPORTING)
def test_what_only_reports_decides_no_artefact(name, monkeypatch):
    """The list names modules that are there; one that computes is not like them."""
    reporting, real = freshness.module_file(name), freshness._tree_digest
    before = new_key(train)
    edited = [reporting]
    monkeypatch.setattr(
        freshness, "_tree_digest", lambda path: "new" if path in edited else real(path)
    )
    assert name in freshness.closure(["robustpo_kit.training.runs"])
    assert new_key(train) == before
    edited.append(freshness.module_file("robustpo_kit.training.step"))
    assert new_key(train) != before
    freshness._key_of_file.cache_clear()


# ---------------------------------------------------------------- which modules


@pytest.mark.parametrize(
    ("code", "modules"),
    [
        ("import numpy\nfrom os import path", set()),
        ("from robustpo_kit import plain", {"plain"}),
        ("import robustpo_kit.plain as p", {"plain"}),
        ("from robustpo_kit.room import left", {"room.left"}),
        ("from robustpo_kit.room import second", {"room.right"}),
        ("from robustpo_kit.room import inside", {"room.inside"}),
        ("from robustpo_kit.room.right import right", {"room.right"}),
        ("from robustpo_kit.room import LIMIT", {"room"}),
        ("from robustpo_kit import room\nroom.left()", {"room.left"}),
        ("from robustpo_kit import room\nroom.second()", {"room.right"}),
        ("from robustpo_kit import room as r\nr.left(r.LIMIT)", {"room.left", "room"}),
        (
            "from robustpo_kit import room\nroom.left()\nf(room)",
            {"room", "room.left", "room.right"},
        ),
        ("from robustpo_kit import room", {"room", "room.left", "room.right"}),
        ("import robustpo_kit.room", {"room", "room.left", "room.right"}),
        ("%matplotlib inline\n!ls\nfrom robustpo_kit import plain", {"plain"}),
        ("def f():\n    from robustpo_kit import plain", {"plain"}),
    ],
)
def test_only_the_modules_that_define_the_used_names(package, code, modules):
    assert imported(code) == modules


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import robustpo_kit.absent", r"robustpo_kit\.absent: no such module"),
        ("from robustpo_kit.absent import f", r"robustpo_kit\.absent: no such module"),
        ("from robustpo_kit import absent", "robustpo_kit: has no 'absent'"),
        ("from robustpo_kit.room import absent", r"robustpo_kit\.room: has no 'absent'"),
        ("from robustpo_kit import room\nroom.absent()", r"robustpo_kit\.room: has no 'absent'"),
        ("x = 1\nfrom . import plain", "line 2: a relative import"),
        ("from .plain import f", "line 1: a relative import"),
    ],
)
def test_what_is_not_there_is_an_error_and_never_a_module_less(package, code, said):
    with pytest.raises(UnknownModuleError, match=said):
        freshness.imported_modules(code)


def test_a_module_that_goes_is_missed(package):
    code_key("robustpo_kit.near")
    (package / "far.py").unlink()
    with pytest.raises(UnknownModuleError, match=r"robustpo_kit\.far: no such module"):
        code_key("robustpo_kit.near")
    with pytest.raises(UnknownModuleError, match=r"numpy: no such module of the kit"):
        code_key("numpy")


def test_the_kit_as_a_whole_is_refused():
    """What is used of it would be out of sight."""
    with pytest.raises(freshness.UnknownModuleError, match="import robustpo_kit hides"):
        freshness.imported_modules("import robustpo_kit as kit")
