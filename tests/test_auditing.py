"""Audits: known answers for what needs no model, simulated truth for what does."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from robustpo_kit import auditing, cli, records
from robustpo_kit.auditing import advice, checks, flips, rates, scores, sources, strengths, views
from robustpo_kit.auditing.rates import preferred_first
from robustpo_kit.calibration import WORD, evidence, fit_classifier, word_count
from robustpo_kit.data import Preference, PreferenceSet
from robustpo_kit.intervals import Interval

WORDS = ["apple", "river", "stone", "cloud", "tiger", "music", "garden", "window", "planet"]
WORDS += ["silver", "coffee", "market"]
EXACT = 0.3724340175953079  # cleanlab 2.9.0, compute_confident_joint(calibrate=False), both orders


def row(number, prompt="Why?", responses=("because", "for no reason"), **fields) -> Preference:
    responses = tuple(responses)
    names = fields.pop("sources", tuple(f"source_{k}" for k in range(len(responses))))
    return Preference(str(number), prompt, prompt, responses, names, **fields)


def told_by_a_word(count, flipped, seed=0) -> PreferenceSet:
    """Pairs whose better response says `kindly`; a share `flipped` has the other one chosen."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        better, worse = (
            " ".join([word, *rng.choice(WORDS, rng.integers(4, 9))])
            for word in ("kindly", "rudely")
        )
        pair = (worse, better) if number < flipped * count else (better, worse)
        rows.append(row(number, f"question {number}", pair))
    return PreferenceSet(rows, name="told.jsonl")


# ---------------------------------------------------------------- without a model


def test_repeats_contradictions_and_near_repeats():
    long = " ".join(WORDS * 3)
    rows = PreferenceSet(
        [
            row(0, "Why?", ("Because.", "No.")),
            row(1, " why? ", ("because.", "no.")),
            row(2, "Why?", ("No.", "Because.")),
            row(3, "Where?", ("Because.", "No.")),
            row(4, f"How? {long}", ("Like this.", "Like that.")),
            row(5, f"How? {long}", ("Like this.", "Like those.")),
        ]
    )
    table = checks.repeat_table(rows)
    assert table.values.tolist() == [["1", "0", "exact", 1.0], ["2", "0", "contradiction", 1.0]]
    near = checks.near_table(rows).set_index("row_id")
    # 3 x 12 words and 4 more, of which one differs and one of the four is there twice: 111/113...
    left, right = np.r_[np.full(12, 3), 1, 2, 1, 1, 0], np.r_[np.full(12, 3), 1, 2, 1, 0, 1]
    cosine = left @ right / np.linalg.norm(left) / np.linalg.norm(right)
    assert near.loc["5", "similarity"] == pytest.approx(cosine) and near.loc["5", "other"] == "4"
    assert set(near.index) == {"1", "2", "5"}, "the same words in another order are near, too"


def test_near_repeats_do_not_depend_on_the_block(monkeypatch):
    rows = told_by_a_word(30, 0)
    rows = PreferenceSet(
        [*rows, *(row(100 + n, r.prompt, r.responses) for n, r in enumerate(rows))]
    )
    whole = checks.near_table(rows).sort_values("row_id", ignore_index=True)
    assert len(whole) == 30
    monkeypatch.setattr(checks, "BLOCK", 7)
    pieces = checks.near_table(rows).sort_values("row_id", ignore_index=True)
    assert whole.values.tolist() == pieces.values.tolist()


def test_leaks_are_prompts_or_whole_rows_in_either_order():
    rows = PreferenceSet([row(0), row(1, "Where?"), row(2, "When?", ("now", "then"))])
    heldout = PreferenceSet(
        [row(7, "where? ", ("here", "there")), row(8, "When?", ("then", "now"))]
    )
    found = checks.leak_table(rows, heldout).values.tolist()
    assert found == [["1", "7", "prompt"], ["2", "8", "prompt and responses"]]


def test_ties_positions_and_pairs_of_lists():
    rows = PreferenceSet(
        [
            row(0, "a", ("x", "y", "z"), rewards=(1.0, 3.0, 2.0)),
            row(1, "b", ("x", "y", "z"), rewards=(0.0, 1.0, 1.0)),
            row(2, "c", ("x", "y", "z"), rewards=(2.0, 2.0, 2.0)),
        ]
    )
    assert checks.ties(rows).tolist() == [False, True, True]
    assert checks.position_table(rows)["best"].tolist() == [pytest.approx(1 / 3), 2 / 3, 0]
    pairs, notes = preferred_first(rows)
    assert [pair.responses for pair in pairs] == [("y", "x"), ("y", "x")]
    assert notes == [
        "Lists are looked at as the two responses of highest and of lowest reward.",
        "1 ties are in no pair.",
    ]
    assert checks.overlaps(PreferenceSet([row(0, responses=("a b c", "b c d"))])) == [0.5]


# ---------------------------------------------------------------- scores and flips


def test_scores_are_of_models_that_saw_neither_the_prompt_nor_its_order():
    """Each prompt comes three times with labels by lot: whoever saw one would know the others."""
    rng = np.random.default_rng(0)
    base = told_by_a_word(150, 0)
    turned = rng.random(150) < 0.5
    rows = PreferenceSet([base[n] for n in range(150) for _ in range(3)])
    features = views.differences(rows, None)["words"]
    groups = [pair.group for pair in rows]
    folds = scores.folds_of(groups, 0)
    assert pd.Series(folds).groupby(groups).nunique().max() == 1
    known = np.repeat(turned, 3)
    found = scores.cross_fit(features, folds, view="words", strength=3.0, seed=0, flipped=known)
    assert abs((found.scores > 0).mean() - 0.5) < 0.1
    again = scores.cross_fit(features, folds, view="words", strength=3.0, seed=0, flipped=~known)
    np.testing.assert_allclose(found.scores, again.scores, atol=1e-6)


def test_the_chosen_view_finds_flips_and_a_file_of_noise_says_so():
    rows = told_by_a_word(200, 0.2)
    flipped = np.arange(200) < 40
    groups = [pair.group for pair in rows]
    features = views.differences(rows, None)
    fits = scores.best_of_views(features, scores.folds_of(groups, 0), seed=0)
    best = scores.chosen(fits)
    assert best.view in ("words", "together") and best.nll() < 0.6 < fits["length"].nll()
    assert flips.found_among(flipped, best.scores)["average_precision"] > 0.95
    table = scores.view_table(fits, groups).set_index("view")
    assert table.loc[best.view, "accuracy"] == pytest.approx(0.8, abs=0.03)
    assert table["low"].le(table["accuracy"]).all() and table["chosen"].sum() == 1
    found = flips.detectability(features, best, seed=0, rates=(0.2,), draws=3)
    assert found.loc[0, "lift_low"] > 1.3, "what is put in beside the file's own"
    assert found.loc[0, "length_lift_low"] < 1.3
    noise = rows.flip(0.5, 1)
    fits = scores.best_of_views(views.differences(noise, None), best.fold, seed=0)
    features = views.differences(noise, None)
    found = flips.detectability(features, scores.chosen(fits), seed=0, rates=(0.2,), draws=5)
    assert found.loc[0, "lift_low"] < 1.2


@pytest.mark.parametrize(
    ("worth", "rate"), [(0.0, 0.2), (0.7, 0.3), (3.0, 0.0), (3.0, 0.3), (3.0, 0.7), (3.0, 1.0)]
)
def test_bound_and_trusted_rate_hold_whatever_the_model_is_worth(worth, rate):
    """Scores as of a model with the right log-odds, 60 files of 300 pairs, 150 trusted ones."""
    rng = np.random.default_rng(0)
    within, below, informative = 0, 0, 0
    for _ in range(60):
        odds = worth * rng.normal(size=450)
        right = np.where(rng.random(450) < 1 / (1 + np.exp(-odds)), odds, -odds)
        seen = np.where(rng.random(300) < rate, -right[:300], right[:300])
        names = [str(n) for n in range(450)]
        found = flips.trusted_rate(seen, names[:300], right[300:], names[300:])
        within += found.low <= rate <= found.high
        bound = flips.flip_bound(seen, names[:300])
        below += bound.low == 0 and rate <= bound.high
        assert found.low <= found.value <= found.high and found.low < found.high
        informative += found.high - found.low < 0.4
    assert within >= 0.9 * 60
    assert below >= 0.93 * 60 or rate > 0.5, "the bound is of less than half"
    assert (informative > 30) or worth < 3, "a good model's interval is narrow"
    assert informative == 0 or worth > 0, "a model that knows nothing tells nothing"


def test_the_bound_by_hand():
    """Twenty pairs, the surest two agree: at a tenth 1 - (0.05 / 3)^(1/2), at all others more."""
    values = np.r_[9.0, 8.0, [-1.0, 1.0] * 9]
    names = [str(n) for n in range(200)]
    found = flips.flip_bound(values, names[:20])
    assert found.value in (0.0, 0.2, 0.4) and found.low == 0
    # the shares end at 2, 4 and 10 pairs, with 0, 1 and 4 that disagree
    assert found.high == pytest.approx(0.5)
    sure = flips.flip_bound(np.ones(200), names)
    assert sure.value == 0 and sure.high == pytest.approx(1 - (0.05 / 3) ** (1 / 100))


def test_the_bound_holds_where_each_pair_stands_in_the_file_many_times():
    rng = np.random.default_rng(0)
    below, names = 0, np.repeat([str(n) for n in range(40)], 25)
    for _ in range(200):
        odds = np.abs(rng.normal(0, 2.5, 40))
        right = np.where(rng.random(40) < 1 / (1 + np.exp(-odds)), odds, -odds)
        seen = np.where(rng.random(40) < 0.2, -right, right)
        below += flips.flip_bound(np.repeat(seen, 25), names).high < 0.2
    assert below <= 0.05 * 200


def test_few_trusted_pairs_give_no_interval_and_those_of_another_kind_none():
    names = [str(n) for n in range(400)]
    good = np.full(400, 2.0)
    good[:60] = -2.0
    others = [f"t{n}" for n in range(60)]
    for count in (1, 2, 9):
        assert flips.trusted_rate(good, names, good[-count:], others[:count]) is None
    found = flips.trusted_rate(good, names, np.full(60, 2.0), others)
    assert found.clusters == 60 and found.low < 0.15 < found.high
    no_better = np.r_[np.ones(33), -np.ones(27)] * 0.5
    assert flips.trusted_rate(good, names, no_better, others) is None
    repeated = flips.trusted_rate(good, names, np.full(60, 2.0), ["one"] * 60)
    assert repeated is None, "sixty times one prompt"


def test_a_model_that_trusted_pairs_say_nothing_of_turns_no_label():
    """Slightly worse than chance on trusted pairs is chance, and not that all labels are turned."""
    names = [str(n) for n in range(400)]
    unsure = np.r_[np.full(210, 0.2), np.full(190, -0.2)]
    trusted = np.r_[np.full(48, 0.2), np.full(52, -0.2)]
    found = flips.trusted_rate(unsure, names, trusted, [f"t{n}" for n in range(100)])
    assert found.low == 0 and found.high == 1 and found.value <= 0.5


def test_pairs_that_are_the_files_own_share_its_errors():
    """The same pairs on both sides: what a draw does to one it does to the other."""
    rng = np.random.default_rng(0)
    odds = rng.normal(size=300) * 3
    right = np.where(rng.random(300) < 1 / (1 + np.exp(-odds)), odds, -odds)
    names = [str(n) for n in range(300)]
    same = flips.trusted_rate(right, names, right, names)
    apart = flips.trusted_rate(right, names, right, [f"t{n}" for n in range(300)])
    assert same.value == apart.value == 0 and same.high < 0.01 < apart.high


def test_checked_pairs_count_one_a_prompt():
    found = flips.checked_rate([True] * 3 + [False] * 27, [str(n) for n in range(30)])
    assert found.value == 0.1 and found.low == pytest.approx(0.0211, abs=1e-4)  # Clopper-Pearson
    assert found.high == pytest.approx(0.2653, abs=1e-4) and found.clusters == 30
    repeated = flips.checked_rate([True] * 20 + [False] * 9, ["a"] * 20 + list("bcdefghij"))
    assert repeated.value == 0.1 and repeated.clusters == 10
    assert flips.checked_rate([False] * 9, list("abcdefghi")) is None


# ---------------------------------------------------------------- labels and what is known of them


def with_scores(rows, scores) -> PreferenceSet:
    return rows.with_rewards([scores] * len(rows))


def test_labels_are_audited_and_scores_that_contradict_them_are_told():
    rows = with_scores(told_by_a_word(60, 0.0), (2.0, 8.0))
    pairs, _ = preferred_first(rows)
    assert all(pair.responses[0].startswith("kindly") for pair in pairs), "the label's order"
    found = auditing.audit(rows[:40], auditing.Beside())
    said = [line.because for line in found.advice() if "labels or the scores" in line.advice]
    assert said == ["40 of 40 scored pairs score the rejected reply above the chosen one"]
    assert f"{said[0]}." in auditing.lead(found.facts)
    agreeing = auditing.audit(with_scores(rows[:12], (8.0, 2.0)), auditing.Beside())
    assert not any("scores are right" in line.advice for line in agreeing.advice())
    mixed = PreferenceSet([rows[0], row("k", "q", ("x", "y", "z"), rewards=(1.0, 3.0, 2.0))])
    pairs, _ = preferred_first(mixed)
    assert [pair.responses for pair in pairs] == [rows[0].responses, ("y", "x")]


@pytest.mark.parametrize("share", [0.7, 1.0])
def test_labels_that_are_mostly_turned_look_reversed(share):
    trusted = told_by_a_word(80, 0.0, seed=1).map(
        lambda r: row(f"t{r.row_id}", f"trusted {r.prompt}", r.responses)
    )
    found = auditing.audit(told_by_a_word(150, share), auditing.Beside(trusted=trusted))
    flipped = found.facts.flips
    assert flipped.low > 0.5 and flipped.low <= share <= flipped.high > flipped.low
    text = "labels look reversed: are the columns swapped?"
    assert text in found.advice()[0].advice and auditing.lead(found.facts).startswith("Labels look")
    assert not any("Train plain DPO" in line.advice for line in found.advice())
    assert found.tables["pairs"]["flip_probability"].notna().all()
    shown = re.sub(r"base64,[^']*", "", auditing.page(found))
    assert "nan" not in shown.lower() and text.capitalize() in shown


def test_without_trusted_pairs_the_lead_says_what_a_bound_assumes():
    found = auditing.audit(told_by_a_word(60, 1.0), auditing.Beside())
    assert "flipped, if fewer than half are, and by lot" in auditing.lead(found.facts)
    pairs = found.tables["pairs"]
    assert "flip_probability" not in pairs, "a bound is no rate"
    assert pairs["agreement"].is_monotonic_increasing, "most suspect first"
    assert [r.row_id for r in found.suspects] == pairs["row_id"].tolist()[:10]


def test_checked_pairs_of_the_file_give_its_rate():
    rows, right = told_by_a_word(200, 0.3), told_by_a_word(200, 0.0)
    drawn = np.random.default_rng(0).permutation(200)[:80]
    found = auditing.audit(rows, auditing.Beside(trusted=right.select(drawn)))
    rate = found.tables["flip_rate"].set_index("estimate")
    assert rate.loc["checked", "rate"] == (drawn < 60).mean() and found.facts.flips_by == "checked"
    for name in ("checked", "trusted"):
        assert rate.loc[name, "rate_low"] <= 0.3 <= rate.loc[name, "rate_high"]
    assert "80 of 80 trusted pairs are the file's own." in found.notes
    # found among the suspects, they are no draw by lot
    picked = auditing.audit(rows, auditing.Beside(trusted=right[:40]))
    assert picked.facts.flips_by == "bound" and "no draw by lot" in " ".join(picked.notes)


def test_a_trusted_pair_is_scored_by_a_model_that_did_not_see_its_prompt():
    pairs = told_by_a_word(40, 0.0)
    features = views.differences(pairs, None)["words"]
    folds = scores.folds_of([pair.group for pair in pairs], 0)
    fit = scores.cross_fit(features, folds, view="words", strength=3.0, seed=0)
    np.testing.assert_allclose(fit.score_others(features, folds, 0), fit.scores)
    reworded = pairs.map(lambda r: row(f"t{r.row_id}", r.prompt.upper(), r.responses))
    groups, placed = rates._placed(fit, pairs, reworded)
    assert groups == [pair.group for pair in pairs] and (placed == folds).all()
    elsewhere = PreferenceSet([row("t", "another question")])
    assert rates._placed(fit, pairs, elsewhere)[1].tolist() == [-1]


@pytest.mark.parametrize("count", [1, 3])
def test_a_few_trusted_rows_end_nothing(count, tiny):
    rows, few = written_by(60, 1.0, 1), written_by(count, 1.0, 2)
    found = auditing.audit(rows, auditing.Beside(trusted=few, encoder=tiny))
    said = " ".join(found.notes)
    assert f"trusted pairs of {count} prompts; 10 are needed" in said
    assert "no other source is in trusted rows of 10 prompts" in said
    assert found.facts.flips_by == "bound" and not found.facts.contamination


def test_trusted_rows_of_the_file_itself_show_contamination_of_the_others(tiny):
    rows = written_by(90, 0.7, 1)
    some = rows.select([n for n in range(63) if n % 2])
    found = auditing.audit(rows, auditing.Beside(trusted=some, encoder=tiny))
    assert "31 rows whose prompts are among the trusted ones are left out" in " ".join(found.notes)
    assert len(found.tables["contamination"]) == 59
    (rate,) = [rate for _, rate in found.facts.contamination]
    assert rate.low < 27 / 59 < rate.high
    whole = auditing.audit(rows, auditing.Beside(trusted=rows, encoder=tiny))
    assert "every row of the file is among the trusted ones" in " ".join(whole.notes)


def test_a_source_of_a_few_trusted_rows_is_not_looked_for(tiny):
    trusted = written_by(40, 1.0, 2)
    odd = PreferenceSet([row(f"o{n}", f"odd {n}", sources=("human", "rare")) for n in range(3)])
    some = PreferenceSet([*trusted, *odd])
    (found,) = sources.contamination(written_by(60, 1.0, 1), some, encoder=tiny, seed=0, draws=5)
    assert found.source == "model"


# ---------------------------------------------------------------- scripts without blanks


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("two words.", 2),
        ("好的，谢谢", 5),
        ("カタカナ です", 6),
        ("ภาษาไทย", 7),
        ("GPT是模型 v2", 5),
    ],
)
def test_length_counts_characters_where_a_script_has_no_blanks(text, count):
    assert word_count(text) == count == len(WORD.findall(text))


def test_the_length_shortcut_is_seen_in_chinese(tiny):
    rng = np.random.default_rng(0)
    letters = list(
        "的一是不了人我在有他这中大来上个国到说们为子和你地出道也时年得就那要下以生会自着去之过家"
    )
    texts = [["".join(rng.choice(letters, size)) for size in (60, 20)] for _ in range(60)]
    sources_of = ("human", "model")
    rows = PreferenceSet(
        [row(n, f"问题{n}", pair, sources=sources_of) for n, pair in enumerate(texts)]
    )
    found = auditing.audit(rows, auditing.Beside())
    assert found.facts.length.low > 0.9
    assert any("equal length" in line.advice for line in found.advice())
    assert found.tables["pairs"]["words_preferred"].eq(60).all()
    assert checks.overlaps(PreferenceSet([row(0, responses=("甲乙丙", "乙丙丁"))])) == [0.5]
    classifier = fit_classifier(rows, seed=0, encoder=tiny)
    table = evidence(classifier, rows, draws=5).set_index("of")
    assert table.loc["length alone", "auc"] > 0.95


def test_confident_learning_counts_as_cleanlab_does():
    values = np.random.default_rng(0).normal(0.7, 2, 400)
    assert flips.confident_rate(values) == pytest.approx(EXACT, abs=1e-12)
    assert flips.confident_rate(np.full(10, 2.0)) == 0


def test_flip_probabilities_are_bayes():
    """A fifth flipped, a label that was right with 0.9: seen with .8 * .9 + .2 * .1 = 0.74."""
    assert flips.flip_probabilities([0.74], 0.2) == pytest.approx([0.2 * 0.1 / 0.74])
    found = flips.flip_probabilities([0.01, 0.2, 0.8, 0.99], 0.2)
    assert found == pytest.approx([1, 1, 0, 0]), "the model cannot be surer than the labels are"
    assert flips.flip_probabilities([0.1, 0.9], 0.0) == pytest.approx([0, 0])
    found = flips.flip_probabilities(np.linspace(0, 1, 101), 1.0)
    assert found == pytest.approx(np.ones(101)) and found.max() <= 1
    # most are flipped: a label seen with .8 * .1 + .2 * .9 = 0.26 was right with 0.9
    assert flips.flip_probabilities([0.26], 0.8) == pytest.approx([0.8 * 0.1 / 0.26])
    assert flips.injected(50, 0.3, 0).sum() == 15


# ---------------------------------------------------------------- sources


def written_by(count, golden_share, seed, tiny_words=("alpha", "omega")) -> PreferenceSet:
    """Golden slots in one voice, the other column in another; a share of slots is in the latter."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        voices = [tiny_words[number >= golden_share * count], tiny_words[1]]
        texts = [" ".join([voice] * 3 + list(rng.choice(WORDS, 3))) for voice in voices]
        names = ("human", "model")
        rows.append(row(number, f"{seed} question {number}", texts, sources=names))
    return PreferenceSet(rows)


def test_contamination_is_estimated_from_trusted_rows(tiny):
    rows, trusted = written_by(200, 0.7, 1), written_by(120, 1.0, 2)
    (found,) = sources.contamination(rows, trusted, encoder=tiny, seed=0, draws=50)
    assert found.source == "model" and found.rate.low < 0.3 < found.rate.high
    assert found.rate.value == pytest.approx(0.3, abs=0.08)
    assert found.probabilities[140:].mean() > 0.8 > 0.3 > found.probabilities[:140].mean()


def test_what_cannot_be_told_is_said():
    rows = written_by(12, 1.0, 0)
    assert "--trusted" in sources.cannot_tell(rows, None)
    plain = PreferenceSet([row(0), row(1, "Where?")])
    assert "who wrote" in sources.cannot_tell(plain, plain)
    nameless = PreferenceSet([row(0, golden=None)])
    assert "the file do not all name" in sources.cannot_tell(nameless, rows)
    assert sources.cannot_tell(rows, rows) == ""
    assert "rows of 10 prompts" in sources.cannot_tell(rows, rows[:9])


# ---------------------------------------------------------------- advice


def test_advice_follows_from_facts_and_says_what_stands_behind_it():
    clean = advice.Facts(responses=2, rows=100, leaks=0, has_h=True, has_rewards=True)
    assert {line.grade for line in advice.advise(clean)} == {advice.UNKNOWN}
    facts = advice.Facts(
        responses=4,
        rows=100,
        repeats=1,
        contradictions=2,
        leaks=3,
        ties=4,
        ambiguous=5,
        length=Interval(0.6, 0.55, 0.65, 100),
        model=Interval(0.7, 0.6, 0.8, 100),
        flips=Interval(0.3, 0.25, 0.35, 100),
        flips_by="trusted",
        lift=Interval(1.1, 1.0, 1.2, 5),
        contamination=(("model", Interval(0.6, 0.55, 0.65, 100)),),
    )
    lines = advice.advise(facts)
    text = "\n".join(" ".join(line) for line in lines)
    for count in (
        "3 rows share",
        "2 rows repeat a pair",
        "1 rows repeat an",
        "4 rows have",
        "5 rows have two",
    ):
        assert count in text
    assert "60% [55%, 65%] of held-out labels" in text and "robustpo calibrate" in text
    assert "Drop or turn no pair" in text
    sure_of = Interval(2.5, 2, 3, 5)
    sure = advice.advise(advice.Facts(2, 9, flips=facts.flips, lift=Interval(3, 2, 4, 5)))
    assert any(line.advice.startswith("Read the most suspect pairs first") for line in sure)
    length = advice.Facts(2, 9, flips=facts.flips, lift=Interval(3, 2, 4, 5), length_lift=sure_of)
    assert any("no more than length does" in line.advice for line in advice.advise(length))
    by_advice = {line.advice: line.grade for line in lines}
    assert by_advice["Train plain DPO, its knobs tuned, first."] == advice.EXPLORATORY
    assert by_advice["Try reweight slot beside plain ERM."] == advice.EXPLORATORY
    declared = [line.advice for line in lines if line.grade == advice.DECLARED]
    assert any("reweight slot over ERM gains" in line for line in declared)
    assert any("rDPO over DPO no difference shown" in line for line in declared)
    assert all(line.startswith("Before you tune ") for line in declared)
    assert not any("mask" in line.advice for line in lines), "what knows the truth is no advice"


def test_doses_that_a_file_may_have():
    doses = [0, 0.1, 0.2, 0.3, 0.4]
    assert advice.doses_within(doses, Interval(0.12, 0.11, 0.13, 9)) == [0.1]
    assert advice.doses_within(doses, Interval(0.2, 0.0, 0.25, 9)) == [0, 0.1, 0.2]
    assert advice.doses_within(doses, Interval(0.37, np.nan, np.nan, 1)) == [0.4]


def test_without_the_studies_tables_the_advice_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(advice.paths, "RESULTS", tmp_path)
    facts = advice.Facts(2, 100, leaks=0, flips=Interval(0.1, 0, 0.2, 9))
    text = [line.because for line in advice.advise(facts) if "notebook 11" in line.advice]
    said = "at most 20% of labels are flipped, if fewer than half are, and by lot"
    assert text == [f"{said}; its tables are not in this installation"]


# ---------------------------------------------------------------- page and command


@pytest.fixture(autouse=True)
def fewer_fits(monkeypatch):
    monkeypatch.setattr(scores, "STRENGTHS", (0.3, 3.0))
    monkeypatch.setitem(flips.detectability.__kwdefaults__, "draws", 2)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "told.jsonl"
    told_by_a_word(60, 0.1).to_jsonl(path)
    return path


def run(*arguments) -> int:
    return cli.main([str(argument) for argument in arguments])


def test_an_audit_is_one_page_that_needs_nothing_else(tmp_path, tiny, capsys, file):
    trusted, out = tmp_path / "trusted.jsonl", tmp_path / "audit"
    more = told_by_a_word(90, 0.0, seed=1)
    more.map(lambda r: row(f"t{r.row_id}", f"<script>{r.prompt}", r.responses)).to_jsonl(trusted)
    more[:3].to_jsonl(tmp_path / "heldout.jsonl")
    command = ("audit", file, "--out", out, "--encoder", "tiny", "--model", "tiny")
    command = (*command, "--trusted", trusted, "--heldout", tmp_path / "heldout.jsonl")
    assert run(*command) == 0
    said = capsys.readouterr().out
    text = (out / "index.html").read_text(encoding="utf-8")
    assert "<script" not in text and not re.search(r"(src|href)=['\"](?!data:)", text)
    assert "@import" not in text and "url(" not in text.replace("url(#", "")
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text
    assert "60 rows" in said and "[measured here]" in said
    tables = {path.stem: pd.read_csv(path) for path in out.glob("*.csv")}
    assert len(tables["pairs"]) == 60 and len(tables["leaks"]) == 3
    estimates = tables["flip_rate"].set_index("estimate")
    assert estimates.loc["trusted", "rate_low"] <= 0.1 <= estimates.loc["trusted", "rate_high"]
    assert {"words", "tokens"} == set(tables["lengths"]["unit"])
    assert re.search(r"<td>0\.\d+ \[0\.\d+, 0\.\d+\]</td>", text), "an interval is one cell"
    assert "<th>best</th>" in text and "<th>chosen</th>" not in text
    assert f"robustpo calibrate {file} --golden chosen" in text, "the file as it was named"
    assert said.splitlines()[-1] == f"-> {out / 'index.html'}"
    assert "one epoch of dpo(beta=0.1)" in text and "lam" in tables["strength"]
    record = records.read_json(out / "audit.json")
    assert record["config"]["rows"] == 2000 and record["versions"]["robustpo_kit"]
    assert run("audit", file, "--out", out, "--encoder", "none", "--model", "none") == 0
    assert "leaks.csv" not in {path.name for path in out.iterdir()}, "its own folder is replaced"
    assert "--model none: not asked for" in (out / "index.html").read_text(encoding="utf-8")


def test_lists_without_rewards_have_no_labels_to_speak_of(tmp_path, capsys):
    """A model found 52 % of the labels of a file that had none."""
    path, out = tmp_path / "lists.jsonl", tmp_path / "audit"
    rng = np.random.default_rng(0)
    lines = [
        {"prompt": f"q {n}", "responses": [f"{word} {n}" for word in rng.permutation(list("abcd"))]}
        for n in range(60)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run("audit", path, "--out", out, "--encoder", "tiny", "--model", "tiny") == 0
    said, text = capsys.readouterr().out, (out / "index.html").read_text(encoding="utf-8")
    assert "60 rows have more than two responses, and no rewards" in text
    assert "Rank them by rewards first" in said and "one epoch of dpo" not in text
    assert not re.search("plain DPO|held-out labels|are flipped|label noise", said)
    assert not (out / "models.csv").exists()


def test_texts_of_the_file_are_escaped(tiny):
    rows = told_by_a_word(60, 0.1).map(
        lambda r: row(r.row_id, f"<b onclick=x>{r.prompt}", (f"<script>{t}" for t in r.responses))
    )
    text = auditing.page(found := auditing.audit(rows, auditing.Beside(encoder=tiny)))
    again = auditing.page(auditing.audit(rows, auditing.Beside(encoder=tiny)))
    assert again == text, "the same seed gives the same page"
    assert "<script" not in text and "onclick=x>" not in text.replace("onclick=x&gt;", "")
    assert "&lt;script&gt;" in text and len(found.suspects) == 10


def test_next_ranks_replies_that_nothing_ranks():
    """`calibrate --golden chosen` would refuse such lists, and training their file as it is."""
    lists = PreferenceSet([row(n, f"q{n}?", ("a", f"b {n}", "c")) for n in range(5)], ranked=True)
    text = auditing.page(auditing.audit(lists, auditing.Beside()))
    assert "--golden COLUMN --reward MODEL" in text and "--golden chosen" not in text
    assert "train --data runs/calibrated/rows.jsonl" in text
    ranked = auditing.audit(lists.with_rewards([[0, 1, 2]] * 5), auditing.Beside())
    assert "--golden chosen" in auditing.page(ranked)


def test_a_small_or_large_file_says_what_was_not_looked_at():
    few = auditing.audit(told_by_a_word(5, 0), auditing.Beside())
    assert "No model was fitted" in " ".join(few.notes) and "pairs" not in few.tables
    auditing.page(few)
    many = auditing.audit(told_by_a_word(120, 0), auditing.Beside(), limit=60, seed=1)
    assert "look at 60 of 120 rows" in " ".join(many.notes) and len(many.tables["pairs"]) == 60
    with pytest.raises(ValueError, match="limit = 0"):
        auditing.audit(told_by_a_word(5, 0), auditing.Beside(), limit=0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rows", "0"], "--rows 0: at least one row"),
        (["--heldout", "absent.jsonl"], "absent.jsonl"),
        (["--out", "taken"], "--out taken: exists and is no audit"),
    ],
)
def test_audit_refuses_and_writes_nothing(monkeypatch, tmp_path, capsys, file, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("keep")
    base = ["audit", file, "--out", "audit", "--encoder", "none", "--model", "none"]
    assert run(*base, *arguments) == 2
    error = capsys.readouterr().err
    assert said in error and error.splitlines()[-1].startswith("robustpo: ")
    assert not (tmp_path / "audit").exists() and (tmp_path / "taken" / "mine.txt").exists()


def test_the_folder_of_the_file_is_not_replaced(tmp_path, capsys, file):
    folder = tmp_path / "old"
    folder.mkdir()
    (folder / "audit.json").write_text("{}")
    inside = folder / "mine.jsonl"
    inside.write_text(file.read_text())
    assert run("audit", inside, "--out", folder, "--encoder", "none", "--model", "none") == 2
    assert "it is replaced at the end and holds" in capsys.readouterr().err and inside.exists()


def test_an_audit_again_leaves_what_is_no_part_of_it(tmp_path, capsys, file):
    """Every table that an audit can have is its own."""
    trusted = tmp_path / "trusted.jsonl"
    told_by_a_word(40, 7).to_jsonl(trusted)
    more = ["--trusted", trusted, "--heldout", trusted, "--encoder", "tiny", "--model", "tiny"]
    for _ in range(2):
        assert run("audit", file, "--out", tmp_path / "audit", *more) == 0
    names = {path.stem for path in (tmp_path / "audit").glob("*.csv")}
    assert names <= set(auditing.TABLES)
    (tmp_path / "audit" / "notes.md").write_text("mine")
    assert run("audit", file, "--out", tmp_path / "audit", *more) == 2
    assert "holds notes.md" in capsys.readouterr().err
    assert (tmp_path / "audit" / "notes.md").exists()


def test_broken_rows_end_an_audit_with_one_line(tmp_path, capsys):
    path = tmp_path / "broken.jsonl"
    path.write_text(json.dumps({"prompt": "a", "chosen": "b"}) + "\n")
    assert run("audit", path, "--out", tmp_path / "audit", "--model", "none") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "broken.jsonl" in error and not (tmp_path / "audit").exists()


def test_strengths_are_what_the_objective_solves():
    from robustpo_kit import objectives, policies, training
    from robustpo_kit.losses import Scores

    policy, rows = policies.load("tiny"), told_by_a_word(12, 0)
    table = strengths.strength_table(policy, rows).set_index("objective")
    spec = "dro(simpo(beta=2.5, gamma_beta_ratio=0.4), ess=0.7)"
    logps, lengths = training.score(policy, rows)
    objective = objectives.build(spec)
    objective.step_loss(Scores(logps, ref_logps=logps, lengths=lengths))
    assert table.loc[spec, "lam"] == pytest.approx(objective.strength["lam"])
    assert "wish for less" in table["why"].iloc[1], "gaps of a random model are too small"
    assert "before the first step" in table.loc["dro(dpo(beta=0.1), ess=0.7)", "why"]
    assert not any(spec.startswith("dora") for spec in table.index), "rows without h"
