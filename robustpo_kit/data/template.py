"""How a prompt becomes model input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Template:
    """How a prompt becomes model input: the tokenizer's chat template, or the text as it is."""

    kind: str = "chat"  # chat | plain
    system: str | None = None

    def render(self, prompt: str, tokenizer: PreTrainedTokenizerBase) -> str:
        """The text that the model continues.

        Raises:
            ValueError: for an unknown kind, or where the tokenizer has no chat template.
        """
        if self.kind == "plain":
            return prompt
        if self.kind != "chat":
            raise ValueError(f"template kind '{self.kind}' is unknown; use 'chat' or 'plain'")
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                "template kind 'chat' needs a tokenizer with a chat template; use 'plain'"
            )
        messages = [{"role": "user", "content": prompt}]
        if self.system:
            messages.insert(0, {"role": "system", "content": self.system})
        return str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        )


PLAIN = Template("plain")
