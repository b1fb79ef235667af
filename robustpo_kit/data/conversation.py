"""A prompt of several messages: as text its transcript, beside it what a chat template takes."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

Message: TypeAlias = dict[str, Any]  # role, content, and whatever else a chat template knows

ROLES = {"Human": "user", "Assistant": "assistant"}  # of the speakers of HH-RLHF's transcripts
SPEAKERS = {role: speaker for speaker, role in ROLES.items()}
TURN = re.compile(r"\n\n(Human|Assistant):")
REPLY = "\n\nAssistant:"  # behind it stands a reply


class Conversation(str):
    """The transcript of a prompt, in the form of HH-RLHF, which ends where the reply begins.

    Encoders, judges and models without a chat template read this text; a chat template gets
    `messages`, from which nothing is cut and to which nothing is added.
    """

    messages: tuple[Message, ...]

    def __new__(cls, text: str, messages: Sequence[Message]) -> "Conversation":
        made = super().__new__(cls, text)
        made.messages = tuple(messages)
        return made

    def __getnewargs__(self) -> tuple[Any, ...]:  # copies keep their messages
        return str(self), self.messages

    @classmethod
    def of(cls, messages: Sequence[Message]) -> "Conversation":
        """Messages with their transcript."""
        turns = [f"{_speaker(message['role'])}: {message['content']}" for message in messages]
        return cls("\n\n".join(turns) + REPLY, messages)

    @classmethod
    def read(cls, transcript: str) -> "Conversation":
        """A transcript as it is, with its turns as messages; one speaker's in a row are one.

        Args:
            transcript: begins with a turn and ends in `\\n\\nAssistant:`.
        """
        return cls(transcript.strip(), list(_turns(transcript)))

    @property
    def opening(self) -> str:
        """All before the first reply: what belongs to one conversation has it in common."""
        return self.split(REPLY)[0]


def _speaker(role: str) -> str:
    return SPEAKERS.get(role, role.capitalize())


def _turns(transcript: str) -> Iterator[Message]:
    speaker = ""
    texts: list[str] = []
    parts = TURN.split(transcript)[1:-1]  # nothing stands before the first turn or in the last
    for name, text in zip(parts[::2], parts[1::2], strict=False):
        if texts and name != speaker:
            yield {"role": ROLES[speaker], "content": "\n\n".join(texts)}
            texts = []
        speaker = name
        texts.append(text.strip())
    if texts:
        yield {"role": ROLES[speaker], "content": "\n\n".join(texts)}
