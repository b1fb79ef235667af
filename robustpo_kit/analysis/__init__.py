"""Statistics as tidy tables: what a study declares, and what stands behind the papers' figures."""

from robustpo_kit.analysis.cells import cell_table, which_method
from robustpo_kit.analysis.declarations import Contrast, Study
from robustpo_kit.analysis.figures import (
    confidence_bands,
    energy_distance,
    gap_quantiles,
    mean_by,
    normalise,
    reward_confidence,
    slope_difference,
    training_curves,
    training_gaps,
)
from robustpo_kit.analysis.items import item_table
from robustpo_kit.analysis.judged import item_readings, paper_items
from robustpo_kit.analysis.paired import (
    Difference,
    equivalence,
    mean_difference,
    minimum_detectable,
    paired_rows,
    simultaneous,
)
from robustpo_kit.analysis.papers import paper_values
from robustpo_kit.analysis.runs import (
    Run,
    all_curves,
    compare_runs,
    differing_settings,
    read_runs,
)
from robustpo_kit.analysis.sentences import (
    UNFINISHED,
    among_all,
    declared_contrasts,
    verdict,
)
from robustpo_kit.analysis.slopes import (
    beside_paper,
    main_estimates,
    slope_table,
    study_margins,
    study_replies,
    wide_outcomes,
)
from robustpo_kit.analysis.study_tables import holm, study_table
from robustpo_kit.analysis.tuning import (
    Knobs,
    choose,
    chosen_knobs,
    chosen_tries,
    knobs_of,
    nearest,
)

__all__ = [
    "UNFINISHED",
    "Contrast",
    "Difference",
    "Knobs",
    "Run",
    "Study",
    "all_curves",
    "among_all",
    "beside_paper",
    "cell_table",
    "choose",
    "compare_runs",
    "confidence_bands",
    "declared_contrasts",
    "differing_settings",
    "chosen_knobs",
    "chosen_tries",
    "energy_distance",
    "equivalence",
    "gap_quantiles",
    "holm",
    "item_readings",
    "item_table",
    "knobs_of",
    "main_estimates",
    "mean_by",
    "mean_difference",
    "minimum_detectable",
    "nearest",
    "normalise",
    "paired_rows",
    "paper_items",
    "paper_values",
    "read_runs",
    "reward_confidence",
    "simultaneous",
    "slope_difference",
    "slope_table",
    "study_margins",
    "study_replies",
    "study_table",
    "training_curves",
    "training_gaps",
    "verdict",
    "which_method",
    "wide_outcomes",
]
