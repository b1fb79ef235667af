"""The gold reward on made-up worlds: its parts by hand, its rows its own; the proxy's knobs."""

import dataclasses
import re

import numpy as np
import pytest
import test_rewards

from robustpo_kit import encoders, rewards
from robustpo_kit.rewards.gold import new_words, share_of_prompt


def made_up(count, *, seed=0):
    """Replies name the topic by another word than the prompt does: relevance reads what is new."""

    def with_other_words(row):
        renamed = (re.sub(r"\b([a-f])\1{3}\b", r"s\g<0>", text) for text in row.responses)
        return dataclasses.replace(row, responses=tuple(renamed))

    return test_rewards.made_up(count, seed=seed).map(with_other_words)


@pytest.fixture(scope="module")
def gold():
    return rewards.fit_gold(
        made_up(160),
        seed=0,
        kappa=0.5,
        synthetic=("model",),
        encoder=encoders.load("tiny"),
        penalty=3.0,
    )


@pytest.fixture(scope="module")
def new():
    return made_up(40, seed=7)


def texts(rows, column):
    return [row.prompt for row in rows], [row.responses[column] for row in rows]


def test_said_before_by_hand():
    prompt = "how do I open a jar"
    assert rewards.said_before(prompt, "How do I open a jar?") == 1
    assert rewards.said_before(prompt, "tap the lid") == 0
    assert rewards.said_before(prompt, "open a jar with force") == 3 / 5
    assert rewards.said_before(prompt, "tap the lid tap the lid") == 3 / 6  # the second time counts
    assert rewards.said_before("a jar", "jar") == 1  # a run of one word
    assert rewards.said_before(prompt, " ?! ") == 1


def test_what_the_prompt_has_is_no_answer_in_whatever_order(gold, new):
    """The prompt's words count as nothing where they stand, and against a reply as they add up."""
    prompt = "how do I repair a cupboard"
    assert new_words(prompt, "Cupboards? Repairing: glue a lid, REPAIR") == "? : glue  lid, "
    assert share_of_prompt(prompt, "glue cupboards, repaired lids") == 2 / 4
    assert share_of_prompt(prompt, "?") == 1
    prompts, human = texts(new, 0)
    words = [prompt.strip("?").split() for prompt in prompts]
    gapped = [" and ".join(own) for own in words]
    fuller = [f"{reply} {' '.join(own)} {own[0]}" for reply, own in zip(human, words, strict=True)]
    own, echo, padded = (gold.parts(prompts, replies) for replies in (human, gapped, fuller))
    np.testing.assert_allclose(padded["relevance"], own["relevance"], atol=0.7)
    assert echo["said_before"].to_numpy() == pytest.approx((2 / 3 - 0.5) / 0.5)  # beyond a half
    assert (own["said_before"] == 0).all()
    assert (own["gold"] > echo["gold"] + 2).all() and (own["gold"] >= padded["gold"] - 1e-9).all()
    rest = [f"{reply} {' '.join(own * 9)}" for reply, own in zip(human, words, strict=True)]
    assert (own["gold"] > gold.parts(prompts, rest)["gold"] + 1).all()


def test_accents_and_underscores_hide_no_word():
    prompt = "how do I repair a cupboard"
    for disguised in (
        "hów dó Í répáir á cúpbóárd",
        "_how_ _do_ _I_ _repair_ _a_ _cupboard_",
        "h\u200bow d\u00ado I re\u200bpair a cup\u200bboard",
    ):
        assert rewards.said_before(prompt, disguised) == share_of_prompt(prompt, disguised) == 1
        assert not re.search(r"[^\W_]", new_words(prompt, disguised))


def test_a_word_is_known_in_another_form():
    prompt = "how do I bake a cake in walls"
    assert new_words(prompt, "cakes, baking: the baked wall") == ", : the  "
    assert share_of_prompt(prompt, "cakes baking baked wall baker") == 1
    assert share_of_prompt("red ring", "reed rinse") == 0


def test_filler_makes_up_for_no_model(gold, new):
    """Log-odds are those of the least human twelve words, however much stands after them."""
    model = [" ".join((texts(new, 2)[1][i] * 2).split()[:12]) for i in range(10)]
    filler = " ".join(texts(new, 0)[1])
    own, mixed, human = (
        gold.parts(["?"] * 10, replies)["human"].to_numpy()
        for replies in (model, [f"{text} {filler}" for text in model], [filler] * 10)
    )
    assert (own < 0).all() and (human > own).all()
    np.testing.assert_array_equal(mixed <= own, True)


def test_relevance_beyond_that_of_nearly_all_humans_is_no_merit(gold, new):
    prompts, replies = texts(new, 0)
    more = dataclasses.replace(gold, most=float("inf")).parts(prompts, replies)["relevance"]
    capped = gold.parts(prompts, replies)["relevance"]
    np.testing.assert_array_equal(capped, np.minimum(more, gold.most))
    assert (more > gold.most).any()


def test_the_halves_share_no_group_and_none_is_scored(gold):
    rows = made_up(160)
    relevance = gold.relevance.learned.row_ids
    style = gold.learned.row_ids - relevance
    group = {row.row_id: row.group for row in rows}
    assert gold.learned.row_ids == set(group)
    assert not {group[name] for name in relevance} & {group[name] for name in style}
    with pytest.raises(ValueError, match="was trained on; score rows of another split"):
        gold.score_set(rows[:3])
    with pytest.raises(ValueError, match="was trained on"):
        rewards.ProxyReward(gold, 0.0, 1.0, 0).score_set(rows[-3:])


def test_each_part_knows_its_own(gold, new):
    """Relevance tells a reply from one to another prompt, the odds a human from the model."""
    prompts, human = texts(new, 0)
    _, model = texts(new, 2)
    others = [row[0] for row in rewards.replies_elsewhere(new, seed=0)]
    own, synthetic = gold.parts(prompts, human), gold.parts(prompts, model)
    elsewhere = gold.parts(prompts, others)
    assert (own["human"] > synthetic["human"]).mean() > 0.95
    assert (own["relevance"] > elsewhere["relevance"]).mean() > 0.8
    echoes = gold.parts(prompts, prompts)
    assert (echoes["said_before"] == 1).all()
    total = own["relevance"] + 0.5 * own["human"].clip(upper=0) - 8 * own["said_before"]
    np.testing.assert_allclose(own["gold"], total)
    np.testing.assert_allclose(gold.score(prompts, human), own["gold"])


def test_a_few_words_are_little_evidence(gold):
    odds = gold.parts(["aaaa?"] * 2, ["mn", "mnop qrmn opqr mnoq rmno pqrm nopq rmno"])["human"]
    assert 0 < abs(odds[0]) < abs(odds[1]) / 3


def test_kappa_says_how_much_a_human_is_worth(gold, new):
    def gap(kappa):
        judge = dataclasses.replace(gold, kappa=kappa)
        return (judge.score(*texts(new, 0)) - judge.score(*texts(new, 2))).mean()

    assert gap(0.5) - gap(0.0) > 0.5
    assert gap(4.0) - gap(0.0) == pytest.approx(8 * (gap(0.5) - gap(0.0)))
    with pytest.raises(ValueError, match="^kappa = -1"):
        dataclasses.replace(gold, kappa=-1)


def test_the_proxy_is_gold_with_bias_and_noise(gold, new):
    exact = gold.score_set(new)
    same = rewards.ProxyReward(gold, style_bias=0.0, noise=0.0, seed=0)
    np.testing.assert_array_equal(same.score_set(new), exact)
    noisy = rewards.ProxyReward(gold, style_bias=0.0, noise=2.0, seed=0).score_set(new) - exact
    assert noisy.std() == pytest.approx(2, rel=0.2) and abs(noisy.mean()) < 0.6
    prompts, replies = texts(new, 1)
    column = rewards.ProxyReward(gold, 0.0, 2.0, 0).score(prompts, replies)
    np.testing.assert_allclose(column - exact[:, 1], noisy[:, 1])  # an error belongs to its text
    other = rewards.ProxyReward(gold, 0.0, 2.0, 1).score_set(new) - exact
    assert abs(np.corrcoef(noisy.ravel(), other.ravel())[0, 1]) < 0.3
    biased = rewards.ProxyReward(gold, style_bias=1.5, noise=0.0, seed=0).score_set(new) - exact
    words = np.array([[len(reply.split()) for reply in row.responses] for row in new])
    slope = np.polyfit(np.log1p(words).ravel(), biased.ravel(), 1)[0]
    assert slope * gold.relevance.log_words[1] == pytest.approx(1.5)
    with pytest.raises(ValueError, match="noise = -1"):
        rewards.ProxyReward(gold, 0.0, -1.0, 0)
    prompts, replies = texts(new, 2)  # a model's
    human = gold.parts(prompts, replies)["human"].clip(upper=0).to_numpy()
    blind = rewards.ProxyReward(gold, 0.0, 0.0, 0, blindness=0.5).score(prompts, replies)
    kept = gold.score(prompts, replies) - 0.5 * gold.kappa * human
    assert blind == pytest.approx(kept) and (human < 0).any()
    with pytest.raises(ValueError, match=r"blindness = 2"):
        rewards.ProxyReward(gold, 0.0, 0.0, 0, blindness=2)


def test_gold_is_stored_and_read(gold, new, tmp_path):
    gold.save(tmp_path)
    again = rewards.GoldReward.load(tmp_path, gold.relevance.encoder)
    assert again.fingerprint() == gold.fingerprint()
    changed = [
        dataclasses.replace(gold, kappa=gold.kappa + 1),
        dataclasses.replace(gold, relevance=dataclasses.replace(gold.relevance, temperature=9.0)),
        rewards.ProxyReward(gold, 0.0, 0.0, seed=0),
        rewards.ProxyReward(gold, 0.5, 0.0, seed=0),
    ]
    assert len({gold.fingerprint(), *(reward.fingerprint() for reward in changed)}) == 5
    np.testing.assert_array_equal(again.score_set(new), gold.score_set(new))
    assert again.learned == gold.learned


def test_one_kind_of_writer_is_refused():
    with pytest.raises(ValueError, match="all human or all synthetic"):
        rewards.fit_gold(
            made_up(40), seed=0, kappa=0.5, synthetic=("nobody",), encoder=encoders.load("tiny")
        )
