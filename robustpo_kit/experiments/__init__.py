"""Experiments: from a task to disjoint splits, a shifted training set, policies, scored replies.

The notebooks share these steps. What takes long is kept under runs/PROFILE and made again only when
its settings, its own code or what it was made from changes, so a killed run continues where it
stood.
"""

from robustpo_kit.experiments.keeping import Step, kept
from robustpo_kit.experiments.lab import Lab
from robustpo_kit.experiments.real_studies import study_runs
from robustpo_kit.experiments.results import Trained, all_replies, reply_quality, simpo_gaps
from robustpo_kit.experiments.specs import gamma_methods, listwise_spec, simpo_beta
from robustpo_kit.experiments.steps import SPLITS
from robustpo_kit.experiments.studies import run_study

__all__ = [
    "Lab",
    "SPLITS",
    "Step",
    "Trained",
    "all_replies",
    "gamma_methods",
    "kept",
    "listwise_spec",
    "reply_quality",
    "run_study",
    "simpo_beta",
    "simpo_gaps",
    "study_runs",
]
