"""Reward models on made-up worlds: one writer on both sides, known weights, readable relevance."""

import numpy as np
import pandas as pd
import pytest
import torch
from training_setting import made_up_rows, made_up_word

from robustpo_kit import encoders, rewards
from robustpo_kit.data import Preference, PreferenceSet
from robustpo_kit.encoders import FineTune
from robustpo_kit.rewards.fitting import slope_within

TOPICS = ("aaaa", "bbbb", "cccc", "dddd", "eeee", "ffff")


def made_up(count, *, seed=0):
    """The prompt names a topic; both writers repeat it, the model twice as long."""

    def write(rng, i):
        topic = TOPICS[i % len(TOPICS)]
        words = [("mnopqr", rng.integers(2, 5)), ("mnopqr", rng.integers(2, 5))]
        words.append(("uvwxyz", rng.integers(5, 9)))
        responses = []
        for alphabet, length in words:
            said = [made_up_word(rng, alphabet) for _ in range(length)]
            responses.append(" ".join([*said, topic, topic, topic]))
        return i, f"{topic} {topic}?", tuple(responses)

    return made_up_rows(count, seed, ("human_correct", "human_wrong", "model"), write)


@pytest.fixture(scope="module")
def model(tiny):
    return rewards.fit_reward_model(made_up(120), seed=0, encoder=tiny, penalty=3.0)


# ---- pairs ----


def test_training_pairs_have_one_kind_of_writer_on_both_sides():
    rows = made_up(30)
    writer = {
        reply: source
        for row in rows
        for reply, source in zip(row.responses, row.sources, strict=True)
    }
    group = {reply: row.group for row in rows for reply in row.responses}
    pairs = rewards.training_pairs(rows, seed=0)
    kinds = pd.Series([pair.kind for pair in pairs]).value_counts()
    assert kinds.to_dict() == {
        "human_correct > human_wrong": 30,
        "human_correct > human_correct elsewhere": 30,
        "human_wrong > human_wrong elsewhere": 30,
        "model > model elsewhere": 30,
    }
    for pair in pairs:
        assert writer[pair.better].split("_")[0] == writer[pair.worse].split("_")[0]
        assert group[pair.better] == pair.group
        if pair.kind.endswith("elsewhere"):
            assert group[pair.worse] != pair.group


def test_replies_elsewhere_are_matched_in_length():
    rng = np.random.default_rng(1)
    texts = [" ".join(["w"] * n) for n in rng.integers(1, 60, size=200)]
    rows = PreferenceSet(
        [Preference(str(i), str(i), "p", (t, "x"), ("s", "t")) for i, t in enumerate(texts)]
    )
    others = rewards.replies_elsewhere(rows, seed=0)
    gaps = [len(t.split()) - len(o[0].split()) for t, o in zip(texts, others, strict=True)]
    assert np.abs(gaps).max() <= 6
    assert abs(np.mean(gaps)) < 0.5


def test_the_same_words_are_never_their_own_mismatch():
    rows = PreferenceSet(
        [Preference(str(i), str(i), "p", (t,), ("s",)) for i, t in enumerate(("yes", "yes", "no"))]
    )
    assert rewards.replies_elsewhere(rows, seed=0) == [["no"], ["no"], ["yes"]]


def test_a_source_with_one_group_has_no_reply_elsewhere():
    rows = PreferenceSet([Preference(str(i), "g", "p", ("a", "b"), ("s", "t")) for i in range(3)])
    assert rewards.replies_elsewhere(rows, seed=0) == [[None, None]] * 3
    with pytest.raises(ValueError, match="no pair to train on|too few"):
        rewards.fit_reward_model(rows, seed=0, encoder="tiny")


def test_mismatched_replies_are_not_mismatched_again():
    rows = PreferenceSet(
        [
            Preference(
                str(i),
                str(i),
                "p",
                (f"a{i}", f"b{i}", f"c{i}"),
                ("human_matched", "human_mismatched", "model"),
            )
            for i in range(9)
        ]
    )
    kinds = {pair.kind for pair in rewards.training_pairs(rows, seed=0)}
    assert kinds == {
        "human_matched > human_mismatched",
        "human_matched > human_matched elsewhere",
        "model > model elsewhere",
    }
    across = {pair.kind for pair in rewards.pairs_across_sources(rows, seed=0)}
    assert across == {"human_matched > model", "model > human_matched elsewhere"}


def test_what_is_trained_on_is_not_among_the_pairs_across_sources():
    """Another choice of direct pairs counted some twice, and left others out."""
    rows, direct = made_up(30), [("human_correct", "model")]
    trained = {pair.kind for pair in rewards.training_pairs(rows, seed=0, direct=direct)}
    across = {pair.kind for pair in rewards.pairs_across_sources(rows, seed=0, direct=direct)}
    assert "human_correct > model" in trained and "human_correct > human_wrong" in across
    assert not trained & across


# ---- models ----


def test_logistic_fit_recovers_known_bradley_terry_weights():
    rng = np.random.default_rng(0)
    truth = np.array([1.5, -0.7, 0.0, 0.4])
    difference = rng.standard_normal((40_000, 4))
    wins = rng.random(40_000) < 1 / (1 + np.exp(-difference @ truth))
    fitted = encoders.fit_logistic(difference, wins, 1e-3, intercept=False)
    np.testing.assert_allclose(fitted.weight, truth, atol=0.05)
    assert fitted.bias == 0


def test_bradley_terry_loss_by_hand():
    loss = rewards.bradley_terry(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.ones(2))
    assert loss.item() == pytest.approx((np.log1p(np.exp(-2)) + np.log1p(np.exp(1))) / 2)


def test_frozen_reward_learns_relevance_and_does_not_learn_the_source(model):
    table = model.accuracy(draws=200).set_index("kind")
    for kind in ("human_correct > human_correct elsewhere", "model > model elsewhere"):
        assert table.loc[kind, "low"] > 0.6
        assert table.loc[kind, "trained_kind"]
    # a source classifier would prefer the human reply to another prompt
    assert table.loc["model > human_correct elsewhere", "accuracy"] > 0.6
    assert not table.loc["model > human_correct elsewhere", "trained_kind"]
    # nothing tells the two human replies apart here
    assert (
        table.loc["human_correct > human_wrong", "low"]
        < 0.5
        < table.loc["human_correct > human_wrong", "high"]
    )


def test_held_out_groups_were_not_trained_on(model):
    assert not set(model.held_out["row_id"]) & model.learned.row_ids
    assert len(model.learned.row_ids) == 90
    assert model.held_out["group"].nunique() == 30


def test_training_rows_are_refused(model):
    rows = made_up(120)
    seen = [i for i, row in enumerate(rows) if row.row_id in model.learned.row_ids]
    with pytest.raises(ValueError, match="trained on"):
        model.score_set(rows.select(seen[:1]))
    assert model.score_set(made_up(5, seed=1)).shape == (5, 3)


def test_other_split_and_seed_is_another_judge(tiny, model):
    judge = rewards.fit_reward_model(made_up(120, seed=1), seed=1, encoder=tiny, penalty=3.0)
    new = made_up(40, seed=2)
    first, second = model.score_set(new).reshape(-1), judge.score_set(new).reshape(-1)
    assert not np.allclose(first, second)
    assert np.corrcoef(first, second)[0, 1] > 0.5


def test_fine_tuned_reward_learns_relevance(tiny):
    config = FineTune(epochs=8, learning_rate=3e-3, frozen_layers=0)
    fitted = rewards.fit_reward_model(
        made_up(120), seed=0, encoder=tiny, features="fine_tuned", fine_tune=config
    )
    table = rewards.accuracy_table(
        fitted.compare(rewards.training_pairs(made_up(60, seed=1), seed=0)), draws=100
    )
    assert table.set_index("kind").loc["human_correct > human_correct elsewhere", "accuracy"] > 0.65


def test_bias_pays_for_length_alone(model):
    prompts, replies = ["aaaa?"] * 3, ["aaaa", "aaaa " * 5, "aaaa " * 30]
    extra = model.score(prompts, replies, bias=2.0) - model.score(prompts, replies)
    mean, sd = model.log_words
    np.testing.assert_allclose(extra, 2 * model.scale * (np.log1p([1, 5, 30]) - mean) / sd)
    assert (np.diff(extra) > 0).all()
    np.testing.assert_array_equal(
        model.score(prompts, replies, bias=0.0), model.score(prompts, replies)
    )


def test_length_slope_is_taken_within_sources():
    """Sources differ in length and score; within each the slope is 0.5."""
    x = np.array([0.0, 1.0, 2.0, 10.0, 11.0, 12.0])
    y = np.array([5.0, 5.5, 6.0, -5.0, -4.5, -4.0])
    assert slope_within(x, y, list("aaabbb")) == pytest.approx(0.5)
    assert slope_within(np.ones(3), y[:3], list("aaa")) == 0.0


def test_bias_against_the_slope_takes_length_out(model):
    new = made_up(200, seed=5)
    words = np.log1p([len(reply.split()) for row in new for reply in row.responses])
    sources = [source for row in new for source in row.sources]
    slopes = [
        slope_within(words, model.score_set(new, bias=bias).reshape(-1), sources)
        for bias in (0.0, -model.length_slope)
    ]
    held_out_slope = model.length_slope * model.scale / model.log_words[1]  # per log word
    assert slopes[0] - slopes[1] == pytest.approx(held_out_slope, rel=1e-5)


def test_temperature_makes_differences_probabilities(model):
    """Held out, the mean probability that the better reply wins is its share of wins."""
    trained = model.held_out[model.held_out["trained_kind"]]
    probability = 1 / (1 + np.exp(-trained["difference"]))
    assert probability.mean() == pytest.approx((trained["difference"] > 0).mean(), abs=0.1)


def test_cosine_needs_no_training(tiny):
    fitted = rewards.fit_reward_model(made_up(24), seed=0, encoder=tiny, features="cosine")
    prompts, replies = ["aaaa?", "bbbb"], ["aaaa xx", "cc"]
    a, b = tiny.embed(prompts), tiny.embed(replies)
    expected = 10 * (a * b).sum(1).double().numpy() / fitted.temperature
    np.testing.assert_allclose(fitted.score(prompts, replies), expected, rtol=1e-5)
    assert not fitted.learned.row_ids


def test_the_held_out_table_is_what_compare_gives(model):
    """The units that were measured held out are those that the model speaks in."""
    held_out = [i for i, row in enumerate(made_up(120)) if row.row_id not in model.learned.row_ids]
    rows = made_up(120).select(held_out)
    pairs = [*rewards.training_pairs(rows, seed=0), *rewards.pairs_across_sources(rows, seed=0)]
    table = model.compare(pairs)
    pd.testing.assert_frame_equal(table, model.held_out[table.columns], rtol=1e-6)
    replies = [(row.prompt, reply) for row in rows for reply in row.responses]
    scores = model.score([prompt for prompt, _ in replies], [reply for _, reply in replies])
    assert scores.std() == pytest.approx(model.scale, rel=1e-6)


@pytest.mark.parametrize("features", ["frozen", "fine_tuned"])
def test_stored_reward_model_scores_alike(tiny, tmp_path, features):
    config = FineTune(epochs=1, frozen_layers=1)
    fitted = rewards.fit_reward_model(
        made_up(24), seed=0, encoder=tiny, features=features, fine_tune=config
    )
    fitted.save(tmp_path)
    loaded = rewards.RewardModel.load(tmp_path)
    new = made_up(5, seed=1)
    np.testing.assert_allclose(
        loaded.score_set(new, bias=1.0), fitted.score_set(new, bias=1.0), rtol=1e-6
    )
    assert loaded.learned == fitted.learned and fitted.learned.texts
    pd.testing.assert_frame_equal(loaded.accuracy(draws=50), fitted.accuracy(draws=50))
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors", ".csv"}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("features", {"features": "bm25"}),
        ("held_out", {"held_out": 0.0}),
        ("held_out", {"held_out": 0.01}),
    ],
)
def test_fit_names_the_bad_argument(tiny, name, change):
    with pytest.raises(ValueError, match=f"^{name}"):
        rewards.fit_reward_model(made_up(12), **({"seed": 0, "encoder": tiny} | change))


# ---- tables ----


def test_accuracy_table_by_hand():
    table = pd.DataFrame(
        {
            "kind": "a > b",
            "group": list("wxyz"),
            "difference": [1.0, -1.0, 0.0, 2.0],
            "gap_words": [3, -2, 1, -5],
        }
    )
    row = rewards.accuracy_table(table, draws=50).iloc[0]
    assert row["accuracy"] == pytest.approx(2.5 / 4)
    assert row["n"] == 4 and row["mean_difference"] == 0.5
    assert row["longer_share"] == pytest.approx(
        2 / 4
    )  # longer preferred: 1st (longer better), 2nd (longer worse)


def test_correlation_is_split_into_between_and_within_sources():
    """Reward and confidence both differ between sources and not within: Simpson's trap."""
    rng = np.random.default_rng(0)
    n = 2000
    source = np.repeat(["human", "model"], n // 2)
    shift = np.where(source == "human", 2.0, -2.0)
    table = pd.DataFrame(
        {
            "source": source,
            "group": np.tile(np.arange(n // 2), 2),
            "reward": shift + rng.standard_normal(n),
            "c": shift + rng.standard_normal(n),
        }
    )
    found = rewards.correlation_table(table, draws=500).set_index("scope")
    assert found.loc["overall", "pearson"] == pytest.approx(
        4 / 5, abs=0.03
    )  # variance 4 shared of 5
    for scope in ("within sources", "within human", "within model"):
        assert found.loc[scope, "pearson_low"] < 0 < found.loc[scope, "pearson_high"]
        assert abs(found.loc[scope, "spearman"]) < 0.08
