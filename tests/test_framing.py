"""BOS, templates, end tokens are the same in training, scoring, sampling; empty replies count."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from robustpo_kit import judging, objectives, policies, training
from robustpo_kit.data import Preference, PreferenceSet, Template
from robustpo_kit.errors import KitError
from robustpo_kit.experiments import sampled
from robustpo_kit.policies import SamplingConfig, framing, sampling

WORDS = ("<s>", "</s>", "<turn>", "<end>", "user", "assistant", "a", "b", "c", "x", "kvw", "wvk")
CHATML = (
    "{% for m in messages %}{{ '<turn> ' + m['role'] + ' ' + m['content'] + ' <end> ' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<turn> assistant ' }}{% endif %}"
)


def words_tokenizer(chat_template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """Words; a BOS that the tokenizer adds, an EOS, and another token that closes chat turns."""
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="x"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>", "<end>"]})
    tokenizer.chat_template = chat_template
    return tokenizer


TOKENIZER = words_tokenizer()
PLAIN, CHAT = Template("plain"), Template("chat")


def names(ids) -> str:
    return " ".join(TOKENIZER.convert_ids_to_tokens(list(ids)))


def preferences(prompt: str, *responses: str) -> PreferenceSet:
    return PreferenceSet([Preference("r0", "g0", prompt, responses, ("s",) * len(responses))])


def table(prompt: str, *responses: str, template: Template = PLAIN, **options):
    return policies.tokenize(preferences(prompt, *responses), TOKENIZER, template, **options)


@pytest.fixture
def model():
    """A tiny random model over the words."""
    return policies.tiny(words_tokenizer(), hidden=16).model


# ---------------------------------------------------------------- one place


@pytest.mark.parametrize(("template", "begins"), [(PLAIN, "<s> a b"), (CHAT, "<turn> user a b")])
@pytest.mark.parametrize("backend", ["kit", "transformers"])
def test_training_and_sampling_read_the_same_prompt(model, monkeypatch, template, begins, backend):
    """Sampling left out the BOS of plain texts that training begins with."""
    trained = table("a b ", "c", template=template).rows[0].prompt
    read = []
    forward = model.forward

    def watched(*inputs, **options):
        read.append(options["input_ids"])
        return forward(*inputs, **options)

    monkeypatch.setattr(model, "forward", watched)
    config = SamplingConfig(max_new_tokens=1)
    policy = policies.Policy(model, TOKENIZER, template)
    policies.sample(policy, ["a b "], config, seed=0, backend=backend)
    assert read[0][0].tolist() == list(trained) and names(trained).startswith(begins)


@pytest.mark.parametrize(("template", "end"), [(PLAIN, "</s>"), (CHAT, "<end>")])
def test_responses_end_as_the_template_closes_its_turns(template, end):
    row = table("a ", "b c", template=template).rows[0]
    assert names(row.responses[0]) == f"b c {end}"
    assert framing.turn_end(TOKENIZER, template) == TOKENIZER.convert_tokens_to_ids(end)


def test_sampling_stops_at_every_end_token(model):
    """The turn's, the tokenizer's, and the list of the generation settings."""
    model.generation_config.eos_token_id = [7, 8]
    ends = framing.end_tokens(TOKENIZER, CHAT, model)
    assert ends == {1, 3, 7, 8} and framing.end_tokens(TOKENIZER, PLAIN, model) == {1, 7, 8}
    for end in ends:
        reply = sampling._reply([6, end, 9], ends, TOKENIZER)
        assert (reply.text, reply.tokens, reply.finished) == ("a", 1, True)


@pytest.mark.parametrize("backend", ["kit", "transformers"])
def test_a_model_taught_to_close_its_turn_is_sampled_to_that_end(backend):
    """Trained by the kit on chats, the model ends its replies, and sampling sees it."""
    tokenizer = words_tokenizer()
    policy = policies.tiny(tokenizer, template=CHAT, hidden=16)
    data = PreferenceSet(
        [Preference(f"r{i}", f"g{i}", "a", ("b c", "c b"), ("s", "s"), golden=0) for i in range(8)]
    )
    config = training.TrainConfig(epochs=30, batch_size=8, learning_rate=2e-2, schedule="constant")
    training.train(policy, data, objectives.build("sft()"), config)
    greedy = SamplingConfig(top_k=1, max_new_tokens=8, repetition_penalty=1.0)
    ((reply,),) = policies.sample(policy, ["a"], greedy, seed=0, backend=backend)
    assert (reply.text, reply.finished) == ("b c", True)


def test_a_template_without_a_closing_token_ends_with_the_eos():
    loose = words_tokenizer("{% for m in messages %}{{ m['content'] + ' x ' }}{% endfor %}")
    refusing = words_tokenizer("{{ raise_exception('no turns') }}")
    for tokenizer in (loose, refusing):
        assert framing.turn_end(tokenizer, CHAT) == tokenizer.eos_token_id


def test_a_tokenizer_without_any_end_is_refused():
    tokenizer = words_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(KitError, match="tokenizer: it has no EOS token"):
        policies.tokenize(preferences("a", "b"), tokenizer, PLAIN)
    assert names(
        policies.tokenize(preferences("a", "b"), tokenizer, CHAT).rows[0].responses[0]
    ) == ("b <end>")


# ---------------------------------------------------------------- ends inside, lengths


@pytest.mark.parametrize("template", [PLAIN, CHAT])
def test_a_response_ends_at_the_first_end_token_in_it(template):
    end = framing.turn_end(TOKENIZER, template)
    rows = table("a ", "b </s> c", "b c </s>", "b c", template=template)
    assert [names(r[:-1]) for r in rows.rows[0].responses] == ["b", "b c", "b c"]
    assert all(r[-1] == end and end not in r[:-1] for r in rows.rows[0].responses)
    assert (rows.counts["eos_inside"], rows.counts["eos_present"]) == (1, 2)


def test_an_end_of_the_generation_settings_ends_responses_too(model):
    """Sampling stopped there, training and scoring read on."""
    model.generation_config.eos_token_id = [7]  # b
    policy = policies.Policy(model, TOKENIZER, PLAIN)
    _, lengths = training.score(policy, preferences("a ", "c b x x", "c x"))
    assert lengths.tolist() == [[2, 3]]


def test_what_stands_behind_an_end_token_does_not_count(model):
    plain = policies.Policy(model, TOKENIZER, PLAIN)
    logps, _ = training.score(plain, preferences("a ", "b </s> c c", "b"))
    assert float(logps[0, 0]) == float(logps[0, 1])


def test_a_response_that_begins_with_an_end_token_is_refused():
    with pytest.raises(KitError, match="row r0: response 1 is only an end-of-sequence token"):
        table("a ", "b", "</s> c")


def test_a_cut_prompt_keeps_its_bos_and_its_end_a_cut_response_its_beginning():
    rows = table("a b c x kvw wvk ", "c b a", "x", max_length=5, max_response=2).rows
    assert names(rows[0].prompt) == "<s> kvw wvk"
    assert [names(response) for response in rows[0].responses] == ["c b", "x </s>"]


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """Characters; "aaaa" followed by "x" is one token with its last three letters: "aaax"."""
    vocabulary = {t: i for i, t in enumerate(["<e>", "a", "x", "y", "ax", "aax", "aaax"])}
    merges = [("a", "x"), ("a", "ax"), ("a", "aax")]
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<e>", pad_token="<e>")


def test_a_merged_boundary_keeps_a_row_within_its_length():
    """The prompt's own tokens that a merge moves into the response count too."""
    data = preferences("aaaaaaaa", "x" + "y" * 9, "y" * 9)
    rows = policies.tokenize(data, merging_tokenizer(), PLAIN, max_length=8, max_response=7)
    row = rows.rows[0]
    assert row.skips == (0, 3)  # the second response reads three letters that belong to the prompt
    for response in row.responses:
        assert len(row.prompt) + len(response) <= 8
    assert [len(r) - skip for r, skip in zip(row.responses, row.skips, strict=True)] == [7, 4]
    assert rows.counts["cut_response"] == 2
    with pytest.raises(KitError, match="row r0: response 1: .* raise max_length"):
        policies.tokenize(data, merging_tokenizer(), PLAIN, max_length=4, max_response=3)


# ---------------------------------------------------------------- empty replies


def test_an_empty_reply_is_scored_by_its_end_token_alone(model):
    policy = policies.Policy(model, TOKENIZER, PLAIN)
    tokens = policies.drawn_tokens(policy, ["a b"], [policies.Reply("", 0, True, (1,))])
    logps = training.score_tokens(policy, tokens)
    with torch.no_grad():
        ids = torch.tensor([framing.prompt_tokens(["a b"], TOKENIZER, PLAIN)[0]])
        expected = torch.log_softmax(model(input_ids=ids).logits[0, -1], -1)[1]
    assert float(logps[0, 0]) == pytest.approx(float(expected))
    with pytest.raises(KitError, match="row r0: response 0 is empty"):
        training.score(policy, preferences("a b", ""))


def test_empty_replies_are_kept(model, monkeypatch):
    """They were dropped, so that a policy that says nothing was judged by what it does say."""
    policy = policies.Policy(model, TOKENIZER, PLAIN).add_lora(rank=2)
    replies = [[policies.Reply("", 0, True, (1,))], [policies.Reply("b", 1, True, (5, 1))]]
    monkeypatch.setattr(sampled, "sample", lambda *a, **k: replies)
    prompts = PreferenceSet([*preferences("a", "b"), *preferences("c", "b")])
    found = sampled.sampled_replies(policy, prompts, SamplingConfig(), seed=0)
    assert [entry["reply"] for entry in found] == ["", "b"]
    assert all(entry["log_ratio"] == 0.0 for entry in found)  # a new adapter is its reference


def test_a_reply_that_the_limit_cut_is_scored_without_an_end_token(model):
    """Its text had been tokenised anew and ended by a token that was never drawn."""
    policy = policies.Policy(model, TOKENIZER, PLAIN)
    config = SamplingConfig(max_new_tokens=3, batch_size=8)
    replies = [reply for (reply,) in policies.sample(policy, ["a b"] * 8, config, seed=0)]
    cut = [reply for reply in replies if not reply.finished]
    assert cut and all(len(reply.ids) == 3 for reply in cut)
    found = training.score_tokens(policy, policies.drawn_tokens(policy, ["a b"] * len(cut), cut))
    for reply, ours in zip(cut, found[:, 0], strict=True):
        prompt = framing.prompt_tokens(["a b"], TOKENIZER, PLAIN)[0]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt, *reply.ids]])).logits[0]
        logps = torch.log_softmax(logits[len(prompt) - 1 : -1], -1)
        expected = logps[torch.arange(3), torch.tensor(reply.ids)].sum()
        assert float(ours) == pytest.approx(float(expected), abs=1e-5)


def test_replies_are_sampled_under_the_policys_own_template(model, monkeypatch):
    seen = []
    monkeypatch.setattr(
        sampled, "sample", lambda policy, *a, **k: seen.append(policy.template) or [[]]
    )
    policy = policies.Policy(model, TOKENIZER, CHAT)
    sampled.sampled_replies(policy, preferences("a", "b"), SamplingConfig(), seed=0)
    assert seen == [CHAT]


class LikesNothing:
    """A judge that prefers whatever is shorter."""

    name = "likes nothing"

    def verdicts(self, prompts, first, second):
        return ["A" if len(a) <= len(b) else "B" for a, b in zip(first, second, strict=True)]


def test_an_empty_reply_loses_whatever_the_judge_says():
    replies = {"silent": ["", " \n", "b"]}
    table = judging.compare(LikesNothing(), ["a", "b", "c"], replies, ["b c"] * 3, seed=0)
    assert table["verdict"].tolist() == ["lose", "lose", "win"]
