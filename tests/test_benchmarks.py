"""Benchmarks: formats as their repositories have them, scores by hand, by peers, by known truth."""

import contextlib
import itertools
import json
import re

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from sklearn.linear_model import LogisticRegression

from robustpo_kit import benchmarks, cli, judging, policies
from robustpo_kit.benchmarks import leaderboard
from robustpo_kit.data import Conversation, Template
from robustpo_kit.errors import KitError
from robustpo_kit.judging import EndpointJudge, FunctionJudge

QUESTIONS = {
    "alpacaeval": [
        {"instruction": "Name a colour.", "dataset": "helpful_base", "datasplit": "eval"},
        {"instruction": "How do I boil an egg?", "dataset": "koala", "datasplit": "eval"},
    ],
    "arena-hard": [
        {"question_id": "ab1", "category": "arena-hard-v0.1", "cluster": "c",
         "turns": [{"content": "Sort a list."}]},
        {"question_id": "cd2", "category": "arena-hard-v0.1", "cluster": "c",
         "turns": [{"content": "Prove it."}]},
    ],
    "mt-bench": [
        {"question_id": 81, "category": "writing", "turns": ["Write a line.", "Now in red."]},
        {"question_id": 111, "category": "math", "turns": ["What is 2 + 3?", "Twice that?"]},
    ],
}  # fmt: skip


def write(path, rows):
    lines = path.suffix == ".jsonl"
    text = "\n".join(map(json.dumps, rows)) + "\n" if lines else json.dumps(rows)
    path.write_text(text)
    return path


def question_file(tmp_path, name):
    ending = ".json" if name == "alpacaeval" else ".jsonl"
    return write(tmp_path / f"questions{ending}", QUESTIONS[name])


@pytest.fixture(scope="module")
def policy():
    return policies.tiny(policies.byte_tokenizer(), template=Template("chat"))


# ---------------------------------------------------------------- questions and answers


FIELDS = {  # of an answer, in the order of the benchmarks' own files
    "alpacaeval": {"instruction", "output", "generator", "dataset", "datasplit"},
    "arena-hard": {"question_id", "answer_id", "model_id", "choices", "tstamp"},
    "mt-bench": {"question_id", "answer_id", "model_id", "choices", "tstamp"},
}


@pytest.mark.parametrize("name", list(QUESTIONS))
def test_answers_have_the_benchmarks_format(tmp_path, policy, name):
    asked = benchmarks.questions(name, question_file(tmp_path, name))
    settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": 6}
    answers = benchmarks.answer(name, asked, policy, settings, model="mine", seed=0)
    assert [set(row) for row in answers] == [FIELDS[name]] * 2
    again = benchmarks.answer(name, asked, policy, settings, model="mine", seed=0)
    if name == "alpacaeval":
        assert answers == again and answers[1]["generator"] == "mine"
        assert [row["instruction"] for row in answers] == [
            "Name a colour.",
            "How do I boil an egg?",
        ]
        return
    assert [row["choices"] for row in answers] == [row["choices"] for row in again]
    assert [row["answer_id"] for row in answers] == [row["answer_id"] for row in again]
    (choice,) = answers[0]["choices"]
    assert choice["index"] == 0 and answers[0]["model_id"] == "mine"
    if name == "arena-hard":
        assert set(choice["turns"][0]) == {"content", "token_len"}
        assert choice["turns"][0]["token_len"] <= 6
    else:
        assert len(choice["turns"]) == 2 and all(isinstance(turn, str) for turn in choice["turns"])


def turns(prompt):
    """What a prompt is made of: a text, or those of its messages, which alternate."""
    if not isinstance(prompt, Conversation):
        return prompt
    roles = [message["role"] for message in prompt.messages]
    assert roles == [("user", "assistant")[place % 2] for place in range(len(roles))]
    return [message["content"] for message in prompt.messages]


def test_turns_see_those_before_them_and_text_stays_as_it_was(tmp_path, policy, monkeypatch):
    seen = []

    def sampled(policy, prompts, config, **draws):
        seen.append(
            (
                [turns(prompt) for prompt in prompts],
                config.temperature,
                config.top_k,
                config.repetition_penalty,
            )
        )
        ids = policy.tokenizer("  two\n\n  lines ", add_special_tokens=False)["input_ids"]
        end = policy.tokenizer.eos_token_id
        return [[policies.Reply("cut", len(ids), True, (*ids, end))] for _ in prompts]

    monkeypatch.setattr(policies, "sample_batch", sampled)
    asked = benchmarks.questions("mt-bench", question_file(tmp_path, "mt-bench"))
    settings = benchmarks.decoding("mt-bench", "gamma/mistral-7b-instruct")
    answers = benchmarks.answer("mt-bench", asked, policy, settings, model="m", seed=0)
    assert answers[0]["choices"][0]["turns"] == ["two\n\n  lines"] * 2
    said = "two\n\n  lines"
    assert seen == [  # writing at 0.7, mathematics greedily
        (["Write a line."], 0.7, 50, 1.0),
        (["What is 2 + 3?"], 1.0, 1, 1.0),
        ([["Write a line.", said, "Now in red."]], 0.7, 50, 1.0),
        ([["What is 2 + 3?", said, "Twice that?"]], 1.0, 1, 1.0),
    ]


def test_decoding_is_the_papers():
    """DoRA App. C.3; SimPO's files for gamma-PO; FastChat's temperatures."""
    for name, tokens in (("alpacaeval", 1024), ("arena-hard", 4096)):
        sampled = {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "max_new_tokens": tokens}
        assert benchmarks.decoding(name, "dora") == sampled
    for model, temperature in (("llama-3-8b-instruct", 0.9), ("mistral-7b-instruct", 0.5)):
        paper = f"gamma/{model}"
        assert benchmarks.decoding("alpacaeval", paper)["temperature"] == temperature
        assert benchmarks.decoding("arena-hard", paper)["temperature"] == 0
    with pytest.raises(KitError, match=r"'dora' has none for mt-bench; choose gamma/llama"):
        benchmarks.decoding("mt-bench", "dora")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("alpacaeval", "[", "not JSON"),
        ("alpacaeval", "[]", "no rows"),
        ("alpacaeval", "{}", "no rows"),
        ("alpacaeval", "[3]", "row 1: int"),
        ("alpacaeval", '[{"prompt": "x"}]', "row 1, field instruction: missing; it has prompt"),
        ("alpacaeval", '[{"instruction": 3}]', "row 1, field instruction: int, not str"),
        ("alpacaeval", '[{"instruction": " "}]', "row 1, field instruction: a turn is no text"),
        ("mt-bench", '{"question_id": 1}\n', "row 1, field category: missing"),
        ("mt-bench", '{"question_id": 1, "category": "x", "turns": []}', "field turns"),
        ("mt-bench", '{"question_id": 1, "category": "x", "turns": [3]}', "field turns"),
        ("arena-hard", '{"question_id": 1, "category": "x", "turns": ["x"]}', "field turns"),
        ("arena-hard", '\n{"question_id": 1', "line 2"),
        ("arena-hard", b"\xff\xfe{}", "not UTF-8"),
        ("arena-hard", None, "no such file"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path, name, content, said):
    path = tmp_path / ("q.json" if name == "alpacaeval" else "q.jsonl")
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(KitError, match=re.escape(said)) as caught:
        benchmarks.questions(name, path)
    assert str(caught.value).startswith(path.name) and "\n" not in str(caught.value)
    with pytest.raises(KitError, match="choose alpacaeval, arena-hard, mt-bench"):
        benchmarks.questions("humaneval", path)


def test_a_byte_order_mark_is_no_defect(tmp_path):
    path = tmp_path / "q.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(QUESTIONS["alpacaeval"]).encode())
    assert len(benchmarks.questions("alpacaeval", path)) == 2


# ---------------------------------------------------------------- AlpacaEval


COUNT = 200


def made_up(theta, liking=-1.5, seed=0, noise=2.0):
    """Annotations of a model of quality `theta` in logits, by a judge that likes length.

    `liking` is the coefficient of tanh of the scaled difference, baseline minus model.
    """
    rng = np.random.default_rng(seed)
    scaled = rng.normal(-0.8, 1, COUNT)
    baseline = rng.integers(1500, 2500, COUNT)
    own = np.maximum(1, baseline - (500 * scaled).astype(int))
    difference = baseline - own
    logit = theta + difficulties() + liking * np.tanh(difference / difference.std(ddof=1))
    preference = 1 / (1 + np.exp(-logit - rng.normal(0, noise, COUNT)))
    return [
        {
            "instruction": f"i{i}",
            "output_1": "x" * int(baseline[i]),
            "output_2": "x" * int(own[i]),
            "generator_1": "base",
            "generator_2": "mine",
            "preference": 1 + float(preference[i]),
        }
        for i in range(COUNT)
    ]


def difficulties():
    return np.random.default_rng(99).normal(0, 1.2, COUNT)


def gamed():
    """A table of the shape of df_gamed.csv."""
    rng, parts = np.random.default_rng(7), []
    for name, shift in (("verbose", -1.0), ("concise", 1.0)):
        scaled = rng.normal(shift, 1, COUNT)
        logit = 0.9 * difficulties() - 1.6 * np.tanh(scaled) + rng.normal(0, 2, COUNT)
        columns = {"preference": 1 / (1 + np.exp(-logit)), "index": range(COUNT)}
        columns |= {"std_delta_len": scaled, "instruction_difficulty": difficulties()}
        parts.append(pd.DataFrame(columns | {"not_gamed_baseline": False, "model": name}))
    return pd.concat(parts, ignore_index=True)


ORACLE = [
    (-1.0, 46.50165421765315, 33.612020639855714),
    (0.0, 59.32507745348574, 46.767423875686944),
    (1.5, 76.38313176360725, 67.28845387332538),
]


@pytest.mark.parametrize(("theta", "raw", "controlled"), ORACLE)
def test_length_control_is_alpaca_evals(theta, raw, controlled):
    """win_rate and length_controlled_winrate by alpaca_eval 0.6.6 itself on these rows."""
    row = benchmarks.alpacaeval(made_up(theta), gamed()).iloc[0]
    assert row["win_rate"] == pytest.approx(raw, abs=1e-9)
    assert row["length_controlled_winrate"] == pytest.approx(controlled, abs=1e-6)
    assert (row["model"], row["baseline"], row["n"], row["missing"]) == ("mine", "base", COUNT, 0)


@pytest.mark.parametrize("theta", [-1.0, 0.5])
def test_length_control_finds_the_truth_that_the_raw_rate_misses(theta):
    """A judge that likes length lifts a longer model; at equal length it wins what it is worth."""
    rows = made_up(theta, liking=-3.0, noise=0.0)
    worth = 100 * np.mean(1 / (1 + np.exp(-theta - difficulties())))
    told = benchmarks.alpacaeval(rows, gamed().assign(preference=np.nan)).iloc[0]
    assert told["win_rate"] > worth + 12
    assert told["length_controlled_winrate"] == pytest.approx(worth, abs=0.5)
    assert told["avg_length"] > 2200


def test_length_control_without_difficulties_is_a_logistic_regression():
    """Against statsmodels, where the penalty that cross-validation chose is slight."""
    rows = made_up(0.3)
    table = pd.DataFrame(rows)
    difference = (table["output_1"].map(len) - table["output_2"].map(len)).to_numpy(float)
    design = np.column_stack([np.tanh(difference / difference.std(ddof=1)), np.ones(COUNT)])
    fitted = sm.GLM(table["preference"] - 1, design, family=sm.families.Binomial()).fit()
    at_equal_length = 100 / (1 + np.exp(-fitted.params.iloc[1]))
    told = benchmarks.alpacaeval(rows).iloc[0]["length_controlled_winrate"]
    assert told == pytest.approx(at_equal_length, abs=0.3)


def test_alpacaeval_by_hand():
    rows = made_up(0.0)[:12]
    for row, preference in zip(rows, [1, 2, 2, 1.5, 0, 1.25, None, 2, 1, 1, 1, 1], strict=True):
        row["preference"] = preference
    told = benchmarks.alpacaeval(rows).iloc[0]
    assert (told["n"], told["missing"]) == (11, 1)  # a draw is 1.5, or 0 in older files
    assert told["win_rate"] == pytest.approx(100 * (3 + 0.5 + 0.5 + 0.25) / 11)
    assert told["discrete_win_rate"] == pytest.approx(100 * (3 + 0.5 + 0.5) / 11)
    same = [row | {"generator_2": "base"} for row in made_up(0.0)]
    assert benchmarks.alpacaeval(same).iloc[0]["length_controlled_winrate"] == 50
    sure = [row | {"preference": 2} for row in made_up(0.0)]
    told = benchmarks.alpacaeval(sure).iloc[0]  # no loss to fit
    assert told["win_rate"] == 100 and np.isnan(told["length_controlled_winrate"])
    equal = [row | {"output_1": "same", "output_2": "size"} for row in made_up(0.0)]
    told = benchmarks.alpacaeval(equal).iloc[0]  # no length to control
    assert told["length_controlled_winrate"] == pytest.approx(told["win_rate"], abs=0.5)


def test_alpacaeval_refuses():
    rows = made_up(0.0)
    with pytest.raises(KitError, match="models .'mine', 'other'."):
        benchmarks.alpacaeval([*rows, rows[0] | {"generator_2": "other"}])
    with pytest.raises(KitError, match="field preference"):
        benchmarks.alpacaeval([row | {"preference": 3.0} for row in rows])
    with pytest.raises(KitError, match="ten values"):
        benchmarks.alpacaeval(rows[:9])


@pytest.fixture
def clone(tmp_path):
    """A clone of alpaca_eval with annotations of two models of its leaderboard of three."""
    printed = {}
    for name, theta in (("mine", -0.5), ("better", 1.0)):
        rows = [row | {"generator_2": "display name"} for row in made_up(theta)]
        path = leaderboard._annotations(tmp_path, name)
        path.parent.mkdir(parents=True)
        write(path, rows)
        printed[name] = benchmarks.alpacaeval(rows, gamed()).iloc[0]
    table = pd.DataFrame(printed).T[list(leaderboard.PRINTED)]
    table.loc["elsewhere"] = [50.0, 50.0]
    (tmp_path / leaderboard.LEADERBOARD).parent.mkdir(parents=True)
    table.to_csv(tmp_path / leaderboard.LEADERBOARD)
    gamed().to_csv(tmp_path / "df_gamed.csv", index=False)
    return tmp_path


def test_a_clone_is_scored_beside_its_leaderboard(clone, capsys):
    out = clone / "scores.csv"
    line = ["score-benchmark", "alpacaeval", "--repo", str(clone)]
    line += ["--gamed", str(clone / "df_gamed.csv")]
    assert cli.main([*line, "--out", str(out)]) == 0
    table = pd.read_csv(out)
    assert list(table["model"]) == ["mine", "better"]
    for column in leaderboard.PRINTED:
        assert table[f"{column}_difference"].abs().max() < 1e-6
    assert json.loads(out.with_suffix(".json").read_text())["config"]["benchmark"] == "alpacaeval"
    assert cli.main([*line, "--models", "better"]) == 0
    assert "mine" not in capsys.readouterr().out.split("scores.csv")[-1].split("better")[-1]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--models", "elsewhere"], "--models elsewhere: no results/elsewhere/weighted"),
        (["--gamed", "none"], "the leaderboard's numbers need df_gamed.csv"),
        (["--gamed", "absent.csv"], "absent.csv: cannot be read"),
        (["--judgments", "x.json"], "name --judgments FILE, or --repo DIR"),
    ],
)
def test_a_clone_refuses(clone, capsys, flags, said):
    line = ["score-benchmark", "alpacaeval", "--repo", str(clone)]
    line += ["--gamed", str(clone / "df_gamed.csv")] if "--gamed" not in flags else []
    assert cli.main([*line, *flags]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def test_what_is_no_clone_and_what_cannot_be_fetched(tmp_path, monkeypatch):
    with pytest.raises(KitError, match="give a clone"):
        benchmarks.reproduced(tmp_path, gamed())
    (tmp_path / "g.csv").write_text("index,preference\n0,1\n")
    with pytest.raises(KitError, match="column std_delta_len: missing"):
        benchmarks.read_gamed(tmp_path / "g.csv")

    def offline(*_, **__):
        raise OSError("offline")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    with pytest.raises(KitError, match=r"hf download tatsu-lab/alpaca_eval df_gamed.csv"):
        benchmarks.read_gamed()


# ---------------------------------------------------------------- Arena-Hard


def games(model, labels):
    """Judgments of a model: pairs of labels, of the games with the baseline as A and as B."""
    return [
        {"question_id": f"q{i}", "model": model, "games": [{"score": first}, {"score": second}]}
        for i, (first, second) in enumerate(labels)
    ]


def test_arena_hard_by_hand():
    # baseline as A, then the model as A
    labels = [("B>A", "A>B"), ("A>>B", "B>A"), ("A=B", "A>>B"), (None, "what?")]
    told = benchmarks.arena_hard(games("m", labels)).iloc[0]
    scores = [1, 1] + [0, 0, 0, 0] + [0.5, 1, 1, 1]
    assert told["score"] == pytest.approx(100 * np.mean(scores))
    assert (told["model"], told["n"], told["unreadable"]) == ("m", 3, 2)
    with pytest.raises(KitError, match="field games: no game has a label"):
        benchmarks.arena_hard(games("m", [(None, None)]))


def random_games(model, lean, seed):
    """Labels that both games of a question share, as judgments mostly do."""
    rng = np.random.default_rng(seed)
    ours, theirs = [("B>A", "A>B"), ("B>>A", "A>>B")], [("A>B", "B>A"), ("A>>B", "B>>A")]
    return games(
        model, [(ours if rng.random() < lean else theirs)[rng.integers(2)] for _ in range(120)]
    )


def test_arena_hard_is_its_bradley_terry_model():
    """Their ratings: a logistic regression over the battles of all models, baseline anchored."""
    rows = random_games("a", 0.7, 1) + random_games("b", 0.4, 2)
    told = benchmarks.arena_hard(rows).set_index("model")
    battles = []
    for row in rows:
        for number, game in enumerate(row["games"]):
            label = game["score"]
            winner = label[0] if ">" in label else None
            won = (winner == "B") != (number == 1)
            battles += [(row["model"], won)] * (3 if ">>" in label else 1)
    names = {"a": 0, "b": 1}
    design = np.zeros((len(battles), 3))
    design[np.arange(len(battles)), [names[model] for model, _ in battles]] = 1
    design[:, 2] = -1  # the baseline
    fitted = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10)
    ratings = fitted.fit(design, [won for _, won in battles]).coef_[0]
    for name, place in names.items():
        expected = 100 / (1 + np.exp(ratings[2] - ratings[place]))
        assert told.loc[name, "score"] == pytest.approx(expected, abs=1e-3)


def test_arena_hards_interval_takes_battles_for_independent():
    """The kit's, over questions, is wider where the games of a question agree."""
    rows = random_games("m", 0.6, 3)
    told = benchmarks.arena_hard(rows).iloc[0]
    theirs = told["arena_high"] - told["arena_low"]
    ours = told["score_high"] - told["score_low"]
    assert 1.3 < ours / theirs < 3
    np.random.seed(42)  # as show_result.py
    battles = pd.DataFrame(itertools.chain(*map(benchmarks.scores._battles, rows)))
    means = [battles.sample(frac=1.0, replace=True)["score"].mean() for _ in range(100)]
    bounds = 100 * np.percentile(means, [2.5, 97.5])
    assert (told["arena_low"], told["arena_high"]) == pytest.approx(tuple(bounds))


# ---------------------------------------------------------------- MT-Bench


def test_mt_bench_by_hand(tmp_path, capsys):
    scores = {("a", 81, 1): 8, ("a", 81, 2): 6, ("a", 111, 1): 4, ("a", 111, 2): -1,
              ("b", 81, 1): 9, ("b", 81, 2): 9, ("b", 111, 1): 9.5, ("b", 111, 2): 9}  # fmt: skip
    rows = [
        {"model": model, "question_id": number, "turn": turn, "score": score, "judge": ["g", "s"]}
        for (model, number, turn), score in scores.items()
    ]
    told = benchmarks.mt_bench(rows, {81: "writing", 111: "math"}).set_index("model")
    assert list(told.index) == ["b", "a"]
    row = told.loc["a"]
    assert (row["turn_1"], row["turn_2"], row["score"]) == (6, 6, 6)
    assert (row["n"], row["missing"], row["writing"], row["math"]) == (2, 1, 7, 4)
    path = write(tmp_path / "gpt-4_single.jsonl", rows)
    line = ["score-benchmark", "mt-bench", "--judgments", str(path)]
    line += ["--questions", str(question_file(tmp_path, "mt-bench"))]
    assert cli.main(line) == 0
    assert "writing" in capsys.readouterr().out


def test_what_is_no_rating_or_a_second_one_is_refused():
    row = {"model": "a", "question_id": 81, "turn": 1, "score": 8}
    for score in (85, float("nan"), 0):
        with pytest.raises(KitError, match="field score: 1 to 10"):
            benchmarks.mt_bench([row | {"score": score}])
    with pytest.raises(KitError, match="question_id 81, turn 1 is judged twice"):
        benchmarks.mt_bench([row, row])
    game = {"model": "a", "question_id": 1, "games": [{"score": "A>B"}, {"score": "B>A"}]}
    with pytest.raises(KitError, match="model a, question_id 1 is judged twice"):
        benchmarks.arena_hard([game, game])


# ---------------------------------------------------------------- judged here


def by_length(prompts, first, second):
    pairs = zip(first, second, strict=True)
    return ["C" if len(a) == len(b) else "A" if len(a) > len(b) else "B" for a, b in pairs]


def test_judges_of_the_kit_write_the_benchmarks_judgments(tmp_path, monkeypatch):
    judge = FunctionJudge("by length", by_length)
    ours = [
        {"instruction": f"i{i}", "output": "x" * (i % 3 + 1), "generator": "m"} for i in range(30)
    ]
    theirs = [row | {"output": "xx", "generator": "base"} for row in ours]
    rows = benchmarks.annotate(judge, ours, theirs, seed=0)
    assert [row["preference"] for row in rows] == [1.0, 1.5, 2.0] * 10  # whatever the order shown
    assert benchmarks.alpacaeval(rows).iloc[0]["win_rate"] == 50
    silent = FunctionJudge("silent", lambda *texts: [judging.UNANSWERED] * 30)
    assert {row["preference"] for row in benchmarks.annotate(silent, ours, theirs, seed=0)} == {
        None
    }
    with pytest.raises(KitError, match="row 1: to another question"):
        benchmarks.annotate(judge, ours, theirs[1:], seed=0)

    asked = benchmarks.questions("arena-hard", question_file(tmp_path, "arena-hard"))
    answers = [
        {"question_id": number, "model_id": "m", "choices": [{"turns": [{"content": text}]}]}
        for number, text in (("ab1", "xxx"), ("cd2", "x"))
    ]
    base = [row | {"model_id": "b", "choices": [{"turns": [{"content": "xx"}]}]} for row in answers]
    played = benchmarks.play(judge, asked, answers, base)
    labels = [[game["score"] for game in row["games"]] for row in played]
    assert labels == [["B>A", "A>B"], ["A>B", "B>A"]]
    assert benchmarks.arena_hard(played).iloc[0]["score"] == 50

    asked = benchmarks.questions("mt-bench", question_file(tmp_path, "mt-bench"))
    answers = [
        {"question_id": number, "model_id": "m", "choices": [{"turns": ["one", "two"]}]}
        for number in (81, 111)
    ]
    judge = EndpointJudge(judging.Endpoint("http://localhost:1/v1", "j"), "dialogue-single")
    heard = []

    def ask(_, questions):
        heard.extend(questions)
        says = ["Rating: 7", "Rating: 5", "no", "Rating: 9"]
        return [judging.Answer(text, "stop", 0) for text in says]

    monkeypatch.setattr(judging.Asker, "ask", ask)
    rated = benchmarks.rate(judge, asked, answers)
    assert [(row["question_id"], row["turn"], row["score"]) for row in rated] == [
        (81, 1, 7), (81, 2, 5), (111, 1, -1), (111, 2, 9),
    ]  # fmt: skip
    assert "Query: Write a line.\n\none\n\nNow in red.\n\nResponse: two" in heard[1]
    assert benchmarks.mt_bench(rated).iloc[0]["score"] == 7
    with pytest.raises(KitError, match="its form compares two replies"):
        EndpointJudge(judging.Endpoint("http://localhost:1/v1", "j")).ratings(["p"], ["r"])


# ---------------------------------------------------------------- the commands


def test_the_command_answers(tmp_path, capsys):
    path, out = question_file(tmp_path, "alpacaeval"), tmp_path / "model_outputs.json"
    line = ["answer-benchmark", "alpacaeval", "--questions", str(path), "--model", "tiny"]
    line += ["--name", "mine", "--set", "max_new_tokens=4", "--dtype", "float32"]
    assert cli.main([*line, "--out", str(out), "--limit", "1"]) == 0
    (answer,) = json.loads(out.read_text())
    assert answer["generator"] == "mine" and "1 answers of mine" in capsys.readouterr().out
    origin = json.loads((tmp_path / "model_outputs.json.origin.json").read_text())
    assert origin["config"]["settings"]["temperature"] == 0.8
    assert origin["config"]["settings"]["max_new_tokens"] == 4


def test_a_command_that_was_stopped_goes_on(tmp_path, monkeypatch):
    asked = [{"instruction": f"Say {n}."} for n in range(5)]
    path = write(tmp_path / "alpaca.json", asked)
    line = ["answer-benchmark", "alpacaeval", "--questions", str(path), "--model", "tiny"]
    line += ["--set", "max_new_tokens=4", "--dtype", "float32", "--batch-size", "2", "--out"]
    assert cli.main([*line, str(tmp_path / "whole.json")]) == 0
    batches, draw = [], policies.sample_batch

    def stopped(policy, part, config, **draws):
        batches.append(draws["number"])
        if batches == [0, 1]:
            raise KeyboardInterrupt
        return draw(policy, part, config, **draws)

    monkeypatch.setattr(policies, "sample_batch", stopped)
    with contextlib.suppress(KeyboardInterrupt):
        assert cli.main([*line, str(tmp_path / "out.json")]) == 130
    assert not (tmp_path / "out.json").exists()
    assert cli.main([*line, str(tmp_path / "out.json")]) == 0
    assert batches == [0, 1, 1, 2]  # the first batch was kept
    assert json.loads((tmp_path / "out.json").read_text()) == json.loads(
        (tmp_path / "whole.json").read_text()
    )
    assert not (tmp_path / "out.json.part").exists()


@pytest.mark.parametrize(
    ("name", "flags", "said"),
    [
        ("alpacaeval", ["--out", "x.jsonl"], "alpacaeval takes a .json"),
        ("mt-bench", ["--out", "x.jsonl"], "'dora' has none for mt-bench"),
        ("alpacaeval", ["--out", "x.json", "--set", "beams=3"], "--set beams: unknown"),
        ("alpacaeval", ["--out", "x.json", "--limit", "0"], "nothing to answer"),
        ("alpacaeval", ["--out", "x.json", "--limit", "-1"], "nothing to answer"),
        ("alpacaeval", ["--out", "x.json", "--decoding", "gpt"], "decoding: 'gpt' has none"),
    ],
)
def test_the_command_refuses_to_answer(tmp_path, capsys, monkeypatch, name, flags, said):
    monkeypatch.chdir(tmp_path)
    line = ["answer-benchmark", name, "--questions", str(question_file(tmp_path, name))]
    assert cli.main([*line, "--model", "tiny", *flags]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    assert not list(tmp_path.glob("x.json*"))


def test_the_command_scores_files_and_folders(tmp_path, capsys):
    for model, lean in (("a", 0.7), ("b", 0.4)):
        write(tmp_path / f"{model}.jsonl", random_games(model, lean, 5))
    assert cli.main(["score-benchmark", "arena-hard", "--judgments", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[0] == "a"
    path = write(tmp_path / "annotations.json", made_up(0.0))
    line = ["score-benchmark", "alpacaeval", "--judgments", str(path)]
    gamed().to_csv(tmp_path / "gamed.csv", index=False)
    write(path, made_up(0.0)[:-3])
    assert cli.main([*line, "--gamed", str(tmp_path / "gamed.csv")]) == 2
    assert "instructions; their difficulties" in capsys.readouterr().err
    assert cli.main([*line, "--gamed", "none", "--out", str(tmp_path / "t.csv")]) == 0
    assert pd.read_csv(tmp_path / "t.csv").loc[0, "model"] == "mine"
    assert cli.main(["score-benchmark", "mt-bench", "--repo", str(tmp_path)]) == 2
    assert cli.main(["score-benchmark", "mt-bench", "--judgments", str(path)]) == 2
    assert "annotations.json, row 1, field question_id: missing" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert cli.main(["score-benchmark", "mt-bench", "--judgments", str(tmp_path / "empty")]) == 2
    assert "holds no JSON file" in capsys.readouterr().err


def test_the_commands_names_are_the_packages():
    from robustpo_kit.cli import benchmarks as commands

    assert tuple(benchmarks.BENCHMARKS) == commands.NAMES
