"""`robustpo train --dry-run` and presets on the command line: what is foretold, what is refused."""

import dataclasses
import json
import socket

import memory_table
import pandas as pd
import pytest
import torch
from test_cli import refused
from training_setting import preferences

from robustpo_kit import cli, objectives, policies, published, training
from robustpo_kit.cli import dry_run
from robustpo_kit.cli.asked import Asked
from robustpo_kit.cli.dry_run import missing_data, model_config
from robustpo_kit.policies import TokenRow

# Parameters of the presets' models, from the Hub's own count of their safetensors.
PARAMETERS = {
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "mistralai/Mistral-7B-Instruct-v0.2": 7_241_732_096,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Meta-Llama-3-8B-Instruct": 8_030_261_248,
    "google/gemma-2-9b-it": 9_241_705_984,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
}
OBJECTIVE = objectives.build("dpo(beta=0.1)")
ROWS = [
    TokenRow(str(number), (5,) * (20 + number), ((6,) * 9, (7,) * 12), (0, 0))
    for number in range(8)
]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a dry run asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def estimate(model=None, *, dtype="float32", lora="none", rows=ROWS, devices=1, **run):
    config = model or policies.tiny(policies.byte_tokenizer()).model.config
    run = training.TrainConfig(**{"batch_size": 4, "micro_batch_size": 4} | run)
    setting = training.Setting(config, dtype, lora, 4, run, devices)
    return training.Estimate(setting, rows, OBJECTIVE)


@pytest.mark.parametrize("model", published.SHAPES)
def test_shapes_have_the_models_parameters(model):
    config, folder = model_config(model)
    assert folder is None
    parameters = policies.weightless(config, torch.bfloat16).model.parameters()
    assert sum(weight.numel() for weight in parameters) == PARAMETERS[model]


def test_the_shape_of_an_adapter_is_that_of_its_base(tmp_path):
    base = policies.tiny(policies.byte_tokenizer()).save(tmp_path / "base")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    config, folder = model_config(str(adapter))
    assert folder == base and config.hidden_size == model_config(str(base))[0].hidden_size


@pytest.mark.parametrize(("limit", "free"), [("3000", 2000), ("max", 4096 * 1024)])
def test_a_containers_memory_is_what_its_control_group_allows(monkeypatch, tmp_path, limit, free):
    (tmp_path / "meminfo").write_text("MemTotal: 8192 kB\nMemAvailable: 4096 kB\n")
    (tmp_path / "memory.max").write_text(limit + "\n")
    (tmp_path / "memory.current").write_text("1000\n")
    monkeypatch.setattr(dry_run, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(dry_run, "CONTROL_GROUP", tmp_path)
    assert dry_run.available_memory() == free


@pytest.mark.parametrize("lora", ["none", "attention", "all-linear"])
def test_counts_are_those_of_the_policy(lora):
    policy = policies.tiny(policies.byte_tokenizer())
    if lora != "none":
        policy.add_lora(lora, 4)
    found = estimate(policies.unwrap(policy.model).config, lora=lora)
    assert found.parameters == sum(weight.numel() for weight in policy.model.parameters())
    assert found.trainable == sum(weight.numel() for _, weight in policy.trainable())
    assert found.steps == 2
    assert found.tokens == sum(row.tokens() for row in ROWS)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", ["none", "all-linear"])
@pytest.mark.parametrize("layout", ["shared", "separate"])
def test_what_a_pass_keeps_is_what_autograd_keeps(dtype, lora, layout):
    """A real model of five layers, its saved tensors counted, against one and two of no data."""
    kind, tokenizer = getattr(torch, dtype), policies.byte_tokenizer()
    policy = policies.tiny(tokenizer, layers=5)
    policy.model.to(kind)
    if lora != "none":
        policy.add_lora(lora, 4)
    config = policies.unwrap(policy.model).config
    found = policies.kept_by_forward(config, kind, ROWS, layout=layout, lora=lora, rank=4)
    own = {weight.untyped_storage().data_ptr() for weight in policy.model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    batch = policies.collate(ROWS, layout=layout)
    policy.model.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logps = policies.sequence_logps(policy.model, batch)
    total = sum(size for size, _ in kept.values())
    assert logps.requires_grad
    assert found.rest + 5 * found.layer == pytest.approx(total, rel=0.02)


def test_memory_of_weights_masters_and_moments():
    full = estimate(dtype="bfloat16")
    count = full.parameters
    assert full.memory["weights"] == 2 * count
    assert full.memory["masters"] == 4 * count
    assert full.memory["Adam's moments"] == 8 * count
    assert full.memory["gradients"] == 2 * count
    adapter = estimate(dtype="bfloat16", lora="attention")
    assert "masters" not in adapter.memory
    assert adapter.memory["Adam's moments"] == 8 * adapter.trainable
    without = estimate(dtype="bfloat16", master_weights=False)
    assert "masters" not in without.memory
    assert without.memory["Adam's moments"] == 4 * count


def test_what_saves_memory_is_foretold_to():
    rows = [row._replace(prompt=(5,) * 2000) for row in ROWS]
    plain = estimate(rows=rows)
    assert estimate(rows=rows, gradient_checkpointing=True).peak < plain.peak
    assert estimate(rows=rows, micro_batch_size=1).peak < plain.peak
    assert estimate(rows=rows, dtype="bfloat16").peak < plain.peak
    assert estimate(rows=rows, devices=2).peak < plain.peak
    assert estimate(layout="separate").peak > estimate().peak


def test_the_nearest_that_fits_changes_the_gradient_last():
    rows = [row._replace(prompt=(5,) * 2000) for row in ROWS]
    plain = estimate(rows=rows)
    words, found = training.nearest_fit(plain, estimate(rows=rows, micro_batch_size=2).peak)
    assert words == ["micro_batch_size=2"]
    assert found.setting.lora == "none"
    words, found = training.nearest_fit(
        plain, estimate(rows=rows, micro_batch_size=1, gradient_checkpointing=True).peak
    )
    assert words == ["micro_batch_size=1", "gradient_checkpointing=true"]
    assert training.nearest_fit(plain, 1000.0) is None
    assert training.devices_needed(plain, 1000.0) is None
    assert training.nearest_fit(plain, plain.peak) == ([], plain)


def counted(**options) -> dict[str, tuple[int, int]]:
    return {name: (n, len(rows)) for name, (n, rows) in estimate(**options).passes.items()}


def test_passes():
    reference = "reference, before the first step"
    assert counted() == {"steps": (3, 8), reference: (1, 8)}
    assert counted(lora="attention")["steps"] == (2, 8)
    assert counted(epochs=2, gradient_checkpointing=True) == {"steps": (4, 16), reference: (1, 8)}
    assert counted(max_steps=1) == {"steps": (3, 4), reference: (1, 4)}
    held = dataclasses.replace(estimate(), heldout=ROWS[:3]).passes["held-out rows"]
    assert held == (2, ROWS[:3])


def test_the_reference_is_scored_for_the_rows_of_steps_alone(tmp_path, monkeypatch):
    """Four steps of 75 took the reference of the whole file before the first one."""
    asked, real = [], training.runs.reference_logps

    def score(policy, tokens, **options):
        asked.append([row.row_id for row in tokens.rows])
        return real(policy, tokens, **options)

    monkeypatch.setattr(training.runs, "reference_logps", score)
    losses = []
    for number, steps in enumerate((0, 2)):
        config = training.TrainConfig(
            batch_size=2, max_steps=steps, schedule="constant", warmup=0.0,
            reference_cache=str(tmp_path / str(number)),
        )  # fmt: skip
        policy = policies.tiny(policies.byte_tokenizer()).add_lora(rank=2)
        record = training.train(policy, preferences(2, 8), OBJECTIVE, config)
        losses.append([row["loss"] for row in record.history])
    assert [len(rows) for rows in asked] == [8, 4]
    assert losses[1] == pytest.approx(losses[0][:2], rel=1e-5)


def test_committed_table_is_within_a_fifth_of_what_was_measured():
    """Of live tensors; glibc keeps more, as the column `resident_mb` says."""
    table = pd.read_csv(memory_table.FILE)
    cases = pd.DataFrame(memory_table.SETTINGS)
    pd.testing.assert_frame_equal(table[list(cases)], cases)
    ratio = table["foretold_mb"] / table["live_mb"]
    assert ratio.between(0.8, 1.2).all(), table.assign(ratio=ratio)
    assert table["foretold_over_live"].tolist() == pytest.approx(ratio, abs=2e-3)


@pytest.mark.slow
def test_foretold_memory_is_measured_again():
    assert 0.8 < memory_table.row(0)["foretold_over_live"] < 1.2


def test_flex_keeps_no_masks_and_no_probabilities():
    """By a pass of block attention and one of plain causal attention over as many tokens."""
    config = policies.unwrap(policies.tiny(policies.byte_tokenizer()).model).config
    rows = [row._replace(prompt=(5,) * 300) for row in ROWS]
    for kind in (torch.float32, torch.bfloat16):
        on_cpu = policies.kept_by_forward(config, kind, rows)
        on_gpu = policies.kept_by_forward(config, kind, rows, kernel="flex")
        assert sum(on_gpu) < sum(on_cpu)


# --- the command ---------------------------------------------------------------------------------


def said(capsys, *arguments) -> str:
    assert cli.main(["train", *map(str, arguments), "--dry-run"]) == 0
    return capsys.readouterr().out


@pytest.fixture
def pairs(tmp_path):
    rows = [
        {"prompt": f"p{i} " * 9, "chosen": "yes. " * 9, "rejected": "no. " * 9} for i in range(6)
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_own_file(capsys, pairs):
    out = said(capsys, "--data", pairs, "--model", "tiny", "--objective", "dpo(beta=0.1)")
    assert "tokens counted" in out and "6; " in out and "fits       yes" in out
    assert "under the present load: 50% of a product of matrices here" in out
    assert "of which steps 0.0 minutes, reference, before the first step 0.0 minutes" in out


def test_bfloat16_is_named_where_it_is_quicker_here(capsys, pairs, monkeypatch):
    """An audit's page foretold bfloat16 and the dry run float32, three times as long."""
    rates = {torch.float32: 1e9, torch.bfloat16: 3e9}
    monkeypatch.setattr(dry_run, "_measured_rate", rates.get)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    given = ["--data", pairs, "--model", "tiny", "--objective", "dpo(beta=0.1)"]
    given += ["--heldout", "2"]
    out = said(capsys, *given)
    assert "cheaper    --dtype bfloat16: 0.0 minutes" in out and "2 more held out" in out
    assert "held-out rows 0.0 minutes" in out
    assert "cheaper" not in said(capsys, *given, "--dtype", "bfloat16")
    rates[torch.bfloat16] = 5e8
    assert "cheaper" not in said(capsys, *given)


def test_a_preset_says_what_it_is_and_what_is_replaced(capsys, pairs):
    out = said(capsys, "--preset", "gamma/qwen-2.5-7b-instruct/simpo", "--data", pairs,
               "--set", "learning_rate=1e-4", "--lora", "attention")  # fmt: skip
    assert "gamma-PO Table 7 and App. B" in out and "not stated there: dtype" in out
    assert "learning_rate 0.0001 replaces 1e-06" in out
    assert "lora attention replaces none" in out
    assert "7,615,616,512" not in out and "of them trained" in out
    assert "Qwen/Qwen2.5-7B-Instruct: from the Hub" in out
    assert "tokens guessed" in out


def test_presets_are_listed(capsys):
    assert cli.main(["presets"]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == len(published.PRESETS)
    assert all(name in out for name in published.PRESETS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preset", "dora/mistral/hh/dpo"], "did you mean dora/mistral-7b/hh/dpo"),
        (["--model", "somebody/unknown-7b"], "no config.json of it on this machine"),
        (["--model", "tiny", "--data", "absent.jsonl"], "absent.jsonl"),
        (["--model", "tiny", "--lora", "none", "--rank", "8"], "--rank 8: there is no adapter"),
        (["--model", "tiny", "--lora", "attentive"], "lora targets: 'attentive' is unknown"),
        (["--model", "tiny", "--dtype", "float33"], "dtype: 'float33'"),
    ],
)
def test_what_a_dry_run_refuses(capsys, pairs, arguments, words):
    given = [] if "--data" in arguments else ["--data", pairs]
    spec = [] if "--preset" in arguments else ["--objective", "dpo(beta=0.1)"]
    assert words in refused(capsys, "train", "--dry-run", *given, *spec, *arguments)


def test_a_preset_whose_data_must_be_made_first_says_so():
    name = "dora/mistral-7b/hh/dora_dpo_pl"
    objective = objectives.build("dora(dpo_pl(beta=0.1), lam=1)")
    asked = Asked("tiny", "hh", name, "bfloat16", "none", 16, training.TrainConfig(), objective)
    assert "not on the Hub: responses with rewards and h" in missing_data(asked)


def test_a_listwise_preset_on_plain_pairs_is_refused_before_anything_is_fetched(capsys, tmp_path):
    name = "dora/mistral-7b/hh/dora_dpo_pl"
    code = cli.main(["train", "--preset", name, "--out", str(tmp_path / "policy")])
    assert code == 2
    assert "responses with rewards and h" in capsys.readouterr().err
    assert not (tmp_path / "policy").exists()
