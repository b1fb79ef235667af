"""Seeded mutants of the engine: small changes of its code, each of which some test should notice.

`python tests/mutation.py` draws some changes of the syntax trees of every room by a seed, makes one
at a time in a scratch copy of the project, and runs the tests of ROOMS there until one fails.
Outcomes are appended to runs/mutation/outcomes.csv, so that a stopped run goes on; `--survivors`
tries again what lived, with the tests that have come since. `--table` writes
data/results/engine/mutation.csv with its provenance, and prints the sentence of CONTRIBUTING.md. A
mutant that means the same as the code is marked by hand: its reason is the table's column `note`.
"""

import argparse
import ast
import builtins
import contextlib
import importlib
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[1]
OUTCOMES = ROOT / "runs" / "mutation" / "outcomes.csv"
TABLE = ROOT / "data" / "results" / "engine" / "mutation.csv"
SURVIVED = "survived"
NOT_THE_COPY = 99  # exit status of tests that have imported another package than the copy's
SLOW = "rank or fsdp2 or deepspeed or killed or checkpoint or launch or command or artefacts"
RANKS = "two_ranks"  # of these, left out otherwise, those that a step is tried with
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONDONTWRITEBYTECODE": "1"}
LIBRARIES = ("torch", "transformers.trainer", "peft", "hypothesis", "mpmath")  # slow to import


class Room(NamedTuple):
    """Sources below robustpo_kit, how many mutants of them, and tests (test_NAME.py) in order."""

    sources: tuple[str, ...]
    mutants: int
    tests: tuple[str, ...]


SAMPLING = ("policies/sampling.py", "policies/backends.py", "policies/decoding.py")
ROOMS = {
    "losses": Room(("losses/*.py",), 50, ("losses", "objectives", "stored_values", "authors")),
    "robust": Room(("robust.py",), 25, ("robust", "objectives", "stored_values", "strength")),
    "margins": Room(("margins.py",), 30, ("margins", "objectives", "stored_values")),
    "step": Room(("training/step.py",), 30, ("training", "training_wiring", "training_failures")),
    "plan": Room(("training/plan.py",), 15, ("plan", "training", "training_wiring")),
    "sampling": Room(SAMPLING, 30, ("decoding", "framing", "mixture", "policies")),
}
SWAPS: dict[type, str] = {
    ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "*", ast.Mod: "+",
    ast.Pow: "*", ast.BitAnd: "|", ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">",
    ast.Eq: "!=", ast.NotEq: "==", ast.Is: "is not", ast.IsNot: "is", ast.In: "not in",
    ast.NotIn: "in", ast.And: "or", ast.Or: "and",
}  # fmt: skip


class Mutant(NamedTuple):
    """A piece of a file and what stands in its place."""

    room: str
    file: str
    line: int
    column: int
    code: str
    mutant: str
    text: str  # of the whole file


KEY = list(Mutant._fields[:-1])


def replacements(node: Any) -> Iterator[str]:
    """What may stand in the place of a node."""
    parts = {name: ast.unparse(n) for name, n in ast.iter_fields(node) if isinstance(n, ast.AST)}
    if isinstance(node, ast.BinOp) and type(node.op) in SWAPS:
        yield f"(({parts['left']}) {SWAPS[type(node.op)]} ({parts['right']}))"
    elif isinstance(node, ast.Compare) and len(node.ops) == 1:
        right = ast.unparse(node.comparators[0])
        yield f"(({parts['left']}) {SWAPS[type(node.ops[0])]} ({right}))"
    elif isinstance(node, ast.BoolOp):
        values = [f"({ast.unparse(value)})" for value in node.values]
        yield "(" + f" {SWAPS[type(node.op)]} ".join(values) + ")"
    elif isinstance(node, ast.UnaryOp):
        yield f"({parts['operand']})"
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield str(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield str(node.value + 1)
        yield str(
            node.value / 2 if isinstance(node.value, float) and node.value else node.value - 1
        )
    elif isinstance(node, ast.Call):
        yield from changed_calls(node)
    elif isinstance(node, ast.AugAssign) and type(node.op) in SWAPS:
        yield f"{parts['target']} {SWAPS[type(node.op)]}= {parts['value']}"
    elif isinstance(node, ast.Raise | ast.Expr):
        yield "pass"


def changed_calls(call: ast.Call) -> Iterator[str]:
    """A call without one of its keywords; a method's object, or a sole argument, in its place."""
    for place, keyword in enumerate(call.keywords):
        kept = call.keywords[:place] + call.keywords[place + 1 :]
        if keyword.arg not in (None, "strict"):  # lengths agree wherever they are compared
            yield ast.unparse(ast.Call(call.func, call.args, kept))
    if isinstance(call.func, ast.Attribute) and not call.args:
        yield f"({ast.unparse(call.func.value)})"
    elif len(call.args) == 1 and not call.keywords and not isinstance(call.args[0], ast.Starred):
        name = ast.unparse(call.func)
        if not (hasattr(builtins, name) or name.endswith("Error")):  # len(x): a sure TypeError
            yield f"({ast.unparse(call.args[0])})"


def code_nodes(node: ast.AST) -> Iterator[Any]:
    """The nodes of what is computed: no annotations, decorators, docstrings, formatted texts."""
    skipped = ast.JoinedStr | ast.Import | ast.ImportFrom | ast.Starred
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "bases"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, skipped):
                continue
            if not (isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)):
                yield child
                yield from code_nodes(child)


def mutants_of(room: str, path: Path) -> Iterator[Mutant]:
    """Every mutant of a file."""
    text, name = path.read_bytes(), str(path.relative_to(ROOT))
    lines = text.splitlines(keepends=True)
    for node in code_nodes(ast.parse(text)):
        changes = [(node, new) for new in replacements(node)]
        if isinstance(node, ast.If | ast.While | ast.IfExp):
            changes.append((node.test, f"(not ({ast.unparse(node.test)}))"))
        for part, new in changes:
            start = sum(map(len, lines[: part.lineno - 1])) + part.col_offset
            stop = sum(map(len, lines[: part.end_lineno - 1])) + part.end_col_offset
            changed = text[:start] + new.encode() + text[stop:]
            code = " ".join(text[start:stop].decode().split())
            yield Mutant(room, name, part.lineno, part.col_offset, code, new, changed.decode())


def drawn(seed: int) -> list[Mutant]:
    """The mutants of a seed, room by room."""
    draw, chosen = random.Random(seed), []
    for name, room in ROOMS.items():
        mutants: list[Mutant] = []
        for source in room.sources:
            for path in sorted((ROOT / "robustpo_kit").glob(source)):
                mutants += mutants_of(name, path)
        chosen += draw.sample(mutants, room.mutants)
    return chosen


def scratch_copy(folder: Path) -> None:
    """The project in a folder: code and tests copied, everything else linked."""
    for path in ROOT.iterdir():
        if path.name in ("robustpo_kit", "tests"):
            shutil.copytree(path, folder / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif path.suffix in (".py", ".toml"):
            shutil.copy2(path, folder)
        elif path.name != "runs" and not path.name.startswith("."):
            (folder / path.name).symlink_to(path)


def run_tests(folder: Path, test: str, chosen: str) -> None:
    """In a fork, which has imported the libraries: the chosen tests of a file until one fails."""
    os.setsid()
    os.chdir(folder)
    os.environ |= {"PYTHONPATH": str(folder), "ROBUSTPO_ROOT": str(folder)}
    output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    file = f"tests/test_{test}.py"
    status = pytest.main(["-qx", "-p", "no:cacheprovider", "-k", chosen, file])
    package = Path(sys.modules["robustpo_kit"].__file__)  # conftest.py has imported it
    os._exit(status if package.is_relative_to(folder) else NOT_THE_COPY)


def first_failure(folder: Path, test: str, chosen: str, limit: float) -> str:
    """The first of a file's chosen tests that fails in a scratch copy, or SURVIVED."""
    fork = multiprocessing.get_context("fork")
    process = fork.Process(target=run_tests, args=(folder, test, chosen))
    process.start()
    process.join(limit)
    status = process.exitcode
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # and the processes that tests have left
    process.join()
    if status is None:
        return "the time limit"
    if status in (0, 5):  # 5: no test was chosen
        return SURVIVED
    failed = re.findall(r"^(?:FAILED|ERROR) ([^\s\[]+)", (folder / "output.txt").read_text(), re.M)
    return failed[0] if failed else f"exit status {status}"


def killer(folder: Path, mutant: Mutant, limits: dict[tuple[str, str], float]) -> str:
    """The first test of its room that fails, or SURVIVED.

    `limits` takes in the seconds that tests may take: far more than they need without a mutant, so
    that other work on the machine kills none.
    """
    source, tests = folder / mutant.file, ROOMS[mutant.room].tests
    choices = [(test, f"not ({SLOW})") for test in tests]
    choices += [(test, RANKS) for test in tests if test == "training"]
    for choice in choices:
        if choice not in limits:
            began = time.time()
            if (failed := first_failure(folder, *choice, 900)) != SURVIVED:
                sys.exit(f"{mutant.room}: {failed} without any mutant")
            limits[choice] = 180 + 5 * (time.time() - began)
        source.write_text(mutant.text)
        found = first_failure(folder, *choice, limits[choice])
        shutil.copy2(ROOT / mutant.file, source)
        if found != SURVIVED:
            return found
    return SURVIVED


def run(waiting: list[Mutant]) -> None:
    """Try mutants one by one; each outcome is one more line of OUTCOMES."""
    OUTCOMES.parent.mkdir(parents=True, exist_ok=True)
    os.environ |= ENVIRONMENT
    sys.dont_write_bytecode = True
    for library in LIBRARIES:
        importlib.import_module(library)
    limits: dict[tuple[str, str], float] = {}
    with tempfile.TemporaryDirectory() as name:
        scratch_copy(Path(name))
        for mutant in waiting:
            began = time.time()
            row = pd.DataFrame([mutant[:-1]], columns=KEY)
            row["found"] = killer(Path(name), mutant, limits)
            row["seconds"] = round(time.time() - began, 1)
            row.to_csv(OUTCOMES, mode="a", header=not OUTCOMES.exists(), index=False)
            print(*row.iloc[0], flush=True)


def outcomes() -> pd.DataFrame:
    """Every mutant's first outcome and its last, and the seconds it took."""
    if not OUTCOMES.exists():
        return pd.DataFrame(columns=[*KEY, "before", "now", "seconds"])
    rows = pd.read_csv(OUTCOMES, dtype={"code": str, "mutant": str}, keep_default_na=False)
    found = rows.groupby(KEY, sort=False, as_index=False)
    return found.agg(before=("found", "first"), now=("found", "last"), seconds=("seconds", "sum"))


def notes() -> pd.DataFrame:
    """The mutants that a hand has marked in the table, and why each means the same as the code."""
    if not TABLE.exists():
        return pd.DataFrame(columns=[*KEY, "note"])
    table = pd.read_csv(TABLE, dtype={"code": str, "mutant": str}, keep_default_na=False)
    return table.loc[table["note"] != "", [*KEY, "note"]]


def summary(table: pd.DataFrame) -> str:
    """What the table says, in words."""
    real = table[table["note"] == ""]
    before, now = (float((real[name] != SURVIVED).mean()) for name in ("before", "now"))
    return (
        f"{len(table)} mutants, of which {len(table) - len(real)} mean the same as the code; tests "
        f"killed {before:.1%} of the others before one was written for them, and {now:.1%} since"
    )


def write_table(mutants: list[Mutant], seed: int) -> None:
    """The committed table, with the notes of the one that is there."""
    from robustpo_kit import records  # here: forks import it from their scratch copy

    asked = pd.DataFrame([mutant[:-1] for mutant in mutants], columns=KEY)
    table = asked.merge(outcomes(), on=KEY)
    spent = float(table.pop("seconds").sum())
    table = table.merge(notes(), on=KEY, how="left").fillna({"note": ""})
    config = {"command": f"python tests/mutation.py --seed {seed}", "tests_left_out": SLOW}
    config["summary"] = summary(table)
    records.write_table(TABLE, table, records.provenance(config, seed, time.time() - spent))
    print(summary(table))


def keys(table: pd.DataFrame) -> set[tuple[Any, ...]]:
    """The mutants of a table."""
    return set(table[KEY].itertuples(index=False, name=None))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--survivors", action="store_true", help="try again what lives unmarked")
    parser.add_argument("--table", action="store_true", help="write the table")
    parser.add_argument("--rooms", nargs="+", choices=ROOMS, default=list(ROOMS))
    options = parser.parse_args()
    mutants, known = drawn(options.seed), outcomes()
    if options.table:
        return write_table(mutants, options.seed)
    mutants = [mutant for mutant in mutants if mutant.room in options.rooms]
    wanted = known[known["now"] == SURVIVED].merge(notes(), on=KEY, how="left")
    lived = keys(wanted[wanted["note"].isna()])
    if options.survivors:
        return run([mutant for mutant in mutants if mutant[:-1] in lived])
    run([mutant for mutant in mutants if mutant[:-1] not in keys(known)])


if __name__ == "__main__":
    main()
