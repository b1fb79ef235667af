"""A language model as judge: forms, both orders, cache, budget, failures, and no key anywhere."""

import contextlib
import json
import logging
import multiprocessing
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from endpoint_server import Server, served, serving

from robustpo_kit import cli, judging
from robustpo_kit.data import Preference, PreferenceSet
from robustpo_kit.errors import KitError
from robustpo_kit.judging import FORMS, UNANSWERED, Endpoint, EndpointJudge

pytest.importorskip("openai", reason="openai is an extra")

KEY = "sk-nobody-may-see-this-9d1f"


def replies(text: str) -> tuple[str, str]:
    """The two replies of a question in the form of a dialogue."""
    return re.search(r"Response A: (.*)\n\nResponse B: (.*)\n\nFIRST", text, re.S).groups()


def longer(text: str, _number: int = 0) -> str:
    """A judge over HTTP whose truth is known: the longer reply, and a tie."""
    first, second = map(len, replies(text))
    verdict = "C" if first == second else "A" if first > second else "B"
    return f"More helpful: {verdict}\nComparison: response A against response B."


def judge_of(server, tmp_path, form="dialogue", both_orders=True, **settings):
    settings = {"cache": tmp_path / "cache", "retries": 2, "workers": 2} | settings
    return EndpointJudge(Endpoint(server.url, "a-model", **settings), form, both_orders=both_orders)


PROMPTS, LONG, SHORT = ["p", "q", "r"], ["long one"] * 3, ["short"] * 3


# ---------------------------------------------------------------- forms


NO_VERDICTS = (  # that begin as one
    "A = B", "A=B", "A == B", "A ≈ B", "A & B", "A|B", "A (tie with B)", "A - B tie", "A - a tie",
    "Response A, Response B", "A < B", "A<B", "A is worse than B.", "A? No, B.", "A ✗, B ✓",
    "A is not more helpful; B is.", "A (no), B (yes)",
)  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("More helpful: A\nComparison: Response B is vague.", "A"),
        ("**More helpful:** 'B'", "B"),
        ("more helpful: <C>", "C"),
        ("More helpful: Response A", "A"),
        ("B", "B"),
        ("A\nComparison: both are short.", "A"),
        ("A good answer would say more.", None),
        ("More helpful: <'A' or 'B' or 'C'>", None),  # the format, repeated
        ("More helpful: A/B", None),
        ("More helpful: A. More helpful: B", None),
        ("More helpful: both", None),
        ("More helpful: B\nComparison: Response B is more helpful: A clear structure.", "B"),
        ("B\nSECOND: A is less, not more helpful. A rambles.", "B"),
        ("C\nComparison: Neither is more helpful: A lacks detail and B is wrong.", "C"),
        ("B\nComparison: Response B is preferred. A misses the point.", "B"),
        ("More helpful: A good reply is B", None),
        ("B is short. More helpful: A", "A"),
        ("A\nMore helpful: B", None),
        ("More helpful: A, because B is vague", "A"),
        ("More helpful: A. B is vague.", "A"),
        ("More helpful: B (it answers the question)", "B"),
        ("More helpful: B Comparison: A is vague.", "B"),
        ("More helpful: A is more helpful", "A"),
        *((f"More helpful: {said}", None) for said in NO_VERDICTS),
        ("Neither.\nNot more helpful: A", None),
        ("The reply that is not more helpful: A", None),
        ("A ✗", None),
        ("a", None),
        ("", None),
    ],
)
def test_a_verdict_is_read_or_not_at_all(answer, verdict):
    assert FORMS["dialogue"].read(answer) == verdict
    assert FORMS["summary"].read(re.sub("(?i)more helpful", "Preferred", answer)) == verdict


@pytest.mark.parametrize(
    ("answer", "rating"),
    [
        ("Rating: 7\nExplanation: 2 steps of 3.", "7"),
        ("Rating: 8.5/10", "8.5"),
        ("**Rating:** 10", "10"),
        ("4", "4"),
        ("Rating: <whole number from 1 to 10>", None),
        ("Rating: 1 to 10", None),
        ("Rating: 5-6", None),
        ("Rating: 0", None),
        ("Rating: 11", None),
        ("Rating: 1000", None),
        ("Rating: 7. Rating: 8.", None),
        ("4/5", None),
        ("Rating: 8,5", None),
        ("Rating: -5", None),
        ("Rating: 7 out of 10", "7"),
        ("Rating: 7 (out of 10), since step 2 is missing", "7"),
        ("Rating: 4 out of 5", None),
        ("Rating: 4 of 5", None),
        ("Rating: 4 (of 5)", None),
        ("Rating: 10 out of 100", None),
        ("Rating: 9%", None),
        ("Rating: 8 (scale 1-100)", None),
        ("Rating: 1 (worst) to 10 (best)", None),
        ("Rating: 7; 8", None),
        ("Rating: 7 ~ 8", None),
    ],
)
def test_a_rating_is_read_or_not_at_all(answer, rating):
    assert FORMS["dialogue-single"].read(answer) == rating
    assert FORMS["summary-single"].read(answer) == rating


def test_the_forms_are_the_papers():
    """Sentences of DoRA App. C.4, from the paper."""
    dialogue, summary = (
        FORMS[name].ask("PROMPT", "ONE", "TWO") for name in ("dialogue", "summary")
    )
    assert "For the following query to a chatbot, which response is more helpful?" in dialogue
    assert "state only 'A' or 'B' to indicate which response is more helpful" in dialogue
    assert "More helpful: <'A' or 'B' or 'C'>" in dialogue
    assert "does a better job of summarizing the most important points" in summary
    assert "A good summary is both precise and concise." in summary
    assert "Preferred: <'A' or 'B' or 'C'>" in summary
    for text in (dialogue, summary):
        assert text.index("PROMPT") < text.index("A: ONE") < text.index("B: TWO")
    assert (
        FORMS["dialogue"].ask("{first}", "{second}", "x").count("{") == 2
    )  # texts stay as they are


# ---------------------------------------------------------------- verdicts


def test_both_orders_are_asked_and_counted(tmp_path):
    with serving(longer) as server:
        judge = judge_of(server, tmp_path)
        assert judge.verdicts(PROMPTS, LONG, SHORT) == ["A"] * 3
        assert judge.verdicts(PROMPTS, SHORT, LONG) == ["B"] * 3  # both orders are in the cache
    assert len(server.questions) == 6
    counts = {"pairs": 6, "consistent": 6, "asked": 6, "cached": 6, "tokens": 60}
    assert judge.counts == counts


def test_position_bias_is_a_tie_that_is_counted(tmp_path):
    with serving(lambda text, number: "More helpful: A") as server:
        judge = judge_of(server, tmp_path)
        assert judge.verdicts(PROMPTS, LONG, SHORT) == ["C"] * 3
        assert judge.counts["inconsistent"] == 3 and "consistent" not in judge.counts
        one = judge_of(server, tmp_path, both_orders=False)  # as the paper: one order
        assert one.verdicts(PROMPTS, LONG, SHORT) == ["A"] * 3
        assert len(server.questions) == 6 and "inconsistent" not in one.counts
        assert judge.fingerprint != one.fingerprint


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("I'm sorry, but I can't compare these.", "refusals"),
        ({"content": None, "refusal": "No."}, "refusals"),
        ({"content": "", "finish_reason": "content_filter"}, "refusals"),
        ((400, {"error": {"message": "filtered", "code": "content_filter"}}), "refusals"),
        ("They are both fine replies", "unreadable"),
        ({"content": "Let me think about it, at", "finish_reason": "length"}, "cut"),
    ],
)
def test_what_is_no_verdict_is_counted_and_no_tie(tmp_path, said, kind):
    def answer(text, number):
        return (
            (dict(said) if isinstance(said, dict) else said) if "Query: q" in text else longer(text)
        )

    with serving(answer) as server:
        judge = judge_of(server, tmp_path)
        table = judging.compare(judge, PROMPTS, {"long": LONG}, SHORT, seed=0)
    assert list(table["verdict"]) == ["win", "unanswered", "win"]
    assert judge.counts[kind] == 2 and judge.counts["consistent"] == 2
    row = judging.win_table(table, unaudited=True, draws=50).iloc[0]
    assert (row["win"], row["tie"], row["score"], row["unanswered"]) == (1, 0, 1, 1)


def test_the_single_form_prefers_the_higher_rating(tmp_path):
    ratings = {"long one": "Rating: 8", "short": "Rating: 3", "other": "no idea"}

    def answer(text, number):
        return ratings[re.search(r"Response: (.*)\n", text)[1]]

    with serving(answer) as server:
        judge = judge_of(server, tmp_path, "dialogue-single")
        first, second = (
            ["long one", "short", "short", "other"],
            ["short", "long one", "short", "short"],
        )
        assert judge.verdicts(["p"] * 4, first, second) == ["A", "B", "C", UNANSWERED]
    assert len(server.questions) == 3 and judge.counts["unreadable"] == 1


def test_it_is_audited_like_every_judge(tmp_path, monkeypatch):
    """One that knows the golden reply is admitted; by length or by position is not."""
    rows = [
        Preference(
            row_id=f"r{i}",
            group=f"g{i}",
            prompt=f"How do I do task {i}?",
            responses=(f"Take tool {i} and turn it.", "No" + " no" * (i % 5)),
            sources=("human", "model"),
            golden=0,
        )
        for i in range(24)
    ]
    rows = PreferenceSet(rows)
    golden = {row.prompt: row.responses[0] for row in rows}

    def knows(text):
        prompt = text.split("Query: ")[1].split("\n")[0]
        first, second = (reply == golden.get(prompt) for reply in replies(text))
        return "More helpful: " + ("C" if first == second else "A" if first else "B")

    prompts = [row.prompt for row in rows]
    human, model = ([row.responses[column] for row in rows] for column in (0, 1))

    def first(_):  # a tie of both orders, everywhere
        return "More helpful: A"

    for say, failed in ((knows, None), (longer, "doubled"), (first, r"echo 0\.50")):
        judge = EndpointJudge(Endpoint("http://localhost:1/v1", say.__name__, cache=tmp_path))

        def called(_, sent, say=say):
            return judging.Answer(say(sent["messages"][0]["content"]), "stop", 0)

        monkeypatch.setattr(judging.Asker, "_call", called)
        table = judging.audit(judge, rows, seed=0, draws=100)
        verdicts = judging.compare(judge, prompts, {"model": model}, human, seed=0)
        if failed is None:
            assert judging.win_table(verdicts, table, draws=100)["lose"].item() == 1
        else:
            with pytest.raises(ValueError, match=rf"fails its audit \(.*{failed}"):
                judging.win_table(verdicts, table, draws=100)


# ---------------------------------------------------------------- failures, cache, budget


@pytest.mark.parametrize("failure", [429, 500, "time-out"])
def test_a_passing_failure_is_asked_again(tmp_path, failure):
    def answer(text, number):
        if number > 1:
            return longer(text)
        if failure == "time-out":
            time.sleep(0.6)
        return (failure if failure != "time-out" else 503), {"error": {"message": "later"}}

    with serving(answer) as server:
        judge = judge_of(server, tmp_path, timeout=0.3, workers=1)
        assert judge.verdicts(["p"], ["long one"], ["short"]) == ["A"]
        assert judge.counts["asked"] == 2 and len(server.questions) == 3


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        ((429, {"error": {"message": "slow down"}}), "status 429"),
        ((500, {"error": {"message": "broken"}}), "status 500"),
        ((404, {"error": {"message": "no such model"}}), "status 404 for model 'a-model'"),
        ((401, {"error": {"message": f"bad key {KEY}"}}), "set the environment variable OPENAI"),
        ((200, "<html>proxy</html>"), "no chat completion"),
        ((200, {"choices": []}), "no chat completion"),
        ((200, {"odd": 1}), "no chat completion"),
    ],
)
def test_a_lasting_failure_is_one_line_and_what_came_is_kept(tmp_path, failure, said):
    with serving(lambda text, number: longer(text) if number < 3 else failure) as server:
        judge = judge_of(server, tmp_path, workers=1)
        with pytest.raises(KitError, match=re.escape(said)) as caught:
            judge.verdicts(PROMPTS, LONG, SHORT)
        assert "\n" not in str(caught.value) and len(list(tmp_path.rglob("*.json"))) == 2
        server.answer = longer
        again = judge_of(server, tmp_path)
        assert again.verdicts(PROMPTS, LONG, SHORT) == ["A"] * 3
        assert again.counts["cached"] == 2 and again.counts["asked"] == 4


def test_a_server_that_is_not_there(tmp_path):
    judge = EndpointJudge(Endpoint("http://127.0.0.1:9/v1", "m", retries=0, cache=tmp_path))
    with pytest.raises(KitError, match="endpoint: no answer, after 0 retries"):
        judge.verdicts(["p"], ["x"], ["y"])


@pytest.mark.parametrize("budget", [{"max_calls": 4}, {"max_tokens": 40}])
def test_the_budget_holds_and_the_run_goes_on(tmp_path, budget):
    with serving(longer) as server:
        judge = judge_of(server, tmp_path, workers=1, **budget)
        with pytest.raises(KitError, match=r"budget of \d+ (calls|tokens) is used up"):
            judge.verdicts(PROMPTS, LONG, SHORT)
        assert len(server.questions) == 4
        judge = judge_of(server, tmp_path, workers=1, **budget)  # the cache is no call
        assert judge.verdicts(PROMPTS, LONG, SHORT) == ["A"] * 3
        assert len(server.questions) == 6


def test_the_cache_is_keyed_by_all_that_decides_an_answer(tmp_path):
    with serving(longer) as server, serving(longer) as other:
        ways = [
            (server, "a", {}),
            (other, "a", {}),
            (server, "b", {}),
            (server, "a", {"temperature": 1}),
            (server, "a", {"seed": 3}),
        ]
        for asked, (place, model, request) in enumerate(ways, start=1):
            request = judging.REQUEST | request
            endpoint = Endpoint(place.url, model, request, cache=tmp_path)
            for _ in range(2):
                EndpointJudge(endpoint, both_orders=False).verdicts(["p"], ["xx"], ["x"])
            assert len(server.questions) + len(other.questions) == asked
        stored = json.loads(next(tmp_path.rglob("*.json")).read_text())
        assert set(stored) == {"question", "answer"}


def test_a_killed_run_loses_no_finished_judgment(tmp_path):
    count, workers = 30, 2
    names = [f"p{i}" for i in range(count)]

    def slowly(text, number):
        time.sleep(0.02)
        return longer(text)

    def ask(server):
        judge = judge_of(server, tmp_path, workers=workers)
        return judge.verdicts(names, ["long one"] * count, ["short"] * count), judge.counts

    server = Server(slowly)
    child = multiprocessing.get_context("fork").Process(target=ask, args=(server,))
    child.start()  # before the server has threads; it listens already
    with served(server):
        deadline = time.monotonic() + 60
        while len(server.questions) < 20 and time.monotonic() < deadline:
            time.sleep(0.01)
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        time.sleep(0.1)  # what was under way has been answered to nobody
        before = len(server.questions)
        kept = len(list((tmp_path / "cache").rglob("*.json")))
        assert 20 <= before < 2 * count and before - workers <= kept <= before
        verdicts, counts = ask(server)
        assert verdicts == ["A"] * count and counts["cached"] == kept
        assert len(server.questions) <= 2 * count + workers


# ---------------------------------------------------------------- keys, refusals, the command


def test_no_key_reaches_a_file_a_log_or_a_message(tmp_path, monkeypatch, caplog, capfd):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    for name in ("openai", "httpx", "httpcore", "httpx2", "httpcore2"):
        caplog.set_level(logging.DEBUG, logger=name)
    echo = {"error": {"message": f"what is {KEY}?"}}
    said = []
    with serving(longer) as server:
        judge = judge_of(server, tmp_path)
        table = judging.compare(judge, PROMPTS, {"long": LONG}, SHORT, seed=0)
        table.to_csv(tmp_path / "table.csv")
        assert set(server.authorizations) == {f"Bearer {KEY}"}  # it did reach the server
        for status in (400, 401, 500):
            server.answer = lambda text, number, status=status: (status, echo)
            with pytest.raises(KitError) as caught:
                judge_of(server, tmp_path, retries=0).verdicts(["new"], ["xx"], ["x"])
            said.append(str(caught.value))
    said += [repr(judge.asker.endpoint), str(vars(judge)), caplog.text, *capfd.readouterr()]
    said += [file.read_text() for file in tmp_path.rglob("*") if file.is_file()]
    assert len(said) > 12 and "***" in said[0] and "a-model" in said[0]
    assert not [text for text in said if KEY in text or KEY[3:] in text]


@pytest.mark.parametrize("status", [200, 400])
def test_a_key_that_a_long_answer_repeats_is_in_no_file_or_message(tmp_path, monkeypatch, status):
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY} ")  # with a blank, as a copied one may have
    said = "x" * 190 + KEY
    answer = longer_with(said) if status == 200 else (400, {"error": {"message": said}})
    with serving(lambda text, number: answer) as server:
        judge = judge_of(server, tmp_path, retries=0)
        if status == 200:
            assert judge.verdicts(["p"], ["xx"], ["x"]) == ["C"]  # A in both orders
        else:
            with pytest.raises(KitError) as caught:
                judge.verdicts(["p"], ["xx"], ["x"])
            assert KEY[:8] not in str(caught.value)
        assert set(server.authorizations) == {f"Bearer {KEY}"}
    assert not [file for file in tmp_path.rglob("*.json") if KEY in file.read_text()]


def longer_with(said: str) -> str:
    return f"More helpful: A\nComparison: {said}"


def test_an_empty_answer_is_asked_for_again(tmp_path):
    with serving(lambda text, number: "") as server:
        judge = judge_of(server, tmp_path)
        assert judge.verdicts(["p"], ["xx"], ["x"]) == [UNANSWERED]
        server.answer = longer
        assert judge_of(server, tmp_path).verdicts(["p"], ["xx"], ["x"]) == ["A"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"url": "localhost:8000"}, "an address such as"),
        ({"url": f"http://me:{KEY}@host/v1"}, "holds credentials"),
        ({"url": f"http://host/v1?api-key={KEY}"}, "holds credentials"),
        ({"request": {"model": "x"}}, "'model' is not to be set"),
        ({"request": {"extra_headers": {}}}, "'extra_headers' is not to be set"),
        ({"workers": 0}, "workers = 0"),
    ],
)
def test_an_endpoint_that_cannot_be_meant_is_refused(arguments, said):
    with pytest.raises(KitError, match=said) as caught:
        Endpoint(**{"url": "http://host/v1", "model": "m"} | arguments)
    assert KEY not in str(caught.value)
    with pytest.raises(KitError, match="form: 'haiku'"):
        EndpointJudge(Endpoint("http://host/v1", "m"), "haiku")


def test_fields_that_only_a_server_knows_go_into_extra_body(tmp_path):
    with serving(longer) as server:
        with pytest.raises(KitError, match="'top_k' is no field of the openai client's"):
            judge_of(server, tmp_path, request={"top_k": 5}).verdicts(PROMPTS, LONG, SHORT)
        judge = judge_of(server, tmp_path, request={"extra_body": {"top_k": 5}})
        assert judge.verdicts(PROMPTS, LONG, SHORT) == ["A"] * 3


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": f"p{i}?", "chosen": f"long reply {i}", "rejected": f"no {i}"} for i in range(6)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_command_judges_by_an_endpoint(tmp_path, pairs, capsys, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    with serving(longer) as server:
        line = ["judge", "--data", str(pairs), "--endpoint", server.url, "--judge-model", "a-model"]
        line += ["--key-variable", "MY_KEY", "--cache", str(tmp_path / "cache"), "--workers", "2"]
        assert cli.main([*line, "--max-calls", "3", "--unaudited"]) == 2
        assert "--max-calls 3: 12 calls to make; nothing was asked" in capsys.readouterr().err
        assert not server.questions
        out = tmp_path / "wins.csv"
        line += ["--request", "seed=1", "--request", "max_tokens=null"]
        assert cli.main([*line, "--unaudited", "--out", str(out)]) == 0
        told = capsys.readouterr().out
        assert "pairs 6, consistent 6, asked 12" in told
        table, asked = tmp_path / "audited.csv", len(server.questions)
        assert cli.main([*line, "--out", str(table)]) == 2
        assert "6 groups of rows to audit it on" in capsys.readouterr().err
        assert len(server.questions) == asked
        more = pairs.read_text() + "".join(
            json.dumps({"prompt": f"q{i}?", "chosen": f"long one {i}", "rejected": f"no {i}"})
            + "\n"
            for i in range(16)
        )
        pairs.write_text(more)
        line += ["--audit-rows", "20", "--out", str(table)]
        assert cli.main(line) == 2  # its audit: it likes length
        told = capsys.readouterr()
        assert "fails its audit (" in told.err and "or --unaudited" in told.err
        every, audits = re.search(
            r"(\d+) calls to make, (\d+) of them the audit's", told.out
        ).groups()
        asked = int(re.search(r"asked (\d+)", told.out)[1])
        assert int(every) > int(audits) == asked  # the comparison is not paid for
        audit = pd.read_csv(tmp_path / "audited.audit.csv")
        assert "fail" in set(audit["result"]) and audit["n"].max() == 20 and not table.exists()
    record = json.loads((tmp_path / "wins.json").read_text())["config"]
    assert record["counts"]["consistent"] == 6 and record["judge"] == "a-model by dialogue"
    question = next(
        json.loads(file.read_text())["question"]
        for file in (tmp_path / "cache").rglob("*.json")
        if "seed" in file.read_text()
    )
    assert question["seed"] == 1 and "max_tokens" not in question
    files = [file.read_text() for file in tmp_path.rglob("*") if file.is_file()]
    assert not [text for text in files if KEY in text]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "name one judge, --judge DIR or --endpoint URL"),
        (["--judge", "x", "--endpoint", "http://h/v1"], "name one judge"),
        (["--endpoint", "http://h/v1"], "--judge-model is missing"),
        (["--endpoint", "h", "--judge-model", "m"], "an address such as"),
        (["--endpoint", "http://h/v1", "--judge-model", "m", "--request", "x"], "KEY=VALUE"),
    ],
)
def test_the_command_refuses(pairs, capsys, flags, said):
    assert cli.main(["judge", "--data", str(pairs), *flags]) == 2
    *shape, error = capsys.readouterr().err.splitlines()  # what the file is stands before it
    assert said in error and error.startswith("robustpo: ") and len(shape) == 1


def test_the_commands_forms_are_the_packages():
    from robustpo_kit.cli import endpoints

    assert tuple(FORMS) == endpoints.FORMS


# ---------------------------------------------------------------- a real server


@contextlib.contextmanager
def transformers_serve(folder: Path, log: Path):
    """`transformers serve` of a model folder on a free port, ended by its process id."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = "from transformers.cli.transformers import main; main()"
    command = [sys.executable, "-c", program, "serve", str(folder), "--host", "127.0.0.1"]
    with log.open("w") as stream:
        child = subprocess.Popen(
            [*command, "--port", str(port), "--device", "cpu", "--dtype", "float32"],
            stdout=stream,
            stderr=stream,
        )
        try:
            yield f"http://127.0.0.1:{port}/v1", child
        finally:
            child.terminate()
            child.wait(30)


@pytest.mark.slow
def test_a_real_server_with_smollm2(tmp_path):
    """SmolLM2 behind `transformers serve` judges pairs; every answer is accounted for."""
    import urllib.request

    pytest.importorskip("fastapi", reason="`transformers serve` needs it")
    from robustpo_kit import assets

    folder = assets.resolve("smollm2-135m-instruct")
    with transformers_serve(folder, tmp_path / "log") as (url, child):
        deadline = time.monotonic() + 120
        while True:
            assert child.poll() is None and time.monotonic() < deadline, (
                tmp_path / "log"
            ).read_text()
            with contextlib.suppress(OSError):
                urllib.request.urlopen(url.replace("/v1", "/health"), timeout=5).read()
                break
            time.sleep(0.5)
        request = {"temperature": 0, "max_tokens": 24}
        endpoint = Endpoint(url, str(folder), request, timeout=120, workers=2, cache=tmp_path / "c")
        judge = EndpointJudge(endpoint)
        prompts = ["How do I boil an egg?", "Name a colour."]
        verdicts = judge.verdicts(prompts, ["Boil it for 8 minutes.", "Blue."], ["No.", "Seven."])
        counts = judge.counts
        assert len(verdicts) == 2 and set(verdicts) <= {"A", "B", "C", UNANSWERED}
        assert counts["asked"] == 4 and counts["tokens"] > 400
        both = counts.get("consistent", 0) + counts.get("inconsistent", 0)
        assert both + verdicts.count(UNANSWERED) == 2
        again = EndpointJudge(endpoint)
        assert (
            again.verdicts(prompts, ["Boil it for 8 minutes.", "Blue."], ["No.", "Seven."])
            == verdicts
        )
        assert again.counts["cached"] == 4 and "asked" not in again.counts
        rated = EndpointJudge(endpoint, "dialogue-single")
        rated.verdicts(prompts[:1], ["Boil it for 8 minutes."], ["No."])
        assert rated.counts["asked"] == 2
    assert child.returncode is not None
