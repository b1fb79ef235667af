"""Sampling replies: batched, seeded per batch so that any batch can be drawn again alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import nn
from transformers import PreTrainedTokenizerBase

from robustpo_kit.errors import KitError
from robustpo_kit.policies.backends import BACKENDS, Ask
from robustpo_kit.policies.decoding import SamplingConfig, decodes
from robustpo_kit.policies.framing import end_tokens, prompt_tokens
from robustpo_kit.policies.lora import merged_adapter
from robustpo_kit.policies.policy import Policy
from robustpo_kit.policies.tokens import TokenRow, TokenTable
from robustpo_kit.records import progress, stream_seed


@dataclass(frozen=True)
class Reply:
    """One sampled reply."""

    text: str  # up to its last full sentence where the token budget cut it
    tokens: int
    finished: bool  # the model ended it
    ids: tuple[int, ...] = ()  # as drawn, the token that ended it included


def sample(
    policy: Policy,
    prompts: Sequence[str],
    config: SamplingConfig,
    *,
    seed: int,
    purpose: str = "reply",
    desc: str = "sampling",
    backend: str = "auto",
) -> list[list[Reply]]:
    """Replies [N][samples] to N prompts, `config.batch_size` of them at a time.

    `desc` is what the progress bar says; the rest, and errors, as `sample_batch`.
    """
    draws: Any = {"seed": seed, "purpose": purpose, "backend": backend}
    replies: list[list[Reply]] = []
    for number, start in enumerate(progress(range(0, len(prompts), config.batch_size), desc)):
        part = prompts[start : start + config.batch_size]
        replies += sample_batch(policy, part, config, number=number, **draws)
    return replies


def sample_batch(
    policy: Policy,
    prompts: Sequence[str],
    config: SamplingConfig,
    *,
    seed: int,
    number: int,
    purpose: str = "reply",
    backend: str = "auto",
) -> list[list[Reply]]:
    """Replies [len(prompts)][samples] to one batch; equal arguments give equal replies.

    Args:
        policy: its template makes model input of a prompt, and says what ends a reply, as in
            training; mode and weights of its model are left as they were.
        prompts: texts of users, or conversations.
        config: decoding.
        seed: of the whole run.
        number: of the batch in the run, which draws from a stream of its own.
        purpose: names the stream, so that replies for two purposes share no draws.
        backend: kit (a reserved cache that shrinks) | transformers (`generate`) | auto: the kit's
            where it serves the model; on a GPU also continuous (`generate_batch`, no repetition
            penalty) | vllm. Every backend draws from the same distribution or refuses, and each
            from draws of its own.

    Raises:
        ValueError: when a prompt is empty.
        KitError: for a backend that is unknown or cannot serve the model.
    """
    model, tokenizer, template = policy.model, policy.tokenizer, policy.template
    if any(not prompt for prompt in prompts):
        raise ValueError("prompts: an empty one; remove it before sampling")
    draw = _backend(backend, model)
    ends = end_tokens(tokenizer, template, model)
    ids = prompt_tokens(prompts, tokenizer, template)
    pad = cast(int, tokenizer.pad_token_id)
    was_training = model.training
    model.eval()
    try:
        with merged_adapter(model):
            flat = draw(model, Ask(ids, config, ends, pad, stream_seed(seed, purpose, number)))
    finally:
        model.train(was_training)
    replies = [_reply(tokens, ends, tokenizer) for tokens in flat]
    return [replies[i : i + config.samples] for i in range(0, len(replies), config.samples)]


def _backend(name: str, model: nn.Module) -> Callable[[nn.Module, Ask], list[list[int]]]:
    """The function that draws; `auto` takes the kit's where every layer keeps a plain cache."""
    served = decodes(model)
    if name == "auto":
        name = "kit" if served else "transformers"
    if name not in BACKENDS:
        raise KitError(f"backend: '{name}' is unknown; choose {', '.join(BACKENDS)} or auto")
    if name == "kit" and not served:
        raise KitError(
            f"backend: {type(model).__name__} has layers without a plain key-value cache, which "
            "the kit's decoding does not serve; choose transformers or auto"
        )
    return BACKENDS[name]


def drawn_tokens(policy: Policy, prompts: Sequence[str], replies: Sequence[Reply]) -> TokenTable:
    """Replies [N] to their prompts [N] as the tokens that were drawn, ready to be scored."""
    prompt_ids = prompt_tokens(prompts, policy.tokenizer, policy.template)
    rows = [
        TokenRow(str(number), tuple(ids), (reply.ids,), (0,))
        for number, (ids, reply) in enumerate(zip(prompt_ids, replies, strict=True))
    ]
    return TokenTable(tuple(rows), {})


def _reply(ids: list[int], ends: frozenset[int], tokenizer: PreTrainedTokenizerBase) -> Reply:
    """The reply up to its first end token, in one line."""
    length = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    finished = length < len(ids)
    text = " ".join(str(tokenizer.decode(ids[:length], skip_special_tokens=True)).split())
    if not finished:
        text = cut_to_sentence(text)
    return Reply(text, length, finished, tuple(ids[: length + 1]))


def cut_to_sentence(text: str) -> str:
    """`text` up to its last full stop, exclamation or question mark; all of it without one."""
    end = max(text.rfind(mark) for mark in (". ", "! ", "? "))
    if text.endswith((".", "!", "?")) or end < 0:
        return text
    return text[: end + 1]
