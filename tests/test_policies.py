"""Policies: an adapter starts as its reference, merging changes nothing, saved is loaded."""

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from robustpo_kit import policies
from robustpo_kit.data import Template
from robustpo_kit.errors import KitError
from robustpo_kit.policies import TokenRow, collate, sequence_logps

IDS = torch.tensor([[5, 6, 7, 8]])
ROW = TokenRow("r", (5, 6, 7), ((8, 9, 2), (10, 2)), (0, 0))


def tiny(**options) -> policies.Policy:
    return policies.tiny(
        policies.byte_tokenizer(), template=Template("plain"), hidden=16, **options
    )


def moved_adapter(targets: str = "attention") -> policies.Policy:
    """A policy whose adapter no longer is zero."""
    policy = tiny().add_lora(targets, rank=2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, parameter in policy.trainable():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return policy


def logps(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return sequence_logps(model, collate([ROW]))


@pytest.mark.parametrize("targets", ["attention", "all-linear"])
def test_a_new_adapter_is_its_reference_and_a_moved_one_is_not(targets):
    base = logps(tiny().model)
    new = tiny().add_lora(targets, rank=2)
    torch.testing.assert_close(logps(new.model), base, atol=0, rtol=0)
    assert all("lora_" in name for name, _ in new.trainable()) and new.trainable()
    policy = moved_adapter(targets)
    policy.model.train()
    assert float((logps(policy.model) - base).abs().max()) > 1e-3
    with policy.reference() as reference:
        torch.testing.assert_close(logps(reference), base, atol=0, rtol=0)
        assert not reference.training
    assert policy.model.training  # as it was


def test_the_seed_of_an_adapter_decides_it_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    first, again, other = (
        dict(tiny().add_lora(rank=2, seed=seed).trainable()) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("trained", [False, True])
def test_saved_and_loaded_is_the_same_policy(tmp_path, trained):
    policy = moved_adapter() if trained else tiny()
    expected = logps(policy.model)
    folder = policy.save(tmp_path / "policy")
    assert not [path for path in folder.rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]  # no temporary folder is left
    loaded = policies.load(folder)
    torch.testing.assert_close(logps(loaded.model), expected, atol=1e-5, rtol=1e-6)
    assert loaded.template == Template("plain") and loaded.shared_prefix


def test_merging_keeps_the_log_probs_and_leaves_a_plain_model():
    policy = moved_adapter()
    expected = logps(policy.model)
    policy.merge()
    torch.testing.assert_close(logps(policy.model), expected, atol=1e-5, rtol=1e-6)
    assert not policy.has_adapter and len(policy.trainable()) == len(
        list(policy.model.parameters())
    )


def test_the_fingerprint_sees_buffers_that_are_stored():
    """Such as a router's corrections, which decide log-probabilities as weights do."""
    first, other = tiny(), tiny()
    for policy, value in ((first, 0.0), (other, 1.0)):
        layer = policy.model.model.layers[0]
        layer.register_buffer("correction", torch.full((3,), value))
        layer.register_buffer("passing", torch.full((3,), value), persistent=False)
    assert first.fingerprint() != other.fingerprint()
    other.model.model.layers[0].correction.zero_()
    assert first.fingerprint() == other.fingerprint()


def test_the_fingerprint_is_of_the_base_weights():
    assert moved_adapter().fingerprint() == tiny().fingerprint() != tiny(seed=1).fingerprint()


def test_what_cannot_be_done_is_refused():
    with pytest.raises(KitError, match="no adapter to disable"), tiny().reference():
        pass
    with pytest.raises(KitError, match="'mlp' is unknown; choose one of attention, all-linear"):
        tiny().add_lora("mlp")
    with pytest.raises(KitError, match="dtype: 'int8'"):
        policies.load("tiny", dtype="int8")


def test_a_policy_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    folder = tiny().save(tmp_path / "policy")
    before = sorted(path.name for path in folder.iterdir())

    def full_disk(_folder):
        raise OSError("no space left on device")

    policy = tiny(seed=1)
    monkeypatch.setattr(policy.tokenizer, "save_pretrained", full_disk)
    with pytest.raises(OSError, match="no space"):
        policy.save(folder)
    assert sorted(path.name for path in folder.iterdir()) == before
    assert policies.load(folder).fingerprint() == tiny().fingerprint()
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def peft_folder(tmp_path, **settings) -> tuple:
    """An adapter as peft writes it, without a tokenizer, beside its base; its own logits."""
    policy = tiny(seed=3)
    policy.model.save_pretrained(tmp_path / "base")
    policy.tokenizer.save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"], **settings))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.05)
        logits = model(input_ids=IDS).logits
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", logits


@pytest.mark.parametrize("settings", [{}, {"modules_to_save": ["lm_head"]}], ids=["plain", "saved"])
def test_an_adapter_that_peft_wrote_is_folded_into_its_base(tmp_path, settings):
    folder, expected = peft_folder(tmp_path, **settings)
    policy = policies.load(folder)
    assert not policy.has_adapter and policy.tokenizer.eos_token
    assert all(weight.requires_grad for weight in policy.model.parameters())
    with torch.no_grad():
        torch.testing.assert_close(policy.model(input_ids=IDS).logits, expected)
    assert policy.merge().add_lora(rank=2).has_adapter


def test_a_model_without_a_tokenizer_is_one_line(tmp_path):
    tiny(seed=3).model.save_pretrained(tmp_path / "bare")
    with pytest.raises(KitError, match="no tokenizer can be read"):
        policies.load(tmp_path / "bare")


def test_targets_that_a_model_lacks_are_named():
    config = GPT2Config(vocab_size=300, n_embd=8, n_layer=1, n_head=2)
    policy = policies.Policy(GPT2LMHeadModel(config), policies.byte_tokenizer(), Template("plain"))
    with pytest.raises(KitError, match="GPT2LMHeadModel has no layers of 'attention'.*all-linear"):
        policy.add_lora("attention")
    with pytest.raises(KitError, match="lora rank: 0 should be at least 1"):
        policy.add_lora("all-linear", 0)
