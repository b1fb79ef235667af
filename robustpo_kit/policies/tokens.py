"""Tokens of a prompt and its responses: boundary, end of sequence, lengths."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import nn
from transformers import PreTrainedTokenizerBase

from robustpo_kit import records
from robustpo_kit.data import Preference, Template
from robustpo_kit.errors import KitError
from robustpo_kit.policies.framing import end_tokens, rendered_tokens, turn_end

ROWS_AT_ONCE = 1000  # whose texts and tokens are in memory on the way
COUNTED = (
    "rows",
    "responses",
    "merged_boundary",
    "eos_present",
    "eos_inside",
    "cut_response",
    "cut_prompt",
)


class TokenRow(NamedTuple):
    """One prompt and its responses as tokens; the model reads `prompt + responses[k]`.

    Where a tokenizer merges characters across the boundary, the merged tokens belong to the
    response and `skips[k]` leading tokens of `responses[k]` (the prompt's own, kept out of the
    shared prefix) are read but not scored.
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

    @property
    def longest(self) -> int:
        """Tokens of the prompt with its longest response, whose last one is a target only."""
        return len(self.prompt) + max(len(response) for response in self.responses) - 1

    def size(self, layout: str) -> int:
        """What rows of a pass should be alike in: tokens, or where they are padded, the longest."""
        return self.tokens() if layout == "shared" else self.longest

    def tokens(self, layout: str = "shared") -> int:
        """Tokens that are computed of this row alone, as `collate` lays it out."""
        if layout == "shared":
            return len(self.prompt) + sum(len(response) - 1 for response in self.responses)
        return len(self.responses) * self.longest


@dataclasses.dataclass(frozen=True)
class TokenTable:
    """Token rows of a preference set with the counts of what tokenisation met."""

    rows: tuple[TokenRow, ...]
    counts: dict[str, int]
    mismatched: bool = False  # a row's last response is another prompt's (KTO's KL term)

    def pass_tokens(self, numbers: Sequence[int], layout: str) -> int:
        """Tokens of a forward pass over the rows of these numbers, padding included."""
        rows = [self.rows[number] for number in numbers]
        if layout == "shared":
            return sum(row.tokens(layout) for row in rows)
        return sum(len(row.responses) for row in rows) * max(row.longest for row in rows)

    def __len__(self) -> int:
        return len(self.rows)

    def digest(self) -> str:
        """sha256 of every token and boundary."""
        return records.digest([repr(row) for row in self.rows])


def tokenize(
    dataset: Sequence[Preference],
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    *,
    max_length: int = 1024,
    max_response: int | None = None,
    mismatched: bool = False,
    model: nn.Module | None = None,
) -> TokenTable:
    """Tokens of every row.

    Boundary: the common token prefix of the prompt and of prompt + response. End: `turn_end`,
    exactly once. A response that holds an end token ends there, as its sampled twin would: what
    stands behind it is never read. Over-length: a response keeps its first `max_response` tokens
    and then ends without an end token; the prompt keeps its first token and its end; a row never
    has more than `max_length` tokens. All of it is counted, nothing is dropped.

    Args:
        dataset: N rows.
        tokenizer: with an EOS token, or a chat template that closes turns with one of its own.
        template: makes model input of a prompt; a chat template brings its own BOS.
        max_length: tokens of prompt + response.
        max_response: tokens of a response, its end included; default: half of `max_length`.
        mismatched: append the first response of the next row, the unrelated pair of KTO's KL term.
        model: whose generation settings may name more end tokens, as when it is sampled.

    Raises:
        KitError: naming the row of an empty prompt or response, or the limit that does not fit.
    """
    ends = end_tokens(tokenizer, template, model)
    cutter = _Cutter.of(turn_end(tokenizer, template), ends, max_length, max_response)
    rows: list[TokenRow] = []
    for start in range(0, len(dataset), ROWS_AT_ONCE):
        some = list(dataset[start : start + ROWS_AT_ONCE])
        responses = [list(row.responses) for row in some]
        if mismatched:
            following = [*some[1:], dataset[(start + len(some)) % len(dataset)]]
            for own, of_next in zip(responses, following, strict=True):
                own.append(of_next.responses[0])
        rows += _some_rows(some, responses, tokenizer, template, cutter)
    return TokenTable(tuple(rows), cutter.counts, mismatched)


def _some_rows(
    some: Sequence[Preference],
    responses: Sequence[Sequence[str]],
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    cutter: "_Cutter",
) -> Iterator[TokenRow]:
    """The tokens of rows with their responses."""
    prompts = [template.render(row.prompt, tokenizer) for row in some]
    whole_texts: list[str] = []
    for row, prompt, texts in zip(some, prompts, responses, strict=True):
        _refuse_empty(row.row_id, texts)
        whole_texts += [prompt + template.reply(row.prompt, text) for text in texts]
    prompt_ids = rendered_tokens(prompts, tokenizer, template)
    whole_ids = iter(rendered_tokens(whole_texts, tokenizer, template))
    for row, ids, texts in zip(some, prompt_ids, responses, strict=True):
        yield cutter.row(row.row_id, ids, _take(whole_ids, len(texts)))


def _take(ids: Iterator[list[int]], count: int) -> list[list[int]]:
    return [next(ids) for _ in range(count)]


def _refuse_empty(row_id: str, responses: Sequence[str]) -> None:
    for k, text in enumerate(responses):
        if not text.strip():
            raise KitError(
                f"row {row_id}: response {k} is empty; drop the row or give it text "
                "(its log-prob is undefined)"
            )


@dataclasses.dataclass(frozen=True)
class _Cutter:
    """Cuts token ids into rows, by one rule for all, and counts what it met."""

    end: int  # that every response gets
    ends: frozenset[int]  # that end one where they stand in it
    max_length: int
    max_response: int
    counts: dict[str, int]
    numbers: dict[int, int] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(
        cls,
        end: int,
        ends: frozenset[int],
        max_length: int,
        max_response: int | None,
    ) -> "_Cutter":
        if max_response is None:
            max_response = max_length // 2
        if not 0 < max_response < max_length:
            raise KitError(
                f"max_response = {max_response} should lie between 1 and "
                f"max_length - 1 = {max_length - 1}"
            )
        return cls(end, ends, max_length, max_response, dict.fromkeys(COUNTED, 0))

    def row(self, row_id: str, prompt: list[int], whole: list[list[int]]) -> TokenRow:
        """A row from the ids of a prompt, and of prompt + response for each response."""
        if not prompt:
            raise KitError(
                f"row {row_id}: the prompt has no token; give it text, or a template or tokenizer "
                "with a BOS"
            )
        starts = [_common_prefix(prompt, ids) for ids in whole]
        shared = min(starts)
        if shared == 0:
            raise KitError(
                f"row {row_id}: prompt and response share no token; "
                "use a template that separates them"
            )
        responses = []
        for k, (ids, start) in enumerate(zip(whole, starts, strict=True)):
            room = self.max_length - 1 - (start - shared)  # beside one token of the prompt
            scored = self._scored(ids, start, room, f"row {row_id}: response {k}")
            responses.append(self._one_each([*ids[shared:start], *scored]))
            self.counts["merged_boundary"] += start < len(prompt)
        longest = max(len(response) for response in responses)
        self.counts["rows"] += 1
        self.counts["responses"] += len(responses)
        return TokenRow(
            row_id,
            self._one_each(self._fitting(prompt[:shared], self.max_length - longest)),
            tuple(responses),
            tuple(start - shared for start in starts),
        )

    def _one_each(self, ids: list[int]) -> tuple[int, ...]:
        """The ids, equal ones as one object: of many rows they take 8 bytes each and not 40."""
        one = self.numbers.setdefault
        return tuple([one(token, token) for token in ids])

    def _scored(self, ids: list[int], start: int, room: int, where: str) -> list[int]:
        """The response that begins at `start`, ended by one end token or cut without one."""
        if room < 1:
            raise KitError(
                f"{where}: the tokenizer merges {self.max_length} or more tokens of the prompt "
                "with it; raise max_length, or use a template that separates them"
            )
        stop = next((n for n in range(start, len(ids)) if ids[n] in self.ends), len(ids))
        if stop == start:
            raise KitError(
                f"{where} is only an end-of-sequence token, or begins with one; drop the row or "
                "give it text"
            )
        self.counts["eos_present"] += stop < len(ids)
        self.counts["eos_inside"] += any(token not in self.ends for token in ids[stop:])
        scored = [*ids[start:stop], self.end]
        room = min(room, self.max_response)
        self.counts["cut_response"] += len(scored) > room
        return scored[:room]

    def _fitting(self, prompt: list[int], room: int) -> list[int]:
        """The prompt; where it is longer than `room`, its first token (a BOS) and its end."""
        if len(prompt) <= room:
            return prompt
        self.counts["cut_prompt"] += 1
        if room <= 1:
            return prompt[-1:]
        return [prompt[0], *prompt[1 - room :]]


def _common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many leading tokens are equal."""
    for place, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return place
    return min(len(left), len(right))
