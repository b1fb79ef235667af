"""The notebook series: what is stale, one process each, resumed."""

from robustpo_kit.series import cells, execution, plan, refresh, report, runner

__all__ = ["cells", "execution", "plan", "refresh", "report", "runner"]
