"""Log-probs are held against a model's own logits at load: a wrong way is never taken."""

import dataclasses
import logging

import pytest
import torch
from architectures import by_hand, ragged_rows, tiny_model
from transformers import BertConfig, BertLMHeadModel, LlamaConfig, LlamaForCausalLM, LlamaModel

from robustpo_kit import policies
from robustpo_kit.data import Template
from robustpo_kit.errors import KitError
from robustpo_kit.policies import Fit, LogitScale, probing
from robustpo_kit.policies.attention import ATTENTION

DTYPES = ("float32", "bfloat16")


@pytest.fixture(autouse=True)
def nothing_examined_before(monkeypatch):
    monkeypatch.setattr(probing, "_examined_before", {})


def model_of(name: str, dtype: str = "float32", sharpness: float = 6.0) -> torch.nn.Module:
    """A tiny random model whose logits spread as those of a trained one do, by some nats."""
    model = tiny_model(name, dtype)
    head = model.get_output_embeddings()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.mul_(sharpness)
        for part in model.modules():
            if hasattr(part, "q_proj"):
                part.q_proj.weight.mul_(sharpness)
    return model


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_right_model_shares_its_prompts(dtype):
    assert policies.fit_of(model_of("mistral", dtype)) == Fit(True, LogitScale(), True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_dropped_sliding_window_is_caught(dtype, monkeypatch):
    """A layer that does not say its window leaves the kit's mask without one."""
    real = probing.batch_token_logps

    def without_window(core, batch, scale, **options):
        if batch.blocks is not None:
            mask = batch.blocks.mask
            batch.blocks.mask = lambda index, window, kind: mask(index, None, kind)
        return real(core, batch, scale, **options)

    monkeypatch.setattr(probing, "batch_token_logps", without_window)
    fit = policies.fit_of(model_of("mistral", dtype))
    assert (
        not fit.shared
        and fit.scale == LogitScale()
        and "differ from the model's own" in fit.reasons[0]
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_window_as_long_as_thousands_of_tokens_is_tried_out_too(dtype):
    """Phi-MoE does not hand its window to the attention; the probe's texts are short."""
    model = model_of("phimoe", dtype)
    for holder in (model.config, *model.modules()):
        if getattr(holder, "sliding_window", None):
            holder.sliding_window = 4096
    fit = policies.fit_of(model)
    assert not fit.shared and "differ from the model's own" in fit.reasons[0]
    assert model.config.sliding_window == 4096


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_logit_scale_that_no_setting_names_is_caught(dtype):
    """Logits of 0.9 times the product with the head: the model's own are taken instead."""
    model = model_of("llama", dtype)
    real = model.forward

    def scaled(*inputs, **options):
        out = real(*inputs, **options)
        out.logits = 0.9 * out.logits
        return out

    model.forward = scaled
    fit = policies.fit_of(model)
    assert fit.scale is None and fit.shared
    rows = ragged_rows()
    torch.testing.assert_close(
        policies.sequence_logps(model, policies.collate(rows)),
        by_hand(model, rows),
        atol=1e-4 if dtype == "float32" else 0.3,
        rtol=0,
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_wrong_gradient_is_caught(dtype, monkeypatch):
    """Values alone do not show it."""
    real = probing.batch_token_logps

    def half_a_gradient(core, batch, scale, **options):
        logps = real(core, batch, scale, **options)
        return logps / 2 + logps.detach() / 2

    monkeypatch.setattr(probing, "batch_token_logps", half_a_gradient)
    with pytest.raises(KitError, match="LlamaForCausalLM: .* their gradient by 50"):
        policies.fit_of(model_of("llama", dtype))


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        ("cohere", LogitScale(0.5)),
        ("granite", LogitScale(1 / 3)),
        ("hyperclovax", LogitScale(3.0)),  # multiplies by what Granite divides by
        ("falcon_h1", LogitScale(0.6)),
        ("gemma2", LogitScale(1.0, 3.0)),
        ("gemma3_text", LogitScale(1.0, 3.0)),
        ("recurrent_gemma", LogitScale(1.0, 3.0)),
    ],
)
def test_scales_and_caps_outside_the_head_are_found(name, scale):
    found = policies.fit_of(tiny_model(name)).scale
    assert (
        found == pytest.approx(scale) if scale.cap else found.factor == pytest.approx(scale.factor)
    )
    assert found.cap == scale.cap


@pytest.mark.parametrize("name", ["gemma3", "deepseek_v3", "afmoe", "llama4_text"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_architectures_that_once_crashed_at_load(name, dtype):
    model = tiny_model(name, dtype)
    policy = policies.Policy(model, policies.byte_tokenizer(), Template("plain"))
    batch = policies.collate(ragged_rows(), layout="shared" if policy.shared_prefix else "separate")
    assert policies.sequence_logps(policy.model, batch).isfinite().all()


def test_what_looks_ahead_is_refused():
    config = BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, is_decoder=False,
    )  # fmt: skip
    with pytest.raises(KitError, match="BertLMHeadModel: .* depends on the tokens after it"):
        policies.fit_of(BertLMHeadModel(config))


def test_a_model_that_fails_is_refused_in_one_line():
    model = tiny_model("llama")
    del model.model.layers[1].mlp
    with pytest.raises(
        KitError, match=r"LlamaForCausalLM: .* its own forward fails \(Attrib"
    ) as error:
        policies.fit_of(model)
    assert "\n" not in str(error.value)


def test_a_model_that_fails_beyond_its_chunk_is_refused():
    """xLSTM in bfloat16 computes one chunk, which the probe's texts fit into, and fails at two."""
    with pytest.raises(KitError, match=r"xLSTM.*its own forward fails \(RuntimeError"):
        policies.fit_of(tiny_model("xlstm", "bfloat16"))
    assert not policies.fit_of(tiny_model("xlstm")).shared


def test_weights_that_are_not_there_are_refused():
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(hidden_size=32, num_hidden_layers=1))
    with pytest.raises(KitError, match="LlamaForCausalLM: .* not loaded"):
        policies.fit_of(model)


def test_a_model_is_examined_once_and_left_as_it_was(caplog):
    model = tiny_model("bloom").train()
    generator = torch.get_rng_state()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with caplog.at_level(logging.WARNING):
        policy = policies.Policy(model, policies.byte_tokenizer(), Template("plain"))
        again = dataclasses.replace(policy, record={"source": "elsewhere"})
    assert not policy.shared_prefix and not again.shared_prefix
    assert len([r for r in caplog.records if "once a response" in r.getMessage()]) == 1
    assert model.training and torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_an_equal_architecture_is_not_examined_again(monkeypatch):
    examined = []
    real = probing._examined
    monkeypatch.setattr(probing, "_examined", lambda core: examined.append(core) or real(core))
    first, second, other = tiny_model("llama"), tiny_model("llama"), tiny_model("llama", "bfloat16")
    tampered = tiny_model("llama")
    tampered.forward = tampered.forward
    for model in (first, second, other, tampered):
        assert policies.fit_of(model).shared and model.config._attn_implementation == ATTENTION
    assert examined == [first, other, tampered]


def test_a_shared_batch_is_refused_where_prompts_cannot_be_shared():
    model = tiny_model("bloom")
    with pytest.raises(KitError, match="layout 'shared': BloomForCausalLM"):
        policies.sequence_logps(model, policies.collate(ragged_rows()))


def test_flex_has_no_attention_dropout_and_no_sinks():
    for name in ("llama", "gpt_oss"):
        model = tiny_model(name)
        if name == "llama":
            for layer in model.model.layers:
                layer.self_attn.attention_dropout = 0.1
        assert policies.fit_of(model).shared and not policies.flex_serves(model)
        batch = policies.collate(ragged_rows(), kernel="flex")
        with pytest.raises(
            KitError, match="kernel 'flex': it has no attention dropout and no sink"
        ):
            policies.sequence_logps(model.train(), batch)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
@pytest.mark.parametrize("layout", ["shared", "separate"])
def test_attention_dropout_is_drawn_in_training(name, layout):
    """Soft-capped attention is written out by hand, and drops as SDPA does."""
    model, rows = tiny_model(name), ragged_rows()
    policies.fit_of(model)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5

    def scored(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return policies.sequence_logps(model, policies.collate(rows, layout=layout)).detach()

    model.train()
    assert torch.equal(scored(1), scored(1)) and not torch.equal(scored(1), scored(2))
    model.eval()
    assert torch.equal(scored(1), scored(2))


# ---------------------------------------------------------------- loading


def saved(model: torch.nn.Module, folder) -> str:
    model.save_pretrained(folder)
    policies.byte_tokenizer().save_pretrained(folder)
    return str(folder)


def test_a_model_without_scaled_dot_product_attention_loads(tmp_path):
    """Forcing SDPA on GPT-OSS was a traceback."""
    policy = policies.load(saved(tiny_model("gpt_oss"), tmp_path), device="cpu")
    assert policy.shared_prefix


def test_a_checkpoint_without_a_head_is_refused(tmp_path):
    config = tiny_model("llama").config
    config.tie_word_embeddings = False
    source = saved(LlamaModel(config), tmp_path)
    with pytest.raises(KitError, match="no weights for lm_head.weight .* would stay random"):
        policies.load(source, device="cpu")


def test_what_is_no_language_model_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(KitError, match="loads no causal language model") as error:
        policies.load(tmp_path, device="cpu")
    assert "\n" not in str(error.value)
