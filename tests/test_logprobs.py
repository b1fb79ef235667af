"""Shared-prefix batches equal separate rows; tokens and boundaries are what they should be."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)

from robustpo_kit import policies
from robustpo_kit.data import Preference, PreferenceSet, Template
from robustpo_kit.errors import KitError
from robustpo_kit.policies import projection
from robustpo_kit.policies.attention import Terms, _matrix_attention

VOCAB = 61
SIZE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = SIZE | {"num_key_value_heads": 2}
GPT2 = {
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW = 6  # shorter than every text below
CONFIGS = {
    "llama": LlamaConfig(**GROUPED),
    "mistral": MistralConfig(**GROUPED, sliding_window=WINDOW),
    "qwen2": Qwen2Config(
        **GROUPED, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=2
    ),
    "gemma2": Gemma2Config(
        **GROUPED,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=WINDOW,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
    ),
    "gpt_neox": GPTNeoXConfig(**SIZE),
    "gpt2": GPT2Config(vocab_size=VOCAB, attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0, **GPT2),
}


def random_rows(
    seed: int = 0, shapes=((13, (5, 7, 9)), (20, (1, 11, 3)), (6, (8, 2)))
) -> list[policies.TokenRow]:
    """Rows of random tokens: (prompt length, response lengths); the last has fewer responses."""
    generator = torch.Generator().manual_seed(seed)

    def draw(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, VOCAB, (n,), generator=generator).tolist())

    return [
        policies.TokenRow(str(i), draw(prompt), tuple(draw(n) for n in sizes), (0,) * len(sizes))
        for i, (prompt, sizes) in enumerate(shapes)
    ]


def random_model(name: str) -> torch.nn.Module:
    """A random model in evaluation mode, its biases and norms moved off their trivial start."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name], attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return model


def gradients(
    model: torch.nn.Module, batch: policies.Batch
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Log-probs, and the gradient of a function of them that weighs every response differently."""
    model.zero_grad()
    logps = policies.sequence_logps(model, batch)
    (logps * torch.linspace(-1, 2, logps.numel()).view_as(logps)).sum().backward()
    return logps.detach(), {
        n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
    }


def by_hand(model: torch.nn.Module, row: policies.TokenRow, k: int) -> float:
    """The log-prob of one response from the model's own logits, in one plain row."""
    ids = torch.tensor([row.prompt + row.responses[k]])
    logits = model(input_ids=ids).logits[0].double()
    start = len(row.prompt) + row.skips[k]
    picked = torch.log_softmax(logits, -1)[range(start - 1, ids.shape[1] - 1), ids[0, start:]]
    return float(picked.sum().detach())


@pytest.mark.parametrize("name", CONFIGS)
def test_shared_prefix_equals_separate_rows(name):
    model, rows = random_model(name), random_rows()
    expected = torch.tensor(
        [
            [by_hand(model, row, k) if k < len(row.responses) else 0.0 for k in range(3)]
            for row in rows
        ]
    )
    separate, slow = gradients(model, policies.collate(rows, layout="separate"))
    assert policies.use_block_attention(model)
    shared, fast = gradients(model, policies.collate(rows))
    torch.testing.assert_close(separate, expected, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(shared, expected, atol=1e-5, rtol=1e-6)
    assert slow.keys() == fast.keys()
    for parameter in slow:
        scale = slow[parameter].abs().max().clamp_min(1e-6)
        assert float((slow[parameter] - fast[parameter]).abs().max() / scale) < 1e-4, parameter


@pytest.mark.parametrize("name", ["mistral", "gemma2"])
def test_a_window_that_is_ignored_would_be_seen(name):
    """Without the window the log-probs of these texts differ, so the test above can fail."""
    model, rows = random_model(name), random_rows()
    policies.use_block_attention(model)
    batch = policies.collate(rows)
    right = policies.sequence_logps(model, batch)
    blind = policies.collate(rows)
    mask = blind.blocks.mask
    blind.blocks.mask = lambda index, window, dtype: mask(index, None, dtype)
    assert float((policies.sequence_logps(model, blind) - right).abs().max()) > 1e-2


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_the_model_still_generates_as_before(name):
    """Routing attention through the kit leaves ordinary forward passes alone, padding included."""
    model = random_model(name)
    ids = torch.tensor([[0, 0, 5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16, 17, 18]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1], [1] * 8])
    with torch.no_grad():
        before = model(input_ids=ids, attention_mask=mask).logits[:, -1]
        policies.use_block_attention(model)
        after = model(input_ids=ids, attention_mask=mask).logits[:, -1]
    torch.testing.assert_close(before, after, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2"])
def test_flex_attention_scores_alike(name):
    """FlexAttention's block masks (here uncompiled, without gradients) give the same log-probs."""
    model, rows = random_model(name), random_rows()
    policies.use_block_attention(model)
    with torch.no_grad():
        plain = policies.sequence_logps(model, policies.collate(rows))
        flex = policies.sequence_logps(model, policies.collate(rows, kernel="flex"))
    torch.testing.assert_close(plain, flex, atol=1e-5, rtol=1e-6)


def test_an_architecture_that_cannot_falls_back_and_says_so_once(caplog):
    config = BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4)
    model = AutoModelForCausalLM.from_config(config)
    assert not policies.use_block_attention(model)
    assert len([r for r in caplog.records if "once a response" in r.getMessage()]) == 1
    row = random_rows()[0]
    scored = policies.sequence_logps(model, policies.collate([row], layout="separate"))
    assert float(scored[0, 1]) == pytest.approx(by_hand(model, row, 1), abs=1e-4)


def test_a_packed_row_computes_each_prompt_once_and_never_the_last_token():
    rows = random_rows()
    batch = policies.collate(rows)
    assert batch.input_ids.shape == (1, sum(row.tokens() for row in rows))
    assert batch.lengths.tolist() == [[5, 7, 9], [1, 11, 3], [8, 2, 0]]
    assert batch.mask.tolist()[2] == [True, True, False]
    start = rows[0].tokens()
    assert batch.position_ids[0, start : start + 20].tolist() == list(range(20))


# --- the vocabulary projection


@pytest.mark.parametrize("trained_head", [False, True])
@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("factor", [1.0, 0.4])
@pytest.mark.parametrize("chunk_bytes", [1, 4 * VOCAB * 16, 2**20])
def test_chunked_projection_equals_log_softmax(trained_head, factor, cap, chunk_bytes):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(37, 16, generator=generator, dtype=torch.float32, requires_grad=True)
    weight = torch.randn(VOCAB, 16, generator=generator).requires_grad_(trained_head)
    bias = torch.randn(VOCAB, generator=generator).requires_grad_(trained_head)
    labels = torch.randint(VOCAB, (37,), generator=generator)
    slope = torch.randn(37, generator=generator)
    scale = policies.LogitScale(factor, cap)
    inputs = [hidden, weight, bias] if trained_head else [hidden]
    ours = policies.token_logps(
        hidden, weight, labels, bias=bias, scale=scale, chunk_bytes=chunk_bytes
    )
    logits = factor * (hidden @ weight.T + bias)
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    plain = torch.log_softmax(logits, -1)[range(37), labels]
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)
    found, wanted = (torch.autograd.grad((logps * slope).sum(), inputs) for logps in (ours, plain))
    for got, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_no_tensor_of_batch_by_length_by_vocabulary():
    """The projection's backward pass keeps at most [N, D], and a chunk stays in its budget."""
    hidden = torch.randn(400, 8, requires_grad=True)
    weight = torch.randn(5000, 8)
    shapes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            shapes.extend(
                x.numel()
                for x in (out if isinstance(out, tuple | list) else [out])
                if hasattr(x, "numel")
            )
            return out

    with Watch():
        logps = policies.token_logps(
            hidden, weight, torch.zeros(400, dtype=torch.long), chunk_bytes=4 * 5000 * 20
        )
        logps.sum().backward()
    assert max(shapes) <= 20 * 5000 + 1
    assert max(shapes) < 400 * 5000 / 10


@pytest.mark.parametrize(("device", "rows"), [("cpu", 65), ("cuda", 1046), ("mps", 65)])
def test_the_device_decides_how_many_rows_a_chunk_has(device, rows, monkeypatch):
    taken = lambda *arguments: arguments[-1]  # noqa: E731
    monkeypatch.setattr(projection._TokenLogps, "apply", taken)
    hidden = SimpleNamespace(device=torch.device(device))
    weight = SimpleNamespace(shape=(128_256, 4096))
    assert policies.token_logps(hidden, weight, None) == rows
    assert policies.token_logps(hidden, weight, None, chunk_bytes=4 * 128_256 * 20) == 20


def test_log_sum_exp_is_fp32_under_bf16():
    hidden = torch.randn(9, 16).bfloat16()
    weight = (4 * torch.randn(VOCAB, 16)).bfloat16()
    labels = torch.arange(9)
    logps = policies.token_logps(hidden, weight, labels)
    assert logps.dtype == torch.float32
    logits = torch.nn.functional.linear(hidden, weight).float()
    torch.testing.assert_close(logps, torch.log_softmax(logits, -1)[range(9), labels])


@pytest.mark.parametrize("scaling", [None, 0.3])
def test_attention_by_matrix_products_is_scaled_dot_product_attention(scaling):
    q, k, v = (
        torch.randn(1, heads, 11, 8, dtype=torch.float64, requires_grad=True) for heads in (6, 2, 2)
    )
    mask = torch.zeros(11, 11, dtype=torch.float64).masked_fill_(
        torch.rand(11, 11) < 0.4, float("-inf")
    )
    mask.fill_diagonal_(0)
    expected = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, scale=scaling, enable_gqa=True
    )
    found = _matrix_attention(q, k, v, mask, Terms(scaling))
    torch.testing.assert_close(found, expected)
    weight = torch.randn(found.shape, dtype=torch.float64)
    for ours, theirs in zip(
        torch.autograd.grad((found * weight).sum(), (q, k, v)),
        torch.autograd.grad((expected * weight).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2"])
def test_bf16_on_a_cpu_is_as_near_to_fp32_as_separate_rows_are(name):
    rows = random_rows()
    truth = policies.sequence_logps(random_model(name), policies.collate(rows, layout="separate"))
    model = random_model(name).bfloat16()
    separate = policies.sequence_logps(model, policies.collate(rows, layout="separate"))
    assert policies.use_block_attention(model)
    shared = policies.sequence_logps(model, policies.collate(rows))
    errors = [
        float((found - truth)[truth != 0].square().mean().sqrt()) for found in (shared, separate)
    ]
    assert 0 < errors[0] < 2 * errors[1] and errors[0] < 0.02 * float(truth.abs().max())


# --- tokens


def preferences(*rows: tuple[str, tuple[str, ...]]) -> PreferenceSet:
    return PreferenceSet(
        Preference(f"r{i}", f"g{i}", prompt, responses, ("a",) * len(responses))
        for i, (prompt, responses) in enumerate(rows)
    )


@pytest.fixture(scope="module")
def tokenizer():
    return policies.byte_tokenizer()


def test_prompt_and_response_spell_the_rendered_text_and_end_once(tokenizer):
    data = preferences(("hello", ("good day", "x</s>", "y</s></s>")))
    table = policies.tokenize(data, tokenizer, Template("chat"))
    row = table.rows[0]
    assert tokenizer.decode(row.prompt) == Template("chat").render("hello", tokenizer)
    assert [tokenizer.decode(response) for response in row.responses] == [
        "good day</s>",
        "x</s>",
        "y</s>",
    ]
    assert [response.count(tokenizer.eos_token_id) for response in row.responses] == [1, 1, 1]
    assert table.counts["eos_present"] == 2


def merging_tokenizer():
    """Characters, and one merge across the boundary: " " and "x" become the token " x"."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(["<eos>", "a", ":", " ", "x", "y", " x"])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[(" ", "x")]))
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<eos>")


def test_a_merge_across_the_boundary_is_found_counted_and_scored_as_the_model_reads_it():
    tokenizer = merging_tokenizer()
    table = policies.tokenize(preferences(("a: ", ("x", "y"))), tokenizer, Template("plain"))
    row = table.rows[0]
    names = [tokenizer.convert_ids_to_tokens(list(ids)) for ids in (row.prompt, *row.responses)]
    assert names == [["a", ":"], [" x", "<eos>"], [" ", "y", "<eos>"]]
    assert row.skips == (0, 1) and row.lengths() == [
        2,
        2,
    ]  # the second response does not score the prompt's own space
    assert table.counts["merged_boundary"] == 1
    config = LlamaConfig(**GROUPED)
    model = AutoModelForCausalLM.from_config(config).eval()
    policies.use_block_attention(model)
    scored = policies.sequence_logps(model, policies.collate(table.rows))
    assert scored[0].tolist() == pytest.approx(
        [by_hand(model, row, 0), by_hand(model, row, 1)], abs=1e-5
    )


def test_over_length_cuts_by_the_stated_rule_and_drops_nothing(tokenizer):
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    data = preferences((letters, (letters[::-1], "s")), ("q", ("t", "u")))
    table = policies.tokenize(data, tokenizer, Template("plain"), max_length=30, max_response=10)
    long, short = table.rows
    prompt, cut, whole, next_prompt = (
        tuple(tokenizer(text)["input_ids"])
        for text in ("a" + letters[-19:], letters[:-11:-1], "s", "q")
    )
    assert len(table) == 2 and long.prompt == prompt and short.prompt == next_prompt
    # the beginning of a cut text, which has not ended
    assert long.responses == (cut, (*whole, tokenizer.eos_token_id))
    assert (table.counts["cut_response"], table.counts["cut_prompt"]) == (1, 1)


@pytest.mark.parametrize("empty", ["", "  \n", "</s>"])
def test_an_empty_response_is_refused_with_its_row(tokenizer, empty):
    with pytest.raises(KitError, match="row r1: response 1"):
        policies.tokenize(
            preferences(("p", ("a", "b")), ("p", ("a", empty))), tokenizer, Template("plain")
        )


def test_an_empty_prompt_is_refused_with_its_row(tokenizer):
    with pytest.raises(KitError, match="row r0: the prompt has no token"):
        policies.tokenize(preferences(("", ("a", "b"))), tokenizer, Template("plain"))


def test_mismatched_pairs_come_from_the_next_row(tokenizer):
    table = policies.tokenize(
        preferences(("p", ("a", "b")), ("q", ("c", "d"))),
        tokenizer,
        Template("plain"),
        mismatched=True,
    )
    assert [tokenizer.decode(row.responses[2][:-1]) for row in table.rows] == ["c", "a"]


SHAPES = st.tuples(st.integers(1, 9), st.lists(st.integers(1, 6), min_size=1, max_size=4))


@settings(max_examples=25, deadline=None)
@given(st.lists(SHAPES, min_size=1, max_size=4))
def test_layouts_agree_for_any_shape(shapes):
    model = random_model("llama")
    policies.use_block_attention(model)
    rows = random_rows(7, shapes)
    with torch.no_grad():
        shared = policies.sequence_logps(model, policies.collate(rows))
        separate = policies.sequence_logps(model, policies.collate(rows, layout="separate"))
    torch.testing.assert_close(shared, separate, atol=2e-5, rtol=1e-6)
