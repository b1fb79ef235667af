"""Refresh: from the text notebooks to the committed, executed ones, with the same bytes every time.

`notebooks/text/NN_name.py` (jupytext percent) is the source. Each is executed under profile smoke
by a kernel of this interpreter; then everything that depends on the machine or the moment is
dropped from `notebooks/NN_name.ipynb`.
"""

import base64
import io
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from robustpo_kit import paths, records
from robustpo_kit.errors import KitError
from robustpo_kit.kernel import kernel_environment
from robustpo_kit.notebook import number_of
from robustpo_kit.series.cells import source_key, text_in_step
from robustpo_kit.series.execution import kernel_transport
from robustpo_kit.series.plan import named, needs_of

CELL_SECONDS = 300  # nbval gives a cell as long
COLOURS = 64  # of a stored drawing


KERNELSPEC = {"display_name": "Python 3", "language": "python", "name": "python3"}


def refresh(*, only: list[str] | None = None, everything: bool = False) -> list[str]:
    """Execute the text notebooks that changed and write their .ipynb.

    A notebook has changed when its cells, the code it imports, the committed data it may read or a
    notebook before it did.

    Args:
        only: Numbers such as "04"; without them, all notebooks.
        everything: Execute unchanged ones too.

    Returns:
        The names of the notebooks executed.

    Raises:
        KitError: When a number is unknown or a cell fails; that notebook then stays as it was.
    """
    folder = paths.NOTEBOOKS
    sources = {
        number_of(path.name): path for path in sorted((folder / "text").glob("[0-9][0-9]*_*.py"))
    }
    chosen = named(only or [], sources, "notebooks")
    stamp_path = paths.RUNS / "smoke" / "refresh.json"
    stamps: dict[str, str] = {}
    if stamp_path.exists():
        stamps = records.read_json(stamp_path)
    keys: dict[str, str] = {}
    executed = []
    for number, source in sources.items():
        target = folder / f"{source.stem}.ipynb"
        keys[number] = _key(source, [keys.get(need, "") for need in needs_of(number)])
        current = stamps.get(target.name) == keys[number] and text_in_step(source, target)
        if (only and number not in chosen) or (current and not everything):
            continue
        print(f"{source.stem}: executing under profile smoke", flush=True)
        write_notebook(execute(source, cwd=folder), target)
        executed.append(source.stem)
        stamps[target.name] = keys[number]
        records.write_json(stamp_path, stamps)
    return executed


def execute(source: Path, *, cwd: Path) -> Any:
    """Run the cells of a text notebook in a fresh kernel under profile smoke, in the folder `cwd`.

    Returns the canonical notebook node; raises KitError naming the cell that failed.
    """
    import jupytext
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
    from traitlets.config import Config

    notebook = jupytext.read(source)
    notebook.metadata["kernelspec"] = dict(KERNELSPEC)
    environment = {name: value for name, value in os.environ.items() if name != "ROBUSTPO_DONE"}
    with tempfile.TemporaryDirectory(prefix="nb") as private:
        client = NotebookClient(
            notebook,
            kernel_name="python3",
            config=Config(kernel_transport(private)),
            timeout=CELL_SECONDS,
            startup_timeout=120,
            record_timing=False,
            store_widget_state=False,
            coalesce_streams=True,
            resources={"metadata": {"path": str(cwd)}},
        )
        try:
            client.execute(env=environment | kernel_environment("smoke"))
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            raise KitError(f"{source.name}: {failed_cell(notebook, error)}") from None
    return canonical(notebook, source.stem)


def failed_cell(notebook: Any, error: Exception) -> str:
    """One line: which cell failed, and how."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for count, cell in enumerate(code, start=1):
        for output in cell.outputs:
            if output.output_type == "error":
                return f"code cell {count}: {output.ename}: {output.evalue}"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{type(error).__name__}: {lines[-1]}"


def canonical(notebook: Any, stem: str) -> Any:
    """`notebook` with ids `stem-NN` and no metadata but its kernel and the tags of its cells."""
    notebook.metadata = {"kernelspec": dict(KERNELSPEC), "language_info": {"name": "python"}}
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for position, cell in enumerate(notebook.cells):
        cell["id"] = f"{stem}-{position:02d}"
        tags = cell.metadata.get("tags")
        cell["metadata"] = {}
        if tags:
            cell["metadata"]["tags"] = list(tags)
        for output in cell.get("outputs", []):
            if "metadata" in output:
                output["metadata"] = {}
            if png := output.get("data", {}).get("image/png"):
                output["data"]["image/png"] = in_few_colours(png)
    return notebook


def in_few_colours(png: str) -> str:
    """A drawing, base64, in COLOURS colours: to the eye the same, in a quarter of the bytes."""
    from PIL import Image

    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    stream = io.BytesIO()
    few = picture.quantize(COLOURS, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(stream, "PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode()


def write_notebook(notebook: Any, target: Path) -> None:
    """Validate and write a notebook by rename."""
    import nbformat

    notebook = nbformat.from_dict(notebook)
    nbformat.validate(notebook)
    records.write_text(target, nbformat.writes(notebook).rstrip("\n") + "\n")


def _key(source: Path, needs: list[str]) -> str:
    """Key of all that decides a stored notebook, the committed results it shows included."""
    committed = sorted((paths.RESULTS / "reference").glob("*.csv"))
    committed += sorted((paths.RESULTS / "gpu").glob("*.csv"))
    results = [[path.parent.name, path.name, records.file_digest(path)] for path in committed]
    interpreter = sys.version.split()[0]
    return records.digest(source_key(source, {}, "smoke"), interpreter, needs, results, length=16)
