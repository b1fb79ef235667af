"""Tiny random models over single bytes: what the smoke profile and tests train, in seconds."""

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from robustpo_kit.data import Template
from robustpo_kit.policies.policy import Policy, on_device, own_template, with_pad
from robustpo_kit.records import stream_seed


def tiny(
    tokenizer: PreTrainedTokenizerBase,
    *,
    template: Template | None = None,
    hidden: int = 32,
    layers: int = 2,
    heads: int = 2,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> Policy:
    """A random Llama over the given tokenizer: what the smoke profile and tests train, in seconds.

    Args:
        tokenizer: decides the vocabulary.
        template: of prompts; default: the tokenizer's chat template, if any.
        hidden: width of the residual stream.
        layers: of attention and MLP.
        heads: of attention; they divide `hidden`.
        seed: of the weights.
        device: default: this rank's GPU, or the CPU where there is none.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, "tiny policy"))
        model = LlamaForCausalLM(config)
    record = {
        "source": "tiny",
        "hidden": hidden,
        "layers": layers,
        "heads": heads,
        "seed": seed,
        "dtype": "float32",
    }
    tokenizer = with_pad(tokenizer)
    return Policy(on_device(model, device), tokenizer, template or own_template(tokenizer), record)


CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<s>' + m['role'] + '\\n' + m['content'] + '</s>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\\n' }}{% endif %}"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of single bytes with a chat template, made in memory: for tiny models."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template=CHAT_TEMPLATE,
    )
