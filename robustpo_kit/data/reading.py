"""The kit's own row format as JSON, in and out; every defect is named by file, row and field."""

import dataclasses
from collections.abc import Callable
from typing import Any

from robustpo_kit.data.conversation import Conversation, Message, opening
from robustpo_kit.data.rows import BadRowError, Preference


def row_from_json(value: dict[str, Any], where: str, number: int | str) -> Preference:
    """A row from `prompt`, `responses` and what else of `READERS` is known of it.

    Args:
        value: an object; other fields are passed over.
        where: file and row, for messages.
        number: the row's id where none is given.

    Raises:
        BadRowError: naming `where` and the field that is missing or of a wrong type.
    """
    for name in ("prompt", "responses"):
        if name not in value:
            raise BadRowError(where, name, "missing", "missing")
    values = {
        name: read(value[name], name, where) for name, read in READERS.items() if name in value
    }
    prompt = values["prompt"]
    values.setdefault("row_id", _label(number, "row_id", where))
    if "group" not in values:
        values["group"] = opening(prompt)
    if not values.get("sources"):
        values["sources"] = tuple(f"source_{k}" for k in range(len(values["responses"])))
    return Preference(**values)


def row_as_json(row: Preference) -> dict[str, Any]:
    """What `row_from_json` makes the same row of."""
    value = {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
    if isinstance(row.prompt, Conversation):
        value["prompt"] = {"text": row.prompt, "messages": row.prompt.messages}
    return value


def read_messages(value: Any, name: str, where: str) -> list[Message]:
    """Chat messages, each with a role and text; what is null in one is left out.

    Raises BadRowError naming `where`, and the message that is none.
    """
    if not isinstance(value, list) or not value:
        raise _wrong_type(value, name, where)
    messages = []
    for place, message in enumerate(value):
        at = f"{name}[{place}]"
        if not isinstance(message, dict):
            raise _wrong_type(message, at, where)
        if message.get("content") is None and message.get("tool_calls"):
            said = "none, but tool calls; only messages with text are read"
            raise BadRowError(where, f"{at}.content", said, "tool calls")
        for part in ("role", "content"):
            read_text(message.get(part), f"{at}.{part}", where)
        messages.append({key: entry for key, entry in message.items() if entry is not None})
    return messages


def read_text(value: Any, name: str, where: str) -> str:
    """A text that can be written as UTF-8; raises BadRowError naming `where` and the field."""
    if not isinstance(value, str):
        raise _wrong_type(value, name, where)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            said = f"not UTF-8 at character {error.start}; mend it, or save the file as UTF-8"
            raise BadRowError(where, name, said, "not UTF-8") from None
    return value


def _prompt(value: Any, name: str, where: str) -> str:
    """A text; or messages, alone or with their transcript."""
    if isinstance(value, dict):
        text = read_text(value.get("text"), f"{name}.text", where)
        return Conversation(text, read_messages(value.get("messages"), f"{name}.messages", where))
    if not isinstance(value, list):
        return read_text(value, name, where)
    messages = read_messages(value, name, where)
    if messages[-1]["role"] == "assistant":
        said = "ends with an assistant's message; a prompt ends before the reply"
        raise BadRowError(where, name, said, "ends with a reply")
    return Conversation.of(messages)


def _label(value: Any, name: str, where: str) -> str:
    return read_text(str(value), name, where)


def _texts(value: Any, name: str, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise BadRowError(where, name, "a list of strings is expected", "of a wrong type")
    return tuple(read_text(text, f"{name}[{k}]", where) for k, text in enumerate(value))


def _optional_texts(value: Any, name: str, where: str) -> tuple[str, ...]:
    return _texts(value or [], name, where)


def _numbers(value: Any, name: str, where: str) -> tuple[float, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(_is_number(number) for number in value):
        said = f"{value!r:.60}; a list of numbers is expected"
        raise BadRowError(where, name, said, "of a wrong type")
    return tuple(float(number) for number in value)


def _number(value: Any, name: str, where: str) -> float | None:
    if value is not None and not _is_number(value):
        raise _wrong_type(value, name, where)
    return value


def _number_or_numbers(value: Any, name: str, where: str) -> float | tuple[float, ...] | None:
    if isinstance(value, list):
        return _numbers(value, name, where)
    return _number(value, name, where)


def _column(value: Any, name: str, where: str) -> int | None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise _wrong_type(value, name, where)
    return value


def _flag(value: Any, name: str, where: str) -> bool:
    if value is not None and not isinstance(value, bool):
        raise _wrong_type(value, name, where)
    return bool(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _wrong_type(value: Any, name: str, where: str) -> BadRowError:
    return BadRowError(where, name, f"{value!r:.60} has the wrong type", "of a wrong type")


# a field of Preference -> how it is read; what is not given keeps the field's own default
READERS: dict[str, Callable[[Any, str, str], Any]] = {
    "row_id": _label,
    "group": _label,
    "prompt": _prompt,
    "responses": _texts,
    "sources": _optional_texts,
    "rewards": _numbers,
    "golden": _column,
    "flipped": _flag,
    "h": _number_or_numbers,
}
