"""Which reply of a loaded row is preferred: one rule, whoever reads the row."""

import json

import numpy as np
import pytest
import torch
from training_setting import preferences

from robustpo_kit import calibration, cli, data, objectives, training
from robustpo_kit.auditing import checks
from robustpo_kit.auditing.rates import preferred_first
from robustpo_kit.data import Preference, PreferenceSet
from robustpo_kit.errors import KitError
from robustpo_kit.rewards import cross_fitting

GOOD, BAD = "good answer number {i} yy", "bad reply number {i} xx"


def texts(i: int) -> tuple[str, str]:
    """The worse reply, the better one."""
    return BAD.format(i=i), GOOD.format(i=i)


def on_policy(i: int) -> dict:
    scored = {"all_generated_responses": texts(i), "all_rm_scores": [-3.0, 5.0]}
    return {"prompt": f"Q{i}?"} | scored


def completions(i: int) -> dict:
    given = zip(texts(i), (2, 9), strict=True)
    made = [{"response": text, "model": "a", "overall_score": score} for text, score in given]
    return {"instruction": f"Q{i}?", "completions": made}


def own(i: int) -> dict:
    return {"prompt": f"Q{i}?", "responses": texts(i), "rewards": [0, 1], "h": [0.5, 2.0]}


def own_list(i: int) -> dict:
    return own(i) | {"responses": ["so so", *texts(i)], "rewards": [0.5, 0, 1], "h": 1.0}


def labelled(i: int) -> dict:
    worse, better = texts(i)
    return {"prompt": f"Q{i}?", "chosen": better, "rejected": worse}


def against(i: int) -> dict:
    return labelled(i) | {"score_chosen": 1, "score_rejected": 9}


def transcript_against(i: int) -> dict:
    start = f"\n\nHuman: Q{i}?\n\nAssistant:"
    replies = {"chosen": f"{start} {texts(i)[1]}", "rejected": f"{start} {texts(i)[0]}"}
    return replies | {"rewards": [1, 9]}


MAKERS = (on_policy, completions, own, own_list, labelled, against, transcript_against)


def written(path, make, numbers) -> PreferenceSet:
    path.write_text("".join(json.dumps(make(i)) + "\n" for i in numbers))
    return data.load(path)


@pytest.mark.parametrize("make", MAKERS)
def test_every_reader_prefers_the_same_reply(tmp_path, make):
    rows = written(tmp_path / "rows.jsonl", make, range(3))
    better = [GOOD.format(i=i) for i in range(3)]
    worse = [BAD.format(i=i) for i in range(3)]
    taken = training.fitting_rows(rows, objectives.build("dpo(beta=0.1)"))
    audited, _ = preferred_first(rows)
    for pairs in (taken, audited):
        found = [[text.strip() for text in row.responses] for row in pairs]
        assert found == [list(both) for both in zip(better, worse, strict=True)]
    width = rows.responses_per_prompt
    before = (torch.zeros(3, width), torch.ones(3, width))
    gain = torch.zeros(3, width)
    for place, row in enumerate(rows):
        gain[place, [text.strip() for text in row.responses].index(better[place])] = 1.0
    table = training.heldout_outcomes(rows, before, (gain, before[1]))
    accuracy = table[table["outcome"] == "implicit_accuracy"]["value"]
    assert accuracy.tolist() == [1.0] * 3
    if rows[0].rewards is not None:  # of listwise losses
        for row in rows:
            assert row.responses[int(np.argmax(row.rewards))].strip() == better[int(row.row_id) - 1]


def test_a_pair_loss_learns_what_a_listwise_loss_and_held_out_rows_prefer(tmp_path, capsys):
    path, held = tmp_path / "rows.jsonl", tmp_path / "held.jsonl"
    for make in (on_policy, own_list):
        written(path, make, range(12)), written(held, make, range(12, 16))
        out = tmp_path / make.__name__
        given = ["--data", path, "--heldout", held, "--model", "tiny", "--out", out]
        given += ["--objective", "dpo(beta=0.1)", "--set", "learning_rate=0.02"]
        given += ["--set", f"reference_cache={tmp_path}/cache", "--set", "batch_size=4"]
        assert cli.main(["train", *map(str, given)]) == 0
        said = capsys.readouterr()
        margin = float(said.out.split("implicit_margin ")[1].split(",")[0])
        assert margin > 0 and ("implicit_accuracy 1.000" in said.out or make is own_list)
        said = "a pair loss takes the replies of highest and of lowest reward" in said.err
        assert said == (make is own_list)


def test_scores_against_a_label_are_counted_and_not_read(tmp_path):
    numbers = iter(range(4))
    rows = written(tmp_path / "rows.jsonl", lambda i: against(i) if i else labelled(i), numbers)
    assert "; 3 of 4 rows score the rejected reply above the chosen one (the label" in (
        rows.describe()
    )
    assert [row.rewards for row in rows] == [None] * 4
    assert checks.scored_against(rows) == (3, 3)
    unlabelled = written(tmp_path / "own.jsonl", own, range(2))
    assert checks.scored_against(unlabelled) == (0, 2)
    lengths = checks.length_table(unlabelled, len, "letters").set_index("part")["mean"]
    assert lengths["chosen"] > lengths["rejected"]
    with pytest.raises(KitError, match="dpo_pl.* needs rewards"):
        training.fitting_rows(rows, objectives.build("dpo_pl(beta=0.1)"))
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(against(0)) + "\n" + json.dumps(labelled(1)) + "\n")
    assert data.load("ultrafeedback", path).dropped == {"scored against its label": 1}


def test_columns_stay_where_the_file_has_them(tmp_path):
    """`--golden COLUMN` and `--against COLUMN` mean those; ratios go with their replies."""
    rows = written(tmp_path / "rows.jsonl", own, range(2))
    assert [row.responses for row in rows] == [texts(0), texts(1)]
    turned = data.preferred_pair(rows[0])
    assert (turned.responses, turned.h) == (texts(0)[::-1], (2.0, 0.5))
    assert (turned.sources, turned.golden) == (("source_1", "source_0"), None)


def test_rewards_name_no_golden_reply(tmp_path):
    """Or supervised fine-tuning would learn whatever stands first."""
    rows = written(tmp_path / "rows.jsonl", own, range(2))
    assert [row.golden for row in rows] == [None, None] and not len(rows.golden_only())
    with pytest.raises(KitError, match="row 1: sft.* trains on the golden response, but 'golden'"):
        training.fitting_rows(rows, objectives.build("sft()"))
    named = written(tmp_path / "rows.jsonl", lambda i: own(i) | {"golden": 1}, range(2))
    assert named.golden_only()[0].responses == (GOOD.format(i=0),)
    alone = {"prompt": "Q?", "responses": ["good"], "rewards": [1]}
    assert written(tmp_path / "rows.jsonl", lambda i: alone, range(1))[0].golden == 0


def test_a_turned_pair_takes_all_that_is_given_by_reply_with_it(tmp_path):
    given = {"info": {"post": "p", "title": "t", "subreddit": "s"}, "choice": 1}
    given["summaries"] = [{"text": "bad", "policy": "m0"}, {"text": "good", "policy": "m1"}]
    more = {"rewards": [0.1, 0.9], "h": [0.2, 3.0], "golden": 0, "sources": ["a", "b"]}
    (row,) = written(tmp_path / "rows.jsonl", lambda i: given | more, range(1))
    assert (row.responses, row.rewards, row.h) == (("good", "bad"), (0.9, 0.1), (3.0, 0.2))
    assert (row.golden, row.sources) == (1, ("b", "a"))
    (row,) = rows = written(tmp_path / "rows.jsonl", lambda i: given | more | {"choice": 0}, [0])
    assert (row.responses, row.h, row.golden) == (("bad", "good"), (0.2, 3.0), 0)
    assert row.rewards is None and rows.contrary == 1


@pytest.mark.parametrize("label", [{"chosen": "b", "rejected": "a"}, {"choice": 1}, {"label": 1}])
def test_a_label_beside_responses_is_not_passed_over(tmp_path, label):
    replies = {"prompt": "q", "responses": ["a", "b"]}
    said = f"row 1, field {next(iter(label))}: beside responses without rewards; leave one out"
    with pytest.raises(KitError, match=said):
        written(tmp_path / "rows.jsonl", lambda i: replies | label, range(1))
    ranked = written(tmp_path / "rows.jsonl", lambda i: replies | label | {"rewards": [0, 1]}, [0])
    assert data.preferred_and_least(ranked[0]) == (1, 0) and "not read" in ranked.describe()


@pytest.mark.parametrize("make", [own, own_list, labelled, on_policy])
def test_golden_chosen_is_the_preferred_reply_in_whatever_column(tmp_path, make):
    rows = written(tmp_path / "rows.jsonl", make, range(2))
    for name, text in (("chosen", GOOD), ("rejected", BAD)):
        told = calibration.told_by_column(rows, name).rows
        assert [row.responses[row.golden] for row in told] == [text.format(i=i) for i in range(2)]


def test_golden_chosen_of_a_list_without_rewards_is_refused(tmp_path):
    unranked = {"prompt": "q", "responses": ["a", "b", "c"]}
    rows = written(tmp_path / "rows.jsonl", lambda i: unranked, range(1))
    with pytest.raises(KitError, match="--golden chosen: row 1 has 3 responses and no rewards"):
        calibration.told_by_column(rows, "chosen")
    assert calibration.told_by_column(rows, 2).rows[0].golden == 2


def test_rows_made_in_memory_keep_the_first_response_preferred(tmp_path):
    made = PreferenceSet([Preference("a", "a", "q", ("x", "y"), ("s", "t"), rewards=(0.0, 1.0))])
    objective = objectives.build("dpo(beta=0.1)")
    assert training.fitting_rows(made, objective)[0].responses == ("x", "y")
    loaded = written(tmp_path / "rows.jsonl", labelled, range(2)).with_rewards([[0, 1], [0, 1]])
    assert training.fitting_rows(loaded, objective)[0].responses == texts(0)[::-1]
    parts = written(tmp_path / "rows.jsonl", own, range(4)).split({"a": 2}, 0)["a"].select([0])
    assert parts.ranked and not loaded.ranked
    assert training.fitting_rows(parts, objective)[0].responses[0].startswith("good")


def test_lists_without_rewards_are_no_pairs():
    rows = PreferenceSet([Preference("a", "a", "q", ("x", "y", "z"), ("s", "t", "u"))])
    with pytest.raises(KitError, match="this row has 3 responses and no rewards that say which"):
        training.fitting_rows(rows, objectives.build("dpo(beta=0.1)"))


def test_a_reward_model_is_fitted_to_the_preferred_replies(monkeypatch):
    seen = []

    class Stop(Exception):
        pass

    def features(_encoder, pairs):
        seen.append([reply for _, reply in pairs])
        if len(seen) == 2:
            raise Stop
        return np.zeros((len(pairs), 1))

    monkeypatch.setattr(cross_fitting.encoders, "response_features", features)
    rows = PreferenceSet(preferences(2, 6), ranked=True)
    with pytest.raises(Stop):
        cross_fitting.cross_fitted_rewards(rows, rows, seed=0, encoder=None)
    best = [row.responses[int(np.argmax(row.rewards))] for row in rows]
    assert seen[0] == best and set(seen[1]).isdisjoint(best)
