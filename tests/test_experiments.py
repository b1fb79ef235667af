import dataclasses

import numpy as np
import pytest

from robustpo_kit import experiments, objectives, paths, profiles
from robustpo_kit.experiments import Lab, keeping, kept


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A laboratory of the smoke profile, in a folder of its own."""
    saved, paths.RUNS = paths.RUNS, tmp_path_factory.mktemp("runs")
    yield Lab(profiles.get("smoke"), seed=0)
    paths.RUNS = saved


def test_what_is_kept_is_made_once_and_again_when_a_setting_changes(tmp_path):
    made = []

    def make(folder):
        made.append(folder)
        (folder / "value.txt").write_text(str(len(made)))

    for config, value in (({"a": (1, 2)}, "1"), ({"a": (1, 2)}, "1"), ({"a": (1, 3)}, "2")):
        assert (kept(tmp_path / "thing", config, make) / "value.txt").read_text() == value


def test_a_failed_make_leaves_nothing_behind(tmp_path):
    def fail(folder):
        (folder / "half").write_text("x")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        kept(tmp_path / "thing", {}, fail)
    assert list(tmp_path.iterdir()) == []


def test_changed_code_makes_it_again(tmp_path, monkeypatch):
    made = []

    def make(folder):
        made.append(folder)

    kept(tmp_path / "thing", {}, make)
    monkeypatch.setattr(keeping, "key_of_function", lambda *_, **__: "another version")
    kept(tmp_path / "thing", {}, make)
    assert len(made) == 2


def test_splits_share_no_prompt(lab):
    groups = [{row.group for row in part} for part in lab.splits.values()]
    assert sum(map(len, groups)) == len(set.union(*groups))
    assert [len(part) for part in lab.splits.values()] == [
        getattr(lab.cfg, f"{n}_rows") for n in experiments.SPLITS
    ]


def test_the_training_set_carries_rewards_h_and_contamination(lab):
    rows, mask = lab.training_set()
    assert mask.sum() == round(lab.cfg.contamination * len(rows))
    assert all(row.h is not None and 0 < row.h < 4 for row in rows)
    for row, dirty in zip(rows, mask, strict=True):
        assert (row.sources[0] == "smollm2") == dirty
        assert not dirty or row.rewards[0] == max(row.rewards)


def test_a_method_is_trained_scored_and_kept(lab):
    rows, _ = lab.training_set()
    spec = experiments.listwise_spec("dpo_pl dora", lab.cfg)
    trained = lab.trained("dpo_pl dora", spec, rows)
    assert trained.record.history[0]["loss_mean"] == pytest.approx(np.log(24), abs=1e-4)
    assert {"reward", "confidence", "verdict", "log_ratio"} <= set(trained.replies.columns)
    assert not set(trained.replies["prompt_id"]) & {row.group for row in lab.rows}, (
        "tables hold no human text"
    )
    again = lab.trained("dpo_pl dora", spec, rows)
    assert again.replies.equals(trained.replies)
    other = Lab(dataclasses.replace(lab.cfg), seed=0).trained("dpo_pl dora", spec, rows)
    assert other.record.history == trained.record.history


def test_margins_of_a_trained_policy_are_kept_with_it(lab):
    pairs = lab.reward_pairs()
    assert all(row.rewards[0] >= row.rewards[1] for row in pairs)
    trained = lab.trained("simpo", experiments.GAMMA_METHODS["simpo"], pairs, keep_scores=True)
    gaps = experiments.simpo_gaps(trained)
    assert len(gaps) == len(pairs) and np.isfinite(gaps["gap"]).all()


def test_every_method_of_every_profile_is_an_objective():
    for profile in profiles.PROFILES.values():
        for name in profile.listwise:
            objective = objectives.build(experiments.listwise_spec(name, profile))
            assert objective.responses == "list" and objective.aggregator == name.split()[1]
    for name, spec in experiments.GAMMA_METHODS.items():
        assert (objectives.build(spec).margin is not None) == name.startswith("gamma")
