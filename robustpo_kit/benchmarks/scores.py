"""Stored judgments as scores: AlpacaEval 2, Arena-Hard, MT-Bench.

Fields and arithmetic are those of tatsu-lab/alpaca_eval (src/alpaca_eval/metrics), of
lmarena/arena-hard-auto at version 0.1 (show_result.py) and of lm-sys/FastChat
(fastchat/llm_judge/show_result.py).
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from robustpo_kit.benchmarks.files import Fields, read_rows
from robustpo_kit.benchmarks.length_control import length_controlled
from robustpo_kit.errors import KitError
from robustpo_kit.intervals import bootstrap_mean

Rows = Sequence[Mapping[str, Any]]
JUDGED: dict[str, Fields] = {  # fields of a stored judgment
    "alpacaeval": {
        "output_1": str,
        "output_2": str,
        "generator_1": str,
        "generator_2": str,
        "preference": (float, int, type(None)),
    },
    "arena-hard": {"question_id": (str, int), "model": str, "games": list},
    "mt-bench": {"question_id": (str, int), "model": str, "turn": int, "score": (int, float)},
}
HEAVY = 3  # battles that "A>>B" counts for (Arena-Hard's --weight)
ARENA_ROUNDS, ARENA_SEED = 100, 42  # of its bootstrap
LABELS = {  # battles that a game's label is worth to the reply that was shown as B
    "A>>B": [0.0] * HEAVY,
    "A>B": [0.0],
    "A=B": [0.5],
    "B>A": [1.0],
    "B>>A": [1.0] * HEAVY,
}


def judgments(name: str, path: Path) -> list[dict[str, Any]]:
    """The stored judgments of a file, or of a folder's files; KitError names row and field."""
    path = Path(path)
    files = sorted(path.glob("*.json*")) if path.is_dir() else [path]
    if not files:
        raise KitError(f"{path.name}: holds no JSON file of judgments")
    rows = []
    for file in files:
        rows += read_rows(file, JUDGED[name])
    return rows


def alpacaeval(rows: Rows, gamed: pd.DataFrame | None = None) -> pd.DataFrame:
    """Raw and length-controlled win rate of one model, in percent.

    Args:
        rows: its annotations: preference is 1 for the baseline (output_1), 2 for the model
            (output_2), 1.5 or 0 for a draw, or in between.
        gamed: as `length_controlled`.

    Returns:
        One row: model, baseline, n, missing (without a preference), win_rate, standard_error,
        discrete_win_rate, length_controlled_winrate, lc_standard_error, avg_length (characters).

    Raises:
        KitError: for several models, too few judgments, or preferences outside [1, 2].
    """
    table = pd.DataFrame(list(rows))
    names = [sorted(set(table[column])) for column in ("generator_1", "generator_2")]
    if [len(each) for each in names] != [1, 1]:
        raise KitError(f"annotations: of baselines {names[0]} and models {names[1]}; one each")
    preference = table["preference"].astype(float).replace(0.0, 1.5) - 1
    if ((preference < 0) | (preference > 1)).any() or preference.notna().sum() < 10:
        raise KitError("annotations, field preference: ten values of 1 to 2 or more are expected")
    lengths = table[["output_1", "output_2"]].map(len)
    difference = lengths["output_1"] - lengths["output_2"]
    controlled = np.full(len(table), 0.5)
    if names[0] != names[1]:
        features = pd.DataFrame({"preference": preference, "length_difference": difference})
        controlled = length_controlled(features, gamed)
    known = preference.dropna().to_numpy()
    discrete = np.where(known == 0.5, 0.5, (known > 0.5).astype(float))
    return pd.DataFrame(
        {
            "model": names[1],
            "baseline": names[0],
            "n": len(known),
            "missing": len(table) - len(known),
            "win_rate": 100 * known.mean(),
            "standard_error": 100 * _standard_error(known),
            "discrete_win_rate": 100 * discrete.mean(),
            "length_controlled_winrate": 100 * controlled.mean(),
            "lc_standard_error": 100 * _standard_error(controlled),
            "avg_length": int(lengths["output_2"].mean()),
        }
    )


def _standard_error(values: np.ndarray) -> float:
    """Of the mean."""
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def arena_hard(rows: Rows, *, draws: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Win rate against the baseline in percent, with Arena-Hard's interval and the kit's.

    Every question has two games, with the baseline as A in the first and as B in the second.
    Bradley-Terry ratings of models that each meet the baseline alone are their mean scores.

    Args:
        rows: judgments of one model or several; the label of a game is its `score`.
        draws, seed: of the kit's bootstrap over questions.

    Returns:
        A row a model, best first: model, n (questions), unreadable (games without a label), score,
        arena_low, arena_high (their bootstrap over battles, as if those of one question were
        independent, which is too narrow), score_low, score_high (over questions).
    """
    _refuse_repeats(rows, ("model", "question_id"))
    battles = pd.DataFrame(itertools.chain.from_iterable(map(_battles, rows)))
    if battles.empty:
        raise KitError("judgments, field games: no game has a label such as A>B")
    drawn = _arena_bootstrap(battles)
    table = []
    for model, part in battles.groupby("model", sort=False):
        clusters = part["question_id"]
        interval = bootstrap_mean(100 * part["score"], clusters, draws=draws, seed=seed)
        low, high = np.nanpercentile(drawn[model], [2.5, 97.5])
        unreadable = sum(_unlabelled(row) for row in rows if row["model"] == model)
        table.append(
            {"model": model, "n": interval.clusters, "unreadable": unreadable}
            | {"score": interval.value, "arena_low": low, "arena_high": high}
            | {"score_low": interval.low, "score_high": interval.high}
        )
    return pd.DataFrame(table).sort_values("score", ascending=False, ignore_index=True)


def _refuse_repeats(rows: Rows, names: Sequence[str]) -> None:
    """Raise KitError where two judgments are of the same answer."""
    seen = set()
    for row in rows:
        if (which := tuple(row[name] for name in names)) in seen:
            said = ", ".join(f"{name} {value}" for name, value in zip(names, which, strict=True))
            raise KitError(f"judgments: {said} is judged twice; leave one judgment of an answer")
        seen.add(which)


def _arena_bootstrap(battles: pd.DataFrame) -> pd.DataFrame:
    """[rounds, models] mean scores of battles of all models drawn with replacement, in percent."""
    draw = np.random.RandomState(ARENA_SEED)  # theirs: the global state after seed(42)
    rounds = []
    for _ in range(ARENA_ROUNDS):
        drawn = battles.sample(frac=1.0, replace=True, random_state=draw)
        rounds.append(100 * drawn.groupby("model")["score"].mean())
    return pd.DataFrame(rounds)


def _battles(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The model's scores in the battles of one question; an unreadable game is none."""
    found = []
    for number, label in enumerate(_labels(row)):
        scores = LABELS.get(label, [])
        found += [abs(number - score) for score in scores]  # in the second game the model is A
    return [
        {"model": row["model"], "question_id": row["question_id"], "score": score}
        for score in found
    ]


def _labels(row: Mapping[str, Any]) -> list[str]:
    """The labels of a question's two games, as text."""
    games = [game if isinstance(game, dict) else {} for game in row["games"][:2]]
    return [str(game.get("score")) for game in games]


def _unlabelled(row: Mapping[str, Any]) -> int:
    return 2 - sum(label in LABELS for label in _labels(row))


def mt_bench(
    rows: Rows,
    categories: Mapping[Any, str] | None = None,
    *,
    draws: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Mean ratings (1 to 10) by model, of each turn and of both, intervals over questions.

    Args:
        rows: ratings of single answers; -1 is none, and counted.
        categories: of the questions by their id; adds a column a category.
        draws, seed: of the bootstrap over questions.

    Returns:
        A row a model, best first: model, n (questions), missing, turn_1, turn_2, score, score_low,
        score_high, and the mean of each category.

    Raises:
        KitError: an answer is rated twice, or a rating is out of range.
    """
    _refuse_repeats(rows, ("model", "question_id", "turn"))
    ratings = pd.DataFrame(list(rows))[["model", "question_id", "turn", "score"]]
    if not (ratings["score"].between(1, 10) | (ratings["score"] == -1)).all():
        raise KitError("judgments, field score: 1 to 10 is expected, or -1 for none")
    table = []
    for model, part in ratings.groupby("model", sort=False):
        known = part[part["score"] != -1]
        interval = bootstrap_mean(known["score"], known["question_id"], draws=draws, seed=seed)
        means = known.groupby("turn")["score"].mean()
        turns = {f"turn_{turn}": means.get(turn, np.nan) for turn in (1, 2)}
        row: dict[Any, Any] = {
            "model": model,
            "n": interval.clusters,
            "missing": len(part) - len(known),
        }
        row |= turns | interval.columns("score")
        if categories:
            row |= known.groupby(known["question_id"].map(categories))["score"].mean().to_dict()
        table.append(row)
    return pd.DataFrame(table).sort_values("score", ascending=False, ignore_index=True)
