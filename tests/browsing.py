"""A real browser and a JupyterLab for the tests marked `browser`: Debian's Chromium by playwright.

Nothing is downloaded: the browser is the one on PATH, and pages may load from this machine alone.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jupytext
import nbformat

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
LOCAL = re.compile(r"^(file:|data:|blob:|about:|(http|ws)://(127\.0\.0\.1|localhost)[:/])")
PATIENCE = 240_000  # milliseconds: machines are busy, and a cold start of torch is slow
SETTINGS = {  # else news cover a corner, and cells out of sight are not in the page
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
}
STATE = """() => {
  const panel = window.jupyterapp.shell.currentWidget;
  const cells = panel.content.model.toJSON().cells.filter(cell => cell.cell_type === "code");
  return {
    kernel: panel.sessionContext.kernelDisplayStatus,
    counts: cells.map(cell => cell.execution_count),
    errors: cells.flatMap(cell => cell.outputs).filter(output => output.output_type === "error")
      .map(output => `${output.ename}: ${output.evalue}`),
    said: cells.flatMap(cell => cell.outputs).flatMap(output => output.text ?? []).join(""),
  };
}"""

IDLE = """() => {
  const panel = window.jupyterapp?.shell.currentWidget;
  return panel?.sessionContext?.isReady && panel.sessionContext.session?.kernel?.status === "idle";
}"""


def program() -> str | None:
    """The browser on PATH, by the first of `NAMES`."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """A headless browser with a profile of its own, as a context of playwright."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as profile, sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=program(), headless=True, args=list(FLAGS)
        )
        try:
            yield context
        finally:
            context.close()


class Watch:
    """What a page said on its console, and what it asked of other machines."""

    def __init__(self, page: Any):
        self.errors: list[str] = []
        self.strays: list[str] = []
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", self._asked)

    def _said(self, message: Any) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def _asked(self, request: Any) -> None:
        if not LOCAL.match(request.url):
            self.strays.append(request.url)


def project(folder: Path, *, smoke: tuple[str, ...] = ()) -> Path:
    """A copy of the project in `folder` to run notebooks in: results go there, data are read here.

    Notebooks whose names are in `smoke` have that profile in their parameters; all lose their
    outputs, so that whatever is seen was computed.
    """
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    shutil.copy(ROOT / "README.md", folder)
    for place in ("data", "data/results", "figures"):
        (folder / place).mkdir()
        for path in (ROOT / place).iterdir():
            if path.name != "results":
                (folder / place / path.name).symlink_to(path)
    for text in (folder / "notebooks" / "text").glob("*.py"):
        notebook = jupytext.read(text)
        notebook.metadata["kernelspec"] = {"display_name": "Python 3", "name": "python3"}
        for cell in notebook.cells:
            if text.stem in smoke and "parameters" in cell.metadata.get("tags", ()):
                cell.source = cell.source.replace('profile = "auto"', 'profile = "smoke"')
        nbformat.write(notebook, folder / "notebooks" / f"{text.stem}.ipynb")
    return folder


@contextlib.contextmanager
def jupyterlab(folder: Path) -> Iterator[str]:
    """JupyterLab on `folder`, as `make lab` starts it; its address, with `{}` for a path."""
    home = Path(tempfile.mkdtemp())
    overrides = home / "config" / "labconfig" / "default_setting_overrides.json"
    overrides.parent.mkdir(parents=True)
    overrides.write_text(json.dumps(SETTINGS))
    places = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data"}
    places |= {"JUPYTER_RUNTIME_DIR": "run", "JUPYTERLAB_SETTINGS_DIR": "settings"}
    places |= {"JUPYTERLAB_WORKSPACES_DIR": "workspaces", "IPYTHONDIR": "ipython"}
    environment = os.environ | {name: str(home / place) for name, place in places.items()}
    environment["ROBUSTPO_ROOT"] = str(folder)
    del environment["ROBUSTPO_PROFILE"]  # a person has set none
    flags = ("--no-browser", "--ServerApp.port=0", "--LabApp.expose_app_in_browser=True")
    with open(home / "log", "w") as log:
        process = subprocess.Popen(
            [*lab_command(), *flags], cwd=folder, env=environment, stdout=log, stderr=log
        )
    try:
        yield address(process, home)
    finally:
        process.terminate()
        process.wait(30)
        shutil.rmtree(home, ignore_errors=True)


def lab_command() -> list[str]:
    """The command of `make lab`, with this interpreter."""
    done = subprocess.run(
        ["make", "--no-print-directory", "-n", "-o", ".venv/.ready", "lab"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    line = next(line for line in done.stdout.splitlines() if "jupyter lab" in line)
    return [sys.executable, "-m", "jupyterlab", *line.split("jupyter lab ")[1].split()]


def address(process: subprocess.Popen[bytes], home: Path) -> str:
    """Where the server listens, once it does; its log where it does not."""
    for _ in range(PATIENCE // 200):
        for path in (home / "run").glob("jpserver-*.json"):
            with contextlib.suppress(json.JSONDecodeError):
                server = json.loads(path.read_text())
                return f"{server['url']}{{}}?token={server['token']}"
        if process.poll() is not None:
            break
        time.sleep(0.2)
    raise RuntimeError((home / "log").read_text())


def open_notebook(page: Any, lab: str, name: str) -> None:
    """Show notebooks/NAME.ipynb in a workspace of its own, its kernel idle."""
    page.goto(lab.format(f"lab/workspaces/{name}/tree/notebooks/{name}.ipynb"))
    page.wait_for_function(IDLE, timeout=PATIENCE)


def run_all(page: Any) -> dict[str, Any]:
    """Run > Run All Cells, and wait for the end or an error; the `STATE` that is then."""
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    until = time.monotonic() + PATIENCE / 1000
    while time.monotonic() < until:
        state = page.evaluate(STATE)
        if state["errors"] or (None not in state["counts"] and state["kernel"] == "idle"):
            return state
        page.wait_for_timeout(250)
    raise TimeoutError(f"it did not end: {state}")


def shut_down(page: Any) -> None:
    """End every kernel: each holds half a gigabyte."""
    page.evaluate("() => window.jupyterapp.serviceManager.sessions.shutdownAll()")
