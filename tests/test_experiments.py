"""The lab: disjoint splits, methods trained and scored, what is kept made again when needed."""

import dataclasses
import multiprocessing
import os
import select
import signal
import time

import numpy as np
import pandas as pd
import pytest
import torch

from robustpo_kit import (
    cli,
    data,
    experiments,
    mixture,
    objectives,
    paths,
    policies,
    profiles,
    robust,
    training,
)
from robustpo_kit.data import Preference, PreferenceSet
from robustpo_kit.errors import KitError
from robustpo_kit.experiments import Lab, keeping, kept, workers
from robustpo_kit.experiments.sampled import sampled_replies
from robustpo_kit.experiments.scoring import distance_by_draw
from robustpo_kit.policies import SamplingConfig
from robustpo_kit.records import closure, freshness, read_json


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


def test_several_replies_to_a_prompt_are_no_distance():
    """Both sides of one distribution, replies to one prompt alike: zero, with one draw or four."""
    rng, found = np.random.default_rng(0), {1: [], 4: []}
    for draws, distances in found.items():
        for _ in range(20):
            human = np.repeat(rng.normal(size=(40, 8)), draws, axis=0)
            topics = np.repeat(rng.normal(size=(40, 8)), draws, axis=0)
            replies = 0.8 * topics + 0.6 * rng.normal(size=topics.shape)
            row_ids = pd.Series([f"r{i // draws}" for i in range(len(human))])
            distances.append(distance_by_draw(replies, human, row_ids))
    for distances in found.values():
        assert abs(np.mean(distances)) < 3 * np.std(distances) / len(distances) ** 0.5
    assert np.std(found[4]) < np.std(found[1]) < 0.1


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
        assert not dirty or row.rewards[0] > max(row.rewards[1:])


def test_a_method_is_trained_scored_and_kept(lab):
    rows, _ = lab.training_set()
    spec = experiments.listwise_spec("dpo_pl dora", lab.cfg)
    trained = lab.trained("dpo_pl dora", spec, rows)
    assert trained.record.history[0]["loss_mean"] == pytest.approx(np.log(24), abs=1e-4)
    measured = {"reward", "gold", "confidence", "verdict", "judge", "log_ratio", "rouge_l"}
    assert measured <= set(trained.replies.columns)
    assert not set(trained.replies["prompt_id"]) & {row.group for row in lab.rows}, (
        "tables hold no human text"
    )
    again = lab.trained("dpo_pl dora", spec, rows)
    assert again.replies.equals(trained.replies)
    other = Lab(dataclasses.replace(lab.cfg), seed=0).trained("dpo_pl dora", spec, rows)
    assert other.record.history == trained.record.history


def test_margins_of_a_trained_policy_are_kept_with_it(lab):
    pairs = lab.reward_pairs()
    scored = {"training": pairs, "held out": lab.heldout_pairs()}
    assert all(row.rewards[0] >= row.rewards[1] for row in pairs)
    trained = lab.trained(
        "simpo", experiments.gamma_methods(lab.cfg)["simpo"], pairs, scored=scored
    )
    gaps = experiments.simpo_gaps("simpo", trained.scores, experiments.simpo_beta(lab.cfg))
    assert gaps.groupby("pairs", sort=False).size().to_dict() == {
        name: len(rows) for name, rows in scored.items()
    }
    before = {name: training.score(lab.sft_policy(), rows) for name, rows in scored.items()}
    moved = gaps["gap"] - experiments.simpo_gaps("sft", before, 10.0)["gap"]
    assert np.isfinite(moved).all() and moved.any()
    assert not {row.group for row in scored["training"]} & {row.group for row in scored["held out"]}


def test_sampling_leaves_the_policy_as_it_was(lab):
    """Its weights bit for bit, so that log_ratio is that of the policy which replied."""
    policy = lab.sft_policy().add_lora("attention", 4)
    with torch.no_grad():
        for _, weight in policy.trainable():
            weight.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    before = {name: value.clone() for name, value in policy.model.state_dict().items()}
    prompts, config = lab.splits["eval"], SamplingConfig(max_new_tokens=4)
    first = sampled_replies(policy, prompts, config, seed=0)
    after = policy.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert sampled_replies(policy, prompts, config, seed=0) == first
    assert any(abs(entry["log_ratio"]) > 0.01 for entry in first)


def test_every_method_of_every_profile_is_an_objective():
    for profile in profiles.PROFILES.values():
        for name in profile.listwise:
            objective = objectives.build(experiments.listwise_spec(name, profile))
            assert objective.responses == "list" and objective.aggregator == name.split()[1]
        for name, spec in experiments.gamma_methods(profile).items():
            assert (objectives.build(spec).margin is not None) == name.startswith("gamma")


# --- what decides a step -------------------------------------------------------------------------

SETTINGS = profiles.get("smoke")
AFTER_SFT = {"sft replies", "base replies", "dora", "erm", "scored"}
DORA, ERM = "dora(dpo_pl(beta=0.1), lam=1.0)", "dpo_pl(beta=0.1)"


def keys(cfg=SETTINGS, rows=None, seed=0) -> dict[str, str]:
    """The key of every step, nothing made."""
    steps = Lab(cfg, seed).steps
    rows = steps.splits["policy"] if rows is None else rows
    dora = steps.method("dora", DORA, rows)
    every = {
        "sft": steps.sft,
        "sft replies": steps.start_replies("sft"),
        "base replies": steps.start_replies("base"),
        "golden replies": steps.golden_replies(),
        "classifier": steps.classifier(),
        "gold": steps.gold,
        "candidates": steps.candidates,
        "reward": steps.reward_model,
        "dora": dora,
        "erm": steps.method("erm", ERM, rows),
        "scored": steps.scored(dora),
    }
    return {name: step.key for name, step in every.items()}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before if before[name] != after[name]}


@pytest.fixture(scope="module")
def as_it_is():
    return keys()


@pytest.fixture
def edited(monkeypatch):
    """A function that makes a module of the kit look edited."""
    real = freshness._tree_digest

    def edit(module: str) -> None:
        file = freshness.module_file(module)
        monkeypatch.setattr(
            freshness, "_tree_digest", lambda path: "new" if path == file else real(path)
        )
        freshness._key_of_file.cache_clear()

    yield edit
    freshness._key_of_file.cache_clear()


@pytest.mark.parametrize(
    ("module", "remade"),
    [
        ("plots", set()),
        ("notebook", set()),
        ("profiles", set()),
        ("experiments.lab", set()),
        ("experiments.steps", set()),
        ("experiments.results", set()),
        ("records.progress", set()),
        ("records.provenance", set()),
        ("published", set()),
        ("judging.judges", {"scored"}),
        ("measures", {"candidates"}),
        ("training.trainer", {"sft", "candidates", "golden replies"} | AFTER_SFT),
        ("policies.sampling", {"golden replies"} | AFTER_SFT),
        ("calibration.fitting", {"classifier", "scored"}),
        ("rewards.pairs", {"reward", "gold", "candidates", "scored"}),
        ("rewards.gold", {"gold", "candidates", "scored"}),
    ],
)
def test_editing_a_module_remakes_what_depends_on_it_and_nothing_else(
    as_it_is, edited, module, remade
):
    edited(f"robustpo_kit.{module}")
    assert changed(as_it_is, keys()) == remade


@pytest.mark.parametrize(
    ("setting", "remade"),
    [
        ({"bootstrap": 100, "workers": 2, "distance_rows": 30, "lam": 2.0}, set()),
        ({"classifier_epochs": 2}, {"classifier", "scored"}),
        ({"gold_features": "cosine"}, {"gold", "candidates", "scored"}),
        ({"kappa": 1.0}, {"gold", "candidates", "scored"}),
        ({"style_bias": 1.0}, {"scored"}),
        ({"sft_epochs": 2}, {"sft", "candidates"} | AFTER_SFT),
        ({"epochs": 2}, {"dora", "erm", "scored"}),
        ({"eval_samples": 2}, AFTER_SFT),
    ],
)
def test_a_setting_remakes_what_depends_on_it_and_nothing_else(as_it_is, setting, remade):
    assert changed(as_it_is, keys(dataclasses.replace(SETTINGS, **setting))) == remade


def test_other_weights_in_a_local_folder_remake_what_they_made(tmp_path):
    """A folder was known by its path alone."""
    policies.load("tiny").save(tmp_path / "base")
    policies.load(tmp_path / "base").add_lora(rank=2).save(tmp_path / "adapter")
    for folder in ("base", "adapter"):
        local = dataclasses.replace(SETTINGS, model=str(tmp_path / folder))
        before = keys(local)
        assert keys(local) == before
        weights = tmp_path / "base" / "model.safetensors"
        whole = bytearray(weights.read_bytes())
        whole[-1] ^= 1
        weights.write_bytes(whole)
        remade = {"sft", "candidates"} | AFTER_SFT
        assert changed(before, keys(local)) == remade


def test_another_seed_remakes_everything(as_it_is):
    assert changed(as_it_is, keys(seed=1)) == set(as_it_is)


def test_another_classifier_remakes_the_methods_that_need_h(lab):
    other = Lab(dataclasses.replace(lab.cfg, classifier_kind="shared"), seed=0)
    rows, other_rows = lab.training_set()[0], other.training_set()[0]
    assert [row.h for row in rows] != [row.h for row in other_rows]
    differ = changed(keys(lab.cfg, rows), keys(other.cfg, other_rows))
    assert differ == {"classifier", "dora", "scored"}  # erm sees no h~


def test_the_stamp_names_what_a_step_was_made_from(lab):
    lab.untrained()
    steps = lab.steps
    stamp = read_json(steps.start_replies("sft").folder / keeping.STAMP)
    assert stamp["config"]["made_from"] == {"sft": steps.sft.key}
    stamp = read_json(steps.scored(steps.start_replies("sft")).folder / keeping.STAMP)
    assert set(stamp["config"]["made_from"]) == {"replies", "gold", "classifier"}


def test_every_field_of_a_step_is_in_its_key(tmp_path):
    @dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
    class Step(experiments.Step):
        rows: PreferenceSet
        number: int
        settings: profiles.Profile | None = None
        first: experiments.Step | None = None

        def make(self, folder):
            pass

    row = Preference("r", "g", "prompt", ("a", "b"), ("x", "y"))
    base = Step(folder=tmp_path, rows=PreferenceSet([row]), number=1)
    other_rows = PreferenceSet([dataclasses.replace(row, h=0.5)])
    changes = (
        {"rows": other_rows},
        {"number": 2},
        {"settings": SETTINGS},
        {"first": base},
        {"first": dataclasses.replace(base, number=2)},
    )
    every = [base, *(dataclasses.replace(base, **change) for change in changes)]
    assert len({step.key for step in every}) == len(every)
    assert dataclasses.replace(base, folder=tmp_path / "elsewhere").key == base.key
    assert dataclasses.replace(base, rows=PreferenceSet([row])).key == base.key


@pytest.mark.parametrize(
    ("step", "beyond"),
    [
        ("supervised", {"calibration", "rewards", "encoders", "judging", "mixture"}),
        ("method", {"calibration", "rewards", "encoders", "judging", "mixture"}),
        ("classifier", {"rewards", "training", "policies", "objectives", "judging", "mixture"}),
        ("reward", {"training", "policies", "objectives", "judging", "mixture"}),
        ("gold", {"training", "policies", "objectives", "judging", "mixture"}),
    ],
)
def test_a_step_imports_no_more_than_it_needs(step, beyond):
    reached = closure([f"robustpo_kit.experiments.{step}"]) - {"robustpo_kit"}
    beyond = beyond | {"profiles", "plots", "analysis", "notebook", "series", "toy"}
    assert not {name.split(".")[1] for name in reached} & beyond


@pytest.mark.parametrize("task", [*data.TASKS, "own.jsonl"])
def test_a_task_has_one_template_for_synthesis_and_for_training(task, monkeypatch):
    """Tasks without a system prompt were synthesised as plain text and trained as a chat."""
    rows = PreferenceSet([Preference("r", "g", "prompt", ("a", "b"), ("x", "y"))], name=task)
    monkeypatch.setattr(data, "load", lambda *_, **__: rows)
    templates = []
    monkeypatch.setattr(policies, "load", lambda *_, template, **__: templates.append(template))
    monkeypatch.setattr(mixture, "synthesise", lambda *_, **__: None)
    monkeypatch.setattr(mixture, "store_path", lambda _: paths.RUNS / "absent.jsonl")
    assert cli.main(["synthesise", "--task", task]) == 0
    Lab(profiles.get("smoke", {"task": task}), seed=0).base_policy()
    own = data.TASKS[task].template if task in data.TASKS else None
    assert templates == [own, own]


def test_scores_asked_for_later_are_made(lab):
    pairs = lab.reward_pairs()
    spec = experiments.gamma_methods(lab.cfg)["dpo"]
    with pytest.raises(ValueError, match="dpo: no pairs were scored after training"):
        experiments.simpo_gaps("dpo", lab.trained("dpo", spec, pairs).scores, 10.0)
    trained = lab.trained("dpo", spec, pairs, scored={"training": pairs})
    assert len(experiments.simpo_gaps("dpo", trained.scores, 10.0)) == len(pairs)


def test_methods_trained_in_processes_are_those_trained_here(lab):
    specs = {name: experiments.listwise_spec(name, lab.cfg) for name in ("rrhf erm", "rrhf dora")}
    two = Lab(dataclasses.replace(lab.cfg, workers=2), seed=3)
    here = Lab(lab.cfg, seed=3)
    rows, _ = two.training_set()
    parallel = two.train_all(specs, rows)
    for name, spec in specs.items():
        (here.steps.folder / "methods" / f"{name.replace(' ', '-')}-3" / keeping.STAMP).unlink()
        again = here.trained(name, spec, rows)
        found = next(trained for trained in parallel if trained.name == name)
        assert again.replies.equals(found.replies)


def wait_for_a_minute(pipe):
    """Holds a pipe open, which closes when the process ends."""
    workers.end_with_parent()
    os.write(pipe, b"x")
    time.sleep(60)


def start_one(pipe):
    multiprocessing.get_context("fork").Process(target=wait_for_a_minute, args=(pipe,)).start()
    time.sleep(60)


def test_a_worker_ends_with_a_parent_that_is_killed():
    reading, writing = os.pipe()
    parent = multiprocessing.get_context("fork").Process(target=start_one, args=(writing,))
    parent.start()
    os.close(writing)
    assert os.read(reading, 1) == b"x"  # the worker is at it
    os.kill(parent.pid, signal.SIGKILL)
    parent.join()
    assert select.select([reading], [], [], 30)[0] and os.read(reading, 1) == b""
    os.close(reading)


# --- specs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("aggregator", robust.AGGREGATORS)
@pytest.mark.parametrize(
    ("loss", "spec"),
    [
        ("lire", "lire(temperature=2.0)"),  # DoRA Table 8, HH
        ("exo", "exo(beta=0.5)"),
        ("ipo(tau=0.1)", "ipo(tau=0.1)"),  # no published setting: a spec as it is
        ("cpo(beta=0.1, lam=0.5)", "cpo(beta=0.1, lam=0.5)"),  # a lambda of its own
    ],
)
def test_any_loss_goes_under_any_aggregator(loss, spec, aggregator):
    cfg = dataclasses.replace(SETTINGS, lam=0.7)
    built = objectives.build(experiments.listwise_spec(f"{loss} {aggregator}", cfg))
    assert (built.aggregator, built.options) == (aggregator, objectives.build(spec).options)
    if "lam" in robust.AGGREGATORS[aggregator].options:
        assert built.aggregation["lam"] == 0.7


def test_full_fine_tuning_has_the_sft_policy_as_its_reference(lab, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RUNS", tmp_path)
    cfg = dataclasses.replace(lab.cfg, lora_targets="none", learning_rate=0.01)
    full = Lab(cfg, seed=0)
    assert not full.sft_policy().has_adapter
    step = full.steps.method("dpo", "dpo(beta=0.1)", full.splits["policy"].pairs())
    ratios = [entry["log_ratio"] for entry in read_json(step.kept() / "sampled.json")]
    assert any(abs(ratio) > 1e-3 for ratio in ratios)
    sft = read_json(full.steps.start_replies("sft").kept() / "sampled.json")
    assert all(entry["log_ratio"] == 0 for entry in sft)
    errors = full.window_errors("dpo(beta=0.1)", full.splits["policy"].pairs())
    assert (errors["error"] < 1e-3).all()  # of a mean, the window makes no difference


@pytest.mark.parametrize("name", ["dpo_pl", "dpo_pl dorra", ""])
def test_a_method_that_is_not_loss_and_aggregator_is_refused(name):
    with pytest.raises(KitError, match="LOSS AGGREGATOR is expected"):
        experiments.listwise_spec(name, SETTINGS)


def test_gamma_methods_hold_the_papers_settings():
    found = experiments.gamma_methods(profiles.get("cpu"))  # 72 rows, 8 a step: 9 steps
    assert found == {
        "dpo": "dpo(beta=0.1)",
        "gamma-dpo": "gamma(dpo(beta=0.1), spread=0.2, solve_step=3)",
        "simpo": "simpo(beta=10.0, gamma_beta_ratio=0.4)",
        "gamma-simpo": "gamma(simpo(beta=10.0), gamma_beta_ratio=0.4, tau=10.0)",
    }


def test_equal_is_not_the_same(tmp_path):
    """1, True and 1.0 are equal in Python, and are three settings."""
    made = []

    def make(folder):
        made.append(folder)

    for value in (1, True, 1.0, 1.0):
        kept(tmp_path / "thing", {"value": value}, make)
    assert len(made) == 3
