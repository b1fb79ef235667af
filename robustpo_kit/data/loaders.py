"""Every task by its name."""

from collections.abc import Callable
from pathlib import Path

from robustpo_kit.data.hub import load_hh, load_tldr, load_ultrafeedback
from robustpo_kit.data.preferences import PreferenceSet
from robustpo_kit.data.tasks import load_dialogue, load_how_to, load_summaries
from robustpo_kit.errors import KitError


def load(task: str, *, limit: int | None = None) -> PreferenceSet:
    """The preference set of a task: how_to, dialogue, summaries, hh, tldr, ultrafeedback, or a JSON lines file.

    Raises KitError for an unknown task or a missing asset.
    """
    if task in LOADERS:
        rows = LOADERS[task]()
    elif Path(task).suffix in (".jsonl", ".gz"):
        rows = PreferenceSet.from_jsonl(task)
    else:
        raise KitError(
            f"task: '{task}' is unknown; choose {', '.join(LOADERS)} or give a .jsonl file"
        )
    return rows if limit is None else rows[:limit]


LOADERS: dict[str, Callable[[], PreferenceSet]] = {
    "how_to": load_how_to,
    "dialogue": load_dialogue,
    "summaries": load_summaries,
    "hh": load_hh,
    "tldr": load_tldr,
    "ultrafeedback": load_ultrafeedback,
}
