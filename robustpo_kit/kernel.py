"""The kernel of a notebook: what it must find at its start, its settings, the badges it shows."""

import html
import os
import random
import sys
from pathlib import Path

from robustpo_kit import records


def kernel_environment(profile: str) -> dict[str, str]:
    """Variables that a kernel under `profile` must find at its start, whoever starts it."""
    values = {
        "ROBUSTPO_PROFILE": profile,
        "PYTHONHASHSEED": "0",
        "TZ": "UTC",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # deterministic matmuls; a cell would set it too late
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # else the debugger warns on the kernel's stderr
    }
    if profile in ("smoke", "cpu"):
        # One thread a process: sums over threads differ in the seventh digit, and threads that wait
        # for each other lose on a busy machine; the cores are filled by processes.
        values |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    if profile == "smoke":
        values |= {"ROBUSTPO_PROGRESS": "off", "CUDA_VISIBLE_DEVICES": ""}
    if profile == "demo":
        values["ROBUSTPO_PROGRESS"] = "bar"
    return values


def seed_everything(seed: int, *, single_thread: bool) -> None:
    """Python's, numpy's and torch's generators; one thread where results are compared."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if single_thread:
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(True)


def quiet() -> None:
    """No bars and no advice of libraries in stored outputs; errors and Python warnings stay."""
    for key in ("TOKENIZERS_PARALLELISM", "HF_HUB_DISABLE_PROGRESS_BARS", "TRANSFORMERS_VERBOSITY"):
        os.environ.setdefault(key, kernel_environment("smoke")[key])
    if "transformers" in sys.modules:  # already imported: the variables come too late
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
    if "datasets" in sys.modules:
        import datasets

        datasets.disable_progress_bars()


def display_settings() -> None:
    """Three digits, in tables that fit a page."""
    import numpy as np
    import pandas as pd
    import torch

    np.set_printoptions(precision=3, suppress=True)
    torch.set_printoptions(precision=3, sci_mode=False)
    pd.set_option(
        "display.precision",
        3,
        "display.width",
        120,
        "display.max_columns",
        20,
        "display.max_colwidth",
        80,
    )


def figure_settings() -> None:
    """The kit's style, also of the pictures that a kernel sends."""
    import matplotlib.style

    from robustpo_kit import plots

    matplotlib.style.use(plots.STYLE)
    if "IPython" in sys.modules:
        import IPython

        shell = IPython.get_ipython()
        if shell is not None and hasattr(shell, "kernel"):
            from matplotlib_inline.config import InlineBackend

            InlineBackend.instance(parent=shell).print_figure_kwargs = plots.SAVED


def show_badge(origin: str, beside: list[Path]) -> None:
    """Whose a table is, in a kernel's output; beside a live one the committed one, folded.

    Args:
        origin: "live: demo, seed 3", or of a record or study.
        beside: files of the same table elsewhere, which need not be there.
    """
    import pandas as pd
    from IPython.display import HTML, display

    live = origin.startswith("live")
    look = "display:inline-block;padding:.15em .7em;border-radius:.8em;font-weight:bold;"
    look += f"color:#fff;background:{'#00795a' if live else '#555555'}"
    text = f'<span style="{look}">{html.escape(origin)}</span>'
    for path in beside:
        if not live or not path.exists():
            continue
        table = pd.read_csv(path)
        about = records.read_json(path.with_suffix(".json"))
        rows = f"record: {about['profile']}, seed {about['seed']}, {len(table)} rows"
        shown = table.round(3).to_html(index=False, max_rows=12, border=0, na_rep="")
        text += f" <details><summary>beside it, {rows}</summary>{shown}</details>"
    display(HTML(text))
