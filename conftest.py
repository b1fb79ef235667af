"""What every test process and nbval kernel sees: profile smoke, one thread, no GPU, a hash seed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from robustpo_kit.kernel import kernel_environment

for _name, _value in kernel_environment("smoke").items():
    if _name.startswith("ROBUSTPO_"):
        os.environ[_name] = _value
    else:
        # `CUDA_VISIBLE_DEVICES=0 make test` shows the tests a GPU
        os.environ.setdefault(_name, _value)


def pytest_configure():
    from hypothesis import settings

    settings.register_profile("kit", derandomize=True, deadline=None, database=None)
    settings.load_profile("kit")


def pytest_collectstart(collector):
    """Compared: text, numbers, standard output; not pandas' HTML, pictures, warnings."""
    if type(collector).__name__ == "IPyNbFile":
        collector.skip_compare += ("text/html", "image/svg+xml", "stderr")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With several workers: all notebooks go to one of them, and the tests of a file stay together.

    A later notebook reads what an earlier one wrote, and the tests of a file share fixtures.
    (xdist's own loadgroup does not see its groups under pytest 9.2.)
    """
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.split("::")[0]
            return "notebooks" if file.endswith(".ipynb") else file

    return Together(config, log)


@pytest.fixture(scope="session")
def tiny():
    """A random BERT of a few thousand weights."""
    from robustpo_kit import encoders

    return encoders.load("tiny")


PARAMETERS = 'profile = "auto"  # auto | smoke | demo | cpu | gpu | paper\nseed = 0\noverrides = {}'
# A notebook's done file without the kit's imports, which take seconds.
DONE = (
    "import json, os\nfrom pathlib import Path\n"
    '_ = Path(os.environ["ROBUSTPO_DONE"]).write_text(json.dumps({"tables": [], "figures": []}))'
)


class DemoProject:
    """A project of small notebooks in a temporary folder: for the runner, refresh and nbval."""

    def __init__(self, root: Path):
        self.root = root
        self.notebooks = root / "notebooks"
        (self.notebooks / "text").mkdir(parents=True)

    def text(self, name: str, *cells: str) -> Path:
        """Write notebooks/text/NAME.py: a title, the parameters, `cells`."""
        parts = [f"# %% [markdown]\n# # {name}", f'# %% tags=["parameters"]\n{PARAMETERS}']
        parts += [f"# %%\n{cell}" for cell in cells]
        path = self.notebooks / "text" / f"{name}.py"
        path.write_text("\n\n".join(parts) + "\n")
        return path

    def notebook(self, name: str, *cells: str) -> Path:
        """Write the same as notebooks/NAME.ipynb, not executed."""
        import jupytext

        node = jupytext.read(self.text(name, *cells))
        node.metadata["kernelspec"] = {
            "display_name": "Python 3",
            "language": "python",
            "name": "python3",
        }
        path = self.notebooks / f"{name}.ipynb"
        jupytext.write(node, path)
        return path

    def environment(self) -> dict[str, str]:
        """Variables of a process that takes this folder for the project."""
        return os.environ | {"ROBUSTPO_ROOT": str(self.root)}

    def robustpo(self, *arguments: str, **options) -> subprocess.CompletedProcess:
        """Run the command line on this project."""
        command = [sys.executable, "-m", "robustpo_kit", *arguments]
        return subprocess.run(
            command,
            cwd=self.root,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=300,
            **options,
        )

    def pytest(self, *arguments: str) -> subprocess.CompletedProcess:
        """Run nbval here as `make test` does, with the configuration of the real project."""
        shutil.copy(Path(__file__), self.root / "conftest.py")
        command = [sys.executable, "-m", "pytest", "-q", "--rootdir", ".", "-p", "no:cacheprovider"]
        nbval = ["--nbval", "--nbval-current-env", "--nbval-cell-timeout", "60"]
        return subprocess.run(
            [*command, *nbval, *arguments],
            cwd=self.root,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=300,
        )


@pytest.fixture
def demo(tmp_path, monkeypatch) -> DemoProject:
    """An empty demo project; the kit's paths point into it, here and in child processes."""
    from robustpo_kit import paths

    monkeypatch.setenv("ROBUSTPO_ROOT", str(tmp_path))
    for name in ("NOTEBOOKS", "DATA", "SYNTHETIC", "RESULTS", "STUDIES", "FIGURES", "RUNS"):
        monkeypatch.setattr(paths, name, tmp_path / getattr(paths, name).relative_to(paths.ROOT))
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    return DemoProject(tmp_path)


@pytest.fixture
def settings():
    """start() sets the style of the whole process; put it back."""
    import matplotlib
    import numpy as np
    import pandas as pd
    import torch

    with matplotlib.rc_context(), pd.option_context("display.precision", 6), np.printoptions():
        yield
    torch.use_deterministic_algorithms(False)
    torch.set_printoptions(profile="default")


@pytest.fixture
def declare(request, tmp_path, monkeypatch):
    """A function that writes the test module's DECLARED, with changes, as the study `small`."""
    from robustpo_kit import paths

    for name in ("STUDIES", "RUNS", "RESULTS"):
        monkeypatch.setattr(paths, name, tmp_path / name.lower())

    def write(**changes):
        paths.STUDIES.mkdir(exist_ok=True)
        declared = request.module.DECLARED | changes
        (paths.STUDIES / "small.json").write_text(json.dumps(declared))
        return "small"

    return write
