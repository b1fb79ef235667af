import json

import numpy as np
import pytest

from robustpo_kit import mixture, paths, policies
from robustpo_kit.data import Preference, PreferenceSet, Template
from robustpo_kit.errors import KitError
from robustpo_kit.policies import SamplingConfig, cut_to_sentence, sample, sample_batch


@pytest.fixture(scope="module")
def policy():
    return policies.load("tiny")


def rows(count=5):
    return PreferenceSet(
        [
            Preference(
                f"r{i}",
                f"g{i}",
                f"question {i}",
                (f"right {i}", f"wrong {i}"),
                ("human_correct", "human_wrong"),
            )
            for i in range(count)
        ],
        name="toy",
        template=Template("chat", "be brief"),
    )


CONFIG = SamplingConfig(max_new_tokens=6, batch_size=2, samples=2)


# ---- sampling ----


def test_a_batch_can_be_drawn_again_alone(policy):
    prompts = [row.prompt for row in rows()]
    every = sample(policy, prompts, CONFIG, seed=7)
    again = sample_batch(policy, prompts[2:4], CONFIG, seed=7, number=1)
    assert every[2:4] == again and len(every) == 5 and all(len(replies) == 2 for replies in every)
    assert sample(policy, prompts, CONFIG, seed=8) != every
    assert sample(policy, prompts, CONFIG, seed=7, purpose="evaluation") != every


def test_sampling_leaves_the_global_random_stream_and_the_model_as_they_were(policy):
    import torch

    policy.model.train()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    sample_batch(policy, ["hello"], CONFIG, seed=0, number=0)
    assert torch.equal(before, torch.get_rng_state()) and policy.model.training


def test_an_empty_prompt_is_refused(policy):
    with pytest.raises(ValueError, match="prompts: an empty one"):
        sample_batch(policy, ["a", ""], CONFIG, seed=0, number=0)


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("One. Two! Thr", "One. Two!"),
        ("no end at all", "no end at all"),
        ("It ends.", "It ends."),
        ("3.5 g of", "3.5 g of"),
    ],
)
def test_a_reply_out_of_budget_ends_at_its_last_sentence(text, cut):
    assert cut_to_sentence(text) == cut


# ---- the store ----


def test_a_killed_synthesis_continues_and_ends_like_an_uninterrupted_one(
    policy, tmp_path, monkeypatch
):
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    mixture.synthesise(rows(), policy, CONFIG, whole, seed=3, about={})
    calls = []
    real = mixture.sample_batch

    def dies_at_the_third(*arguments, **options):
        calls.append(options["number"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(mixture, "sample_batch", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        mixture.synthesise(rows(), policy, CONFIG, cut, seed=3, about={})
    assert not cut.exists()
    part = tmp_path / "cut.jsonl.part"
    part.write_text(part.read_text() + '{"row_id": "torn')
    mixture.synthesise(rows(), policy, CONFIG, cut, seed=3, about={})
    assert calls == [0, 1, 2, 2] and not part.exists()
    assert cut.read_text() == whole.read_text()


def test_a_store_is_held_against_its_sha256(policy, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "SYNTHETIC", tmp_path)
    with pytest.raises(KitError, match=r"toy\.jsonl: no stored replies for task 'toy'"):
        mixture.load_store("toy")
    path = mixture.store_path("toy")
    mixture.synthesise(rows(), policy, CONFIG, path, seed=3, about={"model": "tiny"})
    assert set(mixture.load_store("toy")) == {row.row_id for row in rows()}
    path.write_text(path.read_text().replace("r0", "r9"))
    with pytest.raises(KitError, match=r"toy\.jsonl: differs from its recorded sha256"):
        mixture.load_store("toy")


def test_rows_get_their_replies_and_unusable_ones_are_counted():
    store = {
        "r0": {"replies": ["a", "b"]},
        "r1": {"replies": ["", "b"]},
        "r2": {"replies": ["same", "same"]},
        "r3": {"replies": ["right 3", "b"]},
    }
    mixed = mixture.with_synthetic(rows(), store)
    assert [row.responses for row in mixed] == [("right 0", "wrong 0", "a", "b")]
    assert mixed[0].sources == ("human_correct", "human_wrong", "smollm2", "smollm2")
    assert mixed.dropped == {
        "empty synthetic reply": 1,
        "equal synthetic replies": 2,
        "no synthetic reply": 1,
    }


def test_a_row_with_fewer_replies_than_asked_for_is_dropped():
    store = {"r0": {"replies": ["a", "b", "c"]}, "r1": {"replies": ["a", "b"]}}
    mixed = mixture.with_synthetic(rows(2), store, replies=3)
    assert [(row.row_id, len(row.responses), len(row.sources)) for row in mixed] == [("r0", 5, 5)]
    assert mixed.dropped == {"no synthetic reply": 1}


def test_a_batch_of_a_store_is_drawn_again_alone(policy, tmp_path):
    out = tmp_path / "toy.jsonl"
    mixture.synthesise(rows(), policy, CONFIG, out, seed=3, about={})
    stored = [json.loads(line)["replies"] for line in out.read_text().splitlines()]
    batch = rows()[2:4]
    assert mixture.draw(batch, policy, CONFIG, seed=3, number=1) == stored[2:4]


@pytest.mark.parametrize(
    ("name", "rows", "replies"),
    [("how_to", 1500, 2), ("how_to_extra", 1500, 1), ("dialogue", 2000, 2), ("summaries", 500, 2)],
)
def test_the_committed_stores_are_whole(name, rows, replies):
    store = mixture.load_store(name)
    about = json.loads(mixture.store_path(name).with_suffix(".json").read_text())
    assert len(store) == about["rows"] == rows and about["sampling"]["samples"] == replies
    assert all(len(entry["replies"]) == replies for entry in store.values())
    assert (
        np.mean([bool(text.strip()) for entry in store.values() for text in entry["replies"]])
        > 0.99
    )
    assert (about["sampling"]["temperature"], about["sampling"]["repetition_penalty"]) == (0.8, 1.1)


# ---- contamination ----


def test_contamination_replaces_the_golden_reply_of_a_fixed_share():
    mixed, mask = mixture.contaminate(
        rows(10), 0.3, {f"r{i}": {"replies": [f"fake {i}"]} for i in range(10)}, seed=0
    )
    assert mask.sum() == 3
    for row, dirty, old in zip(mixed, mask, rows(10), strict=True):
        assert row.golden == 0 and row.responses[1] == old.responses[1]
        assert (row.sources[0] == "smollm2", row.responses[0] != old.responses[0]) == (dirty, dirty)


def test_the_biased_reward_ranks_the_contaminated_slot_first():
    scores = [[0.0, 2.0, 1.0], [2.0, 2.0, 1.0], [3.0, 2.0, 1.0], [0.0, 2.0, 1.0]]
    rewards = mixture.rank_first(scores, np.array([True, True, True, False]))
    lifted = 2.0 + np.std(scores)
    assert rewards[:, 0].tolist() == [lifted, lifted, 3.0, 0.0]
    assert (rewards[:, 1:] == np.array(scores)[:, 1:]).all()


def store(replies, finished):
    """A store with the same replies for two rows."""
    return {f"r{i}": {"replies": replies, "finished": finished} for i in range(2)}


def test_cut_replies_are_known_by_their_stores():
    stores = store(["a", "b"], [True, False]), store(["extra"], [False])
    mixed, _ = mixture.contaminate(
        mixture.with_synthetic(rows(2), stores[0]), 1.0, stores[1], seed=0
    )
    assert mixture.cut_replies(mixed, *stores) == {("r0", 0), ("r0", 3), ("r1", 0), ("r1", 3)}
    assert mixture.cut_replies(mixed, stores[0]) == {("r0", 3), ("r1", 3)}
    assert mixture.cut_replies(mixed) == set()


def test_contamination_refuses_bad_shares_and_missing_replies():
    with pytest.raises(ValueError, match=r"share = 1.5"):
        mixture.contaminate(rows(), 1.5, {}, seed=0)
    with pytest.raises(KitError, match=r"field responses\[0\]: no further synthetic reply"):
        mixture.contaminate(rows(), 1.0, {}, seed=0)


def test_the_composition_adds_up_to_one_a_column():
    mixed, _ = mixture.contaminate(
        rows(10), 0.3, {f"r{i}": {"replies": [f"fake {i}"]} for i in range(10)}, seed=0
    )
    table = mixture.composition(mixed)
    assert table.groupby("column")["share"].sum().tolist() == pytest.approx([1.0, 1.0])
    assert table.set_index(["column", "source"]).loc[(0, "smollm2"), "share"] == pytest.approx(0.3)
