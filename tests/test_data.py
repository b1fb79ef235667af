import dataclasses
import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from robustpo_kit import assets, cli, data, policies, training
from robustpo_kit.data import Preference, PreferenceSet, Template
from robustpo_kit.data.reading import READERS
from robustpo_kit.errors import KitError

HH = Path(__file__).resolve().parents[2] / "shared" / "data" / "hh_harmless_1200.jsonl.gz"


def rows(count=6, k=2, rewards=False):
    return PreferenceSet(
        Preference(
            row_id=f"r{i}",
            group=f"g{i // 2}",
            prompt=f"prompt {i}",
            responses=tuple(f"response {i}.{j}" for j in range(k)),
            sources=tuple(f"s{j}" for j in range(k)),
            rewards=tuple(float(-j) for j in range(k)) if rewards else None,
        )
        for i in range(count)
    )


def write(path, *values):
    path.write_text(
        "".join((v if isinstance(v, str) else json.dumps(v)) + "\n" for v in values),
        encoding="utf-8",
    )
    return path


# --- rows and files


def test_a_set_survives_the_way_through_a_file(tmp_path):
    original = rows(k=3, rewards=True).with_h([0.5] * 6)
    original.to_jsonl(tmp_path / "set.jsonl")
    assert data.load(tmp_path / "set.jsonl").rows == original.rows


def test_pairs_may_come_as_chosen_and_rejected(tmp_path):
    (row,) = data.load(write(tmp_path / "p.jsonl", {"prompt": "q", "chosen": "a", "rejected": "b"}))
    assert (row.responses, row.golden, row.group) == (("a", "b"), 0, "q")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("{not json", "bad.jsonl, row 2: not JSON"),
        ([1, 2], "bad.jsonl, row 2: a JSON list; an object is expected"),
        ({"prompt": "q"}, "row 2, field responses|row 2, field chosen: missing"),
        (
            {"prompt": 3, "chosen": "a", "rejected": "b"},
            "row 2, field prompt: 3 has the wrong type",
        ),
        (
            {"prompt": "q", "chosen": "a", "rejected": None},
            "row 2, field rejected: None has the wrong type",
        ),
        ({"prompt": "q", "responses": ["a", ""]}, r"row 2, field responses\[1\]: empty"),
        ({"prompt": " ", "responses": ["a", "b"]}, "row 2, field prompt: empty"),
        (
            {"prompt": "q", "responses": ["a", "b"], "rewards": [1]},
            "row 2, field rewards: 1 for 2 responses",
        ),
        ({"prompt": "q", "responses": ["a", "b"], "rewards": [1, "x"]}, "row 2, field rewards"),
        (
            {"prompt": "q", "responses": ["a", "b"], "sources": ["x"]},
            "row 2, field sources: 1 for 2 responses",
        ),
        (
            {"prompt": "q", "responses": ["a", "b"], "golden": 2},
            "row 2, field golden: 2 is not a column",
        ),
        ({"prompt": "q", "responses": ["a", "b"], "h": -1}, "row 2, field h: -1"),
        ({"prompt": "q", "response": ["a", "b"]}, "row 2, field response: unknown"),
        (
            {"prompt": "q", "responses": ["a", "b"], "row_id": "1"},
            "row 2, field row_id: '1' appears twice",
        ),
    ],
)
def test_a_bad_row_is_named_by_file_row_and_field(tmp_path, value, words):
    path = write(tmp_path / "bad.jsonl", {"prompt": "fine", "chosen": "a", "rejected": "b"}, value)
    with pytest.raises(KitError, match=words):
        data.load(path)


def test_files_that_are_missing_empty_or_no_text_are_named(tmp_path):
    with pytest.raises(KitError, match=r"none\.jsonl: no such file"):
        data.load(tmp_path / "none.jsonl")
    with pytest.raises(KitError, match=r"empty\.jsonl: holds no rows"):
        data.load(write(tmp_path / "empty.jsonl"))
    whole = gzip.compress(json.dumps({"prompt": "q", "chosen": "a", "rejected": "b"}).encode())
    (tmp_path / "torn.jsonl.gz").write_bytes(whole[:-9])
    with pytest.raises(KitError, match=r"torn\.jsonl\.gz: cannot be read"):
        data.load(tmp_path / "torn.jsonl.gz")


# --- splits and flips


def test_splits_keep_groups_whole_and_apart():
    parts = rows(40).split({"a": 10, "b": 12}, seed=3)
    groups = [{row.group for row in part} for part in parts.values()]
    assert groups[0].isdisjoint(groups[1])
    assert {name: len(part) for name, part in parts.items()} == {"a": 10, "b": 12}
    assert [r.row_id for r in rows(40).split({"a": 10}, seed=3)["a"]] == [
        r.row_id for r in parts["a"]
    ]
    with pytest.raises(KitError, match="40 rows are too few"):
        rows(40).split({"a": 30, "b": 20}, seed=0)
    few = PreferenceSet(rows(4), dropped={"too long": 7, "malformed": 1})
    with pytest.raises(KitError, match=r"\(dropped before: 7 too long, 1 malformed\)"):
        few.split({"a": 5}, seed=0)


def test_flips_are_a_fixed_share_and_undo_themselves():
    flipped = rows(10).flip(0.3, seed=1)
    assert sum(row.flipped for row in flipped) == 3
    changed = [
        new for new, old in zip(flipped, rows(10), strict=True) if new.responses != old.responses
    ]
    assert all(row.flipped and row.golden == 1 for row in changed) and len(changed) == 3
    assert flipped.flip(1.0, seed=0).flip(1.0, seed=0).rows == flipped.rows


def test_a_flip_of_a_ranked_list_mirrors_the_ranking():
    (row, *_) = rows(1, k=4, rewards=True).flip(1.0, seed=0)
    assert row.rewards == (-3.0, -2.0, -1.0, 0.0) and row.responses == rows(1, k=4)[0].responses


def test_pairs_of_best_and_worst_follow_the_rewards():
    ranked = rows(1, k=3).with_rewards([[0.1, 0.9, -2.0]]).pairs("best_worst")
    assert ranked[0].responses == ("response 0.1", "response 0.2") and ranked[0].golden is None
    with pytest.raises(KitError, match="field rewards: missing"):
        rows(1, k=3).pairs("best_worst")


def test_arrays_of_the_wrong_shape_are_refused():
    with pytest.raises(ValueError, match="rewards: shape"):
        rows(2).with_rewards(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="h: expected 2 finite"):
        rows(2).with_h([1.0, float("nan")])


# --- templates and tasks


def test_a_chat_template_needs_a_tokenizer_that_has_one():
    with pytest.raises(ValueError, match="chat template"):
        Template("chat").render("hello", object())
    assert Template("plain").render("hello", object()) == "hello"


def asset_of(monkeypatch, path):
    monkeypatch.setattr(assets, "resolve", lambda name: path)


def test_how_to_reads_the_options_and_counts_what_it_drops(tmp_path, monkeypatch):
    good = {"question": "clean a cup", "options": "A. wash it\nB. drop it", "answer": "B. drop it"}
    values = [
        good,
        good,
        {"question": "x", "options": "wash it", "answer": "A. wash it"},
        {"question": "", "options": "A. a\nB. b", "answer": "A. a"},
        {"question": "long", "options": "A. " + "word " * 99 + "\nB. b", "answer": "A. a"},
        {"question": "same", "options": "A. a\nB. a", "answer": "A. a"},
    ]
    asset_of(monkeypatch, write(tmp_path / "piqa.jsonl", *values))
    loaded = data.load("how_to")
    assert [row.responses for row in loaded] == [("drop it", "wash it")]
    assert loaded.dropped == {
        "duplicate": 1,
        "malformed": 1,
        "empty": 1,
        "over-long": 1,
        "equal responses": 1,
    }
    assert loaded.template == data.TASKS["how_to"].template


def test_dialogue_pairs_a_reply_with_one_of_another_conversation(tmp_path, monkeypatch):
    turns = {
        k: [[{"text": f"{k} hello"}], [{"text": f"{k} hi you"}], [{"text": f"{k} fine"}]]
        for k in "abc"
    }
    path = tmp_path / "chat.json"
    path.write_text(json.dumps({k: {"messages": v} for k, v in turns.items()}))
    asset_of(monkeypatch, path)
    loaded = data.load("dialogue")
    assert len(loaded) == 6
    for row in loaded:
        own, other = row.responses
        assert own[0] == row.group and other[0] != row.group
        assert abs(len(own.split()) - len(other.split())) <= 1
        assert row.prompt.splitlines()[-1].startswith("A: ")  # the other speaks last


def test_summaries_take_the_other_summary_from_another_article(tmp_path, monkeypatch):
    values = [
        {"id": str(i), "document": f"article {i}", "summary": f"summary {i}"} for i in range(4)
    ]
    asset_of(monkeypatch, write(tmp_path / "xsum.jsonl", *values))
    for row in data.load("summaries"):
        assert row.responses[0] == f"summary {row.group}" and row.responses[1] != row.responses[0]


def test_the_papers_loaders_read_local_files_of_the_hubs_format(tmp_path):
    dialogue = "\n\nHuman: hi\n\nAssistant:"
    hh = write(tmp_path / "hh.jsonl", {"chosen": dialogue + " yes", "rejected": dialogue + " no"})
    (row,) = data.load("hh", hh)
    assert (row.prompt, row.responses, row.group) == (
        dialogue.strip(),
        (" yes", " no"),
        "hi",
    )
    assert row.prompt + row.responses[0] == (dialogue + " yes").strip()
    tldr = write(tmp_path / "tldr.jsonl", {"prompt": "post", "chosen": "a", "rejected": "b"})
    assert data.load("tldr", tldr)[0].responses == ("a", "b")
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    other = [messages[0], {"role": "assistant", "content": "b"}]
    feedback = write(tmp_path / "uf.jsonl", {"prompt": "q", "chosen": messages, "rejected": other})
    loaded = data.load("ultrafeedback", feedback)
    assert loaded[0].responses == ("a", "b") and loaded.template.kind == "chat"
    with pytest.raises(KitError, match="row 1, field rejected: missing"):
        data.load("hh", write(tmp_path / "bad.jsonl", {"chosen": "x"}))


@pytest.mark.skipif(not HH.exists(), reason="the HH-RLHF excerpt does not lie beside the project")
def test_real_hh_pairs_load_and_count_what_was_dropped():
    loaded = data.load("hh", HH)
    assert len(loaded) + sum(loaded.dropped.values()) == 1200
    assert all(row.prompt.endswith("Assistant:") for row in loaded)


def test_an_unknown_task_is_refused_with_the_known_ones():
    with pytest.raises(KitError, match="task: 'poems' is unknown; choose how_to"):
        data.load("poems")


def test_a_task_is_one_function_and_one_row(tmp_path, monkeypatch):
    def read_riddles(records, sieve):
        for name, _, value in records:
            answers = (value["right"], value["wrong"])
            sieve.add(Preference(f"riddle-{name}", name, value["riddle"], answers, ("a", "b")))

    row = data.Task(read_riddles, "riddles", template=Template("chat", "Be brief."), max_words=3)
    monkeypatch.setitem(data.TASKS, "riddles", row)
    long = {"riddle": "r", "right": "one two three four", "wrong": "w"}
    lines = ({"riddle": "q", "right": "a", "wrong": "b"}, long)
    loaded = data.load("riddles", write(tmp_path / "riddles.jsonl", *lines))
    assert [row.row_id for row in loaded] == ["riddle-1"] and loaded.name == "riddles"
    assert loaded.dropped == {"over-long": 1} and loaded.template == row.template
    asset_of(monkeypatch, tmp_path / "riddles.jsonl")
    assert data.load("riddles").rows == loaded.rows


def test_score_reads_a_tasks_prompts_as_training_does(tmp_path, monkeypatch, capsys):
    value = {"question": "clean a cup", "options": "A. wash it\nB. drop it", "answer": "A. wash it"}
    asset_of(monkeypatch, write(tmp_path / "piqa.jsonl", value))
    read = []
    monkeypatch.setattr(policies, "load", lambda name, **given: read.append(given["template"]))
    monkeypatch.setattr(training, "score", lambda policy, rows: (np.zeros((1, 2)), np.ones((1, 2))))
    assert cli.main(["score", "--data", "how_to", "--model", "tiny"]) == 0
    assert read == [data.TASKS["how_to"].template] and "logps" in capsys.readouterr().out


def test_the_readers_of_a_file_know_every_field_of_a_row():
    assert set(READERS) == {field.name for field in dataclasses.fields(Preference)}


def test_golden_only_keeps_the_golden_response_without_rewards():
    ranked = rows(2, k=3, rewards=True)
    other = ranked.map(lambda row: dataclasses.replace(row, golden=2))
    assert [row.responses for row in other.golden_only()] == [("response 0.2",), ("response 1.2",)]
    (first, _) = other.golden_only()
    assert (first.golden, first.sources, first.rewards) == (0, ("s2",), None)
    assert len(ranked.map(lambda row: dataclasses.replace(row, golden=None)).golden_only()) == 0


def test_pairs_of_an_unknown_kind_are_refused():
    with pytest.raises(ValueError, match="how = 'worst': 'columns' or 'best_worst'"):
        rows(1).pairs("worst")
