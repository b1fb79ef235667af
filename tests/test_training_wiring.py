"""What a run is told reaches what computes it: optimizer, schedule, dropout, LoRA, kernels."""

import contextlib
import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from training_setting import (
    ROWS,
    Step,
    dataset_for,
    error,
    flat,
    preferences,
    replaced,
    tiny,
    weights,
    whole,
)
from transformers import LlamaConfig, LlamaForCausalLM

from robustpo_kit import objectives, policies, training
from robustpo_kit.errors import KitError
from robustpo_kit.losses import Scores
from robustpo_kit.policies import collate, sequence_logps, tokenize
from robustpo_kit.training import ExactStep, TrainConfig
from robustpo_kit.training.metrics import step_metrics
from robustpo_kit.training.scoring import kernel_of
from robustpo_kit.training.step import CutStep, in_two_passes

# --- the optimizer


def by_hand(spec: str, config: TrainConfig) -> dict[str, torch.Tensor]:
    """Weights after a run, written out: plain autograd, clipping, AdamW (Loshchilov, Hutter 2019).

    Decay is of matrices only; the rate is constant.
    """
    policy, objective = tiny(), objectives.build(spec)
    rows = dataset_for(objective)
    tokens = tokenize(rows, policy.tokenizer, policy.template)
    reference = training.response_logps(policy.model, tokens)
    signals = training.Signals.of(rows, tokens, reference)
    trained = dict(policy.trainable())
    first = {name: torch.zeros_like(weight) for name, weight in trained.items()}
    second = {name: torch.zeros_like(weight) for name, weight in trained.items()}
    for step, numbers in enumerate(training.step_rows(len(rows), config), start=1):
        policy.model.zero_grad()
        logps = sequence_logps(policy.model, collate([tokens.rows[i] for i in numbers]))
        scores, h = signals.scores(logps, torch.tensor(numbers), mismatched=False)
        objective.step_loss(scores, h).loss.backward()
        norm = math.sqrt(sum(float(weight.grad.square().sum()) for weight in trained.values()))
        factor = min(1.0, config.max_grad_norm / (norm + 1e-6))
        with torch.no_grad():
            for name, weight in trained.items():
                gradient = weight.grad * factor
                first[name] = 0.9 * first[name] + 0.1 * gradient
                second[name] = 0.999 * second[name] + 0.001 * gradient.square()
                if "norm" not in name:
                    weight -= config.learning_rate * config.weight_decay * weight
                slow = first[name] / (1 - 0.9**step)
                fast = (second[name] / (1 - 0.999**step)).sqrt() + 1e-8
                weight -= config.learning_rate * slow / fast
    return weights(policy)


@pytest.mark.parametrize("max_grad_norm", [0.02, 1e6])
@pytest.mark.parametrize("weight_decay", [0.0, 5.0])
def test_a_run_takes_the_clipped_decayed_steps_of_adamw(max_grad_norm, weight_decay, tmp_path):
    spec = "dora(dpo_pl(beta=0.1), lam=0.7)"
    config = TrainConfig(
        batch_size=3,
        micro_batch_size=2,
        learning_rate=1e-3,
        schedule="constant",
        warmup=0.0,
        max_grad_norm=max_grad_norm,
        weight_decay=weight_decay,
        reference_cache=str(tmp_path),
    )
    policy, objective = tiny(), objectives.build(spec)
    start = weights(policy)
    record = training.train(policy, dataset_for(objective), objective, config)
    assert all(row["grad_norm"] > 0.02 for row in record.history)  # the norm before clipping
    expected = by_hand(spec, config)
    others = by_hand(spec, TrainConfig(**(vars(config) | {"weight_decay": 5.0 - weight_decay})))
    for name, weight in policy.trainable():
        moved = (expected[name] - start[name]).norm()
        distance = float((weight.detach() - expected[name]).norm() / moved)
        assert distance < 2e-3, name
        if "norm" not in name:
            assert float((expected[name] - others[name]).norm() / moved) > 0.1, name


def test_clipping_changes_the_steps_that_adamw_takes():
    """Adam forgets a constant factor of all gradients; clipping does not scale all steps alike."""
    settings = {"batch_size": 3, "learning_rate": 1e-3, "schedule": "constant", "warmup": 0.0}
    clipped, free = (
        by_hand("dpo(beta=0.1)", TrainConfig(**settings, max_grad_norm=limit))
        for limit in (0.02, 1e6)
    )
    start = weights(tiny())
    moved = sum(float((free[name] - start[name]).norm()) for name in start)
    assert sum(float((free[name] - clipped[name]).norm()) for name in start) > 0.02 * moved


# --- the schedule

RATES = {  # of ten steps with three of warm-up, in units of the learning rate
    "cosine": [0, 1 / 3, 2 / 3, *((1 + math.cos(math.pi * step / 7)) / 2 for step in range(7))],
    "linear": [0, 1 / 3, 2 / 3, *(1 - step / 7 for step in range(7))],
    "constant": [0, 1 / 3, 2 / 3, *[1] * 7],
}


@pytest.mark.parametrize("schedule", RATES)
def test_the_rates_of_a_run_are_those_of_its_schedule(schedule):
    config = TrainConfig(
        batch_size=ROWS, epochs=10, learning_rate=2e-4, schedule=schedule, warmup=0.3
    )
    objective = objectives.build("simpo(beta=2, gamma0=0.5)")
    record = training.train(tiny(), preferences(2), objective, config)
    found = [row["lr"] / 2e-4 for row in record.history]
    assert found == pytest.approx(RATES[schedule], abs=1e-9)


def test_a_step_of_rate_zero_changes_nothing_and_the_next_one_does(tmp_path):
    policies_after = []
    for steps in (1, 2):
        config = TrainConfig(
            batch_size=ROWS, epochs=2, max_steps=steps, warmup=0.5, reference_cache=str(tmp_path)
        )
        policy = tiny()
        training.train(policy, preferences(2), objectives.build("dpo(beta=0.1)"), config)
        policies_after.append(weights(policy))
    start = weights(tiny())
    assert any(not torch.equal(policies_after[1][name], start[name]) for name in start)


# --- two passes


def dropping(policy: policies.Policy, where: str) -> None:
    """Dropout of an adapter that does something, or of attention weights."""
    if where == "adapter":
        policy.add_lora(rank=4, dropout=0.5)
        with torch.no_grad():
            for _, weight in policy.trainable():
                weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(3))
    else:
        for layer in policy.model.model.layers:
            layer.self_attn.attention_dropout = 0.5


@pytest.mark.parametrize("spec", ["kto(beta=0.1)", "gamma(dpo(beta=0.1), gamma0=0.4, tau=2)"])
@pytest.mark.parametrize(
    ("where", "layout"), [("adapter", "shared"), ("attention", "shared"), ("attention", "separate")]
)
def test_the_second_pass_drops_what_the_first_one_dropped(spec, where, layout, tmp_path):
    """The gradient by two passes is that of plain autograd through the first pass' own masks."""
    step = Step(spec, tmp_path, micro_batch_size=3, layout=layout)
    dropping(step.policy, where)
    step.trainer.scorer.model = step.policy.model
    exact_step, model = step.trainer.exact_step, step.trainer.scorer.train()
    cut = exact_step.cut(whole(step), limit=3)
    assert len(cut.mine) == 3

    def autograd(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        model.zero_grad()
        objective = objectives.build(spec)
        logps = torch.zeros(ROWS, exact_step.columns)
        for places in cut.mine:
            logps = logps.index_copy(0, torch.tensor(places), exact_step.logps(model, cut, places))
        scores, h = exact_step.scores(logps, cut.rows)
        objective.step_loss(scores, h).loss.backward()
        return flat(step.policy.model)

    expected, another = autograd(7), autograd(8)
    assert error(another, expected) > 0.05  # other masks, another gradient
    torch.manual_seed(7)
    model.zero_grad()
    in_two_passes(exact_step, model, cut)
    assert error(flat(step.policy.model), expected) <= 1e-5


def test_flex_refuses_attention_that_drops(tmp_path):
    """FlexAttention has no dropout: said in words before a step, and never chosen by itself."""
    settings = tiny().model.config.to_dict() | {"attention_dropout": 0.5}
    model = LlamaForCausalLM(LlamaConfig.from_dict(settings))
    policy = dataclasses.replace(tiny(), model=model)
    start = weights(policy)
    config = TrainConfig(batch_size=ROWS, kernel="flex", reference_cache=str(tmp_path))
    with pytest.raises(KitError, match="kernel 'flex': it has no attention dropout"):
        training.train(policy, preferences(2), objectives.build("dpo(beta=0.1)"), config)
    assert all(torch.equal(weight, start[name]) for name, weight in weights(policy).items())
    on_gpu = SimpleNamespace(device=torch.device("cuda"), model=model)
    assert kernel_of(on_gpu, TrainConfig()) == "sdpa"


# --- gradient checkpointing


@pytest.mark.parametrize("lora", [False, True])
def test_gradient_checkpointing_computes_layers_again_and_gives_the_same_gradient(lora, tmp_path):
    gradients, calls = [], []
    for checkpointing in (False, True):
        policy, objective = tiny(), objectives.build("dora(dpo(beta=0.1), lam=0.7)")
        if lora:
            policy.add_lora(rank=2)
        layer = policies.unwrap(policy.model).model.layers[0].mlp
        layer.register_forward_pre_hook(lambda *_: calls.append(1))
        config = TrainConfig(
            batch_size=4, gradient_checkpointing=checkpointing, reference_cache=str(tmp_path)
        )
        trainer = training.prepare(policy, preferences(2), objective, config, str(tmp_path))
        trainer.create_optimizer_and_scheduler(1)
        calls.clear()  # what scored the reference
        trainer.take_step(trainer.scorer, 0)
        assert len(calls) == 1 + checkpointing
        gradients.append(flat(policy.model))
    assert error(gradients[1], gradients[0]) <= 1e-6


# --- LoRA


@pytest.mark.parametrize(("alpha", "scale"), [(None, 2.0), (4, 1.0), (12, 3.0)])
def test_alpha_scales_the_adapter(alpha, scale):
    policy = tiny().add_lora(rank=4, alpha=alpha)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, weight in policy.trainable():
            weight.normal_(0, 0.2, generator=generator)
    tokens = tokenize(preferences(), policy.tokenizer, policy.template)
    found = training.response_logps(policy.model.eval(), tokens)
    by_hand = tiny()
    own = dict(by_hand.model.named_parameters())
    adapter = dict(policy.model.named_parameters())
    with torch.no_grad():
        for name, weight in own.items():
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            a = adapter.get(f"{stem}.lora_A.default.weight")
            if a is not None:
                weight += scale * adapter[f"{stem}.lora_B.default.weight"] @ a
    expected = training.response_logps(by_hand.model.eval(), tokens)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
    plain = training.response_logps(tiny().model.eval(), tokens)
    assert float((expected - plain).abs().max()) > 0.05


# --- kernels


@pytest.mark.parametrize(
    ("setting", "device", "kernel"),
    [
        ("auto", "cuda", "flex"),
        ("auto", "cpu", "sdpa"),
        ("sdpa", "cuda", "sdpa"),
        ("flex", "cpu", "flex"),
    ],
)
def test_the_kernel_suits_the_device_unless_one_is_named(setting, device, kernel):
    policy = SimpleNamespace(device=torch.device(device), model=tiny().model)
    assert kernel_of(policy, TrainConfig(kernel=setting)) == kernel


def test_the_kernel_reaches_steps_reference_and_scores(tmp_path, monkeypatch):
    asked = []

    def noted(where, module):
        real = module.collate

        def collated(rows, **how):
            asked.append((where, how["kernel"]))
            return real(rows, **(how | {"kernel": "sdpa"}))

        monkeypatch.setattr(module, "collate", collated)

    noted("step", training.step)
    noted("forward", training.forward)
    config = TrainConfig(batch_size=ROWS, kernel="flex", reference_cache=str(tmp_path))
    training.train(tiny(), preferences(2), objectives.build("dpo(beta=0.1)"), config)
    assert set(asked) == {("forward", "flex"), ("step", "flex")}
    asked.clear()
    training.score(tiny(), preferences(2), config)
    assert set(asked) == {("forward", "flex")}


# --- metrics


def test_metrics_of_lists_are_of_the_response_of_highest_reward():
    logps = torch.tensor([[-1.0, -2.0, -5.0], [-4.0, -1.0, -9.0]])
    reference = torch.tensor([[-2.0, -2.0, -3.0], [-2.0, -2.0, -9.0]])
    rewards = torch.tensor([[0.1, 0.7, 0.2], [0.9, 0.3, 5.0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    scores = Scores(logps, reference, torch.ones(2, 3), rewards, mask)
    value = SimpleNamespace(weights=torch.ones(2), metrics={})
    gains = [[1.0, 0.0, -2.0], [-2.0, 1.0]]
    best = step_metrics(scores, value, responses="list")
    assert best["chosen_shift"] == pytest.approx((gains[0][1] + gains[1][0]) / 2)
    margins = [0.0 - (1.0 - 2.0) / 2, -2.0 - 1.0]
    assert best["margin"] == pytest.approx(sum(margins) / 2) and best["accuracy"] == 0.5
    first = step_metrics(scores, value, responses="pair")
    assert first["chosen_shift"] == pytest.approx((gains[0][0] + gains[1][0]) / 2)
    unknown = step_metrics(scores._replace(rewards=None), value, responses="list")
    assert unknown["chosen_shift"] == first["chosen_shift"]


def test_a_run_over_lists_logs_the_best_response_wherever_it_stands(tmp_path):
    """Columns in another order are the same lists: every metric stays."""
    rows = preferences(3)
    turned = rows
    for place in range(ROWS):
        row = rows[place]
        turned = replaced(
            turned, place, responses=row.responses[::-1], rewards=row.rewards[::-1], golden=None
        )
    found = []
    for order in (rows, turned):
        config = TrainConfig(batch_size=4, learning_rate=1e-3, reference_cache=str(tmp_path))
        objective = objectives.build("dora(dpo_pl(beta=0.1), lam=0.7)")
        history = training.train(tiny(), order, objective, config).history
        found.append({name: history[-1][name] for name in history[-1] if name != "seconds"})
    assert {"margin", "accuracy", "chosen_shift", "logps_chosen"} <= found[0].keys()
    assert found[0] == pytest.approx(found[1], rel=1e-3, abs=1e-5)


def test_the_authors_step_reports_the_mean_of_its_micro_batches(tmp_path):
    step = Step("dora(dpo_pl(beta=0.1), lam=0.7)", tmp_path, micro_batch_size=2, window="micro")
    exact_step: ExactStep = step.trainer.exact_step
    cut = exact_step.cut(whole(step), limit=2)
    result = exact_step.take(step.trainer.scorer.train(), cut)
    losses, metrics = [], []
    for places in cut.mine:
        rows = cut.rows_at(places)
        logps = sequence_logps(step.policy.model, collate([step.tokens.rows[i] for i in rows]))
        value, _ = exact_step.objective_gradient(logps.detach(), rows)
        losses.append(float(value.loss.detach()))
        metrics.append(exact_step.result(logps, rows, value).metrics)
    assert float(result.loss) == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert result.logps.shape == (ROWS, 3)
    means = {name: sum(row[name] for row in metrics) / len(metrics) for name in metrics[0]}
    assert result.metrics == pytest.approx(means, rel=1e-5) and "ess" in means


@pytest.mark.parametrize(
    ("spec", "window", "limit", "expected"),
    [
        ("dpo(beta=0.1)", "step", 3, [False, False, True]),
        ("kto(beta=0.1)", "step", 3, [False, False, True]),
        ("kto(beta=0.1)", "step", 8, [True]),
        ("dro(dpo(beta=0.1), lam=0.7)", "micro", 3, [False, False, True]),
        ("dro(dpo(beta=0.1), lam=0.7)", "step", 3, [False] * 3),  # where no hooks wait
    ],
)
def test_hooks_are_told_which_micro_batch_is_the_last(
    spec, window, limit, expected, tmp_path, monkeypatch
):
    step, told = Step(spec, tmp_path, window=window), []

    def micro_batch(model, *, last):
        told.append(last)
        return contextlib.nullcontext()

    exact_step = step.trainer.exact_step
    monkeypatch.setattr(exact_step.exchange, "micro_batch", micro_batch)
    exact_step.take(step.trainer.scorer, exact_step.cut(whole(step), limit=limit))
    assert told == expected


@pytest.mark.parametrize(
    ("spec", "window"),
    [
        ("dpo(beta=0.1)", "step"),
        ("kto(beta=0.1)", "step"),
        ("dro(dpo(beta=0.1), lam=0.7)", "step"),
        ("dro(dpo(beta=0.1), lam=0.7)", "micro"),
    ],
)
def test_a_step_reports_what_the_others_found_too(spec, window, tmp_path, monkeypatch):
    """The other rank is played: what it would gather is put where it belongs."""
    gathered: list[torch.Tensor] = []
    one = Step(spec, tmp_path, window=window)
    exact_step, rows = one.trainer.exact_step, whole(one)[:4]
    monkeypatch.setattr(exact_step.exchange, "gather", lambda x: gathered.append(x.clone()))
    expected = exact_step.take(one.trainer.scorer, CutStep(rows, [[[0, 1], [2, 3]]]))
    first = Step(spec, tmp_path, window=window)
    exact_step = first.trainer.exact_step
    monkeypatch.setattr(exact_step.exchange, "gather", lambda x: x.copy_(gathered.pop(0)))
    found = exact_step.take(first.trainer.scorer, CutStep(rows, [[[0, 1]], [[2, 3]]]))
    assert not gathered
    torch.testing.assert_close(found.loss, expected.loss)
    torch.testing.assert_close(found.logps, expected.logps)
