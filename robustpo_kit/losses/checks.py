"""Refusals that name the argument."""

import math
from typing import Any


def check_number(name: str, value: Any) -> None:
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
    check_number(name, value)
    if not (low < value if open_low else low <= value) or not (
        value <= high if closed_high else value < high
    ):
        left, right = "(" if open_low else "[", "]" if closed_high else ")"
        raise ValueError(f"{name}: must lie in {left}{low:g}, {high:g}{right}, got {value}")
