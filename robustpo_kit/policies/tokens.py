"""Tokens of a prompt and its responses: boundary, end of sequence, lengths."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from robustpo_kit.errors import KitError


class TokenRow(NamedTuple):
    """One prompt and its responses as tokens; `prompt + responses[k]` is what the model reads for response k.

    Where a tokenizer merges characters across the boundary, the merged tokens belong to the response and `skips[k]`
    leading tokens of `responses[k]` (the prompt's own, kept out of the shared prefix) are read but not scored.
    """

    row_id: str
    prompt: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]
    skips: tuple[int, ...]

    def lengths(self) -> list[int]:
        """Scored tokens of each response."""
        return [
            len(response) - skip for response, skip in zip(self.responses, self.skips, strict=True)
        ]

    def tokens(self) -> int:
        """Tokens that a shared-prefix block computes: the last token of a response is a target only."""
        return len(self.prompt) + sum(len(response) - 1 for response in self.responses)


@dataclasses.dataclass(frozen=True)
class TokenTable:
    """Token rows of a preference set with the counts of what tokenisation met."""

    rows: tuple[TokenRow, ...]
    counts: dict[str, int]
    mismatched: bool = (
        False  # the last response of each row belongs to another prompt (KTO's KL term)
    )

    def __len__(self) -> int:
        return len(self.rows)

    def digest(self) -> str:
        """sha256 of every token and boundary."""
        sha = hashlib.sha256()
        for row in self.rows:
            sha.update(repr(row).encode())
        return sha.hexdigest()


def tokenize(
    dataset: Any,
    tokenizer: Any,
    template: Any,
    *,
    max_length: int = 1024,
    max_response: int | None = None,
    columns: Sequence[int] | None = None,
    mismatched: bool = False,
) -> TokenTable:
    """Tokens of every row of a PreferenceSet.

    Boundary: the common token prefix of the prompt and of prompt + response. EOS: exactly once. Over-length: a response
    keeps its first `max_response` tokens (default half of `max_length`) and then ends without EOS; the prompt keeps its
    first token and its end, so that prompt + response fit `max_length`. Both are counted, nothing is dropped.
    `columns` selects responses (SFT: the golden one); `mismatched` appends the first response of the next row, the
    unrelated pair of KTO's KL term. Raises KitError naming the row of an empty prompt or response.
    """
    if tokenizer.eos_token_id is None:
        raise KitError(
            "tokenizer: it has no EOS token; set tokenizer.eos_token so that responses can end"
        )
    max_response = max_length // 2 if max_response is None else max_response
    if not 0 < max_response < max_length:
        raise KitError(
            f"max_response = {max_response} should lie between 1 and max_length - 1 = {max_length - 1}"
        )
    counts = dict.fromkeys(
        ("rows", "responses", "merged_boundary", "eos_present", "cut_response", "cut_prompt"), 0
    )
    encode = _encoder(tokenizer, special=getattr(template, "kind", "plain") != "chat")
    texts = [
        list(row.responses if columns is None else [row.responses[k] for k in columns])
        for row in dataset
    ]
    if mismatched:
        firsts = [responses[0] for responses in texts]
        texts = [[*responses, firsts[(i + 1) % len(firsts)]] for i, responses in enumerate(texts)]
    prompts = [template.render(row.prompt, tokenizer) for row in dataset]
    for row, responses in zip(dataset, texts, strict=True):
        _refuse_empty(row.row_id, responses)
    prompt_ids = encode(prompts)
    flat = encode(
        [
            prompt + text
            for prompt, responses in zip(prompts, texts, strict=True)
            for text in responses
        ]
    )
    rows, cursor = [], 0
    for row, responses, ids in zip(dataset, texts, prompt_ids, strict=True):
        full = flat[cursor : cursor + len(responses)]
        cursor += len(responses)
        rows.append(
            _token_row(
                row.row_id, ids, full, tokenizer.eos_token_id, max_length, max_response, counts
            )
        )
    return TokenTable(tuple(rows), counts, mismatched)


def _encoder(tokenizer: Any, special: bool) -> Any:
    """Texts -> token ids; with `special`, the tokenizer's BOS but not the EOS that some tokenizers append."""

    def encode(texts: list[str]) -> list[list[int]]:
        ids = tokenizer(texts, add_special_tokens=special, truncation=False, verbose=False)[
            "input_ids"
        ]
        ends = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}
        if special and tokenizer("", add_special_tokens=True)["input_ids"][-1:] and len(ids) > 0:
            appended = tokenizer("", add_special_tokens=True)["input_ids"][-1] in ends
            ids = [row[:-1] if appended and row[-1] in ends else row for row in ids]
        return ids

    return encode


def _refuse_empty(row_id: str, responses: Sequence[str]) -> None:
    for k, text in enumerate(responses):
        if not text.strip():
            raise KitError(
                f"row {row_id}: response {k} is empty; drop the row or give it text (its log-prob is undefined)"
            )


def _token_row(
    row_id: str,
    prompt: list[int],
    full: list[list[int]],
    eos: int,
    max_length: int,
    max_response: int,
    counts: dict[str, int],
) -> TokenRow:
    if not prompt:
        raise KitError(
            f"row {row_id}: the prompt has no token; give it text, or a template or tokenizer with a BOS"
        )
    starts = [_common_prefix(prompt, ids) for ids in full]
    shared = min(starts)
    if shared == 0:
        raise KitError(
            f"row {row_id}: prompt and response share no token; use a template that separates them"
        )
    responses = []
    for k, (ids, start) in enumerate(zip(full, starts, strict=True)):
        end = len(ids)
        while end > start and ids[end - 1] == eos:
            end -= 1
        if end == start:
            raise KitError(
                f"row {row_id}: response {k} is only an end-of-sequence token; drop the row or give it text"
            )
        counts["eos_present"] += end < len(ids)
        counts["merged_boundary"] += start < len(prompt)
        scored = [*ids[start:end], eos]
        if len(scored) > max_response:
            scored = scored[:max_response]
            counts["cut_response"] += 1
        responses.append((*ids[shared:start], *scored))
    room = max_length - max(len(response) for response in responses)
    kept = prompt[:shared]
    if len(kept) > room:
        kept = [kept[0], *kept[len(kept) - max(room - 1, 0) :]] if room > 1 else kept[-1:]
        counts["cut_prompt"] += 1
    counts["rows"] += 1
    counts["responses"] += len(responses)
    return TokenRow(
        row_id, tuple(kept), tuple(responses), tuple(start - shared for start in starts)
    )


def _common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    for i, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return i
    return min(len(left), len(right))
