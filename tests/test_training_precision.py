"""Full fine-tuning in bfloat16 at the papers' rates: the weights get what fp32 weights would."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from training_setting import (
    assert_same,
    preferences,
    sigterm_at_second_step,
    small_steps,
    tiny,
    weights,
)

from robustpo_kit import cli, objectives, policies, training
from robustpo_kit.errors import KitError
from robustpo_kit.training import TrainConfig, launching
from robustpo_kit.training.precision import MASTER, MasterAdamW, optimizer_choice, share_lost

RATE = 6e-7  # of the papers' full fine-tuning


def short(kind: torch.dtype = torch.bfloat16) -> policies.Policy:
    """A tiny policy whose weights are bfloat16 numbers, in another precision if asked."""
    policy = tiny()
    policy.model.to(torch.bfloat16).to(kind)
    return policy


def settings(folder: Path, **changed) -> TrainConfig:
    constant = {"epochs": 10, "learning_rate": RATE, "schedule": "constant", "warmup": 0.0}
    return small_steps(folder, **(constant | changed))


def movement(folder: Path, kind: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """How far 20 steps move the weights [P], and what collects their updates."""
    policy, objective = short(kind), objectives.build("dpo(beta=0.1)")
    before = weights(policy)
    scratch = str(folder / "scratch")
    trainer = training.prepare(policy, preferences(2), objective, settings(folder), scratch)
    trainer.train()
    assert trainer.state.global_step == 20
    state = trainer.optimizer.optimizer.state
    pairs = [
        (weight.detach().float(), state[weight].get(MASTER, weight).detach().float())
        for _, weight in policy.trainable()
    ]
    starts = [weight.float() for weight in before.values()]
    moved = [
        torch.cat(
            [(pair[which] - start).flatten() for pair, start in zip(pairs, starts, strict=True)]
        )
        for which in (0, 1)
    ]
    return moved[0], moved[1]


def test_masters_move_as_fp32_weights_do_where_bfloat16_stands_still(tmp_path, monkeypatch):
    exact, _ = movement(tmp_path, torch.float32)
    rounded, collected = movement(tmp_path, torch.bfloat16)
    assert float(collected.norm()) == pytest.approx(float(exact.norm()), rel=0.01)
    assert torch.nn.functional.cosine_similarity(collected, exact, dim=0) > 0.99
    assert float((collected != 0).float().mean()) > 0.99
    monkeypatch.setattr(training.trainer, "optimizer_choice", lambda *_: None)
    lost, _ = movement(tmp_path, torch.bfloat16)
    assert float((lost != 0).float().mean()) < 0.03 and lost.norm() < 0.2 * exact.norm()
    assert float((rounded != 0).float().mean()) > 3 * float((lost != 0).float().mean())


@pytest.mark.parametrize("gpu", [False, True])
def test_a_gpu_takes_its_updates_by_the_fused_kernel(gpu, tmp_path, monkeypatch):
    told: dict = {"n_gpu": 1, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8}
    with monkeypatch.context() as patch:
        patch.setattr(launching, "TrainingArguments", lambda **how: SimpleNamespace(**told | how))
        patch.setattr(torch.cuda, "is_available", lambda: gpu)
        arguments = launching.trainer_arguments(settings(tmp_path), str(tmp_path), 2)
    assert arguments.optim == ("adamw_torch_fused" if gpu else "adamw_torch")
    assert arguments.use_cpu is not gpu
    weights = [weight for _, weight in short().trainable()]
    kind, how = optimizer_choice(weights, settings(tmp_path), arguments)
    assert kind is MasterAdamW and how["fused"] is gpu
    optimizer = kind(weights, **how)
    weights[0].grad = torch.ones_like(weights[0])
    optimizer.step()
    assert optimizer.state[weights[0]]["step"] == 1


def test_the_fused_kernel_moves_masters_alike_and_its_state_is_taken_up(tmp_path):
    """On a CPU, which has the kernel too: 6 steps, and 3 + 3 over a stored state."""
    gradients = [torch.randn(7, 5, generator=torch.Generator().manual_seed(n)) for n in range(6)]
    start = torch.randn(7, 5, generator=torch.Generator().manual_seed(9)).bfloat16()
    found = []
    for fused, stops in ((False, ()), (True, ()), (True, (3,))):
        weight = torch.nn.Parameter(start.clone())
        optimizer = MasterAdamW([weight], lr=1e-2, weight_decay=0.1, fused=fused)
        for number, gradient in enumerate(gradients):
            if number in stops:
                state, optimizer = optimizer.state_dict(), None
                optimizer = MasterAdamW([weight], lr=1e-2, weight_decay=0.1, fused=fused)
                optimizer.load_state_dict(state)
            weight.grad = gradient.bfloat16()
            optimizer.step()
        found.append(optimizer.state[weight][MASTER])
        assert torch.equal(weight, found[-1].bfloat16())
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-7)
    assert torch.equal(found[2], found[1])


def test_weights_are_the_rounded_masters(tmp_path):
    policy, config = short(), settings(tmp_path, learning_rate=1e-3)
    trainer = training.prepare(
        policy, preferences(2), objectives.build("dpo(beta=0.1)"), config, str(tmp_path)
    )
    trainer.train()
    for _, weight in policy.trainable():
        state = trainer.optimizer.optimizer.state[weight]
        assert weight.dtype == torch.bfloat16 and {s.dtype for s in state.values()} == {
            torch.float32
        }
        assert torch.equal(weight, state[MASTER].to(torch.bfloat16))


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_of_fp32_weights_it_is_torchs_adamw(weight_decay):
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.ones(5, 3)) for _ in range(2))
    optimizers = [
        kind([weight], lr=1e-2, weight_decay=weight_decay)
        for kind, weight in ((MasterAdamW, ours), (torch.optim.AdamW, theirs))
    ]
    for _ in range(4):
        ours.grad = torch.randn(5, 3, generator=generator)
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(ours, theirs)


def test_state_comes_back_bit_for_bit_where_torch_would_round_it():
    weight = torch.nn.Parameter(torch.full((4, 3), 0.02, dtype=torch.bfloat16))
    optimizer = MasterAdamW([weight], lr=RATE)
    weight.grad = torch.linspace(-1, 1, 12).reshape(4, 3).to(torch.bfloat16)
    optimizer.step()
    saved = optimizer.state_dict()
    for kind, same in ((MasterAdamW, True), (torch.optim.AdamW, False)):
        again = kind([torch.nn.Parameter(weight.detach().clone())], lr=RATE)
        again.load_state_dict(saved)
        (state,) = again.state.values()
        assert torch.equal(state[MASTER].float(), optimizer.state[weight][MASTER]) is same


def test_a_run_with_masters_resumes_bit_for_bit(tmp_path, monkeypatch):
    def run(folder: Path) -> dict[str, torch.Tensor]:
        config = settings(folder, checkpoint=str(folder / "run"), epochs=2)
        policy, objective = short(), objectives.build("dora(dpo(beta=0.1), lam=0.7)")
        training.train(policy, preferences(2), objective, config)
        masters = load_file(folder / "run" / "checkpoint-4" / "optimizer.safetensors")
        return weights(policy) | masters

    expected = run(tmp_path / "whole")
    steps = sigterm_at_second_step(monkeypatch)
    with pytest.raises(training.Terminated):
        run(tmp_path / "halves")
    assert_same(run(tmp_path / "halves"), expected)
    assert len(steps) == 4


def test_the_command_keeps_masters_for_full_fine_tuning_in_bfloat16(tmp_path):
    short(torch.float32).save(tmp_path / "base")
    preferences(2).to_jsonl(tmp_path / "rows.jsonl")
    arguments = ["train", "--data", tmp_path / "rows.jsonl", "--objective", "dpo(beta=0.1)"]
    arguments += ["--model", tmp_path / "base", "--out", tmp_path / "policy", "--lora", "none"]
    arguments += ["--dtype", "bfloat16", "--set", f"learning_rate={RATE}", "--set", "max_steps=2"]
    arguments += ["--set", f'checkpoint="{tmp_path / "run"}"']
    arguments += ["--set", f'reference_cache="{tmp_path / "cache"}"']
    assert cli.main([str(argument) for argument in arguments]) == 0
    state = (tmp_path / "run" / "checkpoint-1" / "optimizer.json").read_text()
    assert f'"{MASTER}"' in state
    assert load_file(tmp_path / "policy" / "model.safetensors")["model.norm.weight"].dtype == (
        torch.bfloat16
    )


# --- what is refused


def test_what_rounding_would_lose_is_refused(tmp_path):
    config = settings(tmp_path, master_weights=False)
    with pytest.raises(KitError, match=r"master_weights: .* 6e-07 .* for 9\d% of the trained"):
        training.train(short(), preferences(2), objectives.build("dpo(beta=0.1)"), config)
    fast = dataclasses.replace(config, learning_rate=1e-2, max_steps=1)
    training.train(short(), preferences(2), objectives.build("dpo(beta=0.1)"), fast)


def test_the_share_that_is_lost_is_the_share_that_stays():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4000, generator=generator).to(torch.bfloat16)
    weight[:100] = 0
    powers = torch.frexp(weight.float()).mantissa.abs() == 0.5  # their lower neighbour is nearer
    weight = weight[~powers]
    for rate in (1e-4, 1e-3, 5e-3, 0.1):
        steps = torch.tensor([rate, -rate])[:, None]
        stays = ((weight.float() + steps).to(torch.bfloat16) == weight).all(0)
        assert share_lost([weight], rate) == pytest.approx(float(stays.float().mean()), abs=2e-3)
    assert 0.01 < share_lost([weight], 1e-3) < 0.99


def test_float16_weights_are_refused(tmp_path):
    with pytest.raises(KitError, match="float16 weights cannot be trained here"):
        training.train(
            short(torch.float16),
            preferences(2),
            objectives.build("simpo(beta=2, gamma0=0.5)"),
            settings(tmp_path),
        )


def test_an_adapter_is_fp32_and_needs_no_masters(tmp_path):
    policy = short().add_lora(rank=2)
    arguments = launching.trainer_arguments(settings(tmp_path), str(tmp_path), 1)
    trained = [weight for _, weight in policy.trainable()]
    assert {weight.dtype for weight in trained} == {torch.float32}
    assert optimizer_choice(trained, settings(tmp_path), arguments) is None


@pytest.mark.parametrize(("mixed", "refused"), [("no", True), ("bf16", False)])
def test_deepspeed_without_masters_is_refused(mixed, refused, tmp_path):
    plugin = SimpleNamespace(zero_stage=2)
    accelerator = SimpleNamespace(
        mixed_precision=mixed, state=SimpleNamespace(deepspeed_plugin=plugin), is_fsdp2=False
    )
    trainer = SimpleNamespace(
        is_deepspeed_enabled=True, is_fsdp_enabled=False, accelerator=accelerator
    )
    if refused:
        with pytest.raises(KitError, match="fp32 masters of bfloat16 weights under mixed_prec"):
            launching.refuse_wrappers(trainer, short(), settings(tmp_path))
    else:
        launching.refuse_wrappers(trainer, short(), settings(tmp_path))
    launching.refuse_wrappers(trainer, tiny(), settings(tmp_path))
