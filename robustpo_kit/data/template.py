"""How a prompt becomes model input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from robustpo_kit.data.conversation import Conversation, Message
from robustpo_kit.errors import KitError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Template:
    """How a prompt becomes model input: the tokenizer's chat template, or the text as it is."""

    kind: str = "chat"  # chat | plain
    system: str | None = None

    def render(self, prompt: str, tokenizer: PreTrainedTokenizerBase) -> str:
        """The text that the model continues.

        Under `chat` a `Conversation` is its messages in the tokenizer's own template, another
        prompt is the user's one message; under `plain` both are their text.

        Raises:
            ValueError: for an unknown kind, or where the tokenizer has no chat template.
            KitError: where the chat template refuses the messages.
        """
        if self.kind == "plain":
            return str(prompt)
        if self.kind != "chat":
            raise ValueError(f"template kind '{self.kind}' is unknown; use 'chat' or 'plain'")
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                "template kind 'chat' needs a tokenizer with a chat template; use 'plain'"
            )
        messages = self._messages(prompt)
        if not isinstance(prompt, Conversation):
            return _chat(messages, tokenizer)
        try:
            return _chat(messages, tokenizer)
        except Exception as error:  # templates raise what they like at turns they do not take
            roles = ", ".join(message["role"] for message in messages)
            raise KitError(
                f"prompt {prompt[:40]!r}: the model's chat template refuses messages of the roles "
                f"{roles} ({error}); change the row, or take a model whose template has them"
            ) from None

    def reply(self, prompt: str, response: str) -> str:
        """`response` as it stands behind the rendered prompt.

        Behind a transcript's `Assistant:` stands a blank; a chat template brings its own.
        """
        if not isinstance(prompt, Conversation):
            return response
        if self.kind == "chat":
            return response.removeprefix(" ")
        return response if response[:1].isspace() else f" {response}"

    def _messages(self, prompt: str) -> list[Message]:
        messages = [{"role": "user", "content": prompt}]
        if isinstance(prompt, Conversation):
            messages = list(prompt.messages)
        if self.system and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self.system})
        return messages


def _chat(messages: list[Message], tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


PLAIN = Template("plain")
