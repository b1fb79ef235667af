"""The bench of sampling on a tiny model, and what the engine's operations are counted as."""

import json

import pandas as pd
import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from robustpo_kit import bench, policies
from robustpo_kit.bench import contenders, flops, peers, replies
from robustpo_kit.cli import main
from robustpo_kit.data import Template
from robustpo_kit.errors import KitError


def test_backends_alternate_and_one_that_refuses_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(replies, "child", lambda task, rows: contenders.contender(task, tmp_path))
    found = bench.run_sampling(
        str(tmp_path),
        model="tiny",
        backends=("kit", "continuous", "transformers"),
        threads=(1,),
        alternations=2,
        prompts=6,
    )
    written = json.loads((tmp_path / "sampling.json").read_text())
    assert written["device"] and written["seed"] == 0 and written["versions"]["torch"]
    assert "repetition penalty" in found["skipped"]["continuous"]
    table = pd.read_csv(tmp_path / "sampling.csv")
    assert list(table["work"]) == ["kit", "transformers", "training"] + [
        "training",
        "transformers",
        "kit",
    ]
    assert (table[["wall_s", "start_user_s", "start_minor_faults", "peak_mb"]] > 0).all(axis=None)
    by_work = table.set_index(["work", "alternation"])["replies_per_second"]
    ratios = by_work["kit"] / by_work["transformers"]
    row = next(row for row in found["ratios"] if row["quantity"] == "replies_per_second")
    assert (row["low"], row["high"]) == pytest.approx((ratios.min(), ratios.max()), rel=1e-4)
    summary = bench.sampling_summary(found)
    assert "kit beside transformers, threads 1" in summary and "left out" in summary


def test_what_measures_nothing_is_refused():
    with pytest.raises(KitError, match=r"alternations \(0\).*backends \(kit, vllm\)"):
        bench.run_sampling(alternations=0, backends=("kit", "vllm"))


def test_an_unknown_part_is_refused_before_anything_runs(capsys):
    assert main(["bench", "--parts", "training,judging"]) == 2
    assert (
        "--parts: 'judging' is unknown; choose from training, layouts, sampling"
        in capsys.readouterr().err
    )


def test_operations_are_counted_by_hand():
    """One layer of width 8, 2 heads, 4 key widths, MLP 16, vocabulary 300."""
    settings = LlamaConfig(
        vocab_size=300,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    tokenizer = policies.byte_tokenizer()
    model = LlamaForCausalLM(settings)
    policy = policies.Policy(model, tokenizer, Template("plain"), {"source": "hand"})
    row = policies.TokenRow("0", (5, 6, 7), ((8, 9), (10, 11, 12)), (0, 0))
    inner = 4 * 8 * 8 + 3 * 8 * 16 + 3 * 8  # attention, MLP, three norms
    tokens, scored = 3 + 1 + 2, 2 + 3
    keys = (1 + 2 + 3) + 4 + (4 + 5)
    expected = 4 * inner * tokens + 4 * 300 * 8 * scored + 12 * 1 * 8 * keys
    assert flops.step_flops(policy, [row]) == expected


def test_a_known_card_has_a_peak(monkeypatch):
    monkeypatch.setattr(flops.records, "device_name", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(flops, "step_flops", lambda *_: 989e12)
    found = flops.achieved(None, [], 4.0)
    assert (found["share_of_peak"], found["flops_per_second"]) == (0.25, 989e12 / 4)


@pytest.mark.parametrize(
    ("needs", "gpu", "reason"),
    [
        (["torch>=2"], False, "flash-pref 9 has kernels for GPUs alone"),
        (["torch<2"], True, "flash-pref 9 asks for torch<2; here it is"),
        (["no-such-thing"], True, "flash-pref 9 asks for no-such-thing, which is not installed"),
        (["torch>=2", 'no-such-thing; extra == "dev"'], True, None),
    ],
)
def test_a_peer_that_cannot_run_says_why(monkeypatch, needs, gpu, reason):
    real = peers.importlib.metadata.version

    def version(name):
        return "9" if name == "flash-pref" else real(name)

    monkeypatch.setattr(peers.importlib.metadata, "version", version)
    monkeypatch.setattr(peers.importlib.metadata, "requires", lambda name: needs)
    monkeypatch.setattr(peers.torch.cuda, "is_available", lambda: gpu)
    found = peers.missing("flash_pref")
    assert found is None if reason is None else found.startswith(reason)


def test_a_peer_that_is_not_installed_names_its_wheel(monkeypatch):
    monkeypatch.setitem(peers.WHEELS, "trl_liger", "no-such-wheel")
    reason = "no-such-wheel is not installed: pip install no-such-wheel"
    assert peers.missing("trl_liger") == reason
