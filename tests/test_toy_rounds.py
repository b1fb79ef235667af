"""Rounds of a run in the toy world: own replies, ranked by the proxy; what their tables hold."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from test_toy_phase import DECLARED, small, study_of

from robustpo_kit import calibration, experiments, paths, toy
from robustpo_kit.analysis import Study
from robustpo_kit.errors import KitError
from robustpo_kit.toy.rounds import own_rows, own_weights
from robustpo_kit.toy.runs import Run
from robustpo_kit.toy.setting import classifier, draw_data, start

SETTING = dataclasses.replace(small(reward_bias=1.0), sft_epochs=20)


def drawn(kind, number=1, rso_beta=0.5):
    return own_rows(SETTING, start(SETTING).policy, kind, number=number, rso_beta=rso_beta)


def test_own_rows_have_the_proxys_rewards_and_the_least_for_an_invalid_text():
    rows, world = drawn("own"), draw_data(SETTING).world
    proxy = toy.data.proxy_reward(world, SETTING.data)
    valid = 0
    for row in rows:
        of_prompt = proxy[world.prompts.index(row.prompt)]
        for text, reward in zip(row.responses, row.rewards, strict=True):
            expected = of_prompt.min()
            if text in world.responses:
                valid += 1
                expected = of_prompt[world.responses.index(text)]
            assert reward == pytest.approx(float(expected))
    assert 0 < valid < 4 * len(rows), "it writes both kinds"
    assert {len(row.responses) for row in rows} == {4} and {row.golden for row in rows} == {None}
    assert rows.rows == drawn("own").rows != drawn("own", number=2).rows


def test_the_golden_slot_can_stay_as_it_was_given():
    rows = drawn("own_golden")
    given = {row.row_id: row for row in draw_data(SETTING).policy_data.prefs}
    for row in rows:
        assert row.responses[0] == given[row.row_id].responses[0] and row.golden == 0
        assert row.sources == ("golden", "policy", "policy", "policy")


def test_rso_keeps_k_of_twice_as_many_and_more_of_the_best_at_a_small_beta():
    means = {}
    for beta in (0.01, 0.5, 100.0):
        rows = drawn("rso", rso_beta=beta)
        assert {len(row.responses) for row in rows} == {4}
        means[beta] = np.mean([row.rewards for row in rows])
    assert means[0.01] > means[0.5] > means[100.0]


def test_weights_of_own_rows_are_the_classifiers():
    rows = drawn("own_golden")
    flat = calibration.flat_responses(rows)
    texts = (list(flat["prompt"]), list(flat["response"]))
    c = classifier(SETTING).score(*texts).reshape(len(rows), -1)
    assert (own_weights(SETTING, rows, "ones") == 1).all()
    np.testing.assert_allclose(own_weights(SETTING, rows, "estimated"), c.sum(1), rtol=1e-6)
    ratios = calibration.slot_ratios(c[:, 0], imbalance=3)
    expected = calibration.slot_weights(ratios).weights
    np.testing.assert_allclose(own_weights(SETTING, rows, "slot"), expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rounds": ()}, r"rounds = \(\): some of given, own, own_golden, rso"),
        ({"rounds": ("given", "mine")}, "rounds = .*'mine'"),
        ({"rounds": ("rso",), "h": "oracle"}, "h = 'oracle': of own replies one of ones, est"),
        ({"rounds": ("given", "own"), "h": "slot"}, "rows without a golden slot"),
    ],
)
def test_rounds_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Run(**fields)


@pytest.mark.parametrize("rounds", [("given", "own", "own_golden"), ("rso", "given")])
def test_each_round_goes_on_from_the_policy_before(rounds):
    spec = "reweight(dpo(beta=0.1))"
    run = Run(spec, setting=SETTING, epochs=1, points=2, rounds=rounds)
    path = toy.runs.path(run)["path"]
    first = Run(spec, setting=SETTING, epochs=1, points=2, rounds=rounds[:1])
    one = toy.runs.path(first)["path"]
    assert {len(values) for values in path.values()} == {1 + 2 * len(rounds)}
    for name, values in one.items():
        assert path[name][:3] == values
    assert len(set(path["gold"])) == len(path["gold"]), "every round moves the policy"
    assert toy.runs.run(run)["gold"] == pytest.approx(path["gold"][-1], abs=1e-5)


TRIES = {"learning_rate": [1e-3], "beta": [0.1]}
METHODS = {
    "erm": DECLARED["methods"]["erm"] | {"rounds": ["given", "own"], "tries": TRIES},
    "slot": DECLARED["methods"]["slot"] | {"rounds": ["given", "own_golden"], "tries": TRIES},
    "rso": DECLARED["methods"]["erm"] | {"rounds": ["rso"], "tries": TRIES | {"rso_beta": [9.0]}},
}


def test_a_study_of_rounds_writes_a_table_of_them(declare):
    changes = {"axis_methods": [], "axes": {}, "tuning_seeds": [10]}
    settings = DECLARED["settings"] | changes
    name = declare(methods=METHODS, settings=settings, doses=[0.5])
    experiments.run_study(name, tune=True, workers=1)
    assert experiments.run_study(name, workers=1) == 0
    folder = paths.RESULTS / "studies" / name
    rounds, outcomes = (pd.read_csv(folder / f"{title}.csv") for title in ("rounds", "outcomes"))
    assert rounds.groupby("method")["round"].unique().map(list).to_dict() == {
        "erm": [0, 1, 2],
        "slot": [0, 1, 2],
    }
    keys = ["method", "seed", "dose", "outcome"]
    last = rounds[rounds["round"] == 2].set_index(keys)["value"]
    ends = outcomes.set_index(keys)["value"]
    pd.testing.assert_series_equal(last, ends[last.index])
    starts = rounds[rounds["round"] == 0].groupby(["seed", "dose", "outcome"])["value"]
    assert (starts.nunique() == 1).all(), "all methods of a world start from one policy"


def test_the_declared_study_has_worlds_of_its_own():
    """Neither tuned on nor looked at by any other study in the toy world."""
    looked_at = {}
    for path in sorted(paths.STUDIES.glob("*.json")):
        study = Study.load(path.stem)
        if study.settings.get("world") == "toy":
            looked_at[study.name] = {*study.seeds, *study.settings["tuning_seeds"]}
    own = looked_at.pop("self_training")
    assert len(own) == 24 + 3 and own.isdisjoint(set().union(*looked_at.values()))
    rounds = toy.declared.read(Study.load("self_training")).methods["DoRA, 3 rounds"].rounds
    assert list(rounds) == ["given", "own", "own"]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (METHODS["erm"] | {"rounds": ["mine"]}, r"method 'erm': rounds = \('mine',\)"),
        (METHODS["erm"] | {"rounds": []}, r"method 'erm': rounds = \(\)"),
        (
            METHODS["rso"] | {"rounds": ["own"]},
            "method 'erm': tries have 'rso_beta', which nothing",
        ),
    ],
)
def test_a_method_of_rounds_that_cannot_run_is_one_line(method, message):
    declared = DECLARED | {"methods": METHODS | {"erm": method}}
    with pytest.raises(KitError, match=f"study small, {message}"):
        toy.declared.read(study_of(declared))
