"""Tasks of text: one function and one row of `TASKS` each; a task's name decides nothing else.

To add one: a function that puts each record's row into the sieve, and a row of the table.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from robustpo_kit.data.containers import OnBadRow, Record
from robustpo_kit.data.loading import BadRows, load_source
from robustpo_kit.data.preferences import PreferenceSet
from robustpo_kit.data.reading import row_from_json
from robustpo_kit.data.rows import BadRowError, Preference, preferred_and_least
from robustpo_kit.data.shapes import HH, PAIRS, Shape, own_fields
from robustpo_kit.data.sieve import MANY_WORDS, Sieve
from robustpo_kit.data.sources import asset_records, is_hub_id, records_of
from robustpo_kit.data.template import PLAIN, Template
from robustpo_kit.errors import KitError
from robustpo_kit.records import stream

log = logging.getLogger(__name__)

CONTEXT_TURNS = 3  # turns of a dialogue that make the prompt of its next turn
MATCHING_SEED = 0  # decides ties of length among the responses of other prompts
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

    def records(
        self, source: str | Path | None, split: str | None, bad: OnBadRow
    ) -> Iterator[Record]:
        """Records of the task's own source, or of a local file or Hub data set of its format."""
        if source is not None and Path(source).is_file():
            return records_of(source, split, bad)
        if self.split is None:
            return asset_records(str(source or self.source))
        return records_of(source or self.source, split or self.split, bad)


def load(
    task: str | Path,
    source: str | Path | None = None,
    *,
    split: str | None = None,
    on_bad_row: str = "raise",
) -> PreferenceSet:
    """The preference set of a task; or of a file, a folder or a Hub data set, whatever its format.

    Files are JSON lines, JSON, CSV or Parquet, with gzip or without; folders are what `datasets`
    saved or can load. The shape of the rows (`shapes.SHAPES`, docs/formats.md) is found out from
    each one. A set of many rows is kept on disk.

    One reply of a row is preferred, by all that read it: the one of highest reward (of equals the
    first), or the first where a row has no rewards. Where a row has a label (`chosen`, `choice`)
    and scores against it, the label stays, the scores are not read, and `describe` counts it. A
    pair loss takes the preferred reply against the one of lowest reward.

    Args:
        task: a name in `TASKS`; or a path; or a Hub id, `owner/name` or `owner/name:configuration`.
        source: of a task: a local file, mirror folder or Hub data set in its format; default: its
            own.
        split: of a folder or Hub data set; default: its only one, or `train`; of a task, its own.
        on_bad_row: "raise", or "skip": bad rows are left out and counted in `dropped`.

    Raises:
        KitError: for an unknown task, a missing asset or file, one that is damaged or has no usable
            row; naming file, row, field and reason of a bad row, where these are not skipped.
    """
    if task in TASKS:
        if source is None and Path(task).exists():
            log.warning("%s: the task is read, not what lies here; ./%s names that", task, task)
        row, bad = TASKS[str(task)], BadRows(on_bad_row)
        sieve = Sieve(bad, max_words=row.max_words, max_prompt_words=row.max_prompt_words)
        row.read(row.records(source, split, bad), sieve)
        return sieve.finish(str(task), row.template)
    if Path(task).exists() or is_hub_id(str(task)) or Path(task).suffix:
        return load_source(task, split=split, on_bad_row=on_bad_row)
    raise KitError(
        f"task: '{task}' is unknown; choose {', '.join(TASKS)}, or a file, folder or Hub id"
    )


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


def _pairs_of(shape: Shape, prefix: str) -> Callable[[Iterator[Record], Sieve], None]:
    """A reader of human preferences that have a known shape."""

    def read(records: Iterator[Record], sieve: Sieve) -> None:
        for name, where, value in records:
            try:
                fields = own_fields(shape, value, where)
                row = row_from_json(fields, where, f"{prefix}-{name}")
                if preferred_and_least(row)[0]:
                    sieve.drop("scored against its label")
                else:
                    sieve.add(row)
            except BadRowError as error:
                sieve.refuse(error)

    return read


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
    "hh": Task(_pairs_of(HH, "hh"), "Anthropic/hh-rlhf", "train"),
    "tldr": Task(_pairs_of(PAIRS, "tldr"), "CarperAI/openai_summarize_comparisons", "train"),
    "ultrafeedback": Task(
        _pairs_of(PAIRS, "ultrafeedback"),
        "HuggingFaceH4/ultrafeedback_binarized",
        "train_prefs",
        template=Template("chat"),
    ),
}


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
