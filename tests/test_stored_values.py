"""What is computed stays what it was when stored_values.json was written, up to rounding."""

import json

import pytest
from stored_values import (
    FILE,
    lab_values,
    objective_specs,
    objective_values,
    toy_row,
    training_values,
)

STORED = json.loads(FILE.read_text())


def agree(found: dict, stored: dict, relative: float, absolute: float) -> None:
    """Every value of `found` is the stored one: numbers within tolerances, the rest equal."""
    assert list(found) == list(stored)
    for name, value in stored.items():
        values, wanted = (v if isinstance(v, list) else [v] for v in (found[name], value))
        if "0x" in wanted[0]:
            values, wanted = ([float.fromhex(v) for v in vs] for vs in (values, wanted))
            assert values == pytest.approx(wanted, rel=relative, abs=absolute), name
        else:
            assert values == wanted, name


@pytest.mark.parametrize("name", STORED["objectives"])
def test_losses_weights_and_gradients(name):
    agree(objective_values(objective_specs()[name]), STORED["objectives"][name], 1e-11, 1e-13)


def test_every_preset_is_stored():
    assert set(objective_specs()) == set(STORED["objectives"])


@pytest.mark.parametrize("name", STORED["training"])
def test_trained_weights_and_cached_reference(name):
    from stored_values import RUNS

    agree(training_values(RUNS[name]), STORED["training"][name], 1e-4, 1e-5)


def test_row_of_a_toy_run():
    agree(toy_row(), STORED["toy"]["row"], 1e-3, 1e-4)


def test_kept_artefacts_of_the_lab():
    agree(lab_values(), STORED["lab"]["smoke"], 1e-3, 1e-4)
