"""Every figure of the notebooks by its name: each is drawn of the table that is saved beside it."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from robustpo_kit import paths, records
from robustpo_kit.errors import KitError
from robustpo_kit.plots import in_toy, on_gaps, on_studies, on_text
from robustpo_kit.plots.style import save, styled

SAME = (  # figures by the names of their functions
    in_toy.toy_h, in_toy.toy_methods, in_toy.toy_dose, in_toy.toy_mass, in_toy.toy_h_rank,
    in_toy.pairwise_losses, in_toy.flips_gold, in_toy.flips_added, in_toy.ablations_lambda,
    in_toy.ablations_tau, in_toy.phase_map, in_toy.self_training_rounds,
    on_text.mixture_composition, on_text.source_words, on_text.reliability,
    on_text.confidence_by_source, on_text.h_by_sample, on_text.slot_detectors,
    on_text.reward_accuracy, on_text.judge_audit, on_text.dose_real, on_text.dora_curves,
    on_gaps.reward_confidence, on_gaps.confidence_slope_differences, on_gaps.gamma_curves,
    on_gaps.margin_violin, on_gaps.gamma_versus_gap, on_gaps.theorem_3_1,
    on_gaps.benchmark_length_control, on_gaps.your_detection, on_gaps.paper_items,
    on_studies.confidence_slopes_by_seed, on_studies.gamma_slopes_by_seed,
)  # fmt: skip
SHARED = {  # figures of one kind
    on_studies.study_contrasts: ("dora_studies", "flips_studies", "phase_studies"),
    on_text.win_rates: ("dora_win_rates", "gamma_win_rates"),
    on_text.score_differences: ("dora_differences", "gamma_differences"),
}
FIGURES: dict[str, Callable[[pd.DataFrame], Figure]] = {kind.__name__: kind for kind in SAME}
FIGURES |= {name: kind for kind, names in SHARED.items() for name in names}


def draw(name: str, table: pd.DataFrame) -> Figure:
    """The figure NAME of a notebook, of its table; what the table's rows are, its function says.

    Raises:
        KitError: for an unknown figure, or a table without its columns.
    """
    if name not in FIGURES:
        raise KitError(f"figure '{name}': unknown; there are {', '.join(FIGURES)}")
    try:
        with styled():
            return FIGURES[name](table)
    except KeyError as error:
        raise KitError(f"figure '{name}': its table has no {error}, only {list(table)}") from None


def read(path: Path) -> pd.DataFrame:
    """A table with its origin (`attrs["origin"]`), which stands on its figure."""
    table = pd.read_csv(path)
    beside = path.with_suffix(".json")
    record = records.read_json(beside) if beside.exists() else {}
    whose = f"record: {record.get('profile', '?')}, seed {record.get('seed', '?')}"
    table.attrs["origin"] = record.get("origin", whose)
    return table


def redraw(folder: Path) -> list[str]:
    """Draw every NAME.csv in a folder again as NAME.png and NAME.pdf; returns what was written."""
    written = []
    for path in sorted(folder.glob("*.csv")):
        if path.stem in FIGURES:
            figure = draw(path.stem, read(path))
            save(figure, path.with_suffix(""))
            plt.close(figure)
            written.append(paths.show(path.with_suffix(".png")))
    return written
