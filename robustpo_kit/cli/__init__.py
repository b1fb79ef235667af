"""The command `robustpo`: a thin door to the package; what fails for the user's reasons is one line and exit code 2."""

from robustpo_kit.cli.main import main
from robustpo_kit.cli.parsing import assignments, notebook_numbers

__all__ = ["assignments", "main", "notebook_numbers"]
