"""The command that makes a preference file ready for DoRA: c, h and rewards of every row."""

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from robustpo_kit import data, records
from robustpo_kit.cli.parsing import (
    Commands,
    add_reading,
    add_seed,
    free_folder,
    read_preferences,
)
from robustpo_kit.errors import KitError

if TYPE_CHECKING:
    from robustpo_kit.calibration import SourceClassifier, Told
    from robustpo_kit.data import PreferenceSet
    from robustpo_kit.encoders import Encoder

ROWS, RECORD = "rows.jsonl", "calibration.json"  # the record marks a folder as this command's
WRITES = (ROWS, "calibration.*", "reliability.*", "classifier/*")
NAMED = {"chosen", "rejected"}  # sources of a pair that is labelled, whatever its rewards
NEAR_CONSTANT = 0.99  # of the rows, as effective sample size
MISSING = (
    "calibrate: nothing says which replies are of the target source, and without that there is no "
    "h~; give --golden COLUMN, --source NAME or --trusted FILE. What needs none: "
    '`robustpo train --objective "gamma(simpo(beta=10), gamma_beta_ratio=0.4, tau=10)"`, '
    '"rdpo(beta=0.1, epsilon=0.1)" or "dro(dpo(beta=0.1), lam=1.0)"'
)
SETTINGS = (
    "file", "split", "on_bad_row", "golden", "source", "trusted", "reward", "factor", "encoder",
    "features", "rows",
)  # fmt: skip


class Rewarded(NamedTuple):
    """Rewards of all responses, and where they come from."""

    rewards: list[tuple[float, ...]]
    said: str


def add_calibrate(commands: Commands) -> None:
    parser = commands.add_parser(
        "calibrate", help="a source classifier, and the file's rows with c, h and rewards, for DoRA"
    )
    parser.add_argument("file", metavar="FILE", help="preferences, as `train --data` takes them")
    add_reading(parser)
    told = parser.add_mutually_exclusive_group()
    told.add_argument(
        "--golden",
        type=_column,
        metavar="COLUMN",
        help="the column of the target source's replies, from 0; or chosen | rejected: the "
        "preferred reply of each row, by label or rewards, or the least",
    )
    told.add_argument(
        "--source", metavar="NAME", help="replies of this name in `sources` are the target source's"
    )
    told.add_argument(
        "--trusted",
        metavar="FILE",
        help="other rows, whose golden reply (column 0, or `golden`) is the target source's",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help=f"where {ROWS} goes")
    parser.add_argument(
        "--reward",
        metavar="MODEL",
        help="whose rewards rank: a reward model of the kit, a sequence classifier's folder or Hub "
        "id (default: the file's own, or a Bradley-Terry model fitted to its pairs)",
    )
    parser.add_argument(
        "--factor",
        choices=("mean", "slot"),
        default="mean",
        help="h: DoRA's mean over a row's replies, or the golden slot's alone (default: mean)",
    )
    parser.add_argument(
        "--encoder", default="minilm-l6", help="BERT of the classifier (default: minilm-l6)"
    )
    parser.add_argument(
        "--features", default="frozen", help="frozen | fine_tuned: of the classifier"
    )
    parser.add_argument(
        "--rows", type=int, default=5000, metavar="N", help="at most so many are learnt from"
    )
    add_seed(parser, "of folds, of the choice of rows, of fine-tuning (default: 0)")
    parser.set_defaults(run=_calibrate)


def _column(text: str) -> int | str:
    """A column's number, or which reply by its rank."""
    if text in ("chosen", "rejected"):
        return text
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}': chosen, rejected or a column's number")
    return int(text)


def _calibrate(arguments: argparse.Namespace) -> int:
    from robustpo_kit import calibration, encoders

    started = time.time()
    given = (arguments.golden, arguments.source, arguments.trusted)
    if given == (None, None, None):
        raise KitError(MISSING)
    _check(arguments)
    read = {"file": arguments.file, "trusted": arguments.trusted}
    out = free_folder(arguments.out, RECORD, "calibration", WRITES, **read)
    rows = read_preferences(arguments.file, arguments.split, arguments.on_bad_row)
    told = _told(arguments, rows)
    encoder = encoders.load(arguments.encoder, seed=arguments.seed)
    rewarded = _rewards(arguments, rows, encoder)
    learnt = _some(told.rows, arguments)
    classifier = calibration.fit_classifier(
        learnt,
        seed=arguments.seed,
        features=arguments.features,
        encoder=encoder,
        golden_sources=told.golden_sources,
        calibrator="least_nll",
    )
    found = calibration.evidence(classifier, learnt, seed=arguments.seed)
    c = calibration.confidences(classifier, rows)
    h = _factors(arguments, classifier, told, rows, c)
    report = [
        f"{told.said}; learnt from {len(learnt)} rows of {len(told.rows)}",
        calibration.verdict(found),
        _of_factors(h),
        rewarded.said,
    ]
    config = {name: getattr(arguments, name) for name in SETTINGS} | {"dropped": rows.dropped}
    origin = records.provenance(config, arguments.seed, started) | {"report": report}
    with records.atomic_folder(out) as folder:
        _write_rows(folder / ROWS, rows, h, c, rewarded.rewards)
        classifier.save(folder / "classifier")
        records.write_table(folder / RECORD.replace("json", "csv"), found, origin)
        _draw(classifier, c, folder)
    print("\n".join(report))
    print(_shown(found))
    print(f"-> {out}; rows with h, c and rewards: {out / ROWS}")
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Raises KitError for what would be refused after minutes."""
    if arguments.rows < 8:
        raise KitError(f"--rows {arguments.rows}: at least 8 are needed to leave some out in turn")
    if arguments.factor == "slot" and arguments.source is not None:
        raise KitError("--factor slot: --source says who wrote each reply; no slot is in doubt")


def _told(arguments: argparse.Namespace, rows: "PreferenceSet") -> "Told":
    from robustpo_kit import calibration

    if arguments.golden is not None:
        return calibration.told_by_column(rows, arguments.golden)
    if arguments.source is not None:
        return calibration.told_by_source(rows, arguments.source)
    trusted = read_preferences(arguments.trusted, None, arguments.on_bad_row)
    return calibration.told_by_trusted(rows, trusted)


def _some(rows: "PreferenceSet", arguments: argparse.Namespace) -> "PreferenceSet":
    """At most --rows of them, whole groups, in a seeded choice."""
    if len(rows) <= arguments.rows:
        return rows
    return rows.split({"learnt": arguments.rows}, arguments.seed)["learnt"]


def _factors(
    arguments: argparse.Namespace,
    classifier: "SourceClassifier",
    told: "Told",
    rows: "PreferenceSet",
    c: Sequence[Sequence[float]],
) -> np.ndarray:
    from robustpo_kit import calibration

    if arguments.factor == "mean":
        return calibration.mean_factors(classifier, c)
    if not told.slots:
        raise KitError(
            "--factor slot: trusted rows of one reply do not show what else stands in a slot; give "
            "rows with other replies, or --factor mean"
        )
    if arguments.golden is not None:
        rows = told.rows
    return calibration.slot_factors(classifier, rows, c)


def _of_factors(h: np.ndarray) -> str:
    low, high = np.quantile(h, [0.05, 0.95])
    share = h.sum() ** 2 / max((h**2).sum(), 1e-300) / len(h)
    said = "; near constant, so that DoRA with it is near DRO" if share > NEAR_CONSTANT else ""
    return (
        f"h: mean {h.mean():.2f}, sd {h.std():.2f}, 90 % in [{low:.2f}, {high:.2f}]; effective "
        f"sample size {share:.1%} of {len(h)} rows{said}"
    )


def _rewards(arguments: argparse.Namespace, rows: "PreferenceSet", encoder: "Encoder") -> Rewarded:
    """Of the model that is named, of the file, or cross-fitted; labels of pairs stay above all.

    A label is the order of a pair without rewards, and of replies that the file calls chosen and
    rejected; another order by the file's rewards goes with them, and how often is said.
    """
    from robustpo_kit import calibration, intervals, rewards

    given = [row.rewards for row in rows if row.rewards is not None]
    if arguments.reward is None and len(given) == len(rows):
        return Rewarded(given, "rewards: the file's own")
    if arguments.reward is not None:
        flat = calibration.flat_responses(rows)
        texts = (list(flat["prompt"]), list(flat["response"]))
        model = rewards.load(arguments.reward)
        scores, said = model.score(*texts), f"rewards: {arguments.reward}"
    elif all(len(row.responses) != 2 for row in rows):
        raise KitError(
            f"{arguments.file}: nothing ranks the replies of its rows, which are no pairs and have "
            "no rewards; give --reward MODEL"
        )
    else:
        learnt = _some(rows, arguments)
        settings: dict[str, Any] = {"seed": arguments.seed, "encoder": encoder}
        scores, held_out = rewards.cross_fitted_rewards(rows, learnt, **settings)
        said = "rewards: a Bradley-Terry model, cross-fitted"
        right = intervals.bootstrap_mean(held_out["correct"], held_out["group"])
        said += f"; it agrees with {_percent(right)} of the labels that it was not fitted on"
    found = calibration.by_row(rows, scores)
    pairs = [n for n, row in enumerate(rows) if len(row.responses) == 2]
    labelled = [n for n in pairs if rows[n].rewards is None]
    if arguments.reward is not None:
        labelled = [n for n in pairs if rows[n].rewards is None or set(rows[n].sources) == NAMED]
    if labelled:
        _raise_preferred(found, rows, labelled)
        said += "; the preferred reply of a pair stays above the other one"
    if arguments.reward is not None and (turned := _turned(found, rows, pairs)):
        said += f"; {turned} of {len(pairs)} pairs are turned against the file's own rewards"
    if given and arguments.reward is None:
        found = [list(row.rewards or own) for row, own in zip(rows, found, strict=True)]
        said += f"; {len(given)} of {len(rows)} rows keep the file's own"
    return Rewarded([tuple(values) for values in found], said)


def _raise_preferred(found: list[list[float]], rows: "PreferenceSet", labelled: list[int]) -> None:
    """Raise in `found` what the labels of these pairs prefer."""
    from robustpo_kit import mixture

    orders = [data.preferred_and_least(rows[place]) for place in labelled]
    values = [[found[n][k] for k in order] for n, order in zip(labelled, orders, strict=True)]
    raised = mixture.rank_first(values, np.ones(len(labelled), dtype=bool))
    for place, order, ranked in zip(labelled, orders, raised.tolist(), strict=True):
        found[place] = [ranked[order.index(column)] for column in (0, 1)]


def _turned(found: list[list[float]], rows: "PreferenceSet", pairs: list[int]) -> int:
    """How many pairs prefer another reply by `found` than by the rewards that they have."""
    own = [(n, rows[n].rewards) for n in pairs]
    return sum(
        (found[n][0] - found[n][1]) * (given[0] - given[1]) < 0
        for n, given in own
        if given is not None
    )


def _percent(found: Any) -> str:
    return f"{100 * found.value:.0f} % [{100 * found.low:.0f}, {100 * found.high:.0f}]"


def _write_rows(
    path: Path,
    rows: "PreferenceSet",
    h: np.ndarray,
    c: list[list[float]],
    rewards: list[tuple[float, ...]],
) -> None:
    with open(path, "w", encoding="utf-8") as stream:
        for row, factor, of_row, ranked in zip(rows, h.tolist(), c, rewards, strict=True):
            value = data.row_as_json(dataclasses.replace(row, h=factor, rewards=ranked))
            value["c"] = [round(confidence, 6) for confidence in of_row]
            stream.write(json.dumps(value, ensure_ascii=False) + "\n")


def _draw(classifier: "SourceClassifier", c: list[list[float]], folder: Path) -> None:
    """The reliability diagram, over how often each c occurs in the file."""
    from matplotlib.figure import Figure

    from robustpo_kit import plots

    table = classifier.reliability()
    used = next(iter(classifier.config["calibrators"].values()))
    stages = {"before", {"none": "before"}.get(used, used)}
    drawn, of_file = table[table["stage"].isin(stages)], np.concatenate(c)
    with plots.styled():
        figure = Figure(figsize=(5.6, 6.2), layout="constrained")
        above, below = figure.subplots(2, height_ratios=(4, 1))
        plots.reliability(drawn, above).legend(loc="upper left")
        below.hist(of_file, bins=40, range=(0, 1), color=plots.PALETTE[0])
        below.set(xlabel="c of the file's replies", ylabel="replies", xlim=(0, 1))
        held_out = drawn.groupby(["head", "stage"])["count"].sum().max()
        note = f"n = {held_out} held-out responses, {len(of_file)} replies of the file, "
        note += f"seed {classifier.config['seed']}"
        plots.head(
            figure, f"Golden by the classifier, {used} map", f"{note}; Wilson 95 % intervals"
        )
    plots.save(figure, folder / "reliability")
    table.to_csv(folder / "reliability.csv", index=False, float_format="%.6g")


def _shown(found: Any) -> str:
    columns = ["of", "n"]
    for name in ("auc", "nll", "ece"):
        columns += [name, f"{name}_low", f"{name}_high"]
    return str(found[columns].round(3).to_string(index=False, na_rep=""))
