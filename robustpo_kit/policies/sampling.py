"""Sampling replies: batched, seeded per batch so that any batch can be drawn again alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from robustpo_kit.records import progress


@dataclass(frozen=True)
class SamplingConfig:
    """Decoding of the papers (DoRA App. C.1, C.3): temperature 0.8, top-k 50, top-p 0.9, repetition penalty 1.1."""

    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 0.9
    repetition_penalty: float = 1.1
    max_new_tokens: int = 48
    batch_size: int = 64  # prompts a batch
    samples: int = 1  # replies a prompt


@dataclass(frozen=True)
class Reply:
    """One sampled reply: `text` ends at its last full sentence when the token budget cut it (`finished` is False)."""

    text: str
    tokens: int
    finished: bool


def sample(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    config: SamplingConfig,
    *,
    seed: int,
    desc: str = "sampling",
) -> list[list[Reply]]:
    """Replies [N][samples] to the rendered prompts `texts`; batch b draws from its own stream (seed, b)."""
    batches = range(0, len(texts), config.batch_size)
    replies: list[list[Reply]] = []
    for number, start in enumerate(progress(batches, desc)):
        part = texts[start : start + config.batch_size]
        replies += sample_batch(model, tokenizer, part, config, seed=seed, number=number)
    return replies


def sample_batch(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    config: SamplingConfig,
    *,
    seed: int,
    number: int,
) -> list[list[Reply]]:
    """Replies to one batch; the same model, texts, config, `seed` and `number` give the same replies.

    Raises ValueError when a prompt is empty.
    """
    if any(not text for text in texts):
        raise ValueError("texts: an empty prompt; remove it before sampling")
    prompt = left_padded(tokenizer, texts).to(model.device)
    devices = [model.device] if model.device.type == "cuda" else []
    was_training = model.training
    model.eval()
    with torch.random.fork_rng(devices=devices), torch.inference_mode():
        torch.manual_seed(seed * 100_003 + number)
        output = model.generate(
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
    new = output[:, prompt["input_ids"].shape[1] :]
    flat = [_reply(ids, tokenizer) for ids in new.tolist()]
    return [flat[i : i + config.samples] for i in range(0, len(flat), config.samples)]


def left_padded(tokenizer: Any, texts: Sequence[str]) -> Any:
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


def _reply(ids: list[int], tokenizer: Any) -> Reply:
    finished = tokenizer.eos_token_id in ids
    if finished:
        ids = ids[: ids.index(tokenizer.eos_token_id)]
    text = " ".join(tokenizer.decode(ids, skip_special_tokens=True).split())
    return Reply(text if finished else cut_to_sentence(text), len(ids), finished)


def cut_to_sentence(text: str) -> str:
    """`text` up to its last full stop, exclamation or question mark; all of it when there is none."""
    end = max(text.rfind(mark) for mark in (". ", "! ", "? "))
    if text.endswith((".", "!", "?")) or end < 0:
        return text
    return text[: end + 1]
