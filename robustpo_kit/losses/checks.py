"""Refusals that name the argument, raised as ValueError."""

import math

from torch import Tensor


def check_number(name: str, value: object) -> None:
    """A finite number; True and False are none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value!r}")


def check_positive(name: str, value: float) -> None:
    check_number(name, value)
    if not value > 0:
        raise ValueError(f"{name}: must be positive, got {value}")


def check_at_least(name: str, value: float, low: float) -> None:
    check_number(name, value)
    if not value >= low:
        raise ValueError(f"{name}: must be at least {low:g}, got {value}")


def check_between(
    name: str,
    value: float,
    low: float,
    high: float,
    *,
    open_low: bool = False,
    closed_high: bool = False,
) -> None:
    """`low` <= value < `high`; `open_low` leaves out `low`, `closed_high` lets in `high`."""
    check_number(name, value)
    if low < value < high:
        return
    if (value == low and not open_low) or (value == high and closed_high):
        return
    left, right = "(" if open_low else "[", "]" if closed_high else ")"
    raise ValueError(f"{name}: must lie in {left}{low:g}, {high:g}{right}, got {value}")


def check_whole(name: str, value: object, *, low: int | None = None) -> None:
    """A whole number, of at least `low` if given; True and False are none."""
    if type(value) is not int:
        raise ValueError(f"{name}: must be a whole number, got {value!r}")
    if low is not None and value < low:
        raise ValueError(f"{name}: must be at least {low}, got {value}")


def check_flag(name: str, value: object) -> None:
    """True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}: must be True or False, got {value!r}")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """One of two or more texts."""
    if value not in choices:
        raise ValueError(f"{name}: expected {' or '.join(map(repr, choices))}, got {value!r}")


def present(name: str, value: Tensor | None) -> Tensor:
    """The field, which may be left out of a step's scores but not by this loss."""
    if value is None:
        raise ValueError(f"{name}: this loss needs it, got None")
    return value
