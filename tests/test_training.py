"""Training: a step is exact however it is cut up, a run survives kill -9, and bad input is named.

Run as a script, the file is the other process of some tests: ranks under torchrun, a run that kills
itself.
"""

import dataclasses
import functools
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from training_setting import (
    FSDP2,
    ROWS,
    Step,
    assert_same,
    counted,
    dataset_for,
    error,
    flat,
    gpus_by_name,
    preferences,
    replaced,
    sharded_config,
    small_steps,
    starved,
    tiny,
    weights,
    whole,
)

import robustpo_kit
from robustpo_kit import objectives, policies, training
from robustpo_kit.data import PreferenceSet
from robustpo_kit.errors import KitError
from robustpo_kit.policies import collate, sequence_logps, tokenize
from robustpo_kit.training import ExactStep, TrainConfig, scoring
from robustpo_kit.training.checkpoints import checkpoint_folders
from robustpo_kit.training.ranks import this_rank
from robustpo_kit.training.step import (
    CutStep,
    NotFiniteError,
    in_two_passes,
    online,
    separable,
)

AGGREGATORS = (
    "erm({})",
    "reweight({})",
    "dro({}, lam=0.7)",
    "dora({}, lam=0.7)",
    "dora_outside({})",
    "dr_dpo({})",
    "kldpo({})",
)
SPECS = [
    *(
        aggregator.format(base)
        for base in ("dpo(beta=0.1)", "dpo_pl(beta=0.1)")
        for aggregator in AGGREGATORS
    ),
    "gamma(dpo(beta=0.1), gamma0=0.4, tau=2)",
    "gamma(simpo(beta=2), gamma_beta_ratio=0.4, tau=3, capacity=6, solve_size=4)",
    "dora(gamma(dpo(beta=0.1), gamma0=0.4, tau=2), lam=1.0)",
    "beta_dpo(beta=0.1, alpha=0.5, keep=0.75)",
    "dro(re_po(beta=0.1, momentum=0.5), lam=0.7)",
    "kto(beta=0.1)",
    "rrhf(alpha=1.0)",
    "lire(temperature=2.0)",
    "sft()",
]
CUTS = (
    (ROWS, ROWS),
    (ROWS, 1),
    (7, 1),
    (1, ROWS),
)  # rows of a step and micro-batch: some leave a rank without a row
COUPLED = [
    "dora(dpo_pl(beta=0.1), lam=0.7)",
    "gamma(simpo(beta=2), gamma_beta_ratio=0.4, tau=3, capacity=6, solve_size=4)",
    "beta_dpo(beta=0.1, alpha=0.5, keep=0.75)",
    "kto(beta=0.1)",
    "dpo(beta=0.1)",
]


# --- exactness


@pytest.mark.parametrize("spec", SPECS)
def test_a_step_without_a_trainer_gives_the_gradient_of_the_one_big_batch(spec, tmp_path):
    expected = (one := Step(spec, tmp_path)).by_hand([whole(one)])
    policy, objective = tiny(), objectives.build(spec)
    exchange = training.Exchange(policy.device)
    exact_step = ExactStep(one.tokens, one.signals, objective, exchange)
    model = training.Scorer(policy.model)
    for _ in range(2):  # as `by_hand`: queues and averages have filled by the second
        model.zero_grad()
        cut = exact_step.cut(whole(one), limit=3)
        result = exact_step.take(model, cut)
    assert max(cut.sizes) <= 3 and sum(cut.sizes) == ROWS
    assert error(flat(policy.model), expected) <= 1e-5
    assert torch.isfinite(result.loss) and 1 <= result.metrics["ess"] <= ROWS + 1e-3


class MeanOfLogps:
    """An objective of a user's own: it raises the mean log-prob of column 0."""

    responses, logp, spec, coupling = "pair", "sum", "mean_of_logps()", "separable"
    needs_reference = needs_rewards = needs_h = needs_ratios = needs_kl = False
    strength: dict[str, float] = {}

    def step_loss(self, scores, h=None, *, training=True):
        per_sample = -scores.logps[:, 0]
        weights = torch.full_like(per_sample.detach(), 1 / len(per_sample))
        return SimpleNamespace(loss=per_sample.mean(), weights=weights, metrics={})

    def log_mass(self, loss, count):
        raise NotImplementedError("only asked of a log-sum-exp")

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        assert not state


def test_training_takes_any_object_with_what_its_protocol_names():
    config = TrainConfig(batch_size=ROWS, micro_batch_size=2, epochs=3, learning_rate=1e-2)
    record = training.train(tiny(), preferences(2), MeanOfLogps(), config)
    assert record.objective == "mean_of_logps()" and "logp = sum" in training.run_card(record)
    assert record.history[-1]["chosen_logp"] > record.history[0]["chosen_logp"]
    assert record.history[0]["ess"] == pytest.approx(ROWS)


@pytest.mark.parametrize(
    ("spec", "strategies"),
    [
        ("dpo(beta=0.1)", (separable, in_two_passes)),
        ("dora(dpo_pl(beta=0.1), lam=0.7)", (online, in_two_passes)),
    ],
)
def test_strategies_that_fit_an_objective_give_the_same_gradient_and_metrics(
    spec, strategies, tmp_path
):
    gradients, results = [], []
    for strategy in strategies:
        step = Step(spec, tmp_path)
        exact_step = step.trainer.exact_step
        cut = exact_step.cut(whole(step), limit=3)
        results.append(strategy(exact_step, step.trainer.scorer, cut))
        gradients.append(flat(step.policy.model))
    assert error(*gradients) <= 1e-5
    assert results[0].metrics == pytest.approx(results[1].metrics, rel=1e-5)
    assert float(results[0].loss) == pytest.approx(float(results[1].loss), rel=1e-5)


@pytest.mark.parametrize(
    ("spec", "window"),
    [
        ("dpo(beta=0.1)", "step"),
        ("dora(dpo(beta=0.1), lam=0.7)", "step"),
        ("gamma(simpo(beta=2), gamma_beta_ratio=0.4, tau=3)", "step"),
        ("dora(dpo(beta=0.1), lam=0.7)", "micro"),
    ],
)
def test_an_empty_micro_batch_counts_for_nothing(spec, window, tmp_path):
    found = []
    for shares in ([[[0, 1, 2], [3, 4]]], [[[0, 1, 2], [], [3, 4]]]):
        step = Step(spec, tmp_path, window=window)
        cut = CutStep(whole(step)[:5], shares)
        result = step.trainer.exact_step.take(step.trainer.scorer, cut)
        found.append((flat(step.policy.model), result))
        assert step.trainer.exact_step.forward_passes == (4 if "gamma" in spec else 2)
    (expected, one), (gradient, other) = found
    assert error(gradient, expected) <= 1e-6
    assert torch.equal(one.loss, other.loss) and one.metrics == other.metrics
    assert torch.equal(one.logps, other.logps)
    assert not (one.loss.requires_grad or one.logps.requires_grad)


def test_a_step_moves_an_objective_once_and_its_parts_only_read():
    asked = []

    class Noted(MeanOfLogps):
        def step_loss(self, scores, h=None, *, training=True):
            asked.append((len(scores.logps), training))
            return super().step_loss(scores, h, training=training)

    config = TrainConfig(batch_size=4, micro_batch_size=2, max_steps=1)
    training.train(tiny(), preferences(2), Noted(), config)
    assert asked == [(2, False), (2, False), (4, True)]


def test_the_first_four_rows_that_are_not_finite_are_named(tmp_path):
    step = Step("dpo(beta=0.1)", tmp_path).trainer.exact_step
    names = [row.row_id for row in step.tokens.rows]
    logps = torch.zeros(6, 2)
    for count in (4, 5):
        spoilt = logps.clone()
        spoilt[:count] = float("nan")
        with pytest.raises(NotFiniteError) as refused:
            step.scores(spoilt, list(range(6)))
        more = ", ..." if count > 4 else ""
        assert f"(rows {', '.join(names[:4])}{more});" in str(refused.value)
        assert refused.value.rows == list(range(6))


@pytest.mark.parametrize("spec", SPECS)
def test_accumulation_gives_the_gradient_of_the_one_big_batch(spec, tmp_path):
    one = Step(spec, tmp_path)
    expected = one.by_hand([whole(one)])
    for settings in (
        {},
        {"micro_batch_size": 3},
        {"micro_batch_size": 1},
        {"tokens_per_pass": 60},
        {"tokens_per_pass": 90, "layout": "separate"},
        {"micro_batch_size": 2, "layout": "separate"},
    ):
        step = Step(spec, tmp_path, **settings)
        assert error(step.gradient(), expected) <= 1e-5, settings
    passes = 8 * (
        2 if step.objective.coupling == "step" else 1
    )  # 4 micro-batches, 2 steps, 1 or 2 passes
    assert step.trainer.exact_step.forward_passes == passes


def test_the_gradient_does_depend_on_the_samples_sharing_a_batch(tmp_path):
    """window="micro", each micro-batch a batch of its own, is the authors' and another gradient."""
    spec = "dora(dpo_pl(beta=0.1), lam=0.7)"
    micro = Step(spec, tmp_path, micro_batch_size=2, window="micro")
    sizes = [micro.tokens.rows[i].tokens() for i in whole(micro)]
    (groups,) = training.micro_batches(sizes, 2, 1)
    found = micro.gradient()
    authors = Step(spec, tmp_path).by_hand([[whole(micro)[i] for i in group] for group in groups])
    step = Step(spec, tmp_path)
    assert error(found, authors) <= 1e-5
    assert error(found, step.by_hand([whole(step)])) > 0.05
    alone = Step(spec, tmp_path, micro_batch_size=1, window="micro").gradient()
    reweighted = Step("reweight(dpo_pl(beta=0.1))", tmp_path)
    assert (
        error(alone, reweighted.by_hand([whole(reweighted)])) <= 1e-5
    )  # one sample a batch: nothing robust is left


def test_the_gradient_of_a_step_can_be_had_without_taking_it(tmp_path):
    spec = "dora(dpo_pl(beta=0.1), lam=0.7)"
    policy, objective = tiny(), objectives.build(spec)
    before = weights(policy)
    config = TrainConfig(
        batch_size=4,
        micro_batch_size=3,
        reference_cache=str(tmp_path),
        checkpoint=str(tmp_path / "c"),
    )
    found = training.step_gradient(policy, dataset_for(objective), objective, config)
    assert not (tmp_path / "c").exists() and all(p.grad is None for _, p in policy.trainable())
    assert_same(weights(policy), before)
    tokens = tokenize(dataset_for(objective), policy.tokenizer, policy.template)
    rows = training.step_rows(ROWS, config)[0]
    signals = training.Signals.of(
        dataset_for(objective), tokens, training.response_logps(policy.model, tokens)
    )
    scores, h = signals.scores(
        sequence_logps(policy.model, collate([tokens.rows[i] for i in rows])),
        torch.tensor(rows),
        mismatched=False,
    )
    objective.step_loss(scores, h).loss.backward()
    assert error(found, flat(policy.model)) <= 1e-5


@pytest.mark.parametrize("h", [1, (1, 2, 1)])
def test_rewards_and_h_that_are_whole_numbers_train(tmp_path, h):
    """As a file may hold them: h = 1 of every row ended in a traceback of torch."""
    rows = [dataclasses.replace(row, h=h, rewards=(2, 1, 0)) for row in preferences(3, 4)]
    objective = objectives.build("dora(dpo_pl(beta=0.1), lam=1.0)")
    config = TrainConfig(batch_size=4, reference_cache=str(tmp_path))
    assert training.train(tiny(), PreferenceSet(rows), objective, config).history[0]["loss"] > 0


def test_passes_stay_in_their_token_budget_in_training_and_scoring(tmp_path, monkeypatch):
    passes, real = [], training.step.collate

    def collated(rows, **how):
        batch = real(rows, **how)
        passes.append((len(rows), batch.input_ids.numel()))
        return batch

    monkeypatch.setattr(training.step, "collate", collated)
    monkeypatch.setattr(training.forward, "collate", collated)
    for layout in ("shared", "separate"):
        policy, objective = tiny(), objectives.build("dpo(beta=0.1)")
        cache = str(tmp_path / layout)
        config = TrainConfig(tokens_per_pass=70, layout=layout, reference_cache=cache)
        training.train(policy, dataset_for(objective), objective, config)
        assert len(passes) > 4 and max(count for count, _ in passes) > 1
        assert all(tokens <= 70 for count, tokens in passes if count > 1), passes
        passes.clear()


@pytest.mark.parametrize("spec", COUPLED)
def test_out_of_memory_halves_the_tokens_of_a_pass(spec, tmp_path, monkeypatch, caplog):
    expected = Step(spec, tmp_path).gradient()
    step = Step(spec, tmp_path, tokens_per_pass=10**6)
    exact_step = step.trainer.exact_step
    monkeypatch.setattr(exact_step, "logps", functools.partial(starved, exact_step.logps))
    assert error(step.gradient(), expected) <= 1e-5
    assert 0 < step.trainer.token_limit < sum(row.tokens() for row in step.tokens.rows) / 2
    assert step.trainer.micro_limit == ROWS
    assert f"tokens_per_pass is {step.trainer.token_limit} from here on" in caplog.text


@pytest.mark.parametrize("spec", COUPLED)
def test_out_of_memory_halves_the_micro_batch_and_the_step_stays_exact(spec, tmp_path, monkeypatch):
    expected, state = (lambda s: (s.gradient(), s.objective.state_dict()))(Step(spec, tmp_path))
    step = Step(spec, tmp_path)
    exact_step = step.trainer.exact_step
    monkeypatch.setattr(exact_step, "logps", functools.partial(starved, exact_step.logps))
    assert error(step.gradient(), expected) <= 1e-5
    assert step.trainer.micro_limit == 2
    assert_same(
        step.objective.state_dict(), state, 1e-5
    )  # the step that failed has left nothing in the queue


def test_other_errors_are_not_taken_for_memory(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(ExactStep, "logps", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        Step("dpo(beta=0.1)", tmp_path).gradient()


# --- two ranks


def torchrun(folder: Path, what: str, **environment: str) -> None:
    """This file as a script on two ranks."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | environment
    done = subprocess.run(
        [*command, __file__, what, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_two_ranks_give_the_gradient_of_one_process(tmp_path):
    torchrun(tmp_path, "ranks")
    found = json.loads((tmp_path / "about.json").read_text())
    assert found["world"] == 2
    gradients = load_file(tmp_path / "gradients.safetensors")
    for i, spec in enumerate(COUPLED):
        for rows, micro in CUTS:
            expected = Step(spec, tmp_path, rows).gradient()
            assert error(gradients[f"{i}-{rows}-{micro}"], expected) <= 1e-5, (spec, rows, micro)
        assert error(gradients[f"{i}-starved"], Step(spec, tmp_path).gradient()) <= 1e-5, spec
    assert found["micro_limits"] == [2] * len(COUPLED)
    assert error(gradients["tokens"], Step(COUPLED[0], tmp_path).gradient()) <= 1e-5
    micro = Step(COUPLED[0], tmp_path)
    sizes = [micro.tokens.rows[i].tokens() for i in whole(micro)]
    groups = [group for rank in training.micro_batches(sizes, 2, 2) for group in rank]
    expected = micro.by_hand([[whole(micro)[i] for i in group] for group in groups])
    assert error(gradients["micro"], expected) <= 1e-5
    record, after = ranks_run(tmp_path / "one")
    assert found["metrics"]["world_size"] == 2 and record.metrics["world_size"] == 1
    for ours, theirs in zip(record.history, found["history"], strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-4)
        assert theirs["grad_norm"] == pytest.approx(ours["grad_norm"], rel=1e-4)
    moved = {name: p.detach() for name, p in tiny().model.named_parameters()}
    for file in ("weights", "starved"):
        both = [load_file(tmp_path / f"{file}{rank}.safetensors") for rank in (0, 1)]
        assert_same(both[0], both[1])
        for name in after:
            change = (after[name] - moved[name]).norm()
            assert float((both[0][name] - after[name]).norm()) <= 1e-2 * float(change), (file, name)


def test_two_fsdp2_ranks_give_the_gradient_and_the_weights_of_one_process(tmp_path):
    torchrun(tmp_path, "sharded", **FSDP2)
    gradients = load_file(tmp_path / "gradients.safetensors")
    for i, spec in enumerate(COUPLED):
        for rows, micro in CUTS:
            expected = Step(spec, tmp_path, rows).gradient()
            assert error(gradients[f"{i}-{rows}-{micro}"], expected) <= 1e-5, (spec, rows, micro)
    about = json.loads((tmp_path / "about.json").read_text())
    assert about["sharded"] and about["resumed_steps"] == 4
    policy, objective, config = sharded_run(tmp_path / "one")
    record = training.train(policy, dataset_for(objective), objective, config)
    for found in about["histories"]:
        for ours, theirs in zip(record.history, found, strict=True):
            assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-4)
            assert theirs["grad_norm"] == pytest.approx(ours["grad_norm"], rel=1e-3)
    for name in ("straight", "resumed"):
        saved = policies.load(tmp_path / name)
        for (key, after), (_, theirs) in zip(policy.trainable(), saved.trainable(), strict=True):
            before = dict(tiny().model.named_parameters())[key].detach()
            assert float((theirs - after).detach().norm()) <= 1e-2 * float(
                (after - before).detach().norm()
            ), (
                name,
                key,
            )


@pytest.mark.parametrize("spec", [COUPLED[0], "dpo(beta=0.1)"])
def test_two_deepspeed_ranks_give_the_weights_of_one_process(spec, tmp_path):
    pytest.importorskip("deepspeed", reason="DeepSpeed is an optional peer")
    config = Path(robustpo_kit.__file__).parent / "accelerate" / "deepspeed_zero2.yaml"
    text = (
        config.read_text()
        .replace("num_processes: 8", "num_processes: 2")
        .replace("use_cpu: false", "use_cpu: true")
    )
    (tmp_path / "two.yaml").write_text(text)
    dataset_for(objectives.build(spec)).to_jsonl(tmp_path / "rows.jsonl")
    arguments = [
        "train",
        "--data",
        tmp_path / "rows.jsonl",
        "--model",
        "tiny",
        "--lora",
        "none",
        "--objective",
        spec,
    ]
    arguments += ["--set", "batch_size=4", "--set", "micro_batch_size=1", "--set", "warmup=0"]
    launch = ["-m", "accelerate.commands.launch", "--config_file", tmp_path / "two.yaml"]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
    }
    for name, launcher in (("one", []), ("two", launch)):
        command = [
            sys.executable,
            *launcher,
            "-m",
            "robustpo_kit",
            *arguments,
            "--out",
            tmp_path / name,
        ]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "two" / "record.json").read_text())["metrics"]["world_size"] == 2
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    before = policies.load("tiny").model.state_dict()
    for name in one:
        assert float((two[name] - one[name]).norm()) <= 1e-2 * float(
            (one[name] - before[name]).norm()
        ), name


def test_checkpoints_under_deepspeed_are_refused(tmp_path, monkeypatch):
    real = transformers.Trainer.create_accelerator_and_postprocess

    def pretend(self):
        real(self)
        self.is_deepspeed_enabled = True

    monkeypatch.setattr(transformers.Trainer, "create_accelerator_and_postprocess", pretend)
    with pytest.raises(KitError, match="checkpoint: DeepSpeed writes pickles"):
        Step("dpo(beta=0.1)", tmp_path, checkpoint=str(tmp_path / "c"))


@pytest.mark.parametrize("name", ["fsdp2", "deepspeed_zero2"])
def test_launch_files_are_read_by_accelerate(name):
    from accelerate.commands.config.config_args import load_config_from_file

    path = Path(robustpo_kit.__file__).parent / "accelerate" / f"{name}.yaml"
    config = load_config_from_file(str(path))
    assert config.num_processes == 8 and config.mixed_precision == "no"
    assert (config.fsdp_config or config.deepspeed_config) and config.distributed_type.name in (
        "FSDP",
        "DEEPSPEED",
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-2), ("bfloat16", 0.2)])
def test_lora_under_fsdp2_learns_what_one_process_learns(dtype, tolerance, tmp_path, monkeypatch):
    tiny().save(tmp_path / "base")
    monkeypatch.setenv("DTYPE", dtype)
    torchrun(tmp_path, "sharded_checkpoints", **FSDP2)
    one = checkpointed_run(tmp_path, "one")
    for name in ("straight", "resumed"):
        two = policies.load(tmp_path / name, dtype=dtype)
        for (key, ours), (_, theirs) in zip(one.trainable(), two.trainable(), strict=True):
            assert theirs.dtype == torch.float32
            if "lora_B" in key:  # starts at 0, so that all of it is what was learned
                assert float((theirs - ours).detach().norm()) <= tolerance * float(
                    ours.detach().norm()
                ), (name, key)
    files = sorted(path.name for path in (tmp_path / "resumed-checkpoints").iterdir())
    assert files == ["checkpoint-4", "checkpoint-8"]
    assert all(
        "lora_" in key
        for key in load_file(tmp_path / "resumed-checkpoints/checkpoint-8/trainable.safetensors")
    )


def test_full_fine_tuning_in_bfloat16_under_fsdp2_keeps_masters_and_resumes(tmp_path):
    torchrun(tmp_path, "sharded_checkpoints", **FSDP2)
    one = checkpointed_run(tmp_path, "one")
    start = dict(tiny().model.to(torch.bfloat16).named_parameters())
    two = policies.load(tmp_path / "straight", dtype="bfloat16")
    for (key, ours), (_, theirs) in zip(one.trainable(), two.trainable(), strict=True):
        moved = (ours - start[key]).detach().float().norm()
        assert float((theirs - ours).detach().float().norm()) <= 0.2 * float(moved), key
    last = "checkpoint-8/optimizer.safetensors"
    states = [
        load_file(tmp_path / f"{name}-checkpoints" / last) for name in ("straight", "resumed")
    ]
    assert_same(*states)
    assert {value.dtype for value in states[0].values()} == {torch.float32}
    weights_after = [
        load_file(tmp_path / name / "model.safetensors") for name in ("straight", "resumed")
    ]
    assert_same(*weights_after)


def checkpointed_run(folder: Path, name: str, max_steps: int = 0) -> policies.Policy:
    """A coupled objective, 8 steps with checkpoints, of one of two policies.

    LoRA over the saved base where there is one, else full fine-tuning of bfloat16 weights.
    """
    _, objective, config = sharded_run(folder / name, max_steps)
    if (folder / "base").exists():
        policy = policies.load(folder / "base", dtype=os.environ["DTYPE"]).add_lora(rank=2)
    else:
        policy = tiny()
        policy.model.to(torch.bfloat16)
    config = dataclasses.replace(config, checkpoint=str(folder / f"{name}-checkpoints"))
    training.train(policy, dataset_for(objective), objective, config)
    return policy


def sharded_checkpoints(folder: Path) -> None:
    """Under torchrun with FSDP2: straight through, and in two halves."""
    gpus_by_name()
    training.runs.run_identity = lambda *_: {"a run": "whatever its max_steps"}
    checkpointed_run(folder, "straight").save(folder / "straight")
    checkpointed_run(folder, "resumed", max_steps=4)
    checkpointed_run(folder, "resumed").save(folder / "resumed")


def sharded_run(folder: Path, max_steps: int = 0) -> tuple:
    """Full fine-tuning by a coupled objective over 8 steps with checkpoints."""
    config = sharded_config(folder, epochs=4, max_steps=max_steps, checkpoint_every=4)
    return tiny(), objectives.build(COUPLED[0]), config


def failing_once(real):
    """Log-probs that run out of memory in the first pass that keeps gradients."""
    failed = []

    def logps(model, batch, **settings):
        if torch.is_grad_enabled() and not failed:
            failed.append(1)
            raise torch.OutOfMemoryError("out of memory (injected)")
        return real(model, batch, **settings)

    return logps


def sharded(folder: Path) -> None:
    """Under torchrun with FSDP2: gradients, a run straight through, and one in two halves."""
    from torch.distributed.fsdp import FSDPModule

    gpus_by_name()
    found = {}
    for i, spec in enumerate(COUPLED):
        for rows, micro in CUTS:
            step = Step(spec, folder, rows, micro_batch_size=micro)
            trainer = step.trainer
            trainer.model, trainer.optimizer = trainer.accelerator.prepare(
                trainer.model, trainer.optimizer
            )
            found[f"{i}-{rows}-{micro}"] = step.gradient()
    histories, calls = [], []
    training.runs.run_identity = lambda *_: {"a run": "whatever its max_steps"}
    for name, folder_ in (("straight", folder / "a"), ("resumed", folder / "b")):
        if name == "resumed":  # half of it, and on from its checkpoint
            policy, objective, config = sharded_run(folder_, 4)
            training.train(policy, dataset_for(objective), objective, config)
            ExactStep.take = counted(ExactStep.take, calls)
        policy, objective, config = sharded_run(folder_)
        record = training.train(policy, dataset_for(objective), objective, config)
        policy.save(folder / name)
        histories.append(record.history)
    if this_rank() == 0:
        save_file(found, folder / "gradients.safetensors")
        about = {
            "sharded": isinstance(policy.model.model.layers[0], FSDPModule),
            "histories": histories,
            "resumed_steps": len(calls),
        }
        (folder / "about.json").write_text(json.dumps(about))


def ranks_run(folder: Path, micro: int = 1) -> tuple:
    """A short run of a coupled objective; 7 rows leave one rank without a row now and then."""
    policy = tiny()
    objective = objectives.build(COUPLED[0])
    config = TrainConfig(
        batch_size=3,
        micro_batch_size=micro,
        epochs=1,
        learning_rate=1e-3,
        reference_cache=str(folder / "cache"),
    )
    record = training.train(policy, dataset_for(objective, 7), objective, config)
    return record, weights(policy)


def ranks(folder: Path) -> None:
    """Under torchrun: gradients of the coupled objectives and one short run, written by rank 0."""

    class Refused(torch.nn.parallel.DistributedDataParallel):
        def __init__(self, *_, **__):
            raise AssertionError("wrapped in DDP, whose buckets nothing would reduce")

    torch.nn.parallel.DistributedDataParallel = Refused
    found, limits = {}, []
    for i, spec in enumerate(COUPLED):
        for rows, micro in CUTS:
            found[f"{i}-{rows}-{micro}"] = Step(
                spec, folder, rows, micro_batch_size=micro
            ).gradient()
        step = Step(spec, folder)
        if this_rank() == 1:  # this rank alone runs out of memory; both must take the step again
            exact_step = step.trainer.exact_step
            exact_step.logps = functools.partial(starved, exact_step.logps)
        found[f"{i}-starved"] = step.gradient()
        limits.append(step.trainer.micro_limit)
    found["micro"] = Step(COUPLED[0], folder, micro_batch_size=2, window="micro").gradient()
    found["tokens"] = Step(COUPLED[0], folder, tokens_per_pass=60).gradient()
    record, after = ranks_run(folder / "two")
    save_file(after, folder / f"weights{this_rank()}.safetensors")
    if this_rank() == 1:  # out of memory in the first forward pass, inside the wrapper
        scoring.sequence_logps = failing_once(scoring.sequence_logps)
    starved_record, after = ranks_run(folder / "starved", micro=2)
    assert starved_record.metrics["micro_batch_size"] == 1
    save_file(after, folder / f"starved{this_rank()}.safetensors")
    if this_rank() == 0:
        save_file(found, folder / "gradients.safetensors")
        about = {
            "world": torch.distributed.get_world_size(),
            "micro_limits": limits,
            "history": record.history,
            "metrics": record.metrics,
        }
        (folder / "about.json").write_text(json.dumps(about))


# --- resume

RUNS = {
    "gamma": ("gamma(simpo(beta=2), gamma_beta_ratio=0.4, tau=3, capacity=6, solve_size=4)", 0.2),
    "beta": ("beta_dpo(beta=0.1, alpha=0.5, keep=0.75)", None),
    "re_po": ("re_po(beta=0.1)", None),
}
KILLED_AT = 5  # of 8 steps; checkpoints at 2, 4, 6, 8


def run(name: str, folder: Path) -> tuple:
    """Eight steps with checkpoints, by LoRA with dropout or in full: record, weights, state."""
    spec, dropout = RUNS[name]
    policy, objective = tiny(), objectives.build(spec)
    if dropout is not None:
        policy.add_lora(rank=2, dropout=dropout)
    checkpoints = {"checkpoint": str(folder), "checkpoint_every": 2}
    config = small_steps(folder.parent, epochs=2, learning_rate=1e-3, **checkpoints)
    record = training.train(policy, dataset_for(objective, 16), objective, config)
    return record, weights(policy), objective.state_dict()


def killed(name: str, folder: Path) -> None:
    """The same run, which kills itself in the middle of a step, between two checkpoints."""
    real, calls = ExactStep.objective_gradient, []

    def deadly(*arguments, training=True):
        if len(calls) == KILLED_AT:  # one call a step moves the objective's state
            os.kill(os.getpid(), signal.SIGKILL)
        calls.extend([1] * training)
        return real(*arguments, training=training)

    ExactStep.objective_gradient = deadly
    run(name, folder)


@pytest.fixture(scope="module")
def dead(tmp_path_factory) -> Path:
    """Folders of the runs that were killed, both at once."""
    root = tmp_path_factory.mktemp("killed")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    children = [
        subprocess.Popen(
            [sys.executable, __file__, "killed", name, str(root / name)], env=environment
        )
        for name in RUNS
    ]
    assert [child.wait(timeout=240) for child in children] == [-signal.SIGKILL] * len(RUNS)
    return root


@functools.cache
def uninterrupted(name: str, folder: Path) -> tuple:
    return run(name, folder)


@pytest.mark.parametrize("name", RUNS)
def test_killed_and_restarted_equals_uninterrupted_bit_for_bit(name, dead, tmp_path):
    assert [path.name for path in checkpoint_folders(dead / name)] == [
        "checkpoint-2",
        "checkpoint-4",
    ]
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ExactStep, "take", counted(ExactStep.take, calls))
        record, after, state = run(name, dead / name)
    assert len(calls) == 4  # steps 5 to 8: it did resume
    expected, final, end = uninterrupted(name, tmp_path / name)
    assert_same(after, final)
    assert_same(state, end)
    strip = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in r.history]
        for r in (record, expected)
    ]
    assert strip[0] == strip[1] and len(strip[0]) == 8
    assert (
        len({row["loss"] for row in strip[0]}) >= 7
    )  # step 1 of DPO is ln 2, and the warm-up's first rate is 0


def test_checkpoints_are_safetensors_and_json_only(dead):
    files = [path for path in dead.rglob("*") if path.is_file()]
    assert len(files) > 8 and {path.suffix for path in files} == {".json", ".safetensors"}
    assert not [
        path
        for path in files
        if path.read_bytes()[:2] in (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05")
    ]


def test_checkpoints_keep_a_copy_of_somebodys_and_lose_damaged_later_ones(tmp_path):
    """A copy named checkpoint-2-mine was taken for step 2, a fresh start removed its own first."""
    root = tmp_path / "run"
    for name in ("checkpoint-2-mine", "checkpoint-40", "checkpoint-60"):
        (root / name).mkdir(parents=True)
    run("gamma", root)
    names = sorted(path.name for path in root.iterdir() if path.is_dir())
    assert names == ["checkpoint-2-mine", "checkpoint-6", "checkpoint-8"]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"max_steps": -1}, "max_steps: -1 should be a number of at least 0"),
        ({"warmup": 100}, "warmup: 100 should be a share of the steps"),
        ({"learning_rate": -1e-3}, "learning_rate: -0.001 should be"),
        ({"learning_rate": float("nan")}, "learning_rate: nan should be"),
        ({"gradient_checkpointing": "False"}, "gradient_checkpointing: 'False' should be of type"),
        ({"master_weights": 0}, "master_weights: 0 should be of type bool"),
        ({"epochs": True}, "epochs: True should be of type int"),
    ],
)
def test_a_setting_that_means_something_else_is_refused(setting, said):
    """The word False counted as true; -1 steps trained three epochs of a part of the rows."""
    with pytest.raises(KitError, match=re.escape(said)):
        TrainConfig(**setting)


def test_a_truncated_checkpoint_is_noticed_and_passed_over(tmp_path, caplog):
    _, final, _ = run("gamma", tmp_path / "run")
    newest = tmp_path / "run" / "checkpoint-8" / "trainable.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    assert training.last_checkpoint(tmp_path / "run").name == "checkpoint-6"
    assert "checkpoint-8: incomplete or damaged" in caplog.text
    _, again, _ = run("gamma", tmp_path / "run")
    assert_same(again, final)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    run("beta", tmp_path / "run")
    objective = objectives.build("beta_dpo(beta=0.2, alpha=0.5)")
    config = TrainConfig(checkpoint=str(tmp_path / "run"), reference_cache=str(tmp_path))
    with pytest.raises(KitError, match="checkpoints of another run"):
        training.train(tiny(), preferences(2), objective, config)


def test_a_checkpoint_of_more_ranks_is_refused(tmp_path):
    run("beta", tmp_path / "run")
    for about in (tmp_path / "run").glob("*/checkpoint.json"):
        text = about.read_text()
        assert '"1 rank(s)"' in text
        about.write_text(text.replace("1 rank(s)", "2 rank(s) under FSDP2"))
    with pytest.raises(KitError, match=r"written by 2 rank\(s\) under FSDP2, and this is 1 rank"):
        run("beta", tmp_path / "run")


# --- reference log-probs


def test_reference_is_scored_once_and_a_damaged_or_stale_cache_is_rebuilt(
    tmp_path, monkeypatch, caplog
):
    policy, config = tiny().add_lora(rank=2), TrainConfig()
    with torch.no_grad():  # the adapter moves the policy, not its reference
        for name, parameter in policy.trainable():
            parameter.add_(0.3 if "lora_B" in name else 0)
    tokens = tokenize(preferences(), policy.tokenizer, policy.template)
    base = training.response_logps(tiny().model, tokens)
    calls, real = [], training.response_logps
    monkeypatch.setattr(
        training.reference, "response_logps", lambda *a, **k: calls.append(1) or real(*a, **k)
    )

    def reference(tokens=tokens):
        return training.reference_logps(policy, tokens, config=config, cache=tmp_path)

    torch.testing.assert_close(reference(), base, atol=1e-5, rtol=1e-6)
    assert float((real(policy.model, tokens) - base).abs().max()) > 1e-3
    reference()
    assert len(calls) == 1
    (file,) = tmp_path.glob("*.safetensors")
    whole_file = file.read_bytes()
    file.write_bytes(whole_file[: len(whole_file) // 2])
    torch.testing.assert_close(reference(), base, atol=1e-5, rtol=1e-6)
    assert len(calls) == 2 and "damaged" in caplog.text
    altered = bytearray(whole_file)
    altered[-1] ^= 1  # one bit of one number
    file.write_bytes(altered)
    torch.testing.assert_close(reference(), base, atol=1e-5, rtol=1e-6)
    assert len(calls) == 3 and "stale or altered" in caplog.text
    others = tokenize(preferences(seed=5), policy.tokenizer, policy.template)
    reference(others)
    assert len(calls) == 4 and len(list(tmp_path.glob("*.safetensors"))) == 2
    with torch.no_grad():
        next(p for n, p in policy.model.named_parameters() if "lora_" not in n)[7, 3] += 1e-3
    reference()
    assert len(calls) == 5  # other weights, another key


# --- what is refused


@pytest.mark.parametrize(
    ("spec", "k", "fields", "says"),
    [
        ("dpo_pl(beta=0.1)", 3, {"rewards": None}, "row r5: .* needs rewards"),
        (
            "dpo(beta=0.1)",
            2,
            {"responses": ("a", "b", "c")},
            "row r5: .* takes pairs, this row has 3",
        ),
        ("dpo_pl(beta=0.1)", 3, {"responses": ("a",)}, "row r5: .* at least 2 responses"),
        ("dora(dpo(beta=0.1))", 2, {"h": None}, "row r5: .* needs h"),
        ("sft()", 2, {"golden": None}, "row r5: .* golden"),
        ("dpo(beta=0.1)", 2, {"responses": ("a", " ")}, "row r5: response 1 is empty"),
    ],
)
def test_a_bad_row_is_named(spec, k, fields, says, tmp_path):
    rows = replaced(preferences(k), 5, **fields)
    with pytest.raises(KitError, match=says):
        training.train(
            tiny(), rows, objectives.build(spec), TrainConfig(reference_cache=str(tmp_path))
        )


@pytest.mark.parametrize("spec", ["dpo(beta=0.1)", "dora(simpo(beta=2, gamma0=0.5), lam=1.0)"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_loss_that_is_not_finite_names_the_step_and_its_rows(spec, value, tmp_path, monkeypatch):
    real = ExactStep.logps

    def spoilt(self, model, cut, places):
        logps = real(self, model, cut, places)
        return logps + value if self.forward_passes > 2 else logps  # two micro-batches a step

    monkeypatch.setattr(ExactStep, "logps", spoilt)
    config = TrainConfig(batch_size=4, micro_batch_size=2, reference_cache=str(tmp_path))
    with pytest.raises(KitError, match=r"step 2: .*not finite.* \(rows r\d"):
        training.train(tiny(), preferences(2), objectives.build(spec), config)


@pytest.mark.parametrize(
    ("name", "value"), [("window", "epoch"), ("batch_size", 0), ("layout", "packed")]
)
def test_a_bad_setting_is_named(name, value):
    with pytest.raises(KitError, match=name):
        TrainConfig(**{name: value})


# --- the run as a whole


def test_a_run_learns_and_its_record_says_how(tmp_path):
    policy, objective = tiny(), objectives.build("dpo(beta=0.1)")
    config = small_steps(tmp_path, epochs=12, learning_rate=3e-3)
    record = training.train(policy, preferences(2), objective, config)
    assert len(record.history) == record.metrics["steps"] == 24
    assert record.history[0]["loss"] == pytest.approx(torch.log(torch.tensor(2.0)).item(), abs=1e-4)
    assert record.metrics["last_loss"] < 0.6 and record.history[-1]["accuracy"] > 0.9
    assert record.history[0]["lr"] < record.history[3]["lr"] > record.history[-1]["lr"]
    assert record.metrics["tokens"][
        "rows"
    ] == ROWS and "objective  dpo(beta=0.1)" in training.run_card(record)


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ("dpo(beta=0.1)", "sum"),
        ("r_dpo_length(beta=0.1, alpha=0.01)", "sum"),
        ("beta_dpo(beta=0.1, alpha=0.5, keep=0.75)", "sum"),
        ("dora(dpo_pl(beta=0.1), lam=1.0)", "sum"),
        ("simpo(beta=2, gamma0=0.8)", "mean"),
        ("gamma(simpo(beta=2), gamma_beta_ratio=0.4, tau=3)", "mean"),
        ("ipo(tau=0.1, reduction='mean')", "mean"),
        ("sft()", "mean"),
    ],
)
def test_the_card_says_how_log_probs_are_normalised(spec, kind):
    objective = objectives.build(spec)
    assert objective.logp == kind


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] != "killed":
        scenes = (ranks, sharded, sharded_checkpoints)
        {scene.__name__: scene for scene in scenes}[sys.argv[1]](Path(sys.argv[2]))
        training.end_ranks()
    else:
        killed(sys.argv[2], Path(sys.argv[3]))
