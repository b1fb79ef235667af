"""Verdicts by hand, intervals by simulation, distances against known distributions."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from robustpo_kit import judging
from robustpo_kit.data import Preference, PreferenceSet
from robustpo_kit.encoders import Learned
from robustpo_kit.errors import KitError
from robustpo_kit.judging import controls


class ByLength:
    """A judge whose truth is known: the longer reply is better, equal lengths tie."""

    name = "by length"

    def verdicts(self, prompts, first, second):
        return [
            "C" if len(a) == len(b) else "A" if len(a) > len(b) else "B"
            for a, b in zip(first, second, strict=True)
        ]


class AlwaysFirst:
    """A judge with nothing but position bias."""

    name = "always first"

    def verdicts(self, prompts, first, second):
        return ["A"] * len(prompts)


class Scores:
    """Stands in for a reward model: the score is the number in the text."""

    def score(self, prompts, responses, *, bias=0.0):
        return np.array([float(text) + bias * len(text) for text in responses])


def verdicts(**policies):
    """A verdict table from strings like "wwtl"."""
    names = {"w": "win", "t": "tie", "l": "lose"}
    rows = [(p, f"p{i}", names[v]) for p, text in policies.items() for i, v in enumerate(text)]
    table = pd.DataFrame(rows, columns=["policy", "prompt_id", "verdict"])
    return table.assign(judge="by hand")


def test_compare_undoes_the_swap():
    prompts = [f"p{i}" for i in range(40)]
    replies = {"long": ["xxx"] * 40, "same": ["xx"] * 40, "short": ["x"] * 40}
    table = judging.compare(ByLength(), prompts, replies, ["xx"] * 40, seed=0)
    assert table.groupby("policy")["verdict"].unique().map(list).to_dict() == {
        "long": ["win"],
        "same": ["tie"],
        "short": ["lose"],
    }
    assert 5 < table["swapped"].sum() / 3 < 35


def test_position_bias_cancels():
    prompts = [str(i) for i in range(4000)]
    table = judging.compare(AlwaysFirst(), prompts, {"a": prompts}, prompts, seed=0)
    assert (table["verdict"] == "win").mean() == pytest.approx(0.5, abs=0.03)


def test_reward_judge_ties_within_its_band():
    judge = judging.RewardJudge(Scores(), tie_band=0.1)
    # sigmoid(0.4) = 0.599 is within 0.1 of one half, sigmoid(0.42) = 0.603 is not
    assert judge.verdicts(["p"] * 4, ["0.4", "0.42", "0", "1"], ["0", "0", "0.42", "1"]) == [
        "C",
        "A",
        "B",
        "C",
    ]
    assert judge.preference(["p"], ["1000"], ["0"])[0] == 1.0
    assert judging.RewardJudge(Scores(), bias=-2.0).verdicts(["p"], ["1.00"], ["0"]) == [
        "B"
    ]  # longer by three
    with pytest.raises(ValueError, match="^tie_band"):
        judging.RewardJudge(Scores(), tie_band=0.5)


def test_compare_refuses_bad_lengths_and_bad_answers():
    with pytest.raises(ValueError, match="^against"):
        judging.compare(ByLength(), ["p"], {"a": ["x"]}, ["x", "y"], seed=0)
    with pytest.raises(ValueError, match="^policy_a"):
        judging.compare(ByLength(), ["p"], {"policy_a": []}, ["x"], seed=0)

    class Chatty:
        name = "chatty"

        def verdicts(self, prompts, first, second):
            return ["A is better"] * len(prompts)

    with pytest.raises(ValueError, match="judge 'chatty'"):
        judging.compare(Chatty(), ["p"], {"a": ["x"]}, ["y"], seed=0)


def test_win_table_by_hand():
    table = judging.win_table(verdicts(a="wwtl", b="llll"), unaudited=True, draws=100).set_index(
        "policy"
    )
    row = table.loc["a"]
    assert (row["win"], row["tie"], row["lose"], row["score"]) == (0.5, 0.25, 0.25, 0.625)
    assert row["win_low"] < 0.5 < row["win_high"]
    assert (table.loc["b", ["lose", "lose_low", "lose_high"]] == 1).all()
    assert row["prompts"] == 4 and row["replies"] == 4


def test_same_seed_same_interval():
    table = verdicts(a="wwtlwltw" * 5)
    first, again = (judging.win_table(table, unaudited=True, draws=200, seed=3) for _ in range(2))
    pd.testing.assert_frame_equal(first, again)
    assert not first.equals(judging.win_table(table, unaudited=True, draws=200, seed=4))


def test_paired_difference_is_sharper_than_two_intervals():
    """Two policies differ on one prompt in ten: pairing sees it, separate intervals do not."""
    rng = np.random.default_rng(0)
    base = rng.choice(list("wl"), 400)
    better = np.where((base == "l") & (rng.random(400) < 0.1), "w", base)
    table = verdicts(base="".join(base), better="".join(better))
    row = judging.difference_table(table, "base", unaudited=True, draws=500).iloc[0]
    wins = judging.win_table(table, unaudited=True, draws=500).set_index("policy")
    assert row["win"] == pytest.approx((better == "w").mean() - (base == "w").mean())
    assert row["win_low"] > 0
    assert wins.loc["better", "win_low"] < wins.loc["base", "win_high"]
    with pytest.raises(ValueError, match="^baseline"):
        judging.difference_table(table, "sft", unaudited=True)


def test_win_intervals_are_over_prompts_not_replies():
    """Repeating every reply four times adds no prompt, so it may not narrow the interval."""
    once = verdicts(a="wwltlwlwtl" * 4)
    often = pd.concat([once] * 4, ignore_index=True)
    narrow, wide = (
        judging.win_table(table, unaudited=True, draws=400).iloc[0] for table in (often, once)
    )
    assert narrow["win_low"] == pytest.approx(wide["win_low"]) and narrow[
        "win_high"
    ] == pytest.approx(wide["win_high"])
    assert narrow["replies"] == 160 and narrow["prompts"] == 40


def test_text_table_by_hand():
    row = judging.text_table({"a": ["the cat", "The cat sat on"]}).iloc[0]
    assert row["mean_words"] == 3 and row["duplicates"] == 0
    assert row["distinct_1"] == pytest.approx(4 / 6)
    assert row["distinct_2"] == pytest.approx(3 / 4)
    assert np.isnan(judging.distinct_n(["one"], 2))


def test_a_policy_may_have_the_name_of_an_argument():
    table = judging.compare(ByLength(), ["p"], {"against": ["xx"], "prompts": [""]}, ["x"], seed=0)
    assert table["verdict"].tolist() == ["win", "lose"]


# ---- audit ----

WORDS = ["open", "close", "turn", "lift", "push", "pull", "twist", "break", "melt", "grind"]


def audited_rows(count=30):
    """Prompts with a golden reply of six words and a rival of nine."""
    rng = np.random.default_rng(0)

    def text(words):
        return " ".join(f"{word}{rng.integers(100)}" for word in rng.choice(WORDS, words))

    return PreferenceSet(
        Preference(f"r{i}", f"g{i}", f"how do I {text(4)}?", (text(6), text(9)), ("human", "model"))
        for i in range(count)
    )


def test_a_judge_that_knows_passes_and_is_admitted():
    rows = audited_rows()
    given = {"contaminant": [row.responses[1] for row in rows]}
    own = {row.prompt: row.responses[0] for row in rows}

    def knows(prompts, first, second):
        golden = [own[prompt] for prompt in prompts]
        asked = zip(golden, first, second, strict=True)
        return ["A" if a == best else "B" if b == best else "C" for best, a, b in asked]

    judge = judging.FunctionJudge("knows", knows)
    table = judging.audit(judge, rows, given=given, seed=0, draws=200).set_index("control")
    tested = table[table["result"].isin(["pass", "fail"])]
    assert (tested["result"] == "pass").all() and len(tested) == 21
    assert (tested.drop(["swapped order", "telegram"])["value"] == 0).all()
    assert table.loc["swapped order", "value"] == 1
    assert 0 < table.loc["telegram", "value"] <= 0.5  # the same text where no word is the prompt's
    untested = table.index[table["result"] == "not tested"]
    assert list(untested) == ["untrained model", "other human source", "length slope"]
    replies = {"policy": [row.responses[1] for row in rows]}
    verdicts = judging.compare(judge, list(own), replies, list(own.values()), seed=0)
    table = table.reset_index()
    wins = judging.win_table(verdicts, table, draws=50)
    assert wins["audited"].all() and set(wins["judge"]) == {"knows"}
    assert set(wins["untested"]) == {"untrained model, other human source, length slope"}
    with pytest.raises(ValueError, match="judge 'knows': no audit of it"):
        judging.win_table(verdicts, table.assign(judge="another"))


class Known(Scores):
    """A model with an identity, that has learned from some rows."""

    def __init__(self, version="1", seen=()):
        self.version = version
        rows = [(row.prompt, row.responses[0], row.row_id) for row in seen]
        self.learned = Learned.of(*zip(*rows, strict=True)) if rows else Learned()

    def score(self, prompts, responses, *, bias=0.0):
        return np.array([float(text.startswith(self.version)) for text in responses])

    def fingerprint(self):
        return self.version


def test_an_audit_is_of_the_judge_as_it_is_and_of_every_control():
    """A name does not admit another model, another tie band, or a part of an audit."""
    rows = audited_rows().map(lambda row: replace(row, responses=(f"1 {row.row_id} is it", "no")))
    judge = judging.RewardJudge(Known(), name="j")
    table = judging.audit(judge, rows, seed=0, draws=100)
    table["result"] = table["result"].replace("fail", "pass")
    prompts, golden = [row.prompt for row in rows], [row.responses[0] for row in rows]

    def wins(other, audit):
        verdicts = judging.compare(other, prompts, {"a": golden}, golden, seed=0)
        return judging.win_table(verdicts, audit, draws=50)

    assert wins(judge, table)["audited"].all()
    for other in (replace(judge, model=Known("2")), replace(judge, tie_band=0.1)):
        with pytest.raises(ValueError, match="judge 'j': no audit of it, as it is now"):
            wins(other, table)
    with pytest.raises(ValueError, match="its audit lacks echo, off-topic"):
        wins(judge, table[~table["control"].isin(["echo", "off-topic"])])
    with pytest.raises(ValueError, match="judge 'j': no audit of it"):
        wins(judge, table.drop(columns="fingerprint"))


def test_a_judge_is_not_asked_about_rows_that_it_learned_from():
    rows = audited_rows()
    judge = judging.RewardJudge(Known(seen=rows[3:5]), name="j")
    with pytest.raises(ValueError, match=r"judge 'j': row 'r3' \(2 in all\) was trained on"):
        judging.audit(judge, rows, seed=0, draws=50)
    prompts, texts = [row.prompt for row in rows], [row.responses[0] for row in rows]
    ids = [f"line {place}" for place in range(len(rows))]
    with pytest.raises(ValueError, match="row 'line 3'"):
        judging.compare(judge, prompts, {"a": texts}, texts, seed=0, row_ids=ids)
    others = [f"{text} not" for text in texts]  # of the same names, and other texts
    judging.compare(judge, prompts, {"a": texts}, others, seed=0, row_ids=ids)


def of_echoes(prompts, first, second):
    """A reply is the better the more words of the prompt it has."""
    shares = [
        len(set(p.split()) & set(a.split())) - len(set(p.split()) & set(b.split()))
        for p, a, b in zip(prompts, first, second, strict=True)
    ]
    return ["A" if share > 0 else "B" if share < 0 else "C" for share in shares]


def of_close(prompts, first, second):
    """A reply is the better that hopes to help."""
    return [
        "A" if "hope" in a else "B" if "hope" in b else "C"
        for a, b in zip(first, second, strict=True)
    ]


def of_lists(prompts, first, second):
    """A reply is the better that is a list."""
    return [
        "A" if "\n- " in a else "B" if "\n- " in b else "C"
        for a, b in zip(first, second, strict=True)
    ]


def of_seventy_words(prompts, first, second):
    """A reply is the better that has seventy words."""
    more = [
        (len(a.split()) >= 70) - (len(b.split()) >= 70) for a, b in zip(first, second, strict=True)
    ]
    return ["A" if one > 0 else "B" if one < 0 else "C" for one in more]


def of_dress(prompts, first, second):
    """A reply is the better if it is polite."""
    polite = [("Sure" in a) - ("Sure" in b) for a, b in zip(first, second, strict=True)]
    return ["A" if more > 0 else "B" if more < 0 else "C" for more in polite]


def test_an_audit_of_few_rows_admits_no_judge():
    """Of two rows that agree an interval says nothing."""
    judge = judging.RewardJudge(Known(), name="j")
    rows = audited_rows(19).map(lambda row: replace(row, responses=(f"1 {row.row_id}", "no")))
    table = judging.audit(judge, rows, seed=0, draws=100)
    assert set(table["result"]) == {"too few rows", "fail", "not tested"}
    table["result"] = table["result"].replace("fail", "pass")
    texts = [row.responses[0] for row in rows]
    verdicts = judging.compare(judge, texts, {"a": texts}, texts, seed=0)
    with pytest.raises(ValueError, match="19 groups of rows, 20 are needed"):
        judging.win_table(verdicts, table)


def test_a_function_judge_is_known_by_what_it_asks():
    first = judging.FunctionJudge("j", lambda p, a, b: ["A"] * len(p))
    same = judging.FunctionJudge("j", lambda p, a, b: ["A"] * len(p))
    assert first.fingerprint == same.fingerprint
    others = [
        replace(first, ask=lambda p, a, b: ["B"] * len(p)),
        replace(first, version="2"),
        replace(first, ask=lambda p, a, b: ["A" if "Sure" in text else "B" for text in a]),
        replace(first, ask=lambda p, a, b: ["A" if "Please" in text else "B" for text in a]),
    ]
    known = {judge.fingerprint for judge in others}
    assert len(known) == 4 and first.fingerprint not in known


@pytest.mark.parametrize(
    ("judge", "failed"),
    [
        (
            judging.FunctionJudge("of echoes", of_echoes),
            {"echo", "perturbed echo", "shuffled echo", "with prompt words"},
        ),
        (ByLength(), {"doubled", "padded", "with prompt words"}),
        (AlwaysFirst(), {"swapped order"}),
        (judging.FunctionJudge("ties", lambda p, a, b: ["C"] * len(p)), {"echo", "off-topic"}),
        (judging.FunctionJudge("of dress", of_dress), {"dressed", "dressed half"}),
        (judging.FunctionJudge("of close", of_close), {"closed half"}),
        (judging.FunctionJudge("of lists", of_lists), {"listed half"}),
        (judging.FunctionJudge("of seventy words", of_seventy_words), {"very long"}),
    ],
    ids=["echoes", "length", "position", "ties", "dress", "close", "lists", "seventy words"],
)
def test_a_judge_with_a_weakness_is_refused(judge, failed):
    rows = audited_rows()
    table = judging.audit(judge, rows, seed=0, draws=200)
    assert failed <= set(table[table["result"] == "fail"]["control"])
    prompts, golden = [row.prompt for row in rows], [row.responses[0] for row in rows]
    verdicts = judging.compare(judge, prompts, {"a": golden}, golden, seed=0)
    for refuse in (judging.win_table, lambda *given: judging.difference_table(*given[:1], "a")):
        with pytest.raises(ValueError, match=f"judge '{judge.name}'"):
            refuse(verdicts, table)
    with pytest.raises(ValueError, match=rf"fails its audit \(.*{min(failed)} \d.\d\d \["):
        judging.win_table(verdicts, table)
    marked = judging.win_table(verdicts, table, unaudited=True, draws=50)
    assert not marked["audited"].any()


def test_the_length_slope_is_that_of_a_judge_of_length():
    """Rivals of nine words win against six, those of three lose."""
    rows = audited_rows()
    short = rows.map(lambda row: replace(row, responses=(row.responses[0], "a b c")))
    both = PreferenceSet([*rows[:15], *short[15:]])
    slope = judging.audit(ByLength(), both, seed=0, draws=100).set_index("control")
    # score 1 at log2(9/6), 0 at log2(3/6)
    assert slope.loc["length slope", "value"] == pytest.approx(1 / np.log2(3), abs=0.02)
    assert slope.loc["length slope", "result"] == "fail"


def test_a_comparison_needs_texts_and_two_policies():
    with pytest.raises(ValueError, match="replies: no policy"):
        judging.compare(ByLength(), ["p"], {}, ["x"], seed=0)
    with pytest.raises(ValueError, match="policy 'a', reply 0: None is no text"):
        judging.compare(ByLength(), ["p"], {"a": [None]}, ["x"], seed=0)
    alone = judging.compare(ByLength(), ["p"], {"a": ["xx"]}, ["x"], seed=0)
    with pytest.raises(ValueError, match="of 'a' alone"):
        judging.difference_table(alone, "a", unaudited=True)


def test_an_audit_refuses_what_it_cannot_use():
    rows = audited_rows(4)
    with pytest.raises(ValueError, match="given: 'luck' with 4 replies"):
        judging.audit(ByLength(), rows, given={"luck": ["x"] * 4}, seed=0)
    with pytest.raises(ValueError, match="given: 'contaminant' with 1 replies for 4 rows"):
        judging.audit(ByLength(), rows, given={"contaminant": ["x"]}, seed=0)
    with pytest.raises(KitError, match="row 'r0', field golden"):
        judging.audit(ByLength(), rows.map(lambda row: replace(row, golden=None)), seed=0)
    with pytest.raises(KitError, match="two groups are needed"):
        judging.audit(ByLength(), rows[:1], seed=0)
    with pytest.raises(KitError, match="has no rows"):
        judging.audit(ByLength(), PreferenceSet([]), seed=0)
    with pytest.raises(ValueError, match="those of one judge are expected"):
        judging.win_table(verdicts(a="w").drop(columns="judge"), unaudited=True)


def test_the_controls_are_those_of_texts_without_blanks_too():
    """Truncated, shuffled and telegram replies differ from the golden one; length has a slope."""
    rows = PreferenceSet(
        [
            Preference(
                row_id=f"r{i}",
                group=f"g{i}",
                prompt=f"怎样修理第{i}号自行车的链条?",
                responses=(f"先把第{i}号链条取下来,再清洗上油。", "不知道。" * (1 + i % 8)),
                sources=("human", "model"),
                golden=0,
            )
            for i in range(24)
        ]
    )
    made = controls.made(rows, seed=0)
    golden = controls.golden_replies(rows)
    for name in ("truncated", "shuffled", "telegram", "shuffled echo", "perturbed echo"):
        own = [row.prompt for row in rows] if "echo" in name else golden
        assert not set(made[name]) & set(own), name
    assert len(made["truncated"][0]) < 0.6 * len(golden[0]) and " " not in made["truncated"][0]
    table = judging.audit(ByLength(), rows, seed=0, draws=100).set_index("control")
    assert table.loc["length slope", "result"] == "fail"
