"""Declared studies: what a comparison is about, said and committed before it runs.

`data/studies/NAME.json` is an object:

    name        that of the file
    question    one sentence
    primary     1 to 3 objects: contrast [method, baseline], outcome, where {"dose": 0.6}, direction
    seeds       distinct whole numbers, the units of replication
    methods     {name: what the runner makes of it, such as a spec}
    doses       numbers, the strengths of what goes wrong
    stopping    when the study ends, in words
    notes       anything else, in words (optional)
    settings    an object of the runner's own (optional)

`where` picks rows of the outcomes for both sides of a contrast; `against`, where it is given, those
of the baseline, so that ["erm", "erm"] at dose 0.6 against dose 0 is a contrast too. `direction`
says what the study expects of method minus baseline: "higher", "lower", "either", or "equivalent"
within plus or minus `margin`.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from robustpo_kit import paths, records
from robustpo_kit.errors import KitError

DIRECTIONS = ("higher", "lower", "either", "equivalent")
MOST_PRIMARIES = 3
Fields = TypeVar("Fields")
CONTRAST_FIELDS = ("contrast", "outcome", "where", "against", "direction", "margin")


@dataclasses.dataclass(frozen=True)
class Contrast:
    """Method minus baseline in one outcome, in the rows that `where` (and `against`) picks."""

    method: str
    baseline: str
    outcome: str
    where: Mapping[str, Any]
    against: Mapping[str, Any]  # rows of the baseline; those of `where` unless declared
    direction: str  # of DIRECTIONS
    margin: float | None = None  # of "equivalent": the largest difference that does not matter


@dataclasses.dataclass(frozen=True)
class Study:
    """A declaration, checked field by field; see the module for what each means."""

    name: str
    question: str
    primary: tuple[Contrast, ...]
    seeds: tuple[int, ...]
    methods: Mapping[str, Any]
    doses: tuple[float, ...]
    stopping: str
    notes: str = ""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def load(cls, name: str, folder: Path | None = None) -> "Study":
        """The study NAME of `folder`, by default the project's.

        Raises:
            KitError: naming file and field: no such file, a field that is missing, unknown or
                wrong, or a contrast of methods or doses that the study does not have.
        """
        folder = folder or paths.STUDIES
        path = folder / f"{name}.json"
        if not path.exists():
            known = ", ".join(sorted(other.stem for other in folder.glob("*.json"))) or "none"
            raise KitError(f"{paths.show(path)}: no such study; there are: {known}")
        return cls.parse(records.read_json(path), path)

    @classmethod
    def parse(cls, declared: Any, path: Path) -> "Study":
        """The study that the object `declared`, read from `path`, declares; errors as in `load`."""
        reader = _Reader(declared, paths.show(path), "")
        reader.only(tuple(field.name for field in dataclasses.fields(cls)))
        study = cls(
            name=reader.text("name"),
            question=reader.text("question"),
            primary=tuple(_contrast(item) for item in reader.objects("primary", MOST_PRIMARIES)),
            seeds=reader.numbers("seeds", int),
            methods=reader.mapping("methods"),
            doses=reader.numbers("doses", float),
            stopping=reader.text("stopping"),
            notes=reader.text("notes", ""),
            settings=reader.mapping("settings", {}),
        )
        _check(study, reader, Path(path).stem)
        return study

    def error(self, place: str, message: object) -> KitError:
        """What is wrong at a place of the declaration."""
        return KitError(f"study {self.name}, {place}: {message}")

    def fields(self, kind: type[Fields], values: Any, place: str) -> Fields:
        """An object of the declaration as a dataclass; raises KitError naming a wrong field."""
        try:
            return kind(**values)
        except TypeError as error:
            said = str(error).replace(f"{kind.__name__}.__init__() ", "")
            raise self.error(place, said) from None

    def check_tuning_seeds(self, seeds: Iterable[int], place: str) -> None:
        """Raise KitError where a seed of tuning is one of the study's."""
        if both := set(seeds).intersection(self.seeds):
            raise self.error(place, f"seed {min(both)} is one of the study's; tune on others")


class _Reader:
    """Reads the fields of one JSON object; what is wrong is a KitError naming file and field."""

    def __init__(self, values: Any, file: str, place: str) -> None:
        self.file, self.place = file, place
        self.values = values
        if not isinstance(values, dict):
            raise KitError(f"{file}: {place or 'the file'} should be an object")

    def error(self, field: str, message: str) -> KitError:
        return KitError(f"{self.file}: {self.place}{field} {message}")

    def only(self, known: tuple[str, ...]) -> None:
        """Refuse fields that are not `known`."""
        for field in self.values:
            if field not in known:
                raise self.error(field, f"is not a field; choose among {', '.join(known)}")

    def take(self, field: str, default: Any = None) -> Any:
        value = self.values.get(field, default)
        if value is None:
            raise self.error(field, "is missing")
        return value

    def text(self, field: str, default: str | None = None) -> str:
        value = self.take(field, default)
        if not isinstance(value, str) or (default is None and not value.strip()):
            raise self.error(field, f"= {value!r} should be text")
        return value

    def mapping(self, field: str, default: Any = None) -> dict[str, Any]:
        value = self.take(field, default)
        if not isinstance(value, dict) or (default is None and not value):
            raise self.error(field, f"= {value!r} should be an object that is not empty")
        return value

    def numbers(self, field: str, kind: type) -> tuple[Any, ...]:
        """Distinct numbers, one at least; whole ones, 0 or more, for `kind` int."""
        values = self.take(field)
        allowed = (int,) if kind is int else (int, float)
        wrong = not isinstance(values, list) or any(type(v) not in allowed for v in values)
        if wrong or not values or (kind is int and min(values) < 0):
            noun = "whole numbers, 0 or more" if kind is int else "numbers"
            raise self.error(field, f"= {values!r} should be a list of {noun}, at least one")
        if len(set(values)) < len(values):
            raise self.error(field, f"= {values!r}: each may stand there once")
        return tuple(kind(value) for value in values)

    def objects(self, field: str, most: int) -> "list[_Reader]":
        values = self.take(field)
        if not isinstance(values, list) or not 1 <= len(values) <= most:
            raise self.error(field, f"should be a list of 1 to {most} objects")
        return [
            _Reader(value, self.file, f"{self.place}{field}[{number}].")
            for number, value in enumerate(values)
        ]


def _contrast(reader: _Reader) -> Contrast:
    """One primary contrast; that its names belong to the study is for `_check`."""
    reader.only(CONTRAST_FIELDS)
    pair = reader.take("contrast")
    if not isinstance(pair, list) or [type(name) for name in pair] != [str, str]:
        raise reader.error("contrast", f"= {pair!r} should be [method, baseline]")
    direction = reader.text("direction")
    if direction not in DIRECTIONS:
        raise reader.error("direction", f"= '{direction}': choose among {', '.join(DIRECTIONS)}")
    margin = reader.values.get("margin")
    if (direction == "equivalent") != (margin is not None):
        raise reader.error("margin", "goes with direction 'equivalent', and only with it")
    if margin is not None and (type(margin) not in (int, float) or not margin > 0):
        raise reader.error("margin", f"= {margin!r} should be a number above 0")
    where = reader.mapping("where", {})
    against = reader.mapping("against", where)
    if pair[0] == pair[1] and where == against:
        raise reader.error("contrast", f"= {pair!r}: both sides are the same rows")
    outcome = reader.text("outcome")
    return Contrast(pair[0], pair[1], outcome, where, against, direction, margin)


def _check(study: Study, reader: _Reader, stem: str) -> None:
    """Refuse a name other than the file's, and contrasts of methods or doses that are not there."""
    if study.name != stem:
        raise reader.error("name", f"= '{study.name}' should be that of the file, '{stem}'")
    for number, contrast in enumerate(study.primary):
        place = f"primary[{number}]"
        for method in (contrast.method, contrast.baseline):
            if method not in study.methods:
                known = ", ".join(study.methods)
                raise reader.error(f"{place}.contrast", f"has '{method}'; the methods are {known}")
        for field in ("where", "against"):
            dose = getattr(contrast, field).get("dose")
            if dose is not None and dose not in study.doses:
                raise reader.error(
                    f"{place}.{field}", f"has dose {dose!r}; the doses are {list(study.doses)}"
                )
    if len({repr(contrast) for contrast in study.primary}) < len(study.primary):
        raise reader.error("primary", "has the same contrast twice")
