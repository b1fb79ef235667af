"""Audits: known answers for what needs no model, simulated truth for what does."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from robustpo_kit import auditing, cli, records
from robustpo_kit.auditing import advice, checks, flips, scores, sources, strengths, views
from robustpo_kit.auditing.report import preferred_first
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


@pytest.mark.parametrize(("worth", "rate"), [(0.0, 0.2), (0.7, 0.3), (3.0, 0.0), (3.0, 0.3)])
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
        bound = flips.flip_bound(seen)
        below += bound.low == 0 and rate <= bound.high
        informative += found.high - found.low < 0.4
    assert within >= 0.9 * 60 and below >= 0.93 * 60
    assert (informative > 30) or worth < 3, "a good model's interval is narrow"
    assert informative == 0 or worth > 0, "a model that knows nothing tells nothing"


def test_the_bound_by_hand():
    """Twenty pairs, the surest two agree: at a tenth 1 - (0.05 / 3)^(1/2), at all others more."""
    values = np.r_[9.0, 8.0, [-1.0, 1.0] * 9]
    found = flips.flip_bound(values)
    assert found.value in (0.0, 0.2, 0.4) and found.low == 0
    # the shares end at 2, 4 and 10 pairs, with 0, 1 and 4 that disagree
    assert found.high == pytest.approx(0.5)
    sure = flips.flip_bound(np.ones(200))
    assert sure.value == 0 and sure.high == pytest.approx(1 - (0.05 / 3) ** (1 / 100))


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
    rows = written_by(4, 1.0, 0)
    assert "--trusted" in sources.cannot_tell(rows, None)
    plain = PreferenceSet([row(0), row(1, "Where?")])
    assert "who wrote" in sources.cannot_tell(plain, plain)
    nameless = PreferenceSet([row(0, golden=None)])
    assert "the file do not all name" in sources.cannot_tell(nameless, rows)
    assert sources.cannot_tell(rows, rows) == ""


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
        flips_trusted=True,
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
    assert text == ["at most 20% of labels are flipped; its tables are not in this installation"]


# ---------------------------------------------------------------- page and command


@pytest.fixture(autouse=True)
def fewer_fits(monkeypatch):
    monkeypatch.setattr(scores, "STRENGTHS", (0.3, 3.0))


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
    rates = tables["flip_rate"].set_index("estimate")
    assert rates.loc["trusted", "rate_low"] <= 0.1 <= rates.loc["trusted", "rate_high"]
    assert {"words", "tokens"} == set(tables["lengths"]["unit"])
    assert "one epoch of dpo(beta=0.1)" in text and "lam" in tables["strength"]
    record = records.read_json(out / "audit.json")
    assert record["config"]["rows"] == 2000 and record["versions"]["robustpo_kit"]
    assert run("audit", file, "--out", out, "--encoder", "none", "--model", "none") == 0
    assert "leaks.csv" not in {path.name for path in out.iterdir()}, "its own folder is replaced"
    assert "--model none: not asked for" in (out / "index.html").read_text(encoding="utf-8")


def test_texts_of_the_file_are_escaped(tiny):
    rows = told_by_a_word(60, 0.1).map(
        lambda r: row(r.row_id, f"<b onclick=x>{r.prompt}", (f"<script>{t}" for t in r.responses))
    )
    text = auditing.page(found := auditing.audit(rows, auditing.Beside(encoder=tiny)))
    again = auditing.page(auditing.audit(rows, auditing.Beside(encoder=tiny)))
    assert again == text, "the same seed gives the same page"
    assert "<script" not in text and "onclick=x>" not in text.replace("onclick=x&gt;", "")
    assert "&lt;script&gt;" in text and len(found.suspects) == 10


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
    assert "all losses are equal" in table.loc["dro(dpo(beta=0.1), ess=0.7)", "why"]
    assert not any(spec.startswith("dora") for spec in table.index), "rows without h"
