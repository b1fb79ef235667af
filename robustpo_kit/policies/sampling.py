"""Sampling replies: batched, seeded per batch so that any batch can be drawn again alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from transformers import BatchEncoding, PreTrainedTokenizerBase

from robustpo_kit.records import progress


@dataclass(frozen=True)
class SamplingConfig:
    """Decoding of the papers (DoRA App. C.1, C.3)."""

    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 0.9
    repetition_penalty: float = 1.1
    max_new_tokens: int = 48
    batch_size: int = 64  # prompts a batch
    samples: int = 1  # replies a prompt


@dataclass(frozen=True)
class Reply:
    """One sampled reply."""

    text: str  # up to its last full sentence where the token budget cut it
    tokens: int
    finished: bool  # the model ended it


def sample(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    config: SamplingConfig,
    *,
    seed: int,
    desc: str = "sampling",
) -> list[list[Reply]]:
    """Replies [N][samples] to N prompts.

    Args:
        model: a causal language model, on its device.
        tokenizer: the model's, with a padding token.
        texts: N rendered prompts.
        config: decoding.
        seed: batch b draws from its own stream (seed, b), so that it can be drawn again alone.
        desc: what the progress bar says.

    Raises:
        ValueError: when a prompt is empty.
    """
    batches = range(0, len(texts), config.batch_size)
    replies: list[list[Reply]] = []
    for number, start in enumerate(progress(batches, desc)):
        part = texts[start : start + config.batch_size]
        replies += sample_batch(model, tokenizer, part, config, seed=seed, number=number)
    return replies


def sample_batch(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    config: SamplingConfig,
    *,
    seed: int,
    number: int,
) -> list[list[Reply]]:
    """Replies [len(texts)][samples] to one batch; equal arguments give equal replies.

    Args:
        model: a causal language model, on its device; its mode and weights are left as they were.
        tokenizer: the model's, with a padding token.
        texts: rendered prompts.
        config: decoding.
        seed: of the whole run.
        number: of the batch in the run.

    Raises:
        ValueError: when a prompt is empty.
    """
    if any(not text for text in texts):
        raise ValueError("texts: an empty prompt; remove it before sampling")
    device = next(model.parameters()).device
    prompt = left_padded(tokenizer, texts).to(device)
    devices = [device] if device.type == "cuda" else []
    was_training = model.training
    model.eval()
    with torch.random.fork_rng(devices=devices), torch.inference_mode():
        torch.manual_seed(seed * 100_003 + number)
        output = cast(Any, model).generate(
            **prompt,
            do_sample=True,
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            repetition_penalty=config.repetition_penalty,
            max_new_tokens=config.max_new_tokens,
            num_return_sequences=config.samples,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    model.train(was_training)
    sampled = output[:, prompt["input_ids"].shape[1] :]
    flat = [_reply(ids, tokenizer) for ids in sampled.tolist()]
    return [flat[i : i + config.samples] for i in range(0, len(flat), config.samples)]


def left_padded(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> BatchEncoding:
    """Input ids and mask of `texts`, padded on the left, without added special tokens."""
    side, tokenizer.padding_side = tokenizer.padding_side, "left"
    try:
        return tokenizer(
            list(texts),
            return_tensors="pt",
            padding=True,
            add_special_tokens=False,
            return_token_type_ids=False,
        )
    finally:
        tokenizer.padding_side = side


def _reply(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> Reply:
    """The reply up to its end of sequence, in one line."""
    finished = tokenizer.eos_token_id in ids
    if finished:
        ids = ids[: ids.index(tokenizer.eos_token_id)]
    text = " ".join(str(tokenizer.decode(ids, skip_special_tokens=True)).split())
    if not finished:
        text = cut_to_sentence(text)
    return Reply(text, len(ids), finished)


def cut_to_sentence(text: str) -> str:
    """`text` up to its last full stop, exclamation or question mark; all of it without one."""
    end = max(text.rfind(mark) for mark in (". ", "! ", "? "))
    if text.endswith((".", "!", "?")) or end < 0:
        return text
    return text[: end + 1]
