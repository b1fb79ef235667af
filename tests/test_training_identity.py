"""A folder of checkpoints, and the cache of the reference, know what they belong to."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from training_setting import preferences, replaced, tiny
from transformers import LlamaForCausalLM

from robustpo_kit import objectives, policies, training
from robustpo_kit.data import PreferenceSet
from robustpo_kit.errors import KitError
from robustpo_kit.losses import Scores
from robustpo_kit.policies import tokenize
from robustpo_kit.records import freshness
from robustpo_kit.training import TrainConfig
from robustpo_kit.training.identity import RunInputs, differences, run_identity
from robustpo_kit.training.launching import trainer_arguments

SPEC = "dora(gamma(dpo(beta=0.1), gamma0=0.4, tau=2), lam=1.0)"
LORA = {"targets": "attention", "rank": 2, "alpha": 4, "dropout": 0.1, "seed": 1}


@dataclasses.dataclass
class Run:
    """All that a run is made of, to be changed one thing at a time."""

    policy: policies.Policy
    rows: PreferenceSet
    objective: Any
    config: TrainConfig

    def prepare(self) -> training.StepTrainer:
        folder = str(self.config.checkpoint)
        return training.prepare(self.policy, self.rows, self.objective, self.config, folder)


def a_run(folder: Path, lora: dict | None = None) -> Run:
    config = TrainConfig(
        batch_size=4,
        micro_batch_size=2,
        max_steps=2,
        learning_rate=1e-3,
        checkpoint=str(folder / "run"),
        reference_cache=str(folder / "cache"),
    )
    policy = tiny().add_lora(**(LORA | (lora or {})))
    return Run(policy, preferences(2), objectives.build(SPEC), config)


@pytest.fixture(scope="module")
def used(tmp_path_factory) -> Path:
    """A folder that holds the checkpoints of a run of two steps."""
    folder = tmp_path_factory.mktemp("used")
    run = a_run(folder)
    training.train(run.policy, run.rows, run.objective, run.config)
    return folder


def of_config(**settings):
    """The change of some settings."""

    def change(run: Run, folder: Path) -> Run:
        return dataclasses.replace(run, config=dataclasses.replace(run.config, **settings))

    return change


def of_lora(**settings):
    return lambda run, folder: a_run(folder, settings)


def of_rows(change):
    return lambda run, folder: dataclasses.replace(run, rows=change(run.rows))


def another_objective(run: Run, folder: Path) -> Run:
    return dataclasses.replace(run, objective=objectives.build(SPEC.replace("tau=2", "tau=3")))


def used_objective(run: Run, folder: Path) -> Run:
    scores = Scores(torch.tensor([[-1.0, -3.0]]), torch.tensor([[-2.0, -2.0]]), torch.ones(1, 2))
    run.objective.step_loss(scores, torch.ones(1))
    return run


def frozen_weight(run: Run, folder: Path) -> Run:
    run.policy.trainable()[0][1].requires_grad_(False)
    return run


def other_base(run: Run, folder: Path) -> Run:
    with torch.no_grad():
        run.policy.model.get_input_embeddings().weight[3, 2] += 1e-3
    return run


def other_adapter(run: Run, folder: Path) -> Run:
    with torch.no_grad():
        run.policy.trainable()[1][1][0, 0] += 1e-3
    return run


def other_theta(run: Run, folder: Path) -> Run:
    policy = with_theta(tiny(), 5e5).add_lora(**LORA)
    return dataclasses.replace(run, policy=policy)


def with_theta(policy: policies.Policy, theta: float) -> policies.Policy:
    """The same weights under another base of the rotary embedding."""
    config = policy.model.config
    config.rope_parameters = {**config.rope_parameters, "rope_theta": theta}
    model = LlamaForCausalLM(config)
    model.load_state_dict(policy.model.state_dict())
    return dataclasses.replace(policy, model=model)


def shorter_type(run: Run, folder: Path) -> Run:
    """The base in bfloat16; the adapter stays."""
    for name, parameter in run.policy.model.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.to(torch.bfloat16)
    return run


CHANGES = {
    "rows": (
        of_rows(lambda rows: replaced(rows, 5, responses=("ab", "c"))),
        ["other tokens"],
    ),
    "order of rows": (
        of_rows(lambda rows: rows.select([1, 0, *range(2, 8)])),
        ["other tokens", "other rewards", "other h"],
    ),
    "rewards": (of_rows(lambda rows: replaced(rows, 5, rewards=(0.5, 0.25))), ["other rewards"]),
    "no rewards": (
        of_rows(lambda rows: rows.map(lambda row: dataclasses.replace(row, rewards=None))),
        ["other rewards"],
    ),
    "h": (of_rows(lambda rows: replaced(rows, 5, h=0.75)), ["other h"]),
    "objective": (another_objective, [f'objective is "{SPEC.replace("tau=2", "tau=3")}"']),
    "state": (used_objective, ["other state of the objective"]),
    "rank": (
        of_lora(rank=3),
        ["other trained weights", "adapter: default: r is 3 and was 2", "other adapter weights"],
    ),
    "alpha": (of_lora(alpha=8), ["adapter: default: lora_alpha is 8 and was 4"]),
    "dropout": (of_lora(dropout=0.2), ["adapter: default: lora_dropout is 0.2 and was 0.1"]),
    "seed of the adapter": (of_lora(seed=2), ["other adapter weights"]),
    "weight of the adapter": (other_adapter, ["other adapter weights"]),
    "trained weights": (frozen_weight, ["other trained weights"]),
    "weights": (other_base, ["other weights"]),
    "rope_theta": (
        other_theta,
        ["model config: rope_parameters: rope_theta is 500000.0 and was 10000.0"],
    ),
    "dtype": (shorter_type, ["other weights", "dtype is"]),
    **{
        name: (of_config(**{name: value}), [f"{name} is {json.dumps(value)} and was "])
        for name, value in {
            "learning_rate": 2e-3,
            "weight_decay": 0.1,
            "max_grad_norm": 2.0,
            "schedule": "linear",
            "warmup": 0.5,
            "batch_size": 3,
            "epochs": 2,
            "max_steps": 1,
            "seed": 1,
            "layout": "separate",
            "kernel": "sdpa",
            "max_length": 900,
            "max_response": 511,
            "master_weights": False,
        }.items()
    },
    "window": (
        of_config(window="micro"),
        [
            'window is "micro" and was "step"',
            "micro_batch_size is 2 and was not there",
            "tokens_per_pass is 0 and was not there",
        ],
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_anything_that_decides_the_weights_is_refused_by_name(name, used):
    change, expected = CHANGES[name]
    run = change(a_run(used), used)
    trainer = run.prepare()
    stored = json.loads((used / "run" / "checkpoint-2" / "checkpoint.json").read_text())["run"]
    found = differences(stored, trainer.run)
    assert len(found) == len(expected), found
    for phrase, wanted in zip(found, expected, strict=True):
        assert phrase.startswith(wanted), found
    with pytest.raises(KitError, match="holds checkpoints of another run") as refused:
        trainer.resume()
    assert expected[0] in str(refused.value) and "choose another folder" in str(refused.value)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"micro_batch_size": 1},
        {"tokens_per_pass": 50},
        {"gradient_checkpointing": True},
        {"checkpoint_every": 1},
        {"reference_cache": None},
    ],
)
def test_what_decides_no_weight_may_change(settings, used, monkeypatch, tmp_path):
    monkeypatch.setattr(training.runs.paths, "CACHE", tmp_path)
    trainer = of_config(**settings)(a_run(used), used).prepare()
    assert trainer.resume().endswith("checkpoint-2")
    assert trainer.micro_limit == settings.get("micro_batch_size", 2)


def test_what_memory_has_allowed_is_taken_up_again(used, tmp_path):
    run = of_config(checkpoint=str(tmp_path / "run"))(a_run(used), used)
    trainer = run.prepare()
    trainer.micro_limit, trainer.token_limit = 1, 40
    trainer.train()
    again = of_config(checkpoint=str(tmp_path / "run"))(a_run(used), used).prepare()
    again.resume()
    assert (again.micro_limit, again.token_limit) == (1, 40)
    told = of_config(checkpoint=str(tmp_path / "run"), tokens_per_pass=90)(a_run(used), used)
    told = told.prepare()
    told.resume()
    assert (told.micro_limit, told.token_limit) == (2, 90)


@pytest.mark.parametrize("name", ["adam_beta1", "adam_beta2", "adam_epsilon"])
def test_the_optimizer_is_part_of_a_run(name, tmp_path):
    run = a_run(tmp_path)
    tokens = tokenize(run.rows, run.policy.tokenizer, run.policy.template)
    signals = training.Signals.of(run.rows, tokens, None)
    found = []
    for value in (0.1, 0.2):
        arguments = trainer_arguments(run.config, str(tmp_path), 2)
        setattr(arguments, name, value)
        parts = (run.policy, tokens, signals, run.objective, run.config, arguments)
        found.append(run_identity(RunInputs(*parts)))
    (difference,) = differences(*found)
    assert difference.startswith("optimizer: ")


def test_checkpoints_of_an_earlier_version_are_refused(used, tmp_path):
    run = of_config(checkpoint=str(tmp_path / "run"))(a_run(used), used)
    run.prepare().train()
    summary = tmp_path / "run" / "checkpoint-2" / "checkpoint.json"
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"run": "0123abcd"}))
    with pytest.raises(KitError, match="earlier version of the kit"):
        run.prepare().resume()


# --- the cache of the reference


def test_reference_cache_knows_the_model_config(tmp_path):
    tokens = tokenize(preferences(), tiny().tokenizer, tiny().template)

    def reference(theta: float, cache: Path | None) -> torch.Tensor:
        policy = with_theta(tiny(), theta)
        return training.reference_logps(policy, tokens, config=TrainConfig(), cache=cache)

    near = reference(10.0, tmp_path)
    torch.testing.assert_close(reference(1e4, tmp_path), reference(1e4, None), rtol=0, atol=0)
    assert float((near - reference(1e4, None)).abs().max()) > 1e-4
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_a_reference_that_is_not_finite_is_refused_and_not_cached(tmp_path):
    policy = tiny()
    tokens = tokenize(preferences(2), policy.tokenizer, policy.template)
    with torch.no_grad():
        next(policy.model.parameters()).fill_(float("nan"))
    with pytest.raises(KitError, match="log-probs under the reference are not finite"):
        training.reference_logps(policy, tokens, config=TrainConfig(), cache=tmp_path)
    assert not list(tmp_path.glob("*"))


def test_reference_cache_knows_the_code_that_scores(tmp_path, monkeypatch):
    tokens = tokenize(preferences(), tiny().tokenizer, tiny().template)

    def reference() -> torch.Tensor:
        return training.reference_logps(tiny(), tokens, config=TrainConfig(), cache=tmp_path)

    stale = reference()
    real = training.reference.response_logps
    monkeypatch.setattr(
        training.reference, "response_logps", lambda *a, **k: real(*a, **k) - 1.0
    )  # a scorer that was mended: its code has another key
    torch.testing.assert_close(reference(), stale, rtol=0, atol=0)
    monkeypatch.setattr(training.reference, "reference_code", lambda: "mended")
    torch.testing.assert_close(reference(), stale - 1.0, rtol=0, atol=0)


@pytest.mark.parametrize(
    "module", ["training.reference", "training.forward", "policies.attention", "policies.policy"]
)
def test_the_reference_caches_key_has_the_code_that_computes_it(module, monkeypatch):
    freshness._key_of_file.cache_clear()
    before, real = training.reference.reference_code(), freshness._tree_digest
    edited = freshness.module_file(f"robustpo_kit.{module}")
    monkeypatch.setattr(
        freshness, "_tree_digest", lambda path: "new" if path == edited else real(path)
    )
    freshness._key_of_file.cache_clear()
    assert training.reference.reference_code() != before
    freshness._key_of_file.cache_clear()


def test_reference_cache_serves_every_layout_and_kernel(tmp_path, monkeypatch):
    tokens = tokenize(preferences(), tiny().tokenizer, tiny().template)
    asked, real = [], training.forward.collate

    def collated(rows, **how):
        asked.append((how["layout"], how["kernel"]))
        return real(rows, **(how | {"kernel": "sdpa"}))

    monkeypatch.setattr(training.forward, "collate", collated)
    for config in (TrainConfig(kernel="flex"), TrainConfig(), TrainConfig(layout="separate")):
        training.reference_logps(tiny(), tokens, config=config, cache=tmp_path)
    assert set(asked) == {("shared", "flex")}
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    training.reference_logps(tiny(), tokens, config=TrainConfig(layout="separate"), cache=None)
    assert ("separate", "sdpa") in asked
