"""What every test process and every nbval kernel sees: profile smoke, one thread, no GPU, a fixed hash seed and clock."""

import os

import pytest

from robustpo_kit.notebook import kernel_environment

for _name, _value in kernel_environment("smoke").items():
    if _name.startswith("ROBUSTPO_"):
        os.environ[_name] = _value
    else:
        os.environ.setdefault(_name, _value)  # CUDA_VISIBLE_DEVICES=0 make test: shows the tests a GPU


def pytest_configure():
    from hypothesis import settings

    settings.register_profile("kit", derandomize=True, deadline=None, database=None)
    settings.load_profile("kit")


def pytest_collectstart(collector):
    """Compared: text, numbers and streams. Not: pandas' HTML (its text form is), pictures, and warnings of libraries."""
    if type(collector).__name__ == "IPyNbFile":
        collector.skip_compare += ("text/html", "image/svg+xml", "stderr")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """With several workers (--dist loadgroup): the notebooks go to one of them in their order, since a later one reads
    what an earlier one wrote; the tests of one file stay together, since they share fixtures."""
    for item in items:
        group = "notebooks" if item.path.suffix == ".ipynb" else item.path.stem
        item.add_marker(pytest.mark.xdist_group(group))
