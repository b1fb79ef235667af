"""What commands share: a parser of one-line errors, lists and assignments."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Collection
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from robustpo_kit import data, paths, records
from robustpo_kit.errors import KitError

Commands: TypeAlias = "argparse._SubParsersAction[Parser]"  # what `add_parser` belongs to


class Parser(argparse.ArgumentParser):
    """argparse prints the usage before an error; one line is easier to read in a log."""

    below: Callable[[], str] | None = None  # what stands below the flags, made when it is asked for

    def format_help(self) -> str:
        """As argparse does, with what stands below."""
        return super().format_help() + (self.below() if self.below else "")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"robustpo: {message}; see `{self.prog} --help`\n")


def write_lines(lines: list[str], out: str | None) -> None:
    """Write lines to the file `out`, saying how many, or to standard output."""
    text = "\n".join(lines) + "\n"
    if out:
        records.write_text(Path(out), text)
        print(f"{len(lines)} rows -> {out}")
    else:
        sys.stdout.write(text)


def comma_list(text: str) -> list[str]:
    """`a, b` as its items."""
    return [item.strip() for item in text.split(",") if item.strip()]


def notebook_numbers(text: str) -> tuple[str, ...]:
    """`4,05_train_gammapo` as the numbers of notebooks: 04, 05."""
    return tuple(item.split("_")[0].zfill(2) for item in comma_list(text))


def add_model(parser: argparse.ArgumentParser, default: str | None, about: str = "") -> None:
    """The flag --model: where a language model comes from."""
    said = f"{about}asset, Hub id, folder, policy, or tiny"
    if default:
        said += f" (default: {default})"
    parser.add_argument("--model", default=default, help=said)


def add_data(parser: argparse.ArgumentParser, about: str, *, required: bool = True) -> None:
    """The flags --data, --split and --on-bad-row, which `preferences_of` reads."""
    said = f"{about}: JSON lines, JSON, CSV or Parquet, a `datasets` folder, a Hub id or a task"
    parser.add_argument("--data", required=required, metavar="FILE", help=said)
    add_reading(parser)


def add_reading(parser: argparse.ArgumentParser) -> None:
    """The flags --split and --on-bad-row: how a preference file is read."""
    parser.add_argument(
        "--split", metavar="NAME", help="of a `datasets` folder or Hub data set (default: train)"
    )
    parser.add_argument(
        "--on-bad-row",
        choices=data.ON_BAD_ROW,
        help="a row that cannot be used ends the command, or is left out and counted "
        "(default: raise)",
    )


def preferences_of(arguments: argparse.Namespace) -> data.PreferenceSet:
    """The rows that --data, --split and --on-bad-row name; says on standard error what they are."""
    return read_preferences(arguments.data, arguments.split, arguments.on_bad_row)


def read_preferences(source: str, split: str | None, on_bad_row: str | None) -> data.PreferenceSet:
    """The rows of a source, and one line on standard error, of the first rank, that says them.

    Raises KitError as `data.load`, of a bad row with the flag that leaves it out.
    """
    try:
        rows = data.load(source, split=split, on_bad_row=on_bad_row or "raise")
    except data.BadRowError as error:
        raise KitError(f"{error} (or leave such rows out by --on-bad-row skip)") from None
    if is_first_rank():
        print(rows.describe(), file=sys.stderr)
    return rows


def is_first_rank() -> bool:
    """Whether this process, of those that a launcher started, is the one that speaks."""
    return int(os.environ.get("RANK", "0")) == 0


def free_folder(
    out: str, mark: str, what: str, writes: Collection[str], **needed: str | None
) -> Path:
    """The folder of --out, unless it holds what the command does not write, or what is `needed`.

    What stands in it is replaced at the end. Raises KitError.

    Args:
        out: as given.
        mark: the file by which the command's own folders are known.
        what: the command writes.
        writes: the files of it, as patterns of `Path.glob`, `mark` among them.
        needed: what it reads, by its flag's name.
    """
    folder = Path(out)
    is_empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not is_empty and not (folder / mark).exists():
        raise KitError(f"--out {paths.show(folder)}: exists and is no {what}; name another folder")
    for name, place in needed.items():
        if place and Path(place).resolve().is_relative_to(folder.resolve()):
            raise KitError(
                f"--out {paths.show(folder)}: it is replaced at the end and holds {name} {place}; "
                "name another folder"
            )
    own = set(chain.from_iterable(folder.glob(pattern) for pattern in writes))
    for inside in sorted(folder.rglob("*")):
        if inside not in own and not inside.is_dir():
            raise KitError(
                f"--out {paths.show(folder)}: it is replaced at the end and holds "
                f"{inside.relative_to(folder)}, which is no part of the {what}; name another folder"
            )
    return folder


def free_table(out: str, beside: str | None = None, **needed: str | None) -> None:
    """Check that neither the file of --out nor its provenance replaces what is the user's.

    Raises KitError where one of the two is there without a provenance that names this very file, or
    is `needed`.

    Args:
        out: as given.
        beside: of its provenance (default: NAME.json).
        needed: what the command reads, by its flag's name.
    """
    file = Path(out)
    origin = Path(beside) if beside else file.with_suffix(".json")
    for place in (file, origin):
        if place.exists() and not records.is_provenance(origin, of=file):
            raise KitError(
                f"--out {paths.show(file)}: {paths.show(place)} would be replaced, which this kit "
                "did not write; name another file"
            )
        for name, read in needed.items():
            if read and Path(read).resolve() == place.resolve():
                raise KitError(f"--out {paths.show(file)}: would replace {name}; name another file")


def add_seed(parser: argparse.ArgumentParser, about: str = "of every draw (default: 0)") -> None:
    """The flag --seed, a whole number."""
    parser.add_argument("--seed", type=int, default=0, help=about)


def add_assignments(parser: "argparse._ActionsContainer", flag: str, about: str) -> None:
    """A flag that may come several times, each time with KEY=VALUE; `assignments` reads them."""
    parser.add_argument(flag, action="append", default=[], metavar="KEY=VALUE", help=about)


def assignments(flag: str, given: list[str]) -> dict[str, Any]:
    """KEY=VALUE items as a dict; a value that is not JSON is a string.

    Raises KitError naming `flag` for an item of another form.
    """
    values = {}
    for item in given:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise KitError(f"{flag} {item}: expected KEY=VALUE")
        try:
            values[key] = json.loads(text)
        except json.JSONDecodeError:
            values[key] = text
    return values
