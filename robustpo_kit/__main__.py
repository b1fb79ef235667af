"""`python -m robustpo_kit` is `robustpo`."""

import sys

from robustpo_kit.cli import main

if __name__ == "__main__":
    sys.exit(main())
