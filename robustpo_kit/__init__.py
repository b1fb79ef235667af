"""robustpo_kit: robust preference optimization (DoRA and gamma-PO) for language models, notebook first."""

__version__ = "0.1.0"
