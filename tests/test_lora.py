"""Fused LoRA layers give what peft's give, and leave to peft what is not plain."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear
from torch import nn

from robustpo_kit import policies
from robustpo_kit.policies import unwrap
from robustpo_kit.policies.lora import _LowRank


def layers(dtype=torch.float32, bias=False, **settings):
    """The same adapted layer twice, peft's and fused, with an adapter that does something."""
    found = []
    for fused in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(24, 40, bias=bias).to(dtype))
        model = get_peft_model(
            model, LoraConfig(r=4, lora_alpha=6, target_modules=["0"], **settings)
        )
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter)
        found.append(policies.fuse(model) if fused else model)
    assert isinstance(found[1].base_model.model[0], policies.FusedLinear)
    assert type(found[0].base_model.model[0]) is Linear
    return found


def results(model, x):
    """Output, gradient of the input and of the adapter."""
    x = x.clone().requires_grad_(True)
    out = model(x)
    (out.float() * torch.arange(out.numel()).view(out.shape).sin()).sum().backward()
    return [out, x.grad, *(p.grad for p in model.parameters() if p.requires_grad)]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(7, 24), (2, 5, 24), (0, 24)])
def test_output_and_gradients_are_those_of_peft(bias, shape):
    peft, fused = layers(bias=bias)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    for theirs, ours in zip(results(peft, x), results(fused, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_half_precision_differs_by_its_rounding_only_and_gradients_stay_in_fp32():
    peft, fused = layers(torch.bfloat16)
    x = torch.randn(9, 24, generator=torch.Generator().manual_seed(2)).bfloat16()
    for theirs, ours in zip(results(peft, x), results(fused, x), strict=True):
        assert ours.dtype == theirs.dtype
        assert float((ours - theirs).float().norm() / theirs.float().norm()) < 2e-2
    assert all(p.grad.dtype == torch.float32 for p in fused.parameters() if p.requires_grad)


def test_what_is_not_plain_is_left_to_peft(monkeypatch):
    def refuse(*_):
        raise AssertionError("the fused path was taken")

    monkeypatch.setattr(_LowRank, "apply", refuse)
    x = torch.randn(3, 24)
    peft, fused = layers()
    with fused.disable_adapter(), peft.disable_adapter():
        torch.testing.assert_close(fused(x), peft(x))
    with pytest.raises(AssertionError, match="fused path"):
        fused(x)
    with torch.autocast("cpu", torch.bfloat16):
        fused(x)
    fused.merge_adapter()
    peft.merge_adapter()
    torch.testing.assert_close(fused(x), peft(x))
    _, dropping = layers(lora_dropout=0.5)
    dropping.train()(x)
    with pytest.raises(AssertionError, match="fused path"):
        dropping.eval()(x)
    _, variant = layers(use_dora=True)
    variant(x)


def test_a_policy_has_fused_layers_before_and_after_saving(tmp_path):
    policy = policies.tiny(policies.byte_tokenizer())
    policy.save(tmp_path / "base")
    policy = policies.load(tmp_path / "base").add_lora(rank=2)
    policy.save(tmp_path / "adapter")
    for found in (policy, policies.load(tmp_path / "adapter")):
        assert isinstance(
            unwrap(found.model).model.layers[0].self_attn.q_proj, policies.FusedLinear
        )
