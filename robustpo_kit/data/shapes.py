"""The shapes of preference rows that people have: each becomes the kit's own, in one function.

To add one: a function of an object and its place, which returns fields of `reading.READERS`, and a
row of `SHAPES`, above the rows whose fields it also has.
"""

import os
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, NamedTuple, TypeAlias
from unicodedata import category, east_asian_width

from robustpo_kit.data.conversation import REPLY, TURN, Conversation, Message
from robustpo_kit.data.reading import READERS, read_messages, read_text
from robustpo_kit.data.rows import BadRowError

Fields: TypeAlias = dict[str, Any]

OPTIONAL = tuple(name for name in READERS if name not in ("prompt", "responses"))
RANKED = ("chosen", "rejected")  # a pair's columns, and the sources of its responses
SCORES = ("score_chosen", "score_rejected")
PARTED = "chosen and rejected part before their last replies"
BEHIND = "another turn stands behind the reply"
COMPLETION = {"responses": "response", "sources": "model", "rewards": "overall_score"}
BY_REPLY = ("responses", "sources", "rewards", "h")  # fields of a value a reply, where lists
LABELS = ("chosen", "rejected", "choice", "label")  # they say which reply is preferred
BESIDE = "beside responses without rewards; leave one out: nothing says which of them counts"
POST = ("subreddit", "title", "post")  # of a summary's post, in the order of its prompt
ASKED = ("question", "instruction", "query", "input", "problem", "context", "system", "history")
NEAR_PROMPT = 0.83  # as LIKENESS, of what could be one's prompt; prompt_id is none
LIKENESS = 0.8  # of a field's name to a missing one, which is then taken to be meant
ADVICE = "give prompt and responses, or prompt, chosen, rejected"


class Shape(NamedTuple):
    """One shape of rows."""

    name: str
    needs: tuple[str, ...]  # its fields
    read: Callable[[Fields, str], Fields]
    fits: Callable[[Fields], bool] = lambda value: True  # where its fields alone do not tell
    labelled: bool = True  # whether a row says that its first reply is preferred
    second: Callable[[Fields], bool] = lambda value: False  # or its second, which then goes first


def own_fields(shape: Shape, value: Fields, where: str) -> Fields:
    """A row in the kit's own fields: those that its shape makes, and others that it has itself.

    Raises BadRowError naming `where` and the field that is missing or of another form.
    """
    if not all(name in value for name in shape.needs):
        shape = recognise(value, where)
    fields = shape.read(value, where)
    if isinstance(fields["prompt"], str) and Conversation.is_transcript(fields["prompt"]):
        fields |= _behind(Conversation.read(read_text(fields["prompt"], "prompt", where)), fields)
    for name in OPTIONAL:
        # nothing is not given, but for the golden column, which is then not known
        if name in value and (value[name] is not None or name == "golden"):
            fields[name] = value[name]
    return _turned(fields) if shape.second(value) else fields


def _behind(prompt: Conversation, fields: Fields) -> Fields:
    """A transcript, and the replies behind it, which may all repeat it."""
    replies = fields["responses"]
    texts = [text.lstrip() for text in replies if isinstance(text, str)]
    if all(text.startswith(prompt) for text in texts) and len(texts) == len(replies):
        replies = [text.removeprefix(prompt) for text in texts]
    return {"prompt": prompt, "responses": replies}


def _turned(fields: Fields) -> Fields:
    """A pair's fields with its second reply first; whatever has a value a reply goes with them."""
    turned = fields | {
        name: fields[name][::-1] for name in BY_REPLY if isinstance(fields.get(name), list)
    }
    if turned.get("golden") in (0, 1) and type(turned["golden"]) is int:
        turned["golden"] = 1 - turned["golden"]
    return turned


def recognise(value: Fields, where: str) -> Shape:
    """The first shape whose fields the row has; raises BadRowError naming what is missing."""
    for shape in SHAPES:
        if all(name in value for name in shape.needs) and shape.fits(value):
            return shape
    present = [len(value.keys() & set(shape.needs)) for shape in SHAPES]
    if not any(present):
        names = ", ".join(map(str, value)) or "none"
        raise BadRowError(where, "", f"fields {names}: no preferences; {ADVICE}", "of no format")
    missing = [len(shape.needs) - count for shape, count in zip(SHAPES, present, strict=True)]
    nearest = min(range(len(SHAPES)), key=lambda k: (missing[k], -present[k]))
    name = next(name for name in SHAPES[nearest].needs if name not in value)
    for slip in get_close_matches(name, value, n=1, cutoff=LIKENESS):
        raise BadRowError(where, slip, f"unknown; {name} is meant?", "unknown")
    raise BadRowError(where, name, f"missing; {ADVICE}", "missing")


def unread(shape: Shape, value: Fields) -> list[str]:
    """Fields of a row that no reader takes."""
    read = {*OPTIONAL, *shape.needs}
    return [name for name in value if name not in read]


def _own(value: Fields, where: str) -> Fields:
    """The kit's own: a prompt, and its responses; which one is golden, rewards do not say."""
    replies, ranked = value["responses"], value.get("rewards") is not None
    for name in LABELS:
        if not ranked and value.get(name) is not None:
            raise BadRowError(where, name, BESIDE, "beside responses")
    fields: Fields = {"prompt": value["prompt"]}
    if isinstance(replies, list):
        replies = [
            read_reply(reply, f"responses[{k}]", where)[1] for k, reply in enumerate(replies)
        ]
        if ranked and len(replies) > 1:
            fields["golden"] = None
    return fields | {"responses": replies}


def _pair(value: Fields, where: str) -> Fields:
    """TRL's pair: texts, or messages that end in the reply; the prompt may be among them."""
    (before, chosen), (other, rejected) = [read_reply(value[name], name, where) for name in RANKED]
    if before != other:
        raise BadRowError(where, "", PARTED, PARTED)
    prompt = _asked(value.get("prompt"), before, where)
    fields = {"prompt": prompt, "responses": [chosen, rejected], "sources": list(RANKED)}
    if all(name in value for name in SCORES):
        fields["rewards"] = [value[name] for name in SCORES]
    return fields


def _asked(prompt: Any, before: list[Message], where: str) -> Any:
    """The prompt: as given, or the messages `before` the reply where they say more."""
    if not before:
        return prompt
    asked = [{"role": "user", "content": prompt}]
    if isinstance(prompt, list):
        asked = read_messages(prompt, "prompt", where)
    if before == asked:
        return prompt
    users = [m["content"].strip() for m in before if m["role"] == "user"]
    if prompt is not None and not (isinstance(prompt, str) and prompt.strip() in users):
        said = "the messages before the reply are others than the prompt's"
        raise BadRowError(where, "chosen", said, "not behind the prompt")
    return before


def read_reply(value: Any, name: str, where: str) -> tuple[list[Message], Any]:
    """The messages before a reply, and the reply: a text, or the last, the assistant's message."""
    if not isinstance(value, list):
        return [], read_text(value, name, where)
    *before, last = read_messages(value, name, where)
    if last["role"] != "assistant":
        said = f"ends with a message of {last['role']}; the assistant's reply is expected"
        raise BadRowError(where, name, said, "without a reply")
    return before, last["content"]


def _transcripts(value: Fields, where: str) -> Fields:
    """HH-RLHF (Bai et al., 2022): two dialogues that differ in their last replies."""
    chosen, rejected = (f"\n\n{read_text(value[name], name, where).lstrip()}" for name in RANKED)
    if not chosen.startswith("\n\nHuman:"):
        said = "a transcript that does not begin with 'Human:'; give its prompt as messages"
        raise BadRowError(where, "chosen", said, "without its beginning")
    ends = [text.rfind(REPLY) + len(REPLY) for text in (chosen, rejected)]
    cut = ends[0]
    if REPLY not in chosen or cut != ends[1] or chosen[:cut] != rejected[:cut]:
        raise BadRowError(where, "", PARTED, PARTED)
    for name, text in zip(RANKED, (chosen, rejected), strict=True):
        if TURN.search(text, cut):
            raise BadRowError(where, name, f"{BEHIND}; end it with the reply", BEHIND)
    # the leading space belongs to the response: prompt + response is the dialogue to the letter
    responses = [chosen[cut:].rstrip(), rejected[cut:].rstrip()]
    prompt = Conversation.read(chosen[:cut])
    return {"prompt": prompt, "responses": responses, "sources": list(RANKED)}


def _is_transcript(value: Fields) -> bool:
    texts = [value[name] for name in RANKED if isinstance(value[name], str)]
    return len(texts) == 2 and (texts[0].startswith("\n\nHuman:") or REPLY in "".join(texts))


def _is_text(value: Fields) -> bool:
    return isinstance(value["chosen"], str)


def _common_beginning(value: Fields, where: str) -> Fields:
    """TRL's implicit prompt: what both texts begin with, but a blank at its end; whole words."""
    near = (n for n in value if get_close_matches("prompt", [n.lower()], cutoff=NEAR_PROMPT))
    for name in (*near, *ASKED):
        if value.get(name):
            said = "is it the prompt? Call it prompt; chosen and rejected are then the replies"
            raise BadRowError(where, name, said, "not called prompt")
    texts = [read_text(value[name], name, where) for name in RANKED]
    prompt = os.path.commonprefix(texts)
    if any(_is_cut(text, len(prompt)) for text in texts):
        prompt = prompt[: _word_start(prompt)]
    prompt = prompt.removesuffix(" ")
    if not prompt.strip():
        said = "missing, and chosen and rejected have no common beginning that could be it"
        raise BadRowError(where, "prompt", said, "missing")
    responses = [text[len(prompt) :] for text in texts]
    return {"prompt": prompt, "responses": responses, "sources": list(RANKED)}


def _is_cut(text: str, place: int) -> bool:
    """Whether a place lies within a word."""
    return place < len(text) and _word_start(text[: place + 1]) < place


def _word_start(text: str) -> int:
    """Where the word begins that a text ends in; its length where it ends in none."""
    place = len(text)
    while place and _is_in_word(text[place - 1]):
        place -= 1
    return place


def _is_in_word(letter: str) -> bool:
    """Letters, digits and marks; scripts of wide letters have no blanks between their words."""
    return category(letter)[0] in "LMN" and east_asian_width(letter) not in "WF"


def _completions(value: Fields, where: str) -> Fields:
    """UltraFeedback (Cui et al., 2024): an instruction, completions with their overall scores."""
    given = _objects(value["completions"], "completions", where)
    fields: Fields = {"prompt": value["instruction"], "golden": None}
    for name, key in COMPLETION.items():
        fields[name] = [entry.get(key) for entry in given]
    return fields


def _on_policy(value: Fields, where: str) -> Fields:
    """A policy's own replies with a reward model's scores (SimPO; Meng et al., 2024)."""
    replies, rewards = value["all_generated_responses"], value["all_rm_scores"]
    if rewards is None:
        raise BadRowError(where, "all_rm_scores", "missing; nothing else ranks them", "missing")
    return {"prompt": value["prompt"], "responses": replies, "rewards": rewards, "golden": None}


def _alone(_value: Fields, where: str) -> Fields:
    """An unpaired reply; those of a file that begins with one never come here."""
    said = "an unpaired reply in a file that begins with other rows; put such rows into one alone"
    raise BadRowError(where, "completion", said, "unpaired among other rows")


def _comparison(value: Fields, where: str) -> Fields:
    """TL;DR comparisons (Stiennon et al., 2020): a post, two summaries in the file's order."""
    (info,) = _objects([value["info"]], "info", where)
    summaries, choice = _objects(value["summaries"], "summaries", where), value["choice"]
    if choice not in (0, 1) or len(summaries) != 2:
        said = f"{choice!r:.60} of {len(summaries)} summaries; 0 or 1 of 2 is expected"
        raise BadRowError(where, "choice", said, "not one of two")
    responses = [summary.get("text") for summary in summaries]
    sources = [str(summary.get("policy", "unknown")) for summary in summaries]
    return {"prompt": _post(info, where), "responses": responses, "sources": sources}


def _post(info: Fields, where: str) -> str:
    """What is summed up, in the words of Stiennon et al., Appendix B.2 (of news articles, too)."""
    if info.get("post") is None:
        return f"Article: {read_text(info.get('article'), 'info.article', where)}\n\nTL;DR:"
    parts = [read_text(info.get(name), f"info.{name}", where) for name in POST]
    return "SUBREDDIT: r/{}\n\nTITLE: {}\n\nPOST: {}\n\nTL;DR:".format(*parts)


def _objects(value: Any, name: str, where: str) -> list[Fields]:
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        said = f"{value!r:.60} has the wrong type"
        raise BadRowError(where, name, said, "of a wrong type")
    return value


PAIRS = Shape("pairs (prompt, chosen, rejected)", ("prompt", *RANKED), _pair)
HH = Shape("HH-RLHF transcripts", RANKED, _transcripts, _is_transcript)
UNPAIRED = Shape(
    "unpaired replies with labels, paired within a prompt",
    ("prompt", "completion", "label"),
    _alone,
)
SHAPES = (
    Shape("prompt and responses", ("prompt", "responses"), _own, labelled=False),
    Shape(
        "on-policy replies with scores",
        ("prompt", "all_generated_responses", "all_rm_scores"),
        _on_policy,
        labelled=False,
    ),
    Shape(
        "UltraFeedback completions",
        ("instruction", "completions"),
        _completions,
        labelled=False,
    ),
    Shape(
        "TL;DR comparisons",
        ("info", "summaries", "choice"),
        _comparison,
        second=lambda value: value["choice"] == 1,
    ),
    UNPAIRED,
    Shape("pairs with scores, as UltraFeedback binarized", (*PAIRS.needs, *SCORES), _pair),
    PAIRS,
    HH,
    Shape("pairs with a common beginning", RANKED, _common_beginning, _is_text),
    Shape("pairs of messages (the prompt among them)", RANKED, _pair),
)
