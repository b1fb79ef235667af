"""How a prompt becomes model input."""

from dataclasses import dataclass
from typing import Any

SYSTEM = {
    "how_to": "Answer the question in one or two short sentences.",
    "dialogue": "You are in a casual chat. Write the next message in one short sentence.",
    "summaries": "Summarize the article in one sentence.",
}


@dataclass(frozen=True)
class Template:
    """How a prompt becomes model input: the tokenizer's chat template, or the text as it is."""

    kind: str = "chat"  # chat | plain
    system: str | None = None

    def render(self, prompt: str, tokenizer: Any) -> str:
        """The text that the model continues; raises ValueError for an unknown kind or a missing chat template."""
        if self.kind == "plain":
            return prompt
        if self.kind != "chat":
            raise ValueError(f"template kind '{self.kind}' is unknown; use 'chat' or 'plain'")
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                "template kind 'chat' needs a tokenizer with a chat template; use 'plain'"
            )
        messages = [{"role": "system", "content": self.system}] if self.system else []
        messages.append({"role": "user", "content": prompt})
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
