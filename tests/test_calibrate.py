"""From a preference file to rows that DoRA trains on: who is told from whom, c, h, rewards."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from pictures import faults, saved_by
from sklearn.metrics import roc_auc_score
from test_cli import refused
from training_setting import made_up_rows, made_up_word
from transformers import BertConfig, BertForSequenceClassification

from robustpo_kit import calibration, cli, data, encoders, rewards
from robustpo_kit.data import Preference, PreferenceSet, take
from robustpo_kit.errors import KitError

TINY = encoders.load("tiny")
SAME, OTHER = "abcdefgh", "stuvwxyz"


def made_up(kind: str, count: int = 120, seed: int = 0) -> PreferenceSet:
    """Pairs whose second reply is of other letters, only shorter, or like the first."""

    def write(rng, i):
        longer = 6 if kind == "length" else 0
        alphabet = OTHER if kind == "letters" else SAME
        replies = []
        for letters, more in ((SAME, longer), (alphabet, 0)):
            words = [made_up_word(rng, letters) for _ in range(rng.integers(2, 6) + more)]
            replies.append(" ".join(words))
        return i, " ".join(made_up_word(rng, SAME) for _ in range(4)), tuple(replies)

    return made_up_rows(count, seed, ("chosen", "rejected"), write)


def fitted(told: calibration.Told) -> calibration.SourceClassifier:
    return calibration.fit_classifier(
        told.rows, seed=0, encoder=TINY, golden_sources=told.golden_sources
    )


# ---------------------------------------------------------------- what the classifier is worth


@pytest.mark.parametrize(
    ("kind", "said"),
    [("letters", "tells the sources apart ("), ("length", "no better"), ("same", "cannot tell")],
)
def test_the_verdict_says_what_the_classifier_can(kind, said):
    told = calibration.told_by_column(made_up(kind), 0)
    table = calibration.evidence(fitted(told), told.rows, draws=40)
    assert said in calibration.verdict(table)
    rows = table.set_index("of")
    assert rows.loc["share of golden alone", "nll"] == pytest.approx(np.log(2))
    shown = rows.loc[["classifier", "length alone"]]
    assert (shown["auc_low"] <= shown["auc"]).all() and (shown["auc"] <= shown["auc_high"]).all()


# ---------------------------------------------------------------- who is golden


def test_golden_replies_by_column_source_and_trusted_rows():
    rows = made_up("letters", 20)
    assert [row.golden for row in calibration.told_by_column(rows, 1).rows] == [1] * 20
    assert calibration.told_by_source(rows, "chosen").golden_sources == ("chosen",)
    trusted = made_up("letters", 12, seed=1)
    told = calibration.told_by_trusted(rows, trusted)
    assert len(told.rows) == 12 and told.slots
    alone = trusted.golden_only()
    told = calibration.told_by_trusted(rows, alone)
    assert [row.golden for row in told.rows] == [0] * 12 + [None] * 20 and not told.slots


def test_trusted_rows_to_prompts_of_the_file_are_left_out():
    rows = made_up("letters", 20)
    both = PreferenceSet([*rows[:5], *made_up("letters", 7, seed=1)])
    told = calibration.told_by_trusted(rows, both)
    assert len(told.rows) == 7 and "5 trusted rows left out" in told.said
    with pytest.raises(KitError, match="all 5 rows"):
        calibration.told_by_trusted(rows, rows[:5])
    renamed = both.map(lambda row: dataclasses.replace(row, group=f"other {row.group}"))
    assert len(calibration.told_by_trusted(rows, renamed).rows) == 7


def test_c_of_learnt_rows_is_out_of_fold_and_of_others_scored():
    rows = made_up("letters", 40)
    classifier = fitted(calibration.told_by_column(rows[:30], 0))
    c = calibration.confidences(classifier, rows)
    inside = classifier.out_of_fold.set_index(["row_id", "column"])["c"]
    assert c[3] == [inside[rows[3].row_id, 0], inside[rows[3].row_id, 1]]
    outside = rows[30:]
    np.testing.assert_allclose(c[30:], classifier.score_set(outside, one_prior=True))


@pytest.mark.parametrize("responses", [2, 4])
def test_mean_factors_are_the_factor_relative(responses):
    """Of the classifier's own shares: one golden reply in K."""
    rng = np.random.default_rng(0)
    c = rng.random((6, responses))
    probs, share = torch.tensor(c), 1 / responses
    classifier = dataclasses.replace(
        fitted(calibration.told_by_column(made_up("letters", 20), 0)),
        imbalance={"rest": responses - 1.0},
    )
    found = calibration.mean_factors(classifier, c.tolist())
    np.testing.assert_allclose(found, calibration.uniform_factor(probs))
    expected = calibration.calibration_factor(
        probs, alpha=share, beta=1 - share, imbalance=responses - 1
    )
    np.testing.assert_allclose(found, expected)


def test_the_slots_own_factor_finds_contaminated_slots():
    """A third of the golden slots hold the other source's letters; trusted rows show both."""
    clean, trusted = made_up("letters", 90), made_up("letters", 120, seed=1)

    def spoil(row: Preference) -> Preference:
        spoilt = int(row.row_id.split("-")[1]) % 3 == 0
        replies = (row.responses[1][::-1], row.responses[1]) if spoilt else row.responses
        return dataclasses.replace(row, responses=replies)

    rows = clean.map(spoil)
    classifier = fitted(calibration.told_by_trusted(rows, trusted))
    c = calibration.confidences(classifier, rows)
    slot = calibration.slot_factors(classifier, rows, c)
    spoilt = np.array([int(row.row_id.split("-")[1]) % 3 == 0 for row in rows])
    assert roc_auc_score(~spoilt, slot) > 0.9
    assert slot.mean() == pytest.approx(1, abs=1e-6)


# ---------------------------------------------------------------- rewards


def test_no_row_is_scored_by_a_model_that_saw_it():
    """Labels of one fold turned round: its own scores stay, up to the temperature they share."""
    rows = made_up("letters", 40)
    fold = calibration.fold_of_groups([row.group for row in rows], 4, 0)
    with pytest.raises(ValueError, match="3 groups .*give rows to more prompts"):
        calibration.fold_of_groups(["a", "b", "c"], 4, 0)
    turned = PreferenceSet(
        take(row, (1, 0)) if fold[place] == 1 else row for place, row in enumerate(rows)
    )
    own = {"seed": 0, "encoder": TINY}
    found = [rewards.cross_fitted_rewards(part, part, **own) for part in (rows, turned)]
    before, after = (part.scores.reshape(40, 2) for part in found)
    ratio = before[fold == 1] / after[fold == 1][:, ::-1]
    np.testing.assert_allclose(ratio, ratio[0, 0])
    assert np.ptp(before[fold == 2] / after[fold == 2]) > 0.01
    assert found[0].held_out["correct"].mean() > 0.7
    assert found[1].held_out["correct"][fold == 1].mean() < 0.3


def test_rows_left_aside_are_scored_by_all_models():
    rows = made_up("letters", 40)
    found = rewards.cross_fitted_rewards(rows, rows[:32], seed=0, encoder=TINY)
    assert len(found.scores) == 80 and len(found.held_out) == 32
    better = found.scores.reshape(40, 2)[32:]
    assert (better[:, 0] > better[:, 1]).mean() > 0.7


def test_rewards_of_a_sequence_classifier_by_its_folder(tmp_path):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(TINY.tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=16,
        num_labels=1,
        initializer_range=0.5,
        max_position_embeddings=64,
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path / "one")
    TINY.tokenizer.save_pretrained(tmp_path / "one")
    model = rewards.load(str(tmp_path / "one"))
    prompts, replies = ["abc", "abcd efgh" * 40, "abc"], ["de", "de", "fgh ij"]
    together = model.score(prompts, replies)
    for place in range(3):
        alone = model.score(prompts[place : place + 1], replies[place : place + 1])
        np.testing.assert_allclose(together[place], alone[0], rtol=1e-5)
    assert len(set(together.round(6))) == 3
    config.num_labels = 2
    BertForSequenceClassification(config).save_pretrained(tmp_path / "two")
    TINY.tokenizer.save_pretrained(tmp_path / "two")
    with pytest.raises(KitError, match="2 outputs"):
        rewards.load(str(tmp_path / "two"))
    with pytest.raises(KitError, match="cannot be loaded"):
        (tmp_path / "none").mkdir()
        rewards.load(str(tmp_path / "none"))


# ---------------------------------------------------------------- the command


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "pairs.jsonl"
    made_up("letters", 40).to_jsonl(path)
    return path


def calibrate(file, out, *more: str) -> int:
    arguments = ["calibrate", file, "--out", out, "--encoder", "tiny", *more]
    return cli.main([str(argument) for argument in arguments])


@pytest.mark.parametrize("factor", ["mean", pytest.param("slot", marks=pytest.mark.slow)])
def test_dora_trains_on_what_calibrate_writes(file, tmp_path, capsys, monkeypatch, factor):
    figures = saved_by(monkeypatch)
    out, policy = tmp_path / "calibrated", tmp_path / "policy"
    assert calibrate(file, out, "--golden", "0", "--factor", factor) == 0
    assert "tells the sources apart" in capsys.readouterr().out
    lines = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    assert len(lines) == 40 and all(len(line["c"]) == 2 for line in lines)
    assert all(line["rewards"][0] > line["rewards"][1] for line in lines)  # as the labels say
    assert {path.name for path in out.iterdir()} == {
        "calibration.csv", "calibration.json", "classifier", "reliability.csv",
        "reliability.pdf", "reliability.png", "rows.jsonl",
    }  # fmt: skip
    assert [faults(figure) for figure in figures] == [[]]
    spec = "dora(dpo_pl(beta=0.1), lam=1.0)"
    train = ["train", "--data", str(out / "rows.jsonl"), "--objective", spec]
    train += ["--model", "tiny", "--out", str(policy), "--set", "batch_size=40"]
    assert cli.main(train) == 0
    (step,) = json.loads((policy / "record.json").read_text())["history"]
    h = np.array([line["h"] for line in lines])
    assert step["h_mean"] == pytest.approx(h.mean(), rel=1e-4)


@pytest.mark.slow
def test_the_files_own_rewards_and_a_named_models(file, tmp_path, capsys):
    out = tmp_path / "calibrated"
    ranked = PreferenceSet(
        dataclasses.replace(row, rewards=(1.0, 2.0)) for row in made_up("letters", 40)
    )
    ranked.to_jsonl(file)
    assert calibrate(file, out, "--source", "chosen") == 0
    assert "the file's own" in capsys.readouterr().out
    first = json.loads((out / "rows.jsonl").read_text().splitlines()[0])
    assert first["rewards"] == [1.0, 2.0]
    model = rewards.fit_reward_model(made_up("same", 30, seed=2), seed=0, encoder=TINY)
    model.save(tmp_path / "reward")
    ranked.map(lambda row: dataclasses.replace(row, sources=("a", "b"))).to_jsonl(file)
    assert calibrate(file, out, "--golden", "0", "--reward", tmp_path / "reward") == 0
    assert "of 40 pairs are turned against the file's own rewards" in capsys.readouterr().out
    row = data.load(out / "rows.jsonl")[0]
    expected = model.score([row.prompt] * 2, row.responses)
    np.testing.assert_allclose(row.rewards, expected, rtol=1e-6)


def test_a_named_model_turns_no_label_of_pairs_with_scores(file, tmp_path, capsys):
    """Loaded again, three of four labels were the model's."""
    rows = made_up("letters", 40)
    lines = [
        {"prompt": row.prompt, "chosen": row.responses[0], "rejected": row.responses[1]}
        | {"score_chosen": 7.0, "score_rejected": 3.0}
        for row in rows
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    against = PreferenceSet(take(row, (1, 0)) for row in made_up("letters", 40, seed=2))
    rewards.fit_reward_model(against, seed=0, encoder=TINY).save(tmp_path / "reward")
    out = tmp_path / "calibrated"
    assert calibrate(file, out, "--golden", "0", "--reward", tmp_path / "reward") == 0
    assert "the preferred reply of a pair stays" in capsys.readouterr().out
    found = data.load(out / "rows.jsonl")
    assert [data.preferred_and_least(row) for row in found] == [(0, 1)] * 40


def test_one_row_with_rewards_changes_no_other_row(file, tmp_path, capsys):
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[3]["rewards"] = [9.0, 1.0]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "calibrated"
    assert calibrate(file, out, "--golden", "chosen") == 0
    assert "1 of 40 rows keep the file's own" in capsys.readouterr().out
    found = [json.loads(line)["rewards"] for line in (out / "rows.jsonl").read_text().splitlines()]
    assert found[3] == [9.0, 1.0] and all(first > second for first, second in found)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "without that there is no h~"),
        (["--golden", "best"], "chosen, rejected or a column's number"),
        (["--golden", "2"], "--golden 2: row"),
        (["--source", "nobody"], "sources are chosen, rejected"),
        (["--trusted", "FILE"], "to prompts or groups of the file"),
        (["--golden", "0", "--source", "chosen"], "not allowed with"),
        (["--golden", "0", "--rows", "3"], "--rows 3"),
        (["--source", "chosen", "--factor", "slot"], "no slot is in doubt"),
    ],
)
def test_what_calibrate_refuses_leaves_nothing(file, tmp_path, capsys, more, said):
    more = [str(file) if word == "FILE" else word for word in more]
    out = tmp_path / "calibrated"
    line = refused(capsys, "calibrate", file, "--out", out, "--encoder", "tiny", *more)
    assert said in line and not out.exists()


def test_without_a_trusted_source_what_needs_none_is_offered(file, tmp_path, capsys):
    line = refused(capsys, "calibrate", file, "--out", tmp_path / "calibrated")
    assert all(word in line for word in ("--trusted", "gamma(simpo", "rdpo(", "dro(dpo"))


def test_a_folder_of_something_else_stays(file, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    (other / "note").write_text("mine")
    line = refused(capsys, "calibrate", file, "--out", other, "--golden", "0")
    assert "exists and is no calibration" in line and (other / "note").exists()


def test_a_calibration_again_leaves_what_others_put_beside_it(file, tmp_path, capsys):
    out = tmp_path / "calibrated"
    for _ in range(2):
        assert calibrate(file, out, "--golden", "0") == 0
    capsys.readouterr()
    (out / "dora").mkdir()
    (out / "dora" / "policy.json").write_text("{}")
    line = refused(capsys, "calibrate", file, "--out", out, "--golden", "0", "--encoder", "tiny")
    assert "holds dora/policy.json" in line and (out / "dora" / "policy.json").exists()
