"""How well an audit finds flips and contamination that were put into real pairs.

`python tests/detection_table.py --hh FILE`, from the repository's root, does what
data/results/studies/detection/declared.json declares and writes the tables beside it with their
provenance.
FILE is a local file of HH-RLHF; without it that task is fetched from the Hub. `--part flips` or
`--part slots` makes the tables of turned labels, or of contaminated golden slots, alone.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from robustpo_kit import analysis, calibration, data, encoders, intervals, mixture, records
from robustpo_kit.auditing import flips, scores, sources, views

FOLDER = Path(__file__).parent.parent / "data" / "results" / "studies" / "detection"
RATES = ("trusted", "bound")  # estimates with an interval
NO_RATE = intervals.Interval(np.nan, np.nan, np.nan, 0)  # where no estimate is given


def flip_cell(features, groups, rate, seed, share):
    """One file: labels turned at `rate`, sought beside a share of the groups that is trusted."""
    apart = held_apart(groups, share, seed)
    file = np.flatnonzero(~apart)
    flipped = flips.injected(len(file), rate, seed)
    folds = scores.folds_of(groups[file], seed)
    inside = {name: values[file] for name, values in features.items()}
    fits = scores.best_of_views(inside, folds, seed=seed, flipped=flipped)
    best = scores.chosen(fits)
    nowhere = np.full(apart.sum(), -1)
    known = best.score_others(features[best.view][np.flatnonzero(apart)], nowhere, seed)
    trusted = flips.trusted_rate(best.scores, groups[file], known, groups[apart]) or NO_RATE
    bound = flips.flip_bound(best.scores, groups[file])
    cell = {"rate": rate, "seed": seed, "n": len(file), "view": best.view, "nll": best.nll()}
    cell["accuracy"] = float(((best.scores > 0) + 0.5 * (best.scores == 0)).mean())
    cell |= trusted.columns("trusted") | bound.columns("bound")
    cell["confident"] = flips.confident_rate(best.scores)
    if rate:
        cell |= found(flipped, best.scores, fits["length"].scores, seed)
        probs = flips.flip_probabilities(best.agreement(), bound.value)
        cell["ece_bound"] = calibration.ece(flipped, probs)
        cell["ece_trusted"] = np.nan
        if trusted is not NO_RATE:
            probs = flips.flip_probabilities(best.agreement(), trusted.value)
            cell["ece_trusted"] = calibration.ece(flipped, probs)
    return cell


def held_apart(groups, share, seed):
    """[N] whether a row's group is of the trusted share."""
    names, codes = np.unique(groups, return_inverse=True)
    order = records.stream(seed, "detection", "trusted").permutation(len(names))
    return np.isin(codes, order[: round(share * len(names))])


def found(flipped, ours, length, seed):
    """Average precision and precision in the top tenth of three rankings."""
    lot = records.stream(seed, "detection", "lot").random(len(flipped))
    cell = {}
    for name, ranking in (("ours", ours), ("length", length), ("random", lot)):
        for measure, value in flips.found_among(flipped, ranking).items():
            cell[f"{measure}_{name}"] = value
    return cell


def contamination_cell(rows, extra, encoder, share, seed, trusted_share):
    """One file: golden slots replaced at `share`, sought by a classifier of the trusted rows."""
    apart = held_apart(np.array([row.group for row in rows]), trusted_share, seed)
    trusted, file = rows.select(np.flatnonzero(apart)), rows.select(np.flatnonzero(~apart))
    # a file of pairs: its golden slot, and the other human reply
    pairs = file.pairs()
    mixed, mask = mixture.contaminate(pairs, share, extra, seed=seed)
    known = trusted.map(lambda row: data.take(row, (0, 2)))
    (result,) = sources.contamination(mixed, known, encoder=encoder, seed=seed)
    cell = {"share": share, "seed": seed, "n": len(mixed), "source": result.source}
    cell |= result.rate.columns("estimate")
    if share:
        words = np.array([calibration.word_count(row.responses[0]) for row in mixed])
        lot = records.stream(seed, "detection", "lot").random(len(mask))
        for name, clean in (("ours", -result.probabilities), ("length", -words), ("random", lot)):
            for measure, value in flips.found_among(mask, clean).items():
                cell[f"{measure}_{name}"] = value
        cell["ece"] = calibration.ece(mask, result.probabilities)
    return cell


def flip_summary(cells):
    """A row a task and rate: means over seeds with Student's t, bias and coverage."""
    rows = []
    for (task, rate), part in cells.groupby(["task", "rate"], sort=False):
        row = {"task": task, "rate": rate, "seeds": len(part), "n": int(part["n"].mean())}
        row |= intervals.t_interval(part["accuracy"]).columns("accuracy")
        for name in ("ours", "length", "random"):
            values = part[f"average_precision_{name}"]
            row |= intervals.t_interval(values).columns(f"average_precision_{name}")
            row[f"precision_top_{name}"] = part[f"precision_top_{name}"].mean()
        for name in RATES:
            inside = (part[f"{name}_low"] <= rate) & (rate <= part[f"{name}_high"])
            row[f"{name}_none"] = part[name].isna().sum()
            row[f"{name}_bias"] = (part[name] - rate).mean()
            row[f"{name}_covers"] = inside.mean()
            row |= {f"{name}_{end}": part[f"{name}_{end}"].mean() for end in ("low", "high")}
            row[f"{name}_width"] = row[f"{name}_high"] - row[f"{name}_low"]
        row["confident_bias"] = (part["confident"] - rate).mean()
        row |= {name: part[name].mean() for name in ("ece_bound", "ece_trusted")}
        rows.append(row)
    return pd.DataFrame(rows)


def primaries(cells):
    """The declared contrasts of average precision, and the declared coverages."""
    rows = []
    for task, part in cells.groupby("task", sort=False):
        at = part[part["rate"] == 0.2]
        gain = at["average_precision_ours"] - at["average_precision_length"]
        found = intervals.t_interval(gain)
        p_value = stats.ttest_1samp(gain, 0).pvalue
        inside = (part["trusted_low"] <= part["rate"]) & (part["rate"] <= part["trusted_high"])
        row = {"task": task, "seeds": len(at)} | found.columns("difference")
        row |= {"p_value": p_value, "cells": len(inside)}
        # the cells of a seed share their trusted pairs
        row |= intervals.bootstrap_mean(inside, part["seed"]).columns("covered")
        over = at["average_precision_ours"] - at["average_precision_random"]
        rows.append(row | intervals.t_interval(over).columns("over_random"))
    table = pd.DataFrame(rows)
    return table.assign(p_adjusted=analysis.holm(table["p_value"]))


def contamination_summary(cells):
    """A row a share: means over seeds with Student's t, bias and coverage."""
    rows = []
    for share, part in cells.groupby("share", sort=False):
        row = {"task": "how_to", "share": share, "seeds": len(part), "n": int(part["n"].mean())}
        for name in ("ours", "length", "random"):
            values = part[f"average_precision_{name}"]
            row |= intervals.t_interval(values).columns(f"average_precision_{name}")
        inside = (part["estimate_low"] <= share) & (share <= part["estimate_high"])
        row |= {"bias": (part["estimate"] - share).mean(), "covers": inside.mean()}
        rows.append(row | {"ece": part["ece"].mean()})
    return pd.DataFrame(rows)


def flip_cells(declared, encoder, hh):
    """Every cell of every task."""
    cells = []
    for task, count in declared["tasks"].items():
        rows = data.load(task, hh if task == "hh" else None)
        if len(rows) > count:
            rows = rows.split({"part": count}, 0)["part"]
        groups = np.array([row.group for row in rows])
        features = views.differences(rows, encoder)
        for rate in declared["rates"]:
            for seed in declared["seeds"]:
                cell = flip_cell(features, groups, rate, seed, declared["trusted"])
                cells.append({"task": task} | cell)
                print(cells[-1], flush=True)
    return pd.DataFrame(cells)


def contamination_cells(declared, encoder):
    """Every cell of how_to."""
    extra = mixture.load_store("how_to_extra")
    rows = mixture.with_synthetic(data.load("how_to"), mixture.load_store("how_to"), 1)
    has = [n for n, row in enumerate(rows) if extra.get(row.row_id, {}).get("replies", [""])[0]]
    rows, cells = rows.select(has), []
    for share in declared["shares"]:
        for seed in declared["seeds"]:
            trusted = declared["trusted"]
            cells.append(contamination_cell(rows, extra, encoder, share, seed, trusted))
            print(cells[-1], flush=True)
    return pd.DataFrame(cells)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hh", metavar="FILE")
    parser.add_argument("--part", choices=("flips", "slots"))
    started, arguments = time.time(), parser.parse_args()
    declared = json.loads((FOLDER / "declared.json").read_text())
    encoder = encoders.load(declared["encoder"])
    tables = {}
    if arguments.part != "flips":
        slots = contamination_cells(declared, encoder)
        tables |= {"contamination_cells": slots, "contamination": contamination_summary(slots)}
    if arguments.part != "slots":
        cells = flip_cells(declared, encoder, arguments.hh)
        tables |= {"flip_cells": cells, "flips": flip_summary(cells), "primaries": primaries(cells)}
    record = records.provenance(declared, declared["seeds"][0], started)
    for name, table in tables.items():
        records.write_table(FOLDER / f"{name}.csv", table, record)


if __name__ == "__main__":
    main()
