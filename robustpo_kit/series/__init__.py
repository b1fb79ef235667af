"""The notebook series: what is stale, one process each, resumed.

A module a subject: `cells` (what a notebook holds, and its key), `plan` (what a run is), `runner`
(runs it), `execution` (one notebook in one process), `report` (what a run leaves), `refresh` (the
committed notebooks).
"""

from robustpo_kit.series import cells, execution, plan, refresh, report, runner

__all__ = ["cells", "execution", "plan", "refresh", "report", "runner"]
