"""The command `robustpo`: a thin door to the package.

What fails for the user's reasons is one line on standard error, and exit code 2.
"""

from robustpo_kit.cli.main import main
from robustpo_kit.cli.parsing import assignments, notebook_numbers

__all__ = ["assignments", "main", "notebook_numbers"]
