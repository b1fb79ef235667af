"""What the parts draw and where their controls stand, as JSON: of committed tables, never by hand.

A part that moves one sample of a batch repeats that sample's values beside the lists, since a
slider has one number.
"""

from typing import Any

import pandas as pd

from robustpo_kit import (
    analysis,
    experiments,
    objectives,
    paths,
    profiles,
    published,
    records,
    robust,
    toy,
)
from robustpo_kit.widgets.pair import pair_state

COMMITTED = paths.RESULTS / "reference"
CLASSIFIER = "frozen, per source"  # whose h~ the later notebooks use
GOLDEN = "human_correct"
HARMS = {"phase_contamination": "contaminated rows", "phase_flips": "flipped labels"}
BATCH = 8


def batch_weights() -> dict[str, Any]:
    """Eight rows of notebook 02's h~, from least to largest, and made-up losses of mean one."""
    table = _committed("h_by_sample").query("classifier == @CLASSIFIER").sort_values("h")
    rows = table.iloc[[round(k * (len(table) - 1) / (BATCH - 1)) for k in range(BATCH)]]
    losses = records.stream(0, "losses of the moving batch").exponential(size=BATCH).round(2)
    h = rows["h"].round(2).tolist()
    return {
        "losses": losses.tolist(),
        "h": h,
        "contaminated": (rows["sample"] == "contaminated").tolist(),
        "lam": robust.DEFAULT_LAM,
        "sample": 0,
        "loss": float(losses[0]),
        "factor": h[0],
    }


def gamma_gap() -> dict[str, Any]:
    """Gaps of notebook 06's gamma-SimPO at beta 1, and the papers' settings of gamma0 and tau."""
    table = analysis.training_gaps(_committed("gamma_gaps")).query("policy == 'gamma-simpo'")
    record = records.read_json(COMMITTED / "gamma_gaps.json")
    trained = profiles.get(record["profile"], record["overrides"])
    gaps = (table["gap"] / experiments.simpo_beta(trained)).round(4)
    settings = [
        _setting(name.split("/")[1], preset.spec)
        for name, preset in published.PRESETS.items()
        if name.endswith("/gamma_simpo")
    ]
    first = {"setting" if key == "name" else key: value for key, value in settings[0].items()}
    return {"gaps": gaps.tolist(), "settings": settings, **first}


def reliability() -> dict[str, Any]:
    """c of notebook 02's responses, a list a row, which of them are golden, which rows are not."""
    table = _committed("confidence_by_source")
    row = (table["column"] == 0).cumsum()
    rows = [part for _, part in table.groupby(row)]
    first = [part["source"].iloc[0] for part in rows]
    return {
        "c": [part["c"].round(5).tolist() for part in rows],
        "golden": [(part["source"] == GOLDEN).astype(int).tolist() for part in rows],
        "contaminated": [source != GOLDEN for source in first],
        "temperature": 1.0,
        "bins": 10,
    }


def pair() -> dict[str, Any]:
    """Pairs of SmolLM2's own replies, of notebook 04b's table: human text is nowhere stored."""
    return pair_state(_committed("pair_tokens"))


def phase() -> dict[str, Any]:
    """Cells of the declared studies, each method against its first baseline."""
    keys = ["harm", "outcome", "method", "baseline", "dose"]
    numbers = ["difference", "low", "high", "seeds", "verdict"]
    parts = []
    for study in HARMS:
        cells = pd.read_csv(paths.RESULTS / "studies" / study / "cells.csv")
        cells = cells[cells["axis"] == toy.declared.BASE].assign(harm=study)
        parts.append(cells[~cells.duplicated(["outcome", "method", "dose"])])
    cells = pd.concat(parts)[keys + numbers].round(4)
    outcomes = {"gold": "gold reward", "win_rate": "win rate", "gold_at_kl": "gold at equal KL"}
    return {
        "cells": cells.to_dict("records"),
        "harms": [list(pair) for pair in HARMS.items()],
        "outcomes": [list(pair) for pair in outcomes.items()],
        "harm": next(iter(HARMS)),
        "outcome": "gold",
        "method": "reweight slot",
    }


def _setting(name: str, spec: str) -> dict[str, Any]:
    """gamma0, tau and the beta of the gaps, of a spec."""
    built = objectives.build(spec)
    margin = built.margin or {}
    numbers = {"gamma0": built.gamma0, "tau": margin["tau"], "beta": built.options["beta"]}
    return {"name": name, **numbers}


def _committed(name: str) -> pd.DataFrame:
    return pd.read_csv(COMMITTED / f"{name}.csv")
