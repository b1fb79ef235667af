"""Preference data: rows, sets, files, and tasks of text."""

from robustpo_kit.data.conversation import Conversation, plain, question
from robustpo_kit.data.loading import ON_BAD_ROW
from robustpo_kit.data.preferences import PreferenceSet
from robustpo_kit.data.reading import row_as_json
from robustpo_kit.data.rows import (
    BadRowError,
    Preference,
    mean_h,
    preferred_and_least,
    preferred_pair,
    shared,
    take,
)
from robustpo_kit.data.tasks import TASKS, Task, load, template_of
from robustpo_kit.data.template import Template

__all__ = [
    "BadRowError",
    "Conversation",
    "ON_BAD_ROW",
    "Preference",
    "PreferenceSet",
    "TASKS",
    "Task",
    "Template",
    "load",
    "mean_h",
    "plain",
    "preferred_and_least",
    "preferred_pair",
    "question",
    "row_as_json",
    "shared",
    "take",
    "template_of",
]
