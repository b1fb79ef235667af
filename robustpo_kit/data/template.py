"""How a prompt becomes model input."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Template:
    """How a prompt becomes model input: the tokenizer's chat template, or the text as it is."""

    kind: str = "chat"  # chat | plain
    system: str | None = None

    def render(self, prompt: str | Sequence[str], tokenizer: PreTrainedTokenizerBase) -> str:
        """The text that the model continues.

        Args:
            prompt: the user's text; or turns, the user's first, theirs and the model's by turns.
            tokenizer: the model's.

        Raises:
            ValueError: for an unknown kind, where the tokenizer has no chat template, or where
                several turns meet a plain one.
        """
        turns = [prompt] if isinstance(prompt, str) else list(prompt)
        if self.kind == "plain":
            if len(turns) > 1:
                raise ValueError("template kind 'plain' has no turns; use 'chat'")
            return turns[0]
        if self.kind != "chat":
            raise ValueError(f"template kind '{self.kind}' is unknown; use 'chat' or 'plain'")
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                "template kind 'chat' needs a tokenizer with a chat template; use 'plain'"
            )
        roles = itertools.cycle(("user", "assistant"))
        messages = [{"role": next(roles), "content": turn} for turn in turns]
        if self.system:
            messages.insert(0, {"role": "system", "content": self.system})
        return str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        )


PLAIN = Template("plain")
