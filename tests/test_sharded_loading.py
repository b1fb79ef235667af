"""FSDP2: the first rank alone reads the weights, and no other ever holds all of them."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training_setting import (
    FSDP2,
    assert_same,
    dataset_for,
    gpus_by_name,
    preferences,
    sharded_config,
    tiny,
)
from transformers import LlamaConfig, LlamaForCausalLM

from robustpo_kit import objectives, policies, training
from robustpo_kit.errors import KitError
from robustpo_kit.policies import Fit, first_rank
from robustpo_kit.training import TrainConfig
from robustpo_kit.training.ranks import gather_states, this_rank

MB = 2**20


def peak() -> float:
    """The most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def launch(folder: Path, what: str) -> list[dict]:
    """Run a function of this file on two ranks; what each has found."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", __file__, what, str(folder)]
    environment = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | FSDP2
    environment["MALLOC_MMAP_THRESHOLD_"] = str(MB)  # what is freed goes back to the system
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "found.json").read_text())


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> tuple[Path, float, list[dict]]:
    """A model of some 200 MB on disk, its size, and what two ranks found in loading it."""
    folder = tmp_path_factory.mktemp("large")
    tokenizer = policies.byte_tokenizer()
    sizes = {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 4}
    config = LlamaConfig(
        vocab_size=len(tokenizer), num_attention_heads=8, tie_word_embeddings=True, **sizes
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    size = sum(weight.numel() for weight in model.parameters()) * 4 / MB
    return folder, size, launch(folder, "weights")


def test_no_other_rank_holds_the_whole_model(large):
    _, size, (first, second) = large
    assert size > 200
    assert first["loaded"] > 0.9 * size  # read, examined, digested
    assert second["loaded"] < 0.1 * size
    assert second["sharded"] < 0.75 * size  # its half, and one weight at a time on its way


def test_every_rank_gets_its_half_of_the_very_weights(large):
    folder, _, found = large
    model = LlamaForCausalLM.from_pretrained(folder / "model")
    expected = {
        name: [float(weight.double().sum()), float(weight.double().abs().sum())]
        for name, weight in model.requires_grad_(False).named_parameters()
    }
    for rank in found:
        sums = {name.removeprefix("model."): value for name, value in rank["sums"].items()}
        assert sums == expected
        assert rank["local"] == pytest.approx(rank["whole"] / 2, rel=0.01)
        assert rank["fit"] == found[0]["fit"] and rank["attention"] == "robustpo_blocks"
        assert rank["fingerprint"] == found[0]["fingerprint"]
        assert rank["tied"]


def weights(folder: Path) -> dict:
    """Load and shard; memory on the way, beyond that of doing so with a small model."""
    first_rank.join_ranks()
    if this_rank() == 0:
        tiny().save(folder / "small")
    gather_states(None)
    load_and_shard(folder, "small")
    return load_and_shard(folder, "model")


def load_and_shard(folder: Path, name: str) -> dict:
    before = peak()
    policy = policies.load(folder / name)
    fingerprint = policy.fingerprint()
    found = {"loaded": peak() - before, "fingerprint": fingerprint}
    objective = objectives.build("dpo(beta=0.1)")
    config = TrainConfig(reference_cache=str(folder / "cache"))
    trainer = training.prepare(policy, preferences(2), objective, config, str(folder / "scratch"))
    model, _ = trainer.accelerator.prepare(trainer.model, trainer.create_optimizer())
    named = dict(model.named_parameters())
    core = policy.model
    tied = core.get_output_embeddings().weight is core.get_input_embeddings().weight
    found |= {
        "sharded": peak() - before,
        "tied": tied,
        "fit": list(policies.fit_of(core))[:3],
    }
    found |= {"attention": core.config._attn_implementation, "sums": {}}
    found["local"] = sum(weight.to_local().numel() for weight in named.values())
    found["whole"] = sum(weight.numel() for weight in named.values())
    for name, weight in named.items():
        value = weight.full_tensor().detach().double()
        found["sums"][name] = [float(value.sum()), float(value.abs().sum())]
    return found


@pytest.fixture(scope="module")
def ends(tmp_path_factory) -> tuple[Path, list[dict]]:
    folder = tmp_path_factory.mktemp("runs")
    tiny().save(folder / "base")
    (folder / "empty").mkdir()
    (folder / "empty" / "config.json").write_text("{}")
    return folder, launch(folder, "runs")


def test_a_run_learns_what_one_process_learns(ends):
    folder, found = ends
    one, record = a_run(folder, "one")
    for rank in found:
        for ours, theirs in zip(record.history, rank["history"], strict=True):
            assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-4)
            assert theirs["grad_norm"] == pytest.approx(ours["grad_norm"], rel=1e-3)
    start = dict(policies.load(folder / "base").trainable())
    for kind in ("straight", "resumed"):
        two = dict(policies.load(folder / kind).trainable())
        for key, ours in one.trainable():
            moved = float((ours - start[key]).detach().norm())
            assert float((two[key] - ours).detach().norm()) <= 1e-2 * moved, (kind, key)


def test_a_reference_of_shards_is_that_of_one_process(ends):
    folder, found = ends
    assert found[0]["reference"] == found[1]["reference"]
    policy = policies.load(folder / "base")
    tokens = policies.tokenize(rows(), policy.tokenizer, policy.template)
    expected = training.response_logps(policy.model, tokens)
    torch.testing.assert_close(torch.tensor(found[0]["reference"]), expected, atol=1e-4, rtol=1e-6)


def test_a_folder_without_a_model_is_refused_on_every_rank(ends):
    _, (first, second) = ends
    assert first["refused"] == second["refused"] and "no causal language model" in first["refused"]


def test_without_ranks_the_first_rank_is_this_one():
    assert not first_rank.first_rank_loads()
    assert first_rank.of_first_rank(lambda: Fit(True, None, False)).shared


def rows():
    return dataset_for(objectives.build("dora(dpo(beta=0.1), lam=0.7)"), 7)


def a_run(folder: Path, kind: str, max_steps: int = 0) -> tuple:
    """Four steps of a coupled objective over 7 rows, so that a rank has a pass less in scoring."""
    policy = policies.load(folder / "base")
    objective = objectives.build("dora(dpo(beta=0.1), lam=0.7)")
    own = {"epochs": 2, "max_steps": max_steps, "tokens_per_pass": 40, "checkpoint_every": 2}
    config = sharded_config(folder / f"{kind}-run", **own)
    record = training.train(policy, rows(), objective, config)
    return policy, record


def runs(folder: Path) -> dict:
    """A straight run, and one in two halves, whose second half scores its reference anew."""
    found: dict = {}
    real, scored = training.reference.response_logps, []

    def response_logps(*arguments, **how):
        scored.append(real(*arguments, **how))
        return scored[-1]

    training.reference.response_logps = response_logps
    training.runs.run_identity = lambda *_: {"a run": "whatever its max_steps"}
    policy, record = a_run(folder, "straight")
    policy.save(folder / "straight")
    found["history"] = record.history
    a_run(folder, "resumed", max_steps=2)
    if this_rank() == 0:
        shutil.rmtree(folder / "resumed-run" / "cache")
    gather_states(None)
    policy, record = a_run(folder, "resumed")
    policy.save(folder / "resumed")
    assert len(record.history) == 4 and len(scored) == 3
    for again in scored[1:]:
        assert_same({"": again}, {"": scored[0]}, 1e-4)
    found["reference"] = scored[0].tolist()
    try:
        policies.load(folder / "empty")
    except KitError as error:
        found["refused"] = str(error)
    return found


if __name__ == "__main__":
    gpus_by_name()
    torch.set_num_threads(1)
    answer = {"weights": weights, "runs": runs}[sys.argv[1]](Path(sys.argv[2]))
    answers = gather_states(answer)
    if this_rank() == 0:
        (Path(sys.argv[2]) / "found.json").write_text(json.dumps(answers))
    training.end_ranks()
