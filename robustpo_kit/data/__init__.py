"""Preference data: rows, sets, files, and tasks of human text."""

from robustpo_kit.data.hub import load_hh, load_tldr, load_ultrafeedback
from robustpo_kit.data.loaders import load
from robustpo_kit.data.preferences import PreferenceSet
from robustpo_kit.data.rows import Preference, take
from robustpo_kit.data.tasks import load_dialogue, load_how_to, load_summaries
from robustpo_kit.data.template import SYSTEM, Template

__all__ = [
    "Preference",
    "PreferenceSet",
    "SYSTEM",
    "Template",
    "load",
    "load_dialogue",
    "load_hh",
    "load_how_to",
    "load_summaries",
    "load_tldr",
    "load_ultrafeedback",
    "take",
]
