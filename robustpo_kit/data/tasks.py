"""Tasks of text: one function and one row of `TASKS` each; a task's name decides nothing else.

To add one: a function that puts each record's row into the sieve, and a row of the table.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from robustpo_kit.data.preferences import PreferenceSet
from robustpo_kit.data.rows import Preference
from robustpo_kit.data.sieve import MANY_WORDS, Sieve
from robustpo_kit.data.sources import Record, asset_records, file_records, hub_records
from robustpo_kit.data.template import PLAIN, Template
from robustpo_kit.errors import KitError
from robustpo_kit.records import stream

CONTEXT_TURNS = 3  # turns of a dialogue that make the prompt of its next turn
MATCHING_SEED = 0  # decides ties of length among the responses of other prompts
RANKED = ("chosen", "rejected")  # sources of an annotated pair
MATCHED = ("human_matched", "human_mismatched")  # sources of a human text and one of another prompt


@dataclass(frozen=True)
class Task:
    """One task: how its records are read, where they lie, how its prompts become model input."""

    read: Callable[[Iterator[Record], Sieve], None]
    source: str  # name of an asset; with `split`, id of a Hub data set
    split: str | None = None
    template: Template = PLAIN
    max_words: int = MANY_WORDS  # of a response; longer ones are dropped
    max_prompt_words: int = MANY_WORDS

    def records(self, source: str | Path | None) -> Iterator[Record]:
        """Records of the task's own source, or of a local file or Hub data set of its format."""
        if source is not None and Path(source).is_file():
            return file_records(Path(source))
        if self.split is None:
            return asset_records(str(source or self.source))
        return hub_records(str(source or self.source), self.split)


def load(task: str, source: str | Path | None = None) -> PreferenceSet:
    """The preference set of a task, or of a JSON lines file of the kit's own format.

    Args:
        task: a name in `TASKS`, or a path that ends in .jsonl or .gz.
        source: a local file, mirror folder or Hub data set in the task's format; default: its own.

    Raises:
        KitError: for an unknown task, a missing asset, a row that cannot be read.
    """
    if task in TASKS:
        row = TASKS[task]
        sieve = Sieve(max_words=row.max_words, max_prompt_words=row.max_prompt_words)
        row.read(row.records(source), sieve)
        return sieve.finish(task, row.template)
    if Path(task).suffix in (".jsonl", ".gz"):
        return PreferenceSet.from_jsonl(task)
    raise KitError(f"task: '{task}' is unknown; choose {', '.join(TASKS)} or give a .jsonl file")


def template_of(task: str) -> Template | None:
    """The template that prompts of a task have everywhere; None, of a file: the model's own."""
    return TASKS[task].template if task in TASKS else None


def _read_how_to(records: Iterator[Record], sieve: Sieve) -> None:
    """PIQA (Bisk et al., 2020): y0 the correct solution of a goal, y1 the subtly wrong one."""
    for name, _, value in records:
        options = _two_options(value.get("options", ""))
        letter = value.get("answer", "")[:2]
        if options is None or letter not in ("A.", "B."):
            sieve.drop("malformed")
            continue
        goal = value.get("question", "").strip()
        responses = options if letter == "A." else options[::-1]
        sources = ("human_correct", "human_wrong")
        group = " ".join(goal.lower().split())
        sieve.add(Preference(f"piqa-{name}", group, goal, responses, sources))


def _two_options(text: str) -> tuple[str, str] | None:
    """Two options out of one string `A. ...\\nB. ...`."""
    first, separator, second = text.partition("\nB. ")
    if not separator or not first.startswith("A. "):
        return None
    return first[3:].strip(), second.strip()


def _read_dialogue(records: Iterator[Record], sieve: Sieve) -> None:
    """Human chit-chat: y0 the reply, y1 one of another conversation, matched in length."""
    _add_matched(list(chain.from_iterable(map(_turns, records))), sieve)


def _read_summaries(records: Iterator[Record], sieve: Sieve) -> None:
    """XSum articles (Narayan et al., 2018): y0 the summary, y1 the summary of another article."""
    articles = [
        (f"xsum-{value['id']}", value["id"], value["document"].strip(), value["summary"].strip())
        for _, _, value in records
    ]
    _add_matched(articles, sieve)


def _read_hh(records: Iterator[Record], sieve: Sieve) -> None:
    """HH-RLHF (Bai et al., 2022): two dialogues that differ in their last replies."""
    for name, where, value in records:
        chosen, rejected = value.get("chosen"), value.get("rejected")
        if not isinstance(chosen, str) or not isinstance(rejected, str):
            raise KitError(f"{where}, field chosen/rejected: two dialogues as text are expected")
        cut = chosen.rfind("\n\nAssistant:") + len("\n\nAssistant:")
        if not chosen.startswith("\n\nHuman:") or chosen[:cut] != rejected[:cut]:
            sieve.drop("malformed")
            continue
        prompt = chosen[:cut].strip()
        group = prompt.split("\n\nAssistant:")[0]
        # the leading space belongs to the response: prompt + response is the dialogue to the letter
        responses = (chosen[cut:].rstrip(), rejected[cut:].rstrip())
        sieve.add(Preference(f"hh-{name}", group, prompt, responses, RANKED))


def _read_tldr(records: Iterator[Record], sieve: Sieve) -> None:
    """TL;DR comparisons (Stiennon et al., 2020): columns prompt, chosen, rejected."""
    _add_pairs(records, sieve, "tldr")


def _read_ultrafeedback(records: Iterator[Record], sieve: Sieve) -> None:
    """UltraFeedback Binarized (Cui et al., 2024): lists of messages, the last one is the reply."""
    _add_pairs(records, sieve, "ultrafeedback")


TASKS = {
    "how_to": Task(
        _read_how_to,
        "piqa",
        template=Template("chat", "Answer the question in one or two short sentences."),
        max_words=60,
        max_prompt_words=60,
    ),
    "dialogue": Task(
        _read_dialogue,
        "chitchat",
        template=Template(
            "chat", "You are in a casual chat. Write the next message in one short sentence."
        ),
        max_words=40,
        max_prompt_words=120,
    ),
    "summaries": Task(
        _read_summaries,
        "xsum",
        template=Template("chat", "Summarize the article in one sentence."),
        max_words=60,
        max_prompt_words=300,
    ),
    "hh": Task(_read_hh, "Anthropic/hh-rlhf", "train"),
    "tldr": Task(_read_tldr, "CarperAI/openai_summarize_comparisons", "train"),
    "ultrafeedback": Task(
        _read_ultrafeedback,
        "HuggingFaceH4/ultrafeedback_binarized",
        "train_prefs",
        template=Template("chat"),
    ),
}


def _add_pairs(records: Iterator[Record], sieve: Sieve, prefix: str) -> None:
    """Rows of columns prompt, chosen, rejected: texts, or messages of which the last counts."""
    for name, where, value in records:
        try:
            prompt = value["prompt"]
            responses = tuple(_last_text(value[field]) for field in RANKED)
        except (KeyError, TypeError, IndexError) as error:
            raise KitError(f"{where}, field {error}: missing or of another form") from None
        sieve.add(Preference(f"{prefix}-{name}", prompt, prompt, responses, RANKED))


def _last_text(value: str | list[dict[str, Any]]) -> str:
    if isinstance(value, str):
        return value
    return str(value[-1]["content"])


def _turns(record: Record) -> Iterator[tuple[str, str, str, str]]:
    """(row_id, group, prompt, reply) for every turn of a conversation but the first."""
    texts = [_spoken(turn) for turn in record.value["messages"]]
    # the reply is B's, whoever began: speakers alternate backwards from it
    for position in range(1, len(texts)):
        start = max(0, position - CONTEXT_TURNS)
        lines = [f"{'BA'[(position - i) % 2]}: {texts[i]}" for i in range(start, position)]
        row_id = f"chitchat-{record.name}-{position}"
        yield row_id, record.name, "\n".join(lines), texts[position]


def _spoken(turn: list[dict[str, Any]]) -> str:
    """The messages that one speaker sent in a row, as one text."""
    return " ".join(message["text"].strip() for message in turn)


def _add_matched(texts: Sequence[tuple[str, str, str, str]], sieve: Sieve) -> None:
    """Rows of (row_id, group, prompt, response), each with the response of another group beside."""
    others = _matched_others([row[3] for row in texts], [row[1] for row in texts])
    for (row_id, group, prompt, response), other in zip(texts, others, strict=True):
        sieve.add(Preference(row_id, group, prompt, (response, other), MATCHED))


def _matched_others(texts: Sequence[str], groups: Sequence[str]) -> list[str]:
    """For every text one of about the same word count and another group, next in length order."""
    rng = stream(MATCHING_SEED, "replies to others")
    lengths = np.array([len(text.split()) for text in texts])
    order = np.lexsort((rng.random(len(texts)), lengths))
    others = [""] * len(texts)
    for place, index in enumerate(order):
        for step in range(1, len(order)):
            candidate = order[(place + step) % len(order)]
            if groups[candidate] != groups[index]:
                others[index] = texts[candidate]
                break
    return others
