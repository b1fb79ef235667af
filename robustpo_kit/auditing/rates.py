"""The pairs of a file, what trusted rows say of their labels, and the flip rate to go by."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from robustpo_kit.auditing import checks, flips
from robustpo_kit.auditing.scores import Scored
from robustpo_kit.auditing.views import Features
from robustpo_kit.data import Preference, PreferenceSet, preferred_and_least, question, take
from robustpo_kit.intervals import Interval

BY_LOT = 0.001  # p-value below which checked pairs are no draw by lot


def preferred_first(rows: PreferenceSet) -> tuple[PreferenceSet, list[str]]:
    """Rows as pairs, the preferred response first, without ties; and in words what was left out.

    A pair has its label, as training takes it, whatever its rewards, unless it was loaded without
    one (`PreferenceSet.preferred_first`); a list has its rewards, or is in no pair.
    """
    rows = rows.preferred_first()
    unranked, alone = checks.unranked(rows), [len(row.responses) < 2 for row in rows]
    pairs = rows.select(np.flatnonzero(~unranked & ~np.array(alone, dtype=bool)))
    notes = []
    if any(alone):
        notes.append(f"{sum(alone)} rows of one response are in no pair.")
    if unranked.any():
        why = "of more than two responses have no rewards, so that none is the preferred one"
        notes.append(f"{unranked.sum()} rows {why}; they are in no pair.")
    if pairs.responses_per_prompt > 2:
        notes.append("Lists are looked at as the two responses of highest and of lowest reward.")
    pairs = pairs.map(lambda row: take(row, _preferred(row)))
    tied = checks.ties(pairs)
    if tied.any():
        notes.append(f"{tied.sum()} ties are in no pair.")
    return pairs.select(np.flatnonzero(~tied)), notes


def _preferred(row: Preference) -> tuple[int, int]:
    """The columns of the preferred response and of the one that it is compared with."""
    return (0, 1) if len(row.responses) == 2 else preferred_and_least(row)


class Known(NamedTuple):
    """M pairs whose labels are right."""

    pairs: PreferenceSet
    labelled: np.ndarray  # [M] by the file: 1 so, -1 the other way round, 0 it has not the pair


def known_pairs(trusted: PreferenceSet | None, rows: PreferenceSet) -> Known:
    """Trusted rows as pairs, held against the rows of a file; none without trusted rows."""
    if trusted is None:
        return Known(rows[:0], np.zeros(0, dtype=int))
    pairs, _ = preferred_first(trusted)
    prompts = {question(row.prompt) for row in pairs}
    same = rows.select(n for n, row in enumerate(rows) if question(row.prompt) in prompts)
    return Known(pairs, checks.as_labelled(pairs, preferred_first(same)[0]))


class FlipRate(NamedTuple):
    """What is known of the flip rate."""

    best: str  # the estimate to go by: checked, else trusted, else the bound
    estimates: dict[str, Interval]
    notes: list[str]  # why an estimate is not given

    def table(self, confident: float) -> pd.DataFrame:
        """A row an estimate: estimate, rate, rate_low, rate_high; confident learning's the last."""
        rows = [{"estimate": name, **rate.columns("rate")} for name, rate in self.estimates.items()]
        return pd.DataFrame([*rows, {"estimate": "confident learning", "rate": confident}])


def flip_rate(
    scored: Scored, pairs: PreferenceSet, known: Known, features: Features, seed: int
) -> FlipRate:
    """The flip rate of a file: from checked pairs of its own, from trusted pairs, or a bound.

    Args:
        scored: of the pairs, cross-fitted.
        pairs: [N] of the file.
        known: M trusted ones, of the file or of other prompts.
        features: [M, F] of them.
        seed: of the folds whose models score pairs of other prompts.
    """
    groups = [row.group for row in pairs]
    found = {"bound": flips.flip_bound(scored.scores, groups)}
    if not len(known.pairs):
        return FlipRate("bound", found, [])
    known_groups, folds = _placed(scored, pairs, known.pairs)
    values = scored.score_others(features, folds, seed)
    own = known.labelled != 0
    notes = []
    if own.any():
        notes.append(f"{own.sum()} of {len(own)} trusted pairs are the file's own.")
        by_lot = stats.mannwhitneyu(values[own] * known.labelled[own], scored.scores).pvalue
        if by_lot < BY_LOT:
            why = "The model agrees with the labels of these pairs unlike with others'"
            notes.append(f"{why}: they are no draw by lot, and no rate is estimated from any.")
            return FlipRate("bound", found, notes)
        own_groups = [known_groups[n] for n in np.flatnonzero(own)]
        checked = flips.checked_rate(known.labelled[own] < 0, own_groups)
        if checked is not None:
            found["checked"] = checked
    trusted = flips.trusted_rate(scored.scores, groups, values, known_groups)
    if trusted is not None:
        found["trusted"] = trusted
    elif len(set(known_groups)) < flips.LEAST_GROUPS:
        said = f"{len(set(known_groups))} prompts; {flips.LEAST_GROUPS} are needed"
        notes.append(f"No rate is estimated from trusted pairs of {said}.")
    else:
        why = "The model agrees far better with the file than with the trusted pairs"
        notes.append(f"{why}: they are of another kind, and no rate is estimated by the model.")
    best = next(name for name in ("checked", "trusted", "bound") if name in found)
    return FlipRate(best, found, notes)


def _placed(
    scored: Scored, pairs: PreferenceSet, known: PreferenceSet
) -> tuple[list[str], np.ndarray]:
    """Group [M] of each trusted pair, the file's where it has the prompt, and its fold, or -1."""
    group_of = {question(row.prompt): row.group for row in pairs}
    groups = [group_of.get(question(row.prompt), row.group) for row in known]
    fold_of = {row.group: fold for row, fold in zip(pairs, scored.fold.tolist(), strict=True)}
    return groups, np.array([fold_of.get(group, -1) for group in groups], dtype=int)
