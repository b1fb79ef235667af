"""Robust preference optimization (DoRA and gamma-PO) for language models, notebook first."""

import warnings

__version__ = "0.1.0"

# tqdm says so at import without ipywidgets; the kit's progress goes to a terminal or a log
warnings.filterwarnings("ignore", message="IProgress not found")
