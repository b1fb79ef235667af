"""Preference files as people have them: every shape, every container, and what is broken in one."""

import contextlib
import copy
import gzip
import json

import datasets
import pandas as pd
import pytest
from trl import data_utils

from robustpo_kit import calibration, cli, data, paths, policies, records, training
from robustpo_kit.auditing import checks
from robustpo_kit.data import (
    Conversation,
    PreferenceSet,
    Template,
    containers,
    loading,
    packing,
    tasks,
)
from robustpo_kit.errors import KitError
from robustpo_kit.policies import tokens

TURNS = "\n\nHuman: May I feed {i} geese?\n\nAssistant: What?\n\nHuman: Bread.\n\nAssistant:"


def said(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def talk(i: int, reply: str | None = None) -> list[dict[str, str]]:
    """A system's message, two turns of a user; and the reply."""
    turns = [
        said("system", "Be kind."),
        said("user", f"Is {i} odd?"),
        said("assistant", "Is it?"),
        said("user", "Yes or no?"),
    ]
    return turns if reply is None else [*turns, said("assistant", reply)]


def hh(i: int) -> dict:
    start = TURNS.format(i=i)
    return {"chosen": f"{start} Better oats {i}.", "rejected": f"{start} Why not?"}


def pair(i: int) -> dict:
    return {"prompt": f"Is {i} odd?", "chosen": f"It is, {i}.", "rejected": "No."}


def pair_of_messages(i: int) -> dict:
    replies = ([said("assistant", f"It is, {i}.")], [said("assistant", "No.")])
    return {"prompt": talk(i), "chosen": replies[0], "rejected": replies[1]}


def implicit(i: int) -> dict:
    return {"chosen": talk(i, f"It is, {i}."), "rejected": talk(i, "No.")}


def common_beginning(i: int) -> dict:
    return {"chosen": f"The number {i} is odd.", "rejected": f"The number {i} is even."}


def binarized(i: int) -> dict:
    asked = f"Is {i} odd?"
    chosen = [said("user", asked), said("assistant", f"It is, {i}.")]
    rejected = [said("user", asked), said("assistant", "No.")]
    values = {"prompt": asked, "prompt_id": f"{i:064x}", "chosen": chosen, "rejected": rejected}
    return values | {"messages": chosen, "score_chosen": 8.5, "score_rejected": 4.0}


def completions(i: int) -> dict:
    made = [
        {
            "model": model,
            "response": f"{model} says {i}",
            "overall_score": score,
            "fine-grained_score": 3.0,
            "annotations": {"honesty": {"Rating": "4", "Rationale": "It is."}},
            "custom_system_prompt": "Be brief.",
            "principle": "honesty",
            "critique": "Good.",
        }
        for model, score in (("falcon", 6.5), ("gpt-4", 8.0), ("mpt", 3.0), ("alpaca", 4.0))
    ]
    names = [entry["model"] for entry in made]
    return {"source": "flan", "instruction": f"Is {i} odd?", "models": names, "completions": made}


def on_policy(i: int) -> dict:
    replies = [f"reply {k} to {i}" for k in range(5)]
    chosen = [said("user", f"Is {i} odd?"), said("assistant", replies[4])]
    return {
        "prompt_id": str(i),
        "prompt": f"Is {i} odd?",
        "all_generated_responses": replies,
        "all_rm_scores": [0.1, 0.12, 0.05, 0.2, 0.25],
        "chosen": chosen,
        "rejected": [chosen[0], said("assistant", replies[2])],
    }


def comparison(i: int) -> dict:
    post = {"id": f"t3_{i}", "post": f"I have {i} geese.", "title": "Geese", "subreddit": "farm"}
    summaries = [
        {"text": f" {i} geese.", "policy": "sup4", "note": ""},
        {"text": " Has geese.", "policy": "ref", "note": ""},
    ]
    info = post | {"site": None, "article": None}
    return {"info": info, "summaries": summaries, "choice": 1, "worker": "w", "batch": "b3"}


def tldr(i: int) -> dict:
    post = f"SUBREDDIT: r/farm\nTITLE: Geese\nPOST: I have {i} geese."
    return {"prompt": post, "chosen": f"TL;DR: {i} geese.", "rejected": "TL;DR: Geese."}


def listwise(i: int) -> dict:
    values = {"prompt": f"Is {i} odd?", "responses": ["Yes.", "No.", f"Is {i}?"]}
    return values | {"rewards": [1, 0.5, -1], "h": 0.5, "golden": 2, "sources": ["a", "b", "c"]}


def unpaired(i: int) -> dict:
    return {"prompt": f"Is {i // 2} odd?", "completion": f"Reply {i}.", "label": i % 2 == 1}


ASKED = Conversation.of(talk(1))
# name: a row's maker, the shape as it is said; of row 1 prompt, responses, rewards, sources
SHAPES = {
    "trl": (pair, "pairs (prompt", "Is 1 odd?", ("It is, 1.", "No."), None, None),
    "trl messages": (pair_of_messages, "pairs (prompt", ASKED, ("It is, 1.", "No."), None, None),
    "implicit": (implicit, "pairs of messages", ASKED, ("It is, 1.", "No."), None, None),
    "implicit text": (
        common_beginning,
        "pairs with a common beginning",
        "The number 1 is",
        (" odd.", " even."),
        None,
        None,
    ),
    "hh": (
        hh,
        "HH-RLHF transcripts",
        TURNS.format(i=1).strip(),
        (" Better oats 1.", " Why not?"),
        None,
        None,
    ),
    "binarized": (
        binarized,
        "pairs with scores, as UltraFeedback binarized (prompt_id, messages not read)",
        "Is 1 odd?",
        ("It is, 1.", "No."),
        (8.5, 4.0),
        None,
    ),
    "completions": (
        completions,
        "UltraFeedback completions",
        "Is 1 odd?",
        ("falcon says 1", "gpt-4 says 1", "mpt says 1", "alpaca says 1"),
        (6.5, 8.0, 3.0, 4.0),
        ("falcon", "gpt-4", "mpt", "alpaca"),
    ),
    "on policy": (
        on_policy,
        "on-policy replies with scores",
        "Is 1 odd?",
        tuple(f"reply {k} to 1" for k in range(5)),
        (0.1, 0.12, 0.05, 0.2, 0.25),
        tuple(f"source_{k}" for k in range(5)),
    ),
    "openai tldr": (
        comparison,
        "TL;DR comparisons",
        "SUBREDDIT: r/farm\n\nTITLE: Geese\n\nPOST: I have 1 geese.\n\nTL;DR:",
        (" Has geese.", " 1 geese."),
        None,
        ("ref", "sup4"),
    ),
    "carper tldr": (
        tldr,
        "pairs (prompt",
        "SUBREDDIT: r/farm\nTITLE: Geese\nPOST: I have 1 geese.",
        ("TL;DR: 1 geese.", "TL;DR: Geese."),
        None,
        None,
    ),
    "listwise": (
        listwise,
        "prompt and responses",
        "Is 1 odd?",
        ("Yes.", "No.", "Is 1?"),
        (1.0, 0.5, -1.0),
        ("a", "b", "c"),
    ),
    "kto": (unpaired, "unpaired replies", "Is 1 odd?", ("Reply 3.", "Reply 2."), None, None),
}
COUNT = 6  # rows of a file; of unpaired ones half as many pairs


def lines(path, *values):
    text = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
    path.write_text(text, encoding="utf-8")
    return path


def rows_of(name: str) -> list[dict]:
    return [SHAPES[name][0](i) for i in range(COUNT)]


# ---------------------------------------------------------------- shapes


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_is_found_out_said_and_read(tmp_path, name):
    _, shape, prompt, responses, rewards, sources = SHAPES[name]
    loaded = data.load(lines(tmp_path / "rows.jsonl", *rows_of(name)))
    row = loaded[1]
    assert row.prompt == prompt and row.responses == responses and row.rewards == rewards
    assert row.sources == (sources or ("chosen", "rejected"))
    count = COUNT // 2 if name == "kto" else COUNT
    words = loaded.describe()
    assert (
        words.startswith(f"rows.jsonl: {shape}")
        and f", {count} rows, K = {len(responses)}" in words
    )
    loaded.to_jsonl(tmp_path / "again.jsonl")
    again = data.load(tmp_path / "again.jsonl")
    assert again.rows == loaded.rows
    assert [turns(row) for row in again] == [turns(row) for row in loaded]


def turns(row) -> tuple | None:
    return row.prompt.messages if isinstance(row.prompt, Conversation) else None


def test_who_is_best_is_claimed_only_where_the_file_says_it(tmp_path):
    golden = {"listwise": 2, "completions": None, "on policy": None}
    for name in SHAPES:
        (row, *_) = data.load(lines(tmp_path / "rows.jsonl", *rows_of(name)))
        assert row.golden == golden.get(name, 0), name


def test_hh_is_read_by_task_and_by_file_alike(tmp_path):
    path = lines(tmp_path / "hh.jsonl", *rows_of("hh"))
    task, file = data.load("hh", path), data.load(path)
    assert [row.row_id for row in task] == [f"hh-{row.row_id}" for row in file]
    for one, other in zip(task, file, strict=True):
        assert (one.prompt, one.responses, one.group) == (
            other.prompt,
            other.responses,
            other.group,
        )
    assert file[0].group == "may i feed 0 geese?"


def asked_as_text(reply: str) -> dict:
    return {"prompt": "May I feed 1  geese? ", "chosen": reply, "rejected": f"not {reply}"}


def asked_as_message(reply: str) -> dict:
    message = {"content": "May I feed 1 geese?", "role": "user"}
    chosen, rejected = ([said("assistant", text)] for text in (reply, f"not {reply}"))
    return {"prompt": [message], "chosen": chosen, "rejected": rejected}


def asked_in_a_transcript(reply: str) -> dict:
    start = "\n\nHuman: may I feed 1 geese?\n\nAssistant:"
    return {"chosen": f"{start} {reply}", "rejected": f"{start} not {reply}"}


def asked_as_a_transcript(reply: str) -> dict:
    """As Dahoas/full-hh-rlhf has prompts."""
    start = "\n\nHuman: May I feed 1 geese?\n\nAssistant:"
    return {"prompt": start, "chosen": f" {reply}", "rejected": f" not {reply}"}


ASKING = (asked_as_text, asked_as_message, asked_in_a_transcript, asked_as_a_transcript)


@pytest.mark.parametrize("other", ASKING)
@pytest.mark.parametrize("one", ASKING)
def test_a_question_is_one_prompt_in_whatever_form(tmp_path, one, other):
    """Whoever compares prompts: training, splits, calibration, the audit."""
    rows = data.load(lines(tmp_path / "rows.jsonl", one("yes"), pair(7)))
    heldout = data.load(lines(tmp_path / "held.jsonl", other("no"), pair(8)))
    with pytest.raises(KitError, match=r"held-out row 1 \(1 of 2\): its prompt is among the train"):
        training.check_heldout(rows, heldout)
    assert checks.leak_table(rows, heldout)[["row_id", "kind"]].values.tolist() == [["1", "prompt"]]
    told = calibration.told_by_trusted(rows, heldout)
    assert [row.row_id for row in told.rows] == ["trusted 2"]
    same = data.load(lines(tmp_path / "held.jsonl", other("yes")))
    assert checks.as_labelled(same, rows).tolist() == [1]
    both = data.load(lines(tmp_path / "rows.jsonl", one("yes"), other("no")))
    assert len({row.group for row in both}) == 1
    named = [one("yes") | {"group": "a"}, other("no") | {"group": "b"}]
    assert len({row.group for row in data.load(lines(tmp_path / "rows.jsonl", *named))}) == 1


def test_turns_of_one_conversation_are_one_group(tmp_path):
    """In transcripts as prompts, too; the audit's leaks are what training refuses."""
    values = [hh(1), asked_as_a_transcript("yes"), asked_as_text("no")]
    prompts = {"prompt": TURNS.format(i=1), "chosen": "a", "rejected": "b"}
    rows = data.load(lines(tmp_path / "rows.jsonl", *values, prompts))
    assert {row.group for row in rows} == {"may i feed 1 geese?"}
    assert rows[3].prompt == rows[0].prompt and turns(rows[3]) == turns(rows[0])
    train, heldout = rows.select([1, 2]), rows.select([0])
    assert checks.leak_table(train, heldout)["kind"].tolist() == ["group", "group"]
    with pytest.raises(KitError, match="its group 'may i feed 1 geese\\?' is among"):
        training.check_heldout(train, heldout)


def test_a_row_brings_the_kits_own_fields_in_any_shape(tmp_path):
    given = {"h": 0.5, "flipped": True, "row_id": "a", "group": "g", "rewards": [2, 1], "c": 0.1}
    for make in (hh, pair, implicit):
        loaded = data.load(lines(tmp_path / "rows.jsonl", make(0) | given))
        assert (loaded[0].h, loaded[0].flipped, loaded[0].row_id) == (0.5, True, "a")
        assert (loaded[0].group, loaded[0].rewards) == ("g", (2.0, 1.0))
        assert "(c not read)" in loaded.describe()


def test_the_prompts_messages_are_those_before_the_reply(tmp_path):
    """UltraFeedback has the prompt twice; a system's message is in the dialogue alone."""
    full = {"prompt": "Yes or no?", "chosen": talk(1, "Yes."), "rejected": talk(1, "No.")}
    (row,) = data.load(lines(tmp_path / "rows.jsonl", full))
    assert turns(row) == tuple(talk(1))
    both = full | {"prompt": talk(1)}
    assert data.load(lines(tmp_path / "rows.jsonl", both)).rows == (row,)
    wrong = full | {"prompt": talk(2)}
    with pytest.raises(
        KitError, match="row 1, field chosen: the messages before the reply are oth"
    ):
        data.load(lines(tmp_path / "rows.jsonl", wrong))


def test_one_speakers_turns_in_a_row_are_one_message():
    read = Conversation.read("\n\nHuman: a\n\nHuman: b\n\nAssistant: c\n\nHuman: d\n\nAssistant:")
    assert [m["content"] for m in read.messages] == ["a\n\nb", "c", "d"]
    assert [m["role"] for m in read.messages] == ["user", "assistant", "user"]


def test_unpaired_replies_are_paired_once_each_or_refused(tmp_path):
    rows = [("p", "good", True), ("q", "alone", 1), ("p", "fine", True), ("p", "bad", 0)]
    values = [{"prompt": p, "completion": c, "label": label} for p, c, label in rows]
    path = lines(tmp_path / "kto.jsonl", *values)
    with pytest.raises(KitError, match="row 3, field label: no reply to this prompt has the other"):
        data.load(path)
    loaded = data.load(path, on_bad_row="skip")
    assert [row.responses for row in loaded] == [("good", "bad")]
    assert loaded.dropped == {"label without its opposite": 2}
    with pytest.raises(KitError, match="row 1, field label: 'yes'; true or false is expected"):
        data.load(lines(path, values[0] | {"label": "yes"}))
    with pytest.raises(KitError, match="holds no rows but bad ones"):
        data.load(lines(path, values[1]), on_bad_row="skip")


def kto(completion: object, label: bool, prompt: str = "p") -> dict:
    return {"prompt": prompt, "completion": completion, "label": label}


def test_a_bad_unpaired_reply_takes_no_other_with_it(tmp_path):
    values = [kto("good", True), kto(" ", False), kto("bad", False), kto("", True)]
    path = lines(tmp_path / "kto.jsonl", *values)
    with pytest.raises(KitError, match="row 2, field completion: empty"):
        data.load(path)
    loaded = data.load(path, on_bad_row="skip")
    assert [row.responses for row in loaded] == [("good", "bad")]
    assert loaded.dropped == {"completion empty": 2}
    same = lines(path, *values[:1], kto("good", False), kto("a", True, "q"), kto("b", False, "q"))
    assert data.load(same, on_bad_row="skip").dropped == {"completion equal": 2}


def test_each_row_is_read_by_its_own_shape(tmp_path):
    path = lines(tmp_path / "rows.jsonl", pair(0), unpaired(1), unpaired(2), binarized(3))
    with pytest.raises(KitError, match="row 2, field completion: an unpaired reply in a file that"):
        data.load(path)
    loaded = data.load(path, on_bad_row="skip")
    assert [row.row_id for row in loaded] == ["1", "4"]
    assert loaded.dropped == {"completion unpaired among other rows": 2}
    assert "(prompt, chosen, rejected); also pairs with scores, as Ultra" in loaded.describe()
    loaded = data.load(lines(path, pair(0), hh(1)))
    assert loaded[1] == data.load(lines(path, {}, hh(1)), on_bad_row="skip")[0]


def test_transcripts_need_no_leading_blanks_but_their_beginning(tmp_path):
    bare = {key: text.lstrip() for key, text in hh(1).items()}
    path = lines(tmp_path / "rows.jsonl", bare)
    assert data.load(path)[0] == data.load(lines(path, hh(1)))[0]
    headed = {key: f"System: Be kind.{text}" for key, text in hh(1).items()}
    with pytest.raises(KitError, match="field chosen: a transcript that does not begin with 'Hum"):
        data.load(lines(path, headed))


@pytest.mark.parametrize("name", ["question", "instruction", "promt", "Prompt", "system", "input"])
def test_a_prompt_of_another_name_is_asked_after(tmp_path, name):
    path = lines(tmp_path / "rows.jsonl", common_beginning(1) | {name: "Is it?"})
    with pytest.raises(KitError, match=f"field {name}: is it the prompt\\? Call it prompt"):
        data.load(path)
    both = {"system": "Be kind.", "question": "Is it?"} | common_beginning(1)
    with pytest.raises(KitError, match="field question: is it the prompt"):
        data.load(lines(path, both))
    known = common_beginning(1) | {"prompt_id": "7", "source": "x", "input": ""}
    assert data.load(lines(path, known))[0].prompt == "The number 1 is"


def test_replies_that_repeat_their_prompt_are_told_and_cut_from_transcripts(tmp_path):
    start = TURNS.format(i=1)
    path = lines(tmp_path / "rows.jsonl", {"prompt": start} | hh(1))
    assert data.load(path)[0] == data.load(lines(path, hh(1)))[0]
    twice = {"prompt": "Is 1 odd? ", "chosen": "Is 1 odd? It is.", "rejected": "Is 1 odd? No."}
    rows = data.load(lines(path, twice, pair(2)))
    assert rows[0].responses == ("Is 1 odd? It is.", "Is 1 odd? No.")
    assert "; in 1 of 2 rows both replies begin with the prompt" in rows.describe()
    assert "begin with" not in data.load(lines(path, pair(2))).describe()


def test_fields_that_are_not_read_are_told_of_any_row(tmp_path):
    path = lines(tmp_path / "rows.jsonl", pair(1), pair(2) | {"flip": 1}, hh(3) | {"note": "x"})
    said = "(prompt, chosen, rejected) (flip not read); also HH-RLHF transcripts (note not read)"
    assert said in data.load(path).describe()


def test_keys_of_a_message_have_no_order(tmp_path):
    prompts = ([said("user", "q")], [{"content": "q", "role": "user"}], "q", "q")
    values = [kto(f"reply {n}", n % 2 == 0, p) for n, p in enumerate(prompts)]
    assert len(data.load(lines(tmp_path / "kto.jsonl", *values))) == 2


@pytest.mark.parametrize("name", ["row_id", "group"])
def test_a_name_that_is_not_utf8_is_named(tmp_path, name):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(pair(1) | {name: "@"}).encode().replace(b"@", b"\xff") + b"\n")
    with pytest.raises(KitError, match=f"rows.jsonl, row 1, field {name}: not UTF-8 at character"):
        data.load(path)


def test_the_path_of_a_tasks_name_is_told(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    lines(tmp_path / "hh", pair(1))
    monkeypatch.setattr(tasks, "records_of", lambda *given: iter(()))
    with contextlib.suppress(KitError):
        data.load("hh")
    assert "hh: the task is read, not what lies here; ./hh names that" in caplog.text
    assert data.load("./hh")[0].responses == ("It is, 1.", "No.")


@pytest.mark.parametrize(
    ("texts", "prompt"),
    [
        (("Say one two", "Say one three"), "Say one"),
        (("Say 17", "Say 18"), "Say"),
        (("The cat", "The cats"), "The"),
        (("X:yes", "X:no"), "X:"),
        (("你好吗", "你好呀"), "你好"),
    ],
)
def test_a_common_beginning_ends_with_a_word(tmp_path, texts, prompt):
    path = lines(tmp_path / "rows.jsonl", dict(zip(("chosen", "rejected"), texts, strict=True)))
    (row,) = data.load(path)
    assert row.prompt == prompt
    assert tuple(row.prompt + reply for reply in row.responses) == texts


def dialogue(*turns: str) -> str:
    """Turns of a human and an assistant, alternately."""
    return "".join(f"\n\n{('Human', 'Assistant')[n % 2]}: {t}" for n, t in enumerate(turns))


@pytest.mark.parametrize(
    ("one", "other", "why"),
    [
        (("a", "b", "c"), ("a", "d", "c"), "another turn stands behind the reply"),
        (("a", "b", "thanks"), ("a", "d"), "another turn stands behind the reply"),
        (("a", "b and so"), ("a", "b", "c", "e"), "chosen and rejected part before their last"),
        (("a", "b", "c", "d"), ("a", "x", "c", "e"), "chosen and rejected part before their last"),
        (("a",), ("b",), "chosen and rejected part before their last"),
    ],
)
def test_dialogues_differ_in_their_last_replies_alone_on_either_side(tmp_path, one, other, why):
    for chosen, rejected in ((one, other), (other, one)):
        value = {"chosen": dialogue(*chosen), "rejected": dialogue(*rejected)}
        path = lines(tmp_path / "hh.jsonl", value)
        with pytest.raises(KitError, match=f"row 1.*: {why}"):
            data.load(path)
        assert sum(data.load("hh", path).dropped.values()) == 1


def grouped(*groups: str | None, prompts: str) -> list[dict]:
    """A row a letter of `prompts`, of a group each."""
    rows = [{"prompt": p, "chosen": f"{n} a", "rejected": "b"} for n, p in enumerate(prompts)]
    return [row | {"group": group} for row, group in zip(rows, groups, strict=True)]


def test_rows_of_one_prompt_are_of_one_group(tmp_path):
    path = lines(tmp_path / "rows.jsonl", *grouped("a", "b", "c", "b", "d", prompts="pqpqr"))
    loaded = data.load(path)
    assert [row.group for row in loaded] == ["a", "b", "a", "b", "d"]
    assert "; 1 groups joined to others that have the same prompts, 5 rows" in loaded.describe()
    chained = data.load(lines(path, *grouped("a", "b", "b", None, "a", prompts="ppqqr")))
    assert {row.group for row in chained} == {"a"}
    assert "joined" not in data.load(lines(path, *grouped("a", "a", "b", prompts="pqr"))).describe()


# ---------------------------------------------------------------- messages as model input

CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBy default.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def tokenizer():
    made = policies.byte_tokenizer()
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.chat_template = CHATML
    return made


@pytest.mark.parametrize("name", ["trl messages", "implicit", "binarized", "hh"])
def test_model_input_is_the_chat_template_over_the_messages(tmp_path, tokenizer, name):
    """Token for token what the template makes of the dialogue with its reply, to its end token."""
    (row, *_) = loaded = data.load(lines(tmp_path / "rows.jsonl", *rows_of(name)))
    (tokens, *_) = policies.tokenize(loaded, tokenizer, Template("chat")).rows
    asked = list(turns(row) or [said("user", row.prompt)])
    for ids, reply in zip(tokens.responses, row.responses, strict=True):
        whole = [*asked, said("assistant", reply.strip())]
        text = tokenizer.apply_chat_template(whole, tokenize=False).removesuffix("\n")
        expected = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert [*tokens.prompt, *ids] == expected


@pytest.mark.parametrize("make", [pair_of_messages, implicit, binarized])
def test_trl_makes_the_same_text_of_messages(tmp_path, tokenizer, make):
    (row,) = data.load(lines(tmp_path / "rows.jsonl", make(3)))
    theirs = {key: make(3)[key] for key in ("prompt", "chosen", "rejected") if key in make(3)}
    theirs = data_utils.apply_chat_template(data_utils.maybe_extract_prompt(theirs), tokenizer)
    template = Template("chat")
    assert template.render(row.prompt, tokenizer) == theirs["prompt"]
    for ours, name in zip(row.responses, ("chosen", "rejected"), strict=True):
        assert template.reply(row.prompt, ours) + "<|im_end|>\n" == theirs[name]


def test_an_implicit_prompt_of_text_is_trls(tmp_path):
    (row,) = data.load(lines(tmp_path / "rows.jsonl", common_beginning(7)))
    theirs = data_utils.extract_prompt(common_beginning(7))
    assert [row.prompt, *row.responses] == [theirs[k] for k in ("prompt", "chosen", "rejected")]


def test_without_a_chat_template_a_model_reads_the_transcript(tmp_path, tokenizer):
    (row,) = data.load(lines(tmp_path / "hh.jsonl", hh(1)))
    plain = Template("plain")
    whole = plain.render(row.prompt, tokenizer) + plain.reply(row.prompt, row.responses[0])
    assert whole == hh(1)["chosen"].strip()
    asked = Conversation.of([said("user", "hi")])
    assert plain.render(asked, tokenizer) + plain.reply(asked, "yes") == (
        "Human: hi\n\nAssistant: yes"
    )


def test_a_template_that_refuses_messages_is_named(tokenizer):
    tokenizer.chat_template = "{{ raise_exception('no system here') }}"
    with pytest.raises(KitError, match="refuses messages of the roles system, user, assistant, us"):
        Template("chat").render(ASKED, tokenizer)


def test_a_template_with_a_system_of_its_own_adds_it_once(tokenizer):
    template = Template("chat", system="Be brief.")
    assert "Be brief." not in template.render(ASKED, tokenizer)
    assert template.render(Conversation.of([said("user", "hi")]), tokenizer).count("Be brief.") == 1


def test_copies_of_a_conversation_keep_its_messages():
    made = copy.deepcopy(ASKED)
    assert made == ASKED and made.messages == ASKED.messages


# ---------------------------------------------------------------- containers


def as_csv(values, path):
    cells = [{k: v if isinstance(v, str) else json.dumps(v) for k, v in v.items()} for v in values]
    pd.DataFrame(cells).to_csv(path, index=False)


def as_saved_splits(values, path):
    rows = datasets.Dataset.from_list(values)
    datasets.DatasetDict({"train": rows, "test": rows.select([0])}).save_to_disk(path)


CONTAINERS = {
    "rows.jsonl.gz": lambda values, path: path.write_bytes(
        gzip.compress("".join(json.dumps(v) + "\n" for v in values).encode())
    ),
    "rows.txt": lambda values, path: lines(path, *values),
    "lines.json": lambda values, path: lines(path, *values),
    "array.json": lambda values, path: path.write_text(json.dumps(values, indent=1)),
    "rows.csv": as_csv,
    "rows.csv.gz": as_csv,
    "rows.parquet": lambda values, path: pd.DataFrame(values).to_parquet(path),
    "saved": lambda values, path: datasets.Dataset.from_list(values).save_to_disk(path),
    "splits": as_saved_splits,
}


@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.parametrize("shape", ["hh", "trl messages", "listwise", "kto", "completions"])
def test_every_container_gives_the_same_rows(tmp_path, name, shape):
    values = rows_of(shape)
    CONTAINERS[name](values, tmp_path / name)
    loaded = data.load(tmp_path / name)
    assert loaded.rows == data.load(lines(tmp_path / "same.jsonl", *values)).rows
    assert loaded.name == name


def test_splits_are_chosen_and_named(tmp_path):
    as_saved_splits(rows_of("hh"), tmp_path / "splits")
    assert len(data.load(tmp_path / "splits", split="test")) == 1
    with pytest.raises(KitError, match="splits: no split 'dev'; --split is one of train, test"):
        data.load(tmp_path / "splits", split="dev")
    with pytest.raises(KitError, match="a file has no split 'dev'"):
        data.load(lines(tmp_path / "hh.jsonl", hh(0)), split="dev")


def test_a_hub_id_is_asked_of_the_hub(monkeypatch):
    asked = []

    def load_dataset(*arguments, split):
        asked.append((*arguments, split))
        if arguments[0] == "nobody/none":
            raise FileNotFoundError("Dataset 'nobody/none' doesn't exist\non the Hub")
        rows = datasets.Dataset.from_list(rows_of("hh"))
        return rows if split else datasets.DatasetDict({"train": rows})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(data.load("some/set")) == len(data.load("some/set:part", split="test[:9]")) == COUNT
    assert len(data.load("hh")) == COUNT
    assert asked == [
        ("some/set", None, None),
        ("some/set", "part", "test[:9]"),
        ("Anthropic/hh-rlhf", None, "train"),
    ]
    with pytest.raises(KitError, match="nobody/none: neither a local .* doesn't exist\\)"):
        data.load("nobody/none")


# ---------------------------------------------------------------- many rows


def test_many_rows_are_kept_on_disk_and_are_the_same(tmp_path, monkeypatch):
    values = [{**pair_of_messages(i), "h": [0.1, 1 / 3]} for i in range(40)] + [hh(1), listwise(2)]
    path = lines(tmp_path / "rows.jsonl", *values[:40], *rows_of("listwise"))
    before = data.load(path)
    monkeypatch.setattr(packing, "IN_MEMORY", 300)
    after = data.load(path)
    assert isinstance(after.rows, packing.Packed) and isinstance(before.rows, tuple)
    assert list(after) == list(before) and [turns(r) for r in after] == [turns(r) for r in before]
    assert after[-1] == before[-1] and after[3:5].rows == before[3:5].rows
    assert list(after.select([7, 1])) == list(before.select([7, 1]))
    assert list(after.flip(0.5, seed=1)) == list(before.flip(0.5, seed=1))
    assert after.responses_per_prompt == 3 and "46 rows, K = 2 to 3" in after.describe()


@pytest.mark.parametrize("mismatched", [False, True])
def test_tokens_are_the_same_however_many_rows_are_taken_at_once(tmp_path, monkeypatch, mismatched):
    loaded = data.load(lines(tmp_path / "rows.jsonl", *rows_of("hh")))
    given = (loaded, policies.byte_tokenizer(), Template("plain"))
    whole = policies.tokenize(*given, mismatched=mismatched)
    monkeypatch.setattr(tokens, "ROWS_AT_ONCE", 4)
    assert policies.tokenize(*given, mismatched=mismatched) == whole
    assert len(whole.rows[0].responses) == 2 + mismatched


# ---------------------------------------------------------------- bad rows and broken files


def test_skipped_rows_are_named_and_counted(tmp_path, caplog):
    bad = [pair(1) | {"chosen": ""}, {"prompt": "q"}, pair(2) | {"rejected": 3}, "{torn"]
    good = [json.dumps(value) for value in (pair(0), *bad[:3], pair(3))]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([bad[3], *good]) + "\n")
    loaded = data.load(path, on_bad_row="skip")
    assert len(loaded) == 2 and [row.row_id for row in loaded] == ["2", "6"]
    assert loaded.dropped == {
        "not JSON": 1,
        "chosen empty": 1,
        "responses missing": 1,
        "rejected of a wrong type": 1,
    }
    assert "rows.jsonl, row 3, field chosen (responses[0]): empty" in caplog.text
    assert "dropped: 1 not JSON, 1 chosen empty" in loaded.describe()
    with pytest.raises(KitError, match="on_bad_row: 'drop' should be one of raise, skip"):
        data.load(path, on_bad_row="drop")
    factors = lines(path, pair(0), pair(1) | {"h": float("inf")}, pair(2) | {"h": -1})
    dropped = data.load(factors, on_bad_row="skip").dropped
    assert dropped == {"h not finite": 1, "h below 0": 1}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"text": "a"}, "row 1: fields text: no preferences; give prompt"),
        ({"prompt": "a", "chosen": "b", "reject": "c"}, "field reject: unknown; rejected is meant"),
        (pair(1) | {"chosen": [said("user", "b")]}, "field chosen: ends with a message of user"),
        (pair(1) | {"chosen": [{"role": "user"}]}, r"field chosen\[0\]\.content: None has the wr"),
        (pair(1) | {"prompt": talk(1, "c")}, "field prompt: ends with an assistant's message"),
        (hh(1) | {"rejected": hh(2)["rejected"]}, "chosen and rejected part before their last"),
        ({"chosen": "yes", "rejected": "no"}, "field prompt: missing, and chosen and rejected"),
        (comparison(1) | {"choice": 2}, "field choice: 2 of 2 summaries"),
        (comparison(1) | {"info": {}}, "field info.article: None has the wrong type"),
        (completions(1) | {"completions": "x"}, "field completions: 'x' has the wrong type"),
        (on_policy(1) | {"all_rm_scores": [1]}, "field rewards: 1 for 5 responses"),
        (pair(1) | {"chosen": "\ud800"}, "field chosen: not UTF-8 at character 0"),
        (pair(1) | {"h": float("inf")}, "field h: inf; a finite value >= 0"),
        (implicit(1) | {"prompt": "Else?"}, "field chosen: the messages before the reply are oth"),
        (on_policy(1) | {"all_rm_scores": None}, "field all_rm_scores: missing"),
        (
            implicit(1)
            | {"chosen": [said("user", "4?"), {"role": "assistant", "tool_calls": [1]}]},
            r"field chosen\[1\].content: none, but tool calls; only messages with text are read",
        ),
    ],
)
def test_what_a_row_lacks_is_named(tmp_path, value, words):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(value) + "\n")
    with pytest.raises(KitError, match=words):
        data.load(path)


def test_rows_and_files_of_other_containers_are_named(tmp_path, monkeypatch):
    (tmp_path / "rows.csv").write_text("prompt,chosen,rejected\nq,a,b\nq,a\n")
    with pytest.raises(KitError, match=r"rows\.csv, row 2: other than 3 cells"):
        data.load(tmp_path / "rows.csv")
    (tmp_path / "rows.csv").write_text("prompt,chosen,rejected,chosen\nq,a,b,c\n")
    with pytest.raises(KitError, match=r"rows\.csv: column chosen stands in the header 2 times"):
        data.load(tmp_path / "rows.csv", on_bad_row="skip")
    (tmp_path / "one.json").write_text("3")
    with pytest.raises(KitError, match=r"one\.json: one JSON int; a list of rows, or a row"):
        data.load(tmp_path / "one.json")
    pd.DataFrame([pair(0), pair(1) | {"chosen": "long"}]).to_parquet(tmp_path / "long.parquet")
    monkeypatch.setattr(loading, "MAX_ROW", 16)
    with pytest.raises(KitError, match=r"long\.parquet, row 1: 21 characters, at most"):
        data.load(tmp_path / "long.parquet")
    (tmp_path / "rows.parquet").write_text("prompt,chosen,rejected\n")
    with pytest.raises(KitError, match=r"rows\.parquet: cannot be read"):
        data.load(tmp_path / "rows.parquet")


HEAD = "prompt,chosen,rejected\n"


@pytest.mark.parametrize(
    ("name", "content", "bad", "why"),
    [
        ("a.csv", f"{HEAD}q,a,b\nq2,{'x' * 8_000_001},b\nq3,a,b\n".encode(), 2, "too long"),
        ("b.csv", f'{HEAD}q,a,b\nq2,"a" x,b\nq3,a,b\n'.encode(), 2, "not CSV"),
        (
            "c.json",
            b'[{"prompt": "q", "chosen": "a", "rejected": "b"},'
            b' {"prompt": "p", "chosen": "\xff", "rejected": "b"},'
            b' {"prompt": "r", "chosen": "a", "rejected": "b"}]',
            2,
            "chosen not UTF-8",
        ),
    ],
)
def test_what_breaks_a_row_of_a_file_is_named_and_can_be_skipped(tmp_path, name, content, bad, why):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(KitError, match=f"{name}, row {bad}[:,]"):
        data.load(tmp_path / name)
    loaded = data.load(tmp_path / name, on_bad_row="skip")
    assert [row.row_id for row in loaded] == ["1", "3"] and loaded.dropped == {why: 1}


def test_a_quote_that_never_closes_is_no_row_to_skip(tmp_path):
    """It swallows all that follows."""
    (tmp_path / "rows.csv").write_text(f'{HEAD}q,a,b\nq2,"a,b\nq3,a,b\n')
    with pytest.raises(KitError, match=r"rows\.csv, row 2: a quote opens a cell that never ends"):
        data.load(tmp_path / "rows.csv", on_bad_row="skip")


ONE = json.dumps({"prompt": "q", "chosen": "a", "rejected": "b"})
FINE = {
    "crlf.json": f"{ONE}\r\n{ONE}\r\n",
    "one.json": f"{ONE}\n",
    "indented.json": json.dumps(json.loads(ONE), indent=1),
    "x.TSV": "prompt\tchosen\trejected\nq\ta\tb\n",
    "labels.csv": "prompt,completion,label\nq,a,TRUE\nq,b,FALSE\n",
}


@pytest.mark.parametrize("name", FINE)
def test_files_as_windows_and_spreadsheets_write_them(tmp_path, name):
    (tmp_path / name).write_bytes(FINE[name].encode())
    assert {row.responses for row in data.load(tmp_path / name)} == {("a", "b")}


def test_a_table_of_lists_as_python_prints_them_is_refused(tmp_path):
    """What pandas writes of messages as CSV; a column that nobody reads may hold anything."""
    path = tmp_path / "rows.csv"
    pd.DataFrame([pair_of_messages(i) for i in range(2)]).to_csv(path, index=False)
    with pytest.raises(KitError, match="row 1, field prompt: no JSON, but what Python prints of"):
        data.load(path)
    pd.DataFrame([completions(0)]).to_csv(path, index=False)
    with pytest.raises(KitError, match="row 1, field completions: no JSON, but what Python"):
        data.load(path)
    pd.DataFrame([pair(0) | {"meta": [{"a": 1}]}]).to_csv(path, index=False)
    assert data.load(path)[0].responses == ("It is, 0.", "No.")


def test_no_more_than_a_row_is_read_of_a_file_without_line_breaks(tmp_path, monkeypatch):
    monkeypatch.setattr(containers, "MAX_ROW", 100)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"x" * 1005 + b"\n" + json.dumps(pair(1)).encode())
    with pytest.raises(KitError, match="row 1: 1,006 bytes, at most 100 are read"):
        data.load(path)
    loaded = data.load(path, on_bad_row="skip")
    assert [row.row_id for row in loaded] == ["2"] and loaded.dropped == {"too long": 1}


def broken(name: str, path) -> str:
    """Write a file of pairs that is broken in one way; what its error says."""
    second: dict | bytes = pair(1)
    words = "row 2"
    if name == "truncated gzip":
        whole = gzip.compress(json.dumps(pair(0)).encode())
        path.write_bytes(whole[: len(whole) // 2])
        return "cannot be read"
    if name == "invalid UTF-8":
        second, words = b'{"prompt": "a", "chosen": "\xff", "rejected": "b"}', "chosen: not UTF-8"
    elif name == "missing field":
        second.pop("rejected")
        words = "row 2, field rejected: missing"
    elif name == "wrong type":
        second["chosen"] = 3
        words = "row 2, field chosen: 3 has the wrong type"
    elif name == "empty response":
        second["chosen"] = " "
        words = "row 2, field chosen (responses[0]): empty"
    elif name == "equal responses":
        second["chosen"] = second["rejected"]
        words = "row 2, field responses: two are equal"
    elif name == "10 MB row":
        second["chosen"] = "long " * 2_000_000
        words = f"row 2: {len(json.dumps(second)) + 1:,} bytes"
    if isinstance(second, dict):
        second = json.dumps(second).encode()
    path.write_bytes(json.dumps(pair(0)).encode() + b"\n" + second + b"\n")
    return words


BROKEN = (
    "truncated gzip",
    "invalid UTF-8",
    "missing field",
    "wrong type",
    "empty response",
    "equal responses",
    "10 MB row",
)
COMMANDS = {  # what reads preferences
    "train": "--data {file} --out {out} --objective dpo(beta=0.1) --model tiny",
    "train heldout": "--data {good} --heldout {file} --out {out} --objective orpo --model tiny",
    "score": "--data {file} --out {out} --model tiny",
    "judge": "--data {file} --out {out} --judge nowhere",
    "synthesise": "--task {file} --model tiny",
    "calibrate": "{file} --golden 0 --out {out}",
    "audit": "{file} --out {out}",
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_line_and_nothing_is_written(
    capsys, tmp_path, monkeypatch, command, name
):
    monkeypatch.setattr(paths, "SYNTHETIC", tmp_path / "synthetic")
    file = tmp_path / "pairs.jsonl"
    words = broken(name, file)
    good = lines(tmp_path / "good.jsonl", pair(7))
    given = COMMANDS[command].format(file=file, out=tmp_path / "out", good=good)
    assert cli.main([command.split()[0], *given.split()]) == 2
    printed, error = capsys.readouterr()
    error = error.replace("good.jsonl: pairs (prompt, chosen, rejected), 1 rows, K = 2\n", "")
    assert printed == "" and error.count("\n") == 1 and error.startswith("robustpo: pairs.jsonl")
    assert words in error and len(error) < 300
    assert sorted(tmp_path.iterdir()) == [good, file]


def test_a_byte_order_mark_is_read_over(tmp_path):
    """Editors and spreadsheets of Windows write one."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(pair(0)).encode())
    assert data.load(path)[0].prompt == "Is 0 odd?"
    path = tmp_path / "rows.csv"
    path.write_bytes("\ufeffprompt,chosen,rejected\r\nq,a,b\r\n".encode())
    assert data.load(path)[0].responses == ("a", "b")
    path = tmp_path / "rows.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps([pair(0)]).encode())
    assert len(data.load(path)) == 1


def test_commands_leave_bad_rows_out_and_write_how_many(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    values = [hh(0), hh(1) | {"chosen": TURNS.format(i=1) + " "}, hh(2)]
    path = lines(tmp_path / "hh.jsonl", *values)
    assert cli.main(["score", "--data", str(path), "--model", "tiny"]) == 2
    assert "--on-bad-row skip" in capsys.readouterr().err
    given = ["--data", str(path), "--model", "tiny", "--on-bad-row", "skip", "--out"]
    assert cli.main(["score", *given, str(tmp_path / "scores.jsonl")]) == 0
    said = capsys.readouterr().err
    assert "hh.jsonl: HH-RLHF transcripts, 2 rows, K = 2, dropped: 1 chosen empty\n" in said
    assert len((tmp_path / "scores.jsonl").read_text().splitlines()) == 2
    dropped = {"chosen empty": 1}
    assert records.read_json(tmp_path / "scores.json")["config"]["dropped"] == dropped
    assert cli.main(["score", *given, str(tmp_path / "scores.json")]) == 2
    objective = ["--objective", "gamma(simpo(beta=2), gamma_beta_ratio=0.4, tau=10)"]
    assert cli.main(["train", *given, str(tmp_path / "policy"), *objective]) == 0
    record = records.read_json(tmp_path / "policy" / "record.json")
    rows = record["config"]["rows"]
    assert len(rows.pop("digest")) == 16
    assert rows == {
        "name": "hh.jsonl",
        "shape": "HH-RLHF transcripts",
        "dropped": dropped,
    }
    assert record["metrics"]["rows"] == 2


def test_a_set_says_what_it_is_without_a_file():
    assert PreferenceSet([], name="none").describe() == "none: 0 rows, K = 0"
    assert loading.ON_BAD_ROW == data.ON_BAD_ROW
