"""Decoding: the distribution of transformers' processors, whatever is shared, cached or dropped."""

import dataclasses
import sys
from types import SimpleNamespace

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, LogitsProcessorList
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from robustpo_kit import policies
from robustpo_kit.errors import KitError
from robustpo_kit.policies import SamplingConfig, backends, decoding, framing

GREEDY = SamplingConfig(
    temperature=1.0, top_k=1, top_p=1.0, repetition_penalty=1.0, max_new_tokens=9
)
PROMPTS = ([5, 6, 7, 8], [5, 6, 9], [5, 6, 7, 8, 9, 10, 11], [5, 6, 12])
NO_END = frozenset({-1})


def reference(logits: torch.Tensor, ids: torch.Tensor, config: SamplingConfig) -> torch.Tensor:
    """Probabilities [B, V] of transformers' own processors."""
    steps = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(config.repetition_penalty)])
    steps.append(TemperatureLogitsWarper(config.temperature))
    if config.top_k:
        steps.append(TopKLogitsWarper(config.top_k))
    if config.top_p < 1:
        steps.append(TopPLogitsWarper(config.top_p))
    return torch.softmax(steps(ids, logits), dim=-1)


def dense(logits: torch.Tensor, ids: torch.Tensor, config: SamplingConfig) -> torch.Tensor:
    """The kit's probabilities [B, V]."""
    candidates, probabilities = decoding.next_tokens(logits, ids, config)
    return torch.zeros_like(logits).scatter(1, candidates, probabilities)


@pytest.mark.parametrize("top_k", [0, 1, 5, 50, 500])
@pytest.mark.parametrize("top_p", [0.3, 0.9, 1.0])
@pytest.mark.parametrize("penalty", [1.0, 1.1, 2.0])
def test_probabilities_are_those_of_transformers(top_k, top_p, penalty):
    g = torch.Generator().manual_seed(top_k)
    logits = 4 * torch.randn(6, 200, generator=g)
    ids = torch.randint(200, (6, 30), generator=g)
    config = SamplingConfig(temperature=0.8, top_k=top_k, top_p=top_p, repetition_penalty=penalty)
    torch.testing.assert_close(
        dense(logits, ids, config), reference(logits, ids, config), atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("steps", [2, 8])
def test_ties_at_the_last_place_all_stay(steps):
    """Half precision has few values: with 2, most of the vocabulary ties at the 50th place."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randint(steps, (4, 300), generator=g).float()
    ids = torch.zeros(4, 1, dtype=torch.long)
    config = SamplingConfig(temperature=1.0, top_k=50, top_p=1.0, repetition_penalty=1.0)
    torch.testing.assert_close(dense(logits, ids, config), reference(logits, ids, config))


def model_of(dtype: torch.dtype = torch.float64):
    return policies.tiny(policies.byte_tokenizer(), seed=1).model.to(dtype).eval()


def greedy(model, prompt: list[int], config: SamplingConfig, ends: frozenset[int]) -> list[int]:
    """One prompt at a time, everything computed again for each token."""
    ids = list(prompt)
    for _ in range(config.max_new_tokens):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[:, -1]
        candidates, _ = decoding.next_tokens(logits, torch.tensor([ids]), config)
        ids.append(int(candidates[0, 0]))
        if ids[-1] in ends:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("together", [1, 3, 25])
@pytest.mark.parametrize("penalty", [1.0, 1.5])
@pytest.mark.parametrize("samples", [1, 3])
def test_cache_prefix_and_padding_change_no_reply(samples, penalty, together, monkeypatch):
    monkeypatch.setattr(decoding, "PREFILL_ROWS", together)
    model = model_of()
    config = dataclasses.replace(GREEDY, samples=samples, repetition_penalty=penalty)
    found = decoding.decode(model, PROMPTS, config, ends=NO_END, pad=0, generator=torch.Generator())
    expected = [greedy(model, prompt, config, NO_END) for prompt in PROMPTS for _ in range(samples)]
    assert found == expected


@pytest.mark.parametrize(
    ("prompts", "first"),
    [
        (([5, 6, 7], [5, 6, 9, 11]), (1, 2)),
        (([5, 6, 7], [9, 6, 7, 8]), (2, 4)),
        (([5, 6], [5, 6, 7]), (1, 1)),
        (([5, 6, 7],), (1, 3)),
    ],
)
def test_what_all_prompts_begin_with_and_no_more_is_read_once(prompts, first, monkeypatch):
    model, shapes = model_of(), []
    expected = [greedy(model, prompt, GREEDY, NO_END) for prompt in prompts]
    forward = model.forward

    def watched(**arguments):
        shapes.append(tuple(arguments["input_ids"].shape))
        return forward(**arguments)

    monkeypatch.setattr(model, "forward", watched)
    generator = torch.Generator()
    found = decoding.decode(model, prompts, GREEDY, ends=NO_END, pad=0, generator=generator)
    assert found == expected and shapes[0] == first


def test_padding_is_no_token_of_a_row(monkeypatch):
    """Neither a place in its positions nor a word that the penalty knows."""
    model, positions = model_of(), []
    config = dataclasses.replace(GREEDY, repetition_penalty=1.5)
    expected = [greedy(model, prompt, config, NO_END) for prompt in PROMPTS]
    forward = model.forward

    def watched(**arguments):
        positions.append(arguments["position_ids"][:, -1].tolist())
        return forward(**arguments)

    monkeypatch.setattr(model, "forward", watched)
    lengths = [len(prompt) for prompt in PROMPTS]
    for pad in {0} | {token for reply in expected for token in reply[:2]}:
        positions.clear()
        arguments = {"ends": NO_END, "pad": pad, "generator": torch.Generator()}
        assert decoding.decode(model, PROMPTS, config, **arguments) == expected
        assert positions[:2] == [[1], sorted(length - 1 for length in lengths)]
        assert positions[2:] == [[length + step for length in lengths] for step in range(8)]


def test_rows_that_end_are_dropped_and_the_others_go_on(monkeypatch):
    model = model_of()
    config = dataclasses.replace(GREEDY, repetition_penalty=1.3)
    free = [greedy(model, prompt, config, NO_END) for prompt in PROMPTS]
    ends = frozenset({free[0][2], free[1][5]})
    expected = [greedy(model, prompt, config, ends) for prompt in PROMPTS]
    sizes, forward = [], model.forward

    def counted(**arguments):
        sizes.append(len(arguments["input_ids"]))
        return forward(**arguments)

    monkeypatch.setattr(model, "forward", counted)
    generator = torch.Generator()
    found = decoding.decode(model, PROMPTS, config, ends=ends, pad=0, generator=generator)
    assert found == expected
    assert len(set(map(len, found))) > 1 and min(sizes[1:]) < len(PROMPTS)


def test_a_reserved_layer_begins_as_an_empty_one_of_transformers():
    layer = decoding.ReservedLayer(2, 5)
    assert not layer.is_initialized and layer.get_seq_length() == 0 and not layer.buffers


def test_memory_is_reserved_once_and_rows_move_in_it(monkeypatch):
    model = model_of()
    places, widths, forward = set(), set(), model.forward

    def watched(**arguments):
        cache = arguments["past_key_values"]
        reserved = isinstance(cache.layers[0], decoding.ReservedLayer)
        out = forward(**arguments)
        if reserved:
            places.add(tuple(buffer.data_ptr() for buffer in cache.layers[0].buffers))
            widths.add(cache.layers[0].keys.shape)
            assert all(buffer.is_contiguous() for buffer in cache.layers[0].buffers)
        return out

    monkeypatch.setattr(model, "forward", watched)
    ends = frozenset(range(0, 200, 2))
    config = SamplingConfig(max_new_tokens=9, top_k=0, temperature=3.0)
    generator = torch.Generator().manual_seed(0)
    found = decoding.decode(model, PROMPTS, config, ends=ends, pad=0, generator=generator)
    assert len(set(map(len, found))) > 1
    assert len(places) == 1 and len(widths) > 1 and len({shape[2] for shape in widths}) == 1


def test_a_frozen_head_is_given_matrices_and_not_copied_for_every_row():
    """Of a view with gaps, torch's product copies a head that needs no gradient once a row."""
    model, seen = model_of(), []
    model.requires_grad_(False)
    head = model.get_output_embeddings()
    head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].is_contiguous()))
    decoding.decode(model, PROMPTS, GREEDY, ends=NO_END, pad=0, generator=torch.Generator())
    assert len(seen) == 2 + GREEDY.max_new_tokens - 1 and all(seen)


def test_draws_follow_the_probabilities():
    model = model_of(torch.float32)
    config = SamplingConfig(max_new_tokens=1, top_k=8, samples=4000)
    generator = torch.Generator().manual_seed(0)
    drawn = decoding.decode(model, [PROMPTS[0]], config, ends=NO_END, pad=0, generator=generator)
    logits = model(torch.tensor([PROMPTS[0]])).logits[:, -1].detach()
    candidates, probabilities = decoding.next_tokens(logits, torch.tensor([PROMPTS[0]]), config)
    counts = torch.bincount(torch.tensor(drawn).flatten(), minlength=logits.shape[1])
    expected = 4000 * probabilities[0]
    real = expected > 0
    assert counts.sum() == counts[candidates[0]][real].sum()
    chi_square = ((counts[candidates[0]] - expected)[real] ** 2 / expected[real]).sum()
    assert float(chi_square) < 26.0  # 8 cells: exceeded once in two thousand


def test_seeds_reproduce_replies():
    model = model_of(torch.float32)
    config = SamplingConfig(max_new_tokens=6)
    runs = [
        decoding.decode(
            model,
            PROMPTS,
            config,
            ends=NO_END,
            pad=0,
            generator=torch.Generator().manual_seed(seed),
        )
        for seed in (3, 3, 4)
    ]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("backend", ["kit", "transformers", "continuous"])
def test_sampling_leaves_every_weight_as_it_was(backend):
    policy = policies.tiny(policies.byte_tokenizer(), seed=2).add_lora("all-linear", 4, seed=1)
    policy.model.bfloat16()
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    texts = ["how do I", "what is the"]
    greedy = SamplingConfig(top_k=1, repetition_penalty=1.0, max_new_tokens=9)
    plain = policies.sample(policy, texts, greedy, seed=0, backend=backend)
    with policy.model.disable_adapter():
        base = policies.sample(policy, texts, greedy, seed=0, backend=backend)
    assert len(plain) == len(base) == 2
    for name, parameter in policy.model.named_parameters():
        assert torch.equal(parameter, before[name]), name


SETTINGS = {
    "temperature": 0.0,
    "top_k": -1,
    "top_p": 0.0,
    "repetition_penalty": 0.0,
    "max_new_tokens": 0,
    "batch_size": 0,
    "samples": 0,
}


@pytest.mark.parametrize("field", SETTINGS)
def test_settings_without_a_meaning_are_refused_by_name(field):
    with pytest.raises(KitError, match=f"{field} = {SETTINGS[field]}: it should be"):
        SamplingConfig(**{field: SETTINGS[field]})


EXTRAS = {
    "modules_to_save": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "bias": {"target_modules": ["q_proj"], "lora_bias": True},
    "variant": {"target_modules": ["q_proj"], "use_dora": True},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
}


@pytest.mark.parametrize("kind", EXTRAS)
def test_an_adapter_with_more_than_matrices_is_not_merged(kind):
    policy = policies.tiny(policies.byte_tokenizer(), seed=2)
    model = peft.get_peft_model(policy.model, peft.LoraConfig(**EXTRAS[kind]))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.full_like(parameter, 0.1))
        ids = torch.tensor([[5, 6, 7, 8]])
        expected = model(input_ids=ids).logits
        with policies.merged_adapter(model) as merged:
            assert torch.equal(merged(input_ids=ids).logits, expected)


def test_merged_adapter_computes_what_the_adapter_computes():
    policy = policies.tiny(policies.byte_tokenizer(), seed=2).add_lora("all-linear", 4, seed=1)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
        ids = torch.tensor([[5, 6, 7, 8]])
        expected = policy.model(input_ids=ids).logits
        with policies.merged_adapter(policy.model) as merged:
            found = merged(input_ids=ids).logits
        with policy.model.disable_adapter():
            base = policy.model(input_ids=ids).logits
        assert not torch.allclose(base, expected, atol=1e-2)
        assert torch.allclose(found, expected, atol=1e-5)
        assert torch.allclose(policy.model(input_ids=ids).logits, expected, atol=1e-6)


def drawn(policy, config, backend, texts=("a", "how do I")):
    return policies.sample(policy, list(texts), config, seed=0, backend=backend)


def test_every_setting_reaches_generate(monkeypatch):
    policy, given = policies.tiny(policies.byte_tokenizer()), []
    real = policy.model.generate
    monkeypatch.setattr(policy.model, "generate", lambda **o: given.append(o) or real(**o))
    config = SamplingConfig(
        temperature=0.7, top_k=13, top_p=0.6, repetition_penalty=1.3, max_new_tokens=5, samples=3
    )
    tokenizer, prompts = policy.tokenizer, ["a", "bcd"]
    replies = drawn(policy, config, "transformers", prompts)
    ids, mask = given[0].pop("input_ids"), given[0].pop("attention_mask")
    ends = framing.end_tokens(tokenizer, policy.template, policy.model)
    read = [row[kept].tolist() for row, kept in zip(ids, mask.bool(), strict=True)]
    assert read == framing.prompt_tokens(prompts, tokenizer, policy.template)
    assert given == [
        {
            "do_sample": True,
            "temperature": 0.7,
            "top_k": 13,
            "top_p": 0.6,
            "repetition_penalty": 1.3,
            "max_new_tokens": 5,
            "num_return_sequences": 3,
            "eos_token_id": sorted(ends),
            "pad_token_id": tokenizer.pad_token_id,
        }
    ]
    assert [len(of_prompt) for of_prompt in replies] == [3, 3]
    assert max(reply.tokens for of_prompt in replies for reply in of_prompt) <= 5


@pytest.mark.parametrize("adapter", [False, True])
def test_a_models_own_generation_settings_change_no_distribution(adapter):
    """`generate` obeyed tokens that a model wants suppressed; the kit's loop knew nothing of it."""
    policy = policies.tiny(policies.byte_tokenizer())
    base = policy.model
    base.generation_config.suppress_tokens = list(range(3, 130))
    if adapter:
        policy = policy.add_lora("all-linear", 4, seed=1)
    config = SamplingConfig(max_new_tokens=20, top_k=0, top_p=1.0, samples=8)
    options = {"seed": 0, "backend": "transformers"}
    replies = policies.sample(policy, ["a"], config, **options)
    assert any(ord(letter) < 127 for reply in replies[0] for letter in reply.text)
    assert base.generation_config.suppress_tokens == list(range(3, 130))


def test_an_unknown_backend_is_refused():
    with pytest.raises(KitError, match="backend: 'tgi' is unknown; choose kit, .*vllm or auto"):
        drawn(policies.tiny(policies.byte_tokenizer()), SamplingConfig(), "tgi")


def test_a_reply_is_cut_to_its_sentences_only_where_the_budget_ended_it(monkeypatch):
    policy = policies.tiny(policies.byte_tokenizer())
    ids = policy.tokenizer("One. Two", add_special_tokens=False).input_ids
    end = min(framing.end_tokens(policy.tokenizer, policy.template, policy.model))
    monkeypatch.setitem(backends.BACKENDS, "kit", lambda model, ask: [ids, [*ids, end, *ids]])
    cut, whole = (row[0] for row in drawn(policy, SamplingConfig(), "kit"))
    assert (cut.text, cut.tokens, cut.finished) == ("One.", len(ids), False)
    assert (whole.text, whole.tokens, whole.finished) == ("One. Two", len(ids), True)
    assert (cut.ids, whole.ids) == (tuple(ids), (*ids, end))


def test_continuous_batching_on_a_cpu_reserves_what_its_replies_need(monkeypatch):
    policy, given = policies.tiny(policies.byte_tokenizer()), []

    def nothing(prompts, **options):
        given.append((prompts, options["continuous_batching_config"]))
        return {}

    monkeypatch.setattr(policy.model, "generate_batch", nothing)
    config = dataclasses.replace(GREEDY, samples=2, max_new_tokens=300)
    with pytest.raises(KitError, match="'continuous': 0 of 4 replies came"):
        drawn(policy, config, "continuous")
    ((prompts, batching),) = given
    pages = -(-(max(map(len, prompts)) + 300) // batching.page_size)
    assert pages > 1 and batching.num_blocks == 2 * 2 * pages + 1


def test_continuous_batching_draws_what_the_kit_draws_and_refuses_a_penalty():
    policy = policies.tiny(policies.byte_tokenizer(), seed=1)
    before = policy.model.config._attn_implementation
    with pytest.raises(KitError, match="'continuous'.* set repetition_penalty to 1.0"):
        drawn(policy, SamplingConfig(), "continuous")
    config = dataclasses.replace(GREEDY, samples=2)
    state = torch.get_rng_state()
    assert drawn(policy, config, "continuous") == drawn(policy, config, "kit")
    assert torch.equal(state, torch.get_rng_state())
    assert policy.model.config._attn_implementation == before


def test_vllm_is_asked_for_the_same_distribution(monkeypatch):
    asked = {}

    class LLM:
        def __init__(self, **settings):
            asked["settings"] = settings
            folder = settings["model"]
            asked["model"] = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

        def generate(self, prompts, wishes, **_):
            asked.update(prompts=prompts, wishes=wishes)
            reply = SimpleNamespace(token_ids=(5, 6, 7))
            return [SimpleNamespace(outputs=[reply] * wishes[0]["n"]) for _ in prompts]

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=LLM, SamplingParams=dict))
    policy = policies.tiny(policies.byte_tokenizer(), seed=2).add_lora("all-linear", 4, seed=1)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
        expected = policy.model(input_ids=torch.tensor([[5, 6, 7, 8]])).logits
    config = SamplingConfig(samples=3)
    replies = drawn(policy, config, "vllm")
    assert [len(row) for row in replies] == [3, 3]
    found = asked["model"](input_ids=torch.tensor([[5, 6, 7, 8]])).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    first, second = asked["wishes"]
    names = ("temperature", "top_k", "top_p", "repetition_penalty")
    assert {name: first[name] for name in names} == {name: getattr(config, name) for name in names}
    assert first["max_tokens"] == config.max_new_tokens
    assert policy.tokenizer.eos_token_id in first["stop_token_ids"]
    seeds = [{wish["seed"] + sample for sample in range(3)} for wish in (first, second)]
    assert not seeds[0] & seeds[1]
    ids = framing.prompt_tokens(["a", "how do I"], policy.tokenizer, policy.template)
    assert [prompt["prompt_token_ids"] for prompt in asked["prompts"]] == ids


def test_without_vllm_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(KitError, match="backend 'vllm'.*pip install vllm"):
        drawn(policies.tiny(policies.byte_tokenizer()), SamplingConfig(), "vllm")
