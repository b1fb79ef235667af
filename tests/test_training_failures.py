"""What fails ends with one line that says what to do, nothing half-written, no rank waiting."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_ranks import TROUBLES
from training_setting import Step as OneStep
from training_setting import (
    assert_same,
    preferences,
    sigterm_at_second_step,
    starved,
    tiny,
    weights,
)

from robustpo_kit import cli, data, objectives, paths, policies, training
from robustpo_kit.errors import KitError
from robustpo_kit.policies import tokenize
from robustpo_kit.training import ExactStep, TrainConfig, forward, launching, lifeline
from robustpo_kit.training.checkpoints import checkpoint_folders
from robustpo_kit.training.ranks import HookedExchange

MINUTE_S = 60


def settings(folder: Path, **changed) -> TrainConfig:
    """Four steps of two pairs with a checkpoint each."""
    values = {
        "batch_size": 2,
        "micro_batch_size": 1,
        "learning_rate": 1e-3,
        "checkpoint": str(folder / "run"),
        "checkpoint_every": 1,
        "reference_cache": str(folder / "cache"),
    }
    return TrainConfig(**(values | changed))


def take_run(folder: Path, **changed) -> policies.Policy:
    """The policy after such a run."""
    policy, objective = tiny(), objectives.build("dora(dpo(beta=0.1), lam=0.7)")
    training.train(policy, preferences(2), objective, settings(folder, **changed))
    return policy


# --- ranks


@pytest.fixture(scope="module")
def troubles(tmp_path_factory) -> dict[str, dict]:
    """How two ranks ended, by what happened to the second of them."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TERM": "dumb"}
    command = [sys.executable, str(Path(__file__).with_name("training_ranks.py")), str(folder)]
    subprocess.run([*command, *TROUBLES], env=os.environ | environment, check=True, timeout=600)
    ends = {name: json.loads((folder / name / "end.json").read_text()) for name in TROUBLES}
    return ends | {"folder": folder}


OUTCOMES = {  # exit codes; what the first rank says; what the second one says
    "killed": ([2, -signal.SIGKILL], "rank 1 is gone without a word", ""),
    "killed_and_stuck": ([1, -signal.SIGKILL], "rank 1 is gone without a word", ""),
    "starved": (
        [2, 2],
        "rank 1 failed: step 3: out of memory with one prompt at a time",
        "step 3: out of memory with one prompt at a time (the longest of the step is row r",
    ),
    "starved_in_fsdp2": (
        [2, 2],
        "rank 1 failed: step 2: out of memory with micro-batches of 2 prompts",
        "ranks under FSDP2 and DeepSpeed cannot take a step again; set micro_batch_size=1",
    ),
    "starved_in_scoring": ([2, 2], "rank 1 failed: row r", "out of memory when scoring its"),
    "spoilt": ([2, 2], "step 2: log-probs are not finite (rows r", "not finite (rows r"),
    "full_disk": (
        [2, 2],
        "checkpoint of step 2 not written (",
        "the disk is full; free some space and try again); free space or choose another folder, "
        "then the run goes on from checkpoint-1",
    ),
    "terminated": (
        [143, 143],
        "SIGTERM: checkpoint of step 2",
        "SIGTERM: checkpoint of step 2",
    ),
    "of_other_runs": ([2, 2], "rank 1: is not of the run of rank 0 (seed is 1", "(seed is 1"),
}


@pytest.mark.parametrize("name", OUTCOMES)
def test_no_rank_waits_for_one_that_failed_or_died(name, troubles):
    codes, first, second = OUTCOMES[name]
    end = troubles[name]
    assert end["codes"] == codes, end["errors"]
    assert abs(end["seconds"][0] - end["seconds"][1]) < MINUTE_S
    for said, wanted in zip(end["errors"], (first, second), strict=True):
        assert wanted in said
        assert "Traceback" not in said


def test_ranks_that_failed_have_left_whole_checkpoints(troubles):
    assert set(OUTCOMES) == set(TROUBLES)
    for name, steps in {"killed": [1, 2], "full_disk": [1], "terminated": [1, 2]}.items():
        root = troubles["folder"] / name / "checkpoints"
        assert sorted(path.name for path in root.iterdir()) == [f"checkpoint-{n}" for n in steps]
        assert training.last_checkpoint(root).name == f"checkpoint-{steps[-1]}"
    (saved,) = (troubles["folder"] / "spoilt" / "checkpoints").glob("not_finite-*-step2")
    logps = load_file(saved / "batch.safetensors")["logps"]
    assert torch.isfinite(logps).all(dim=1).tolist().count(False) == 1


def test_ranks_that_cannot_reach_each_other_go_on_with_a_warning(monkeypatch, caplog):
    monkeypatch.setattr(lifeline, "this_rank", lambda: 1)
    monkeypatch.setattr(lifeline, "gather_states", lambda state: [state, state])
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    assert lifeline.connect_ranks() == {}  # nobody listens at port 0
    assert "no connection to rank 0" in caplog.text and "time limit only" in caplog.text


# --- memory


def test_scoring_halves_its_passes_when_memory_runs_out(monkeypatch, caplog):
    policy = tiny()
    tokens = tokenize(preferences(), policy.tokenizer, policy.template)
    expected = training.response_logps(policy.model, tokens)
    real, passes = forward.sequence_logps, []

    def small(model, batch):
        passes.append(len(batch.rows))
        if len(batch.rows) > 2:
            raise torch.OutOfMemoryError("out of memory (injected)")
        return real(model, batch)

    monkeypatch.setattr(forward, "sequence_logps", small)
    found = training.response_logps(policy.model, tokens)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-6)
    assert passes[0] == len(tokens) and max(passes[-3:]) <= 2
    assert "out of memory: scoring passes of" in caplog.text


def test_a_row_that_does_not_fit_is_named(monkeypatch, tmp_path):
    def none_fits(model, batch):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(forward, "sequence_logps", none_fits)
    with pytest.raises(KitError, match=r"row r\d: out of memory when scoring its \d+ tokens alone"):
        take_run(tmp_path)


def test_scoring_does_not_take_other_errors_for_memory(monkeypatch, tmp_path):
    def broken(model, batch):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(forward, "sequence_logps", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        take_run(tmp_path)


def test_one_prompt_that_does_not_fit_is_refused_with_what_to_do(monkeypatch, tmp_path):
    def none_fits(self, model, cut, places):
        raise torch.OutOfMemoryError("out of memory (injected)")

    monkeypatch.setattr(ExactStep, "logps", none_fits)
    with pytest.raises(KitError, match=r"step 1: out of memory with one prompt.*row r\d.*set grad"):
        take_run(tmp_path, micro_batch_size=2)


def test_hooks_that_reduce_refuse_to_take_a_step_again(monkeypatch, tmp_path):
    """FSDP2 and DeepSpeed: other ranks wait inside the hooks, so that nobody can start again."""
    step = OneStep("dpo(beta=0.1)", tmp_path)
    exchange = HookedExchange(step.trainer.accelerator, deepspeed=True)
    step.trainer.exact_step.exchange = exchange
    real = step.trainer.exact_step.logps
    step.trainer.exact_step.logps = lambda *arguments: starved(real, *arguments)
    with pytest.raises(KitError, match=r"under FSDP2 and DeepSpeed cannot .* micro_batch_size=4"):
        step.gradient()


def test_an_optimizer_that_does_not_fit_is_refused_with_what_to_do(monkeypatch, tmp_path):
    def full(*_, **__):
        raise torch.OutOfMemoryError("out of memory (injected)")

    monkeypatch.setattr(torch.optim.AdamW, "step", full)
    with pytest.raises(KitError, match="out of memory outside of the passes.*use LoRA"):
        take_run(tmp_path)


# --- numbers that are not finite


def spoil(monkeypatch, value: float, from_pass: int) -> None:
    real = ExactStep.logps

    def logps(self, model, cut, places):
        found = real(self, model, cut, places)
        return found + value if self.forward_passes >= from_pass else found

    monkeypatch.setattr(ExactStep, "logps", logps)


@pytest.mark.parametrize("window", ["step", "micro"])
def test_a_batch_that_is_not_finite_is_saved(window, monkeypatch, tmp_path):
    spoil(monkeypatch, float("nan"), from_pass=4)  # the second micro-batch of step 2
    with pytest.raises(KitError, match=r"step 2: log-probs are not finite") as refused:
        take_run(tmp_path, window=window)
    (folder,) = (tmp_path / "run").glob("not_finite-*-step2")
    assert f"the batch lies in {folder}" in str(refused.value)
    saved = data.load(folder / "rows.jsonl")
    rows = {row.row_id: row for row in preferences(2)}
    assert len(saved) == 2 and all(rows[row.row_id] == row for row in saved)
    tensors = load_file(folder / "batch.safetensors")
    finite = torch.isfinite(tensors["logps"]).all(dim=1)
    spoilt = saved[finite.tolist().index(False)]
    assert f"(rows {spoilt.row_id})" in str(refused.value) and int(finite.sum()) == 1
    policy = tiny()
    table = tokenize(saved, policy.tokenizer, policy.template)
    for place, row in enumerate(table.rows):
        assert tuple(tensors[f"prompt {place}"].tolist()) == row.prompt
        assert tuple(tensors[f"response {place} 1"].tolist()) == row.responses[1]
    assert tensors["h"].tolist() == pytest.approx([row.h for row in saved])
    scored = training.response_logps(policy.model, table)
    torch.testing.assert_close(tensors["ref_logps"], scored, atol=1e-4, rtol=1e-6)
    assert training.last_checkpoint(tmp_path / "run").name == "checkpoint-1"


def test_without_a_folder_the_batch_goes_to_the_runs(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "RUNS", tmp_path / "runs")
    spoil(monkeypatch, float("inf"), from_pass=1)
    with pytest.raises(KitError, match="the batch lies in"):
        take_run(tmp_path, checkpoint=None)
    (folder,) = (tmp_path / "runs" / "not_finite").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["batch.safetensors", "rows.jsonl"]


@pytest.mark.parametrize("spec", ["dpo(beta=0.1)", "dora(dpo(beta=0.1), lam=0.7)"])
def test_a_gradient_that_is_not_finite_does_not_reach_the_weights(spec, monkeypatch, tmp_path):
    real = ExactStep.backward

    def backward(self, logps, slope):
        return real(self, logps, slope * float("inf"))

    monkeypatch.setattr(ExactStep, "backward", backward)
    policy, before = tiny(), weights(tiny())
    with pytest.raises(KitError, match=r"step 1: the gradient is not finite \(rows r"):
        training.train(policy, preferences(2), objectives.build(spec), settings(tmp_path))
    assert_same(weights(policy), before)


# --- the disk


@pytest.mark.parametrize("file", ["rank0.safetensors", "trainable.safetensors", "optimizer.json"])
def test_a_full_disk_leaves_the_checkpoint_before_and_nothing_half_written(
    file, monkeypatch, tmp_path
):
    expected = weights(take_run(tmp_path / "whole"))
    real = {name: getattr(training.checkpoints, name) for name in ("save_file", "write_json")}

    def full(name):
        def write(*arguments):
            path = next(Path(a) for a in arguments if isinstance(a, Path))
            if path.name == file and "checkpoint-3" in str(path.parent):
                path.write_bytes(b"half of it")
                raise OSError(28, os.strerror(28), str(path))
            return real[name](*arguments)

        return write

    with monkeypatch.context() as patch:
        for name in real:
            patch.setattr(training.checkpoints, name, full(name))
        with pytest.raises(KitError, match=r"step 3 not written \(.*disk is full.*checkpoint-2$"):
            take_run(tmp_path)
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == ["checkpoint-1", "checkpoint-2"]
    assert_same(weights(take_run(tmp_path)), expected)  # there is space again


def test_what_safetensors_says_of_a_full_disk_is_understood(tmp_path):
    from safetensors import SafetensorError

    from robustpo_kit.records import atomic_folder, atomic_write

    for writing in (atomic_folder, atomic_write):
        full = pytest.raises(KitError, match="a: not written, the disk is full")
        with full, writing(tmp_path / "a"):
            raise SafetensorError(
                "Error while serializing: I/O error: No space left on device (os error 28)"
            )
    with pytest.raises(OSError, match="Permission"), atomic_write(tmp_path / "a"):
        raise PermissionError(13, "Permission denied")
    assert not list(tmp_path.iterdir())


def test_a_reference_cache_that_cannot_be_written_does_not_end_the_run(
    monkeypatch, tmp_path, caplog
):
    def full(*_, **__):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(training.reference, "save_file", full)
    take_run(tmp_path)
    assert "not written" in caplog.text and not list((tmp_path / "cache").iterdir())


# --- SIGTERM


def test_sigterm_ends_the_run_at_its_next_step_and_it_resumes_bit_for_bit(tmp_path, monkeypatch):
    expected = weights(take_run(tmp_path / "whole"))
    before = signal.getsignal(signal.SIGTERM)
    steps = sigterm_at_second_step(monkeypatch)
    with pytest.raises(training.Terminated) as end:
        take_run(tmp_path, checkpoint_every=100)
    assert end.value.code == 143 and len(steps) == 2
    assert [path.name for path in checkpoint_folders(tmp_path / "run")] == ["checkpoint-2"]
    assert signal.getsignal(signal.SIGTERM) is before
    assert_same(weights(take_run(tmp_path, checkpoint_every=100)), expected)
    assert len(steps) == 4


def test_the_echo_of_a_sigterm_is_the_same_wish_and_a_later_one_ends_the_process():
    child = os.fork()
    if child == 0:
        with training.interrupts.Termination() as termination:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)  # a scheduler's, and the launcher's
            if not termination.requested:
                os._exit(1)
            training.interrupts.ECHO_S = 0.0
            signal.raise_signal(signal.SIGTERM)
        os._exit(2)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGTERM


@pytest.mark.parametrize("moment", ["save_file", "write_json"])
def test_sigterm_while_a_checkpoint_is_written_leaves_it_whole(moment, monkeypatch, tmp_path):
    expected = weights(take_run(tmp_path / "whole"))
    real, calls = getattr(training.checkpoints, moment), []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr(training.checkpoints, moment, interrupted)
    with pytest.raises(training.Terminated):
        take_run(tmp_path)
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == ["checkpoint-1", "checkpoint-2"]  # the step after it is the last
    assert_same(weights(take_run(tmp_path)), expected)


def test_without_a_folder_sigterm_is_left_alone(tmp_path, monkeypatch):
    found, real = [], ExactStep.take

    def take(self, model, cut):
        found.append(signal.getsignal(signal.SIGTERM))
        return real(self, model, cut)

    monkeypatch.setattr(ExactStep, "take", take)
    take_run(tmp_path, checkpoint=None)
    assert set(found) == {signal.getsignal(signal.SIGTERM)}


def test_the_command_exits_with_143_and_goes_on_when_asked_again(tmp_path, monkeypatch, capsys):
    preferences(2).to_jsonl(tmp_path / "rows.jsonl")
    arguments = ["train", "--data", tmp_path / "rows.jsonl", "--objective", "dpo(beta=0.1)"]
    arguments += ["--model", "tiny", "--out", tmp_path / "policy", "--set", "batch_size=2"]
    arguments += ["--set", f'checkpoint="{tmp_path / "run"}"', "--lora", "none"]
    arguments += ["--set", f'reference_cache="{tmp_path / "cache"}"']
    steps = sigterm_at_second_step(monkeypatch)
    with pytest.raises(SystemExit) as end:
        cli.main([str(argument) for argument in arguments])
    assert end.value.code == 143 and not (tmp_path / "policy").exists()
    assert cli.main([str(argument) for argument in arguments]) == 0
    assert len(steps) == 4 and (tmp_path / "policy" / "record.json").exists()
    record = json.loads((tmp_path / "policy" / "record.json").read_text())
    assert [row["step"] for row in record["history"]] == [1, 2, 3, 4]


# --- several GPUs, one process


class ThreeGpus(launching.TrainingArguments):
    """What transformers makes of a process that sees three GPUs."""

    def __post_init__(self):
        super().__post_init__()
        self._n_gpu = 3


def test_of_several_gpus_without_a_launcher_one_is_used_and_that_is_said(
    tmp_path, monkeypatch, caplog
):
    class Refused(torch.nn.DataParallel):
        def __init__(self, module):
            raise AssertionError("wrapped in nn.DataParallel")

    monkeypatch.setattr(torch.nn, "DataParallel", Refused)
    monkeypatch.setattr(launching, "TrainingArguments", ThreeGpus)
    take_run(tmp_path)
    assert "3 GPUs and no launcher: one is used; `torchrun --nproc-per-node 3" in caplog.text
