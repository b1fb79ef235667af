"""A prompt of several messages: as text its transcript, beside it what a chat template takes."""

import re
from collections.abc import Iterator, Sequence
from itertools import takewhile
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
            transcript: begins with a turn and ends in `\\n\\nAssistant:`, blanks aside.
        """
        text = transcript.strip()
        return cls(text, list(_turns(f"\n\n{text}")))

    @staticmethod
    def is_transcript(text: str) -> bool:
        """Whether a text is what `read` takes."""
        return text.lstrip().startswith("Human:") and text.rstrip().endswith(REPLY)


def plain(text: str) -> str:
    """A text for comparison: lower case, blanks as one."""
    return " ".join(text.lower().split())


def question(prompt: str) -> str:
    """What a prompt asks, for comparison, letter case and blanks aside.

    The user's one message is its text, whether it came as a text, a message or a transcript;
    messages of several turns are their transcript.
    """
    if isinstance(prompt, Conversation):
        return _question(prompt.messages)
    return plain(prompt)


def opening(prompt: str) -> str:
    """What is asked before the first reply: rows of one conversation have it in common."""
    if not isinstance(prompt, Conversation):
        return plain(prompt)
    begun = takewhile(lambda message: message["role"] != "assistant", prompt.messages)
    return _question(tuple(begun) or prompt.messages)


def _question(messages: Sequence[Message]) -> str:
    if [message["role"] for message in messages] == ["user"]:
        return plain(messages[0]["content"])
    return plain(Conversation.of(messages))


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
