"""An audit: every table that is made of a file, and what follows from them."""

import dataclasses

import pandas as pd

from robustpo_kit.auditing import checks, flips, scores, sources, views
from robustpo_kit.auditing.advice import Advice, Facts, advise
from robustpo_kit.auditing.rates import FlipRate, Known, flip_rate, known_pairs, preferred_first
from robustpo_kit.auditing.strengths import strength_table
from robustpo_kit.calibration import word_count
from robustpo_kit.data import PreferenceSet
from robustpo_kit.encoders import Encoder
from robustpo_kit.intervals import Interval
from robustpo_kit.policies import Policy

LEAST_PAIRS = 40  # for a model that says anything
SHOWN_RATE = 0.2  # the rate of injected flips that is spoken of
SUSPECTS = 10  # pairs whose texts are shown
TABLES = (  # that an audit can have
    "schema", "lengths", "duplicates", "sources", "positions", "leaks", "models", "flip_rate",
    "detectability", "pairs", "strength", "contamination", "contamination_rate",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Beside:
    """What an audit may have beside the file."""

    heldout: PreferenceSet | None = None  # rows that training must not share
    trusted: PreferenceSet | None = None  # rows whose labels, sources and golden slots are right
    encoder: Encoder | None = None
    policy: Policy | None = None  # from which training would start


@dataclasses.dataclass
class Audit:
    """Tables by name, what rules look at, what could not be looked at."""

    name: str
    tables: dict[str, pd.DataFrame]
    facts: Facts
    notes: list[str]
    suspects: PreferenceSet  # the first of the table `pairs`

    def advice(self) -> list[Advice]:
        """What to do, by rule."""
        return advise(self.facts)


def audit(rows: PreferenceSet, beside: Beside, *, limit: int = 2000, seed: int = 0) -> Audit:
    """Look at a preference file.

    Args:
        rows: of the file.
        beside: what there is beside it.
        limit: models look at about so many rows, whole groups drawn by lot; exact repeats and leaks
            are sought among all.
        seed: of every draw.

    Raises:
        ValueError: `limit` is not positive.
    """
    if limit < 1:
        raise ValueError(f"limit = {limit}: at least one row is expected")
    part = rows
    if len(rows) > limit:
        part = rows.split({"audited": limit}, seed)["audited"]
    pairs, notes = preferred_first(part)
    if len(part) < len(rows):
        notes.append(f"Models and near repeats look at {len(part)} of {len(rows)} rows (--rows).")
    tables = _tables_of_rows(rows, part, beside)
    found = Audit(rows.name, tables, _facts_of_rows(rows, pairs, tables), notes, pairs[:0])
    if len(pairs) < LEAST_PAIRS or len({row.group for row in pairs}) < flips.LEAST_GROUPS:
        needed = f"{LEAST_PAIRS} pairs of {flips.LEAST_GROUPS} prompts"
        notes.append(f"No model was fitted: {needed} are needed, {len(pairs)} pairs are there.")
    else:
        _add_pairs(found, pairs, known_pairs(beside.trusted, rows), beside.encoder, seed)
    if beside.policy is not None and len(pairs) > 1:
        tables["strength"] = strength_table(beside.policy, pairs)
    _add_contamination(found, part, beside, seed)
    return found


def _tables_of_rows(
    rows: PreferenceSet, part: PreferenceSet, beside: Beside
) -> dict[str, pd.DataFrame]:
    """What needs no model of preferences."""
    exact, near = checks.repeat_table(rows), checks.near_table(part)
    near = near[~near["row_id"].isin(exact["row_id"])]
    tables = {
        "schema": checks.schema_table(rows),
        "lengths": checks.length_table(part, word_count, "words"),
        "duplicates": pd.concat([exact, near], ignore_index=True),
        "sources": sources.source_table(part),
        "positions": checks.position_table(rows),
    }
    if beside.policy is not None:
        tokenizer = beside.policy.tokenizer

        def tokens(text: str) -> int:
            return len(tokenizer(text, add_special_tokens=False)["input_ids"])

        in_tokens = checks.length_table(part, tokens, "tokens")
        tables["lengths"] = pd.concat([tables["lengths"], in_tokens], ignore_index=True)
    if beside.heldout is not None:
        tables["leaks"] = checks.leak_table(rows, beside.heldout)
    return tables


def _facts_of_rows(
    rows: PreferenceSet, pairs: PreferenceSet, tables: dict[str, pd.DataFrame]
) -> Facts:
    kinds = tables["duplicates"]["kind"].value_counts()
    against, scored = checks.scored_against(rows)
    return Facts(
        responses=rows.responses_per_prompt,
        rows=len(rows),
        repeats=int(kinds.get("exact", 0)),
        contradictions=int(kinds.get("contradiction", 0)),
        leaks=len(tables["leaks"]) if "leaks" in tables else None,
        ties=int(checks.ties(rows).sum()),
        unranked=int(checks.unranked(rows).sum()),
        scored=scored,
        scored_against=against,
        ambiguous=int((checks.overlaps(pairs) >= checks.ALIKE).sum()),
        has_h=all(row.h is not None for row in rows),
        has_rewards=all(row.rewards is not None for row in rows),
    )


def _add_pairs(
    found: Audit, pairs: PreferenceSet, known: Known, encoder: Encoder | None, seed: int
) -> None:
    """What cross-fitted scores tell: shortcuts, flips, and how well flips are found."""
    features = views.differences(PreferenceSet([*pairs, *known.pairs]), encoder)
    inside = {name: values[: len(pairs)] for name, values in features.items()}
    groups = [row.group for row in pairs]
    fits = scores.best_of_views(inside, scores.folds_of(groups, seed), seed=seed)
    best, table = scores.chosen(fits), scores.view_table(fits, groups, seed=seed)
    rate = flip_rate(best, pairs, known, features[best.view][len(pairs) :], seed)
    detected = flips.detectability(inside, best, seed=seed)
    in_doubt = _pair_table(pairs, best, rate)
    found.notes += rate.notes
    found.tables |= {
        "models": table,
        "flip_rate": rate.table(flips.confident_rate(best.scores)),
        "detectability": detected,
        "pairs": in_doubt,
    }
    shown = detected[detected["rate"] == SHOWN_RATE].iloc[0]
    found.facts = dataclasses.replace(
        found.facts,
        length=_accuracy(table, "length"),
        model=_accuracy(table, best.view),
        flips=rate.estimates[rate.best],
        flips_by=rate.best,
        lift=_interval(shown, "lift"),
        top=_interval(shown, "precision_top"),
        length_lift=_interval(shown, "length_lift"),
    )
    found.suspects = pairs.select(in_doubt.index[:SUSPECTS])


def _pair_table(pairs: PreferenceSet, best: scores.Scored, rate: FlipRate) -> pd.DataFrame:
    """A row a pair, the one whose label the model finds least probable first.

    A flip probability needs a rate, and a bound is none.
    """
    agreement, overlap = best.agreement(), checks.overlaps(pairs)
    table = pd.DataFrame(
        {
            "row_id": [row.row_id for row in pairs],
            "group": [row.group for row in pairs],
            "agreement": agreement,
            "words_preferred": [word_count(row.responses[0]) for row in pairs],
            "words_other": [word_count(row.responses[1]) for row in pairs],
            "overlap": overlap,
            "ambiguous": overlap >= checks.ALIKE,
        }
    )
    if rate.best != "bound":
        of_pairs = flips.flip_probabilities(agreement, rate.estimates[rate.best].value)
        table.insert(3, "flip_probability", of_pairs)
    return table.sort_values("agreement", kind="stable")


def _interval(row: "pd.Series[float]", name: str) -> Interval:
    return Interval(row[name], row[f"{name}_low"], row[f"{name}_high"], int(row["draws"]))


def _accuracy(table: pd.DataFrame, view: str) -> Interval:
    row = table[table["view"] == view].iloc[0]
    return Interval(row["accuracy"], row["low"], row["high"], int(row["n"]))


def _add_contamination(found: Audit, rows: PreferenceSet, beside: Beside, seed: int) -> None:
    """Contamination of golden slots, where trusted rows and an encoder can show it."""
    trusted, rest = beside.trusted, rows
    if trusted is not None:  # a classifier of the trusted rows says nothing of them
        rest = checks.of_other_prompts(rows, trusted)
    why = sources.cannot_tell(rest, trusted)
    if beside.encoder is None:
        why = "there is no encoder"
    if why or trusted is None or beside.encoder is None:
        found.notes.append(f"Contamination cannot be told: {why}.")
        return
    if len(rest) < len(rows):
        said = f"{len(rows) - len(rest)} rows whose prompts are among the trusted ones are left out"
        found.notes.append(f"Contamination is of the others: {said}.")
    results = sources.contamination(rest, trusted, encoder=beside.encoder, seed=seed)
    ids = [row.row_id for row in rest]
    parts = [
        pd.DataFrame({"row_id": ids, "source": result.source, "probability": result.probabilities})
        for result in results
    ]
    rates = tuple((result.source, result.rate) for result in results)
    found.tables["contamination"] = pd.concat(parts, ignore_index=True)
    found.tables["contamination_rate"] = pd.DataFrame(
        [{"source": source, **rate.columns("rate")} for source, rate in rates]
    )
    found.facts = dataclasses.replace(found.facts, contamination=rates)
