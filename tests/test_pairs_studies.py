"""Studies on real preferences: labels turned in training alone, outcomes of held-out pairs."""

import json

import numpy as np
import pandas as pd
import pytest

from robustpo_kit import experiments, paths
from robustpo_kit.analysis import Study
from robustpo_kit.cli import main
from robustpo_kit.errors import KitError
from robustpo_kit.experiments import pairs_run
from robustpo_kit.toy import sweep

ROWS = {"task": "hh", "sft_rows": 4, "policy_rows": 8, "eval_rows": 4}
PRIMARY = {
    "contrast": ["dpo", "dpo"],
    "outcome": "implicit_accuracy",
    "where": {"dose": 0.5},
    "against": {"dose": 0.0},
    "direction": "lower",
}
DECLARED = {
    "name": "small",
    "question": "Do turned labels hurt?",
    "primary": [PRIMARY],
    "seeds": [0, 1],
    "methods": {
        "dpo": {"spec": "dpo(beta=0.1)"},
        "simpo": {"spec": "simpo(beta=2.0, gamma_beta_ratio=0.5)", "doses": [0.5]},
    },
    "doses": [0.0, 0.5],
    "stopping": "all seeds",
    "settings": {"world": "pairs", "profile": "smoke", "overrides": ROWS},
}


@pytest.fixture
def source(tmp_path):
    """24 dialogues as HH-RLHF has them."""
    path = tmp_path / "hh.jsonl"
    path.write_text("".join(map(line, range(24))))
    return str(path)


def line(number: int) -> str:
    asked = f"\n\nHuman: What is {number} and one?\n\nAssistant:"
    answers = {"chosen": f"{asked} It is {number + 1}.", "rejected": f"{asked} No idea."}
    return json.dumps(answers) + "\n"


def test_a_study_on_pairs_runs_and_writes_tidy_tables(declare, source, capsys):
    name = declare()
    assert main(["study", name, "--source", source, "--limit", "3", "--workers", "1"]) == 0
    assert "5 runs left" in capsys.readouterr().out
    assert experiments.run_study(name, workers=1, source=source) == 0
    outcomes = pd.read_csv(paths.RESULTS / "studies" / name / "outcomes.csv")
    counts = outcomes.groupby(["seed", "method", "dose", "outcome"]).size()
    assert (counts == 4).all() and len(counts) == 2 * 4 * len(pairs_run.OUTCOMES)
    sft = outcomes[outcomes["method"] == "sft"].groupby("outcome")["value"].mean()
    assert sft["implicit_accuracy"] == 0.5 and sft["implicit_margin"] == 0, "its own reference"
    contrasts = pd.read_csv(paths.RESULTS / "studies" / name / "contrasts.csv")
    assert contrasts["kind"][0] == "primary" and contrasts["seeds"][0] == 2


TUNED = {
    "methods": {
        "dpo": {"spec": "dpo(beta={beta})", "tries": {"beta": [0.1, 1.0]}},
        "ipo": {"spec": "ipo(tau={tau})", "tries": {"tau": [0.1, 1.0]}},
    }
}
TUNING = {"seeds": [9], "doses": [0.5], "outcome": "implicit_margin", "overrides": {}}


def settings(**changes):
    return {"settings": DECLARED["settings"] | {"tuning": TUNING | changes}}


def test_methods_are_tuned_on_other_seeds_then_run(declare, source, capsys):
    name = declare(**TUNED, **settings())
    assert main(["study", name, "--source", source]) == 2
    assert "tuned.csv: missing" in capsys.readouterr().err
    assert main(["study", name, "--source", source, "--tune", "--workers", "1"]) == 0
    tuned = pd.read_csv(paths.RESULTS / "studies" / name / "tuned.csv")
    assert list(tuned) == ["method", "dose", "knobs", "implicit_margin", "seeds", "chosen"]
    best = tuned[tuned["chosen"]]
    most = tuned.groupby("method")["implicit_margin"].max()
    assert len(tuned) == 4 and best.set_index("method")["implicit_margin"].equals(most)
    runs = experiments.study_runs(Study.load(name), source, tuned)
    (knobs,) = best.loc[best["method"] == "dpo", "knobs"]
    specs = {run.spec for run in runs if run.method == "dpo"}
    assert specs == {"dpo(beta={beta})".format(**json.loads(knobs))}, "at doses 0 and 0.5 alike"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "nothing to tune; that takes settings.tuning"),
        (TUNED | settings(seeds=[1]), "settings.tuning.seeds: seed 1 is one of the study's"),
        (TUNED | settings(outcome="luck"), "settings.tuning.outcome: one of implicit_accuracy"),
        (TUNED | settings(rows=3), "settings.tuning: .*rows"),
        (
            {"methods": TUNED["methods"] | {"dpo": {"spec": "dpo(beta={b})", "tries": {"b": [1]}}}}
            | settings(),
            "tries {'dpo': 1, 'ipo': 2}; give all methods the same number",
        ),
        (
            {"methods": {"dpo": {"spec": "dpo(beta={beta})", "tries": {"b": [1]}}}} | settings(),
            "method 'dpo': 'beta'",
        ),
    ],
)
def test_a_tuning_that_cannot_run_is_one_line(declare, source, changes, message):
    with pytest.raises(KitError, match=f"study small.*{message}"):
        experiments.run_study(declare(**changes), source=source, tune=True)


def test_labels_turn_in_training_alone(declare, source):
    """The held-out labels, and the rows of SFT, are the same at every dose."""
    runs = experiments.study_runs(Study.load(declare()), source)
    splits = pairs_run.splits_of(runs[0].cfg, runs[0].seed, source)
    turned = splits["policy"].flip(0.5, 0)
    assert sum(row.flipped for row in turned) == 4
    assert all("It is" in row.responses[0] for row in (*splits["eval"], *splits["sft"]))
    groups = [{row.group for row in part} for part in splits.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 16


def test_outcomes_by_hand():
    """One pair: the implicit reward prefers the chosen response, the mean log-probability not."""
    logps, reference = np.array([[-6.0, -2.0]]), np.array([[-8.0, -3.0]])
    table = pairs_run.outcomes(["a"], logps, reference, np.array([[3.0, 2.0]]))
    assert dict(zip(table["outcome"], table["value"], strict=True)) == {
        "implicit_accuracy": 1.0,  # gains 2 and 1
        "mean_accuracy": 0.0,  # means -2 and -1
        "implicit_margin": 1.0,
        "golden_logp": -2.0,
    }


def test_other_preferences_are_other_runs(declare, source):
    runs = experiments.study_runs(Study.load(declare()), source)
    before = [sweep.key(pairs_run.pairs_run, run) for run in runs]
    with open(source, "a") as file:
        file.write(line(24))
    pairs_run.pairs.cache_clear()
    pairs_run._pairs_digest.cache_clear()
    assert not set(before) & {sweep.key(pairs_run.pairs_run, run) for run in runs}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": {"dpo": {"spec": "dora(dpo(beta=0.1))"}}}, "dpo': dora.* needs h~"),
        ({"methods": {"dpo": {"spec": "dpo(beta=0.1)", "harm": "flips"}}}, "method 'dpo': .*harm"),
        (
            {"methods": {"dpo": {"spec": "dpo(beta=0.1)", "doses": [2]}}},
            "dose 2.0; a share between 0 and",
        ),
        ({"methods": DECLARED["methods"] | {"sft": {"spec": "sft()"}}}, "'sft' names the row"),
        ({"primary": [PRIMARY | {"outcome": "gold_tau"}]}, "'gold_tau' is none of implicit_acc"),
        ({"settings": DECLARED["settings"] | {"rows": 3}}, "a profile and its overrides"),
    ],
)
def test_a_declaration_that_cannot_run_is_one_line(declare, source, changes, message):
    with pytest.raises(KitError, match=f"study small.*{message}"):
        experiments.study_runs(Study.load(declare(**changes)), source)


def test_a_file_of_no_pairs_is_refused(declare, tmp_path):
    with pytest.raises(KitError, match=r"absent.jsonl"):
        experiments.run_study(declare(), source=str(tmp_path / "absent.jsonl"))
    lab = {
        "settings": {"profile": "smoke"},
        "methods": {"dpo": {"spec": "dpo(beta=0.1)", "harm": "flips"}},
    }
    with pytest.raises(KitError, match="small: does not read preferences; leave --source out"):
        experiments.run_study(declare(**lab), source="hh.jsonl")
