"""Tasks of human text out of pinned wheels: how-to questions, dialogues, summaries."""

import json
from collections import Counter

import numpy as np

from robustpo_kit import assets
from robustpo_kit.data.preferences import PreferenceSet
from robustpo_kit.data.reading import json_lines
from robustpo_kit.data.rows import Preference
from robustpo_kit.data.template import SYSTEM, Template


def load_how_to(*, max_words: int = 60) -> PreferenceSet:
    """PIQA's labelled goals (Bisk et al., 2020): y0 the correct human solution, y1 the subtly wrong one."""
    keep = Sieve(max_words=max_words, max_prompt_words=max_words)
    for number, _, value in json_lines(assets.resolve("piqa")):
        options = _options(value.get("options", ""))
        letter = value.get("answer", "")[:2]
        goal = value.get("question", "").strip()
        if options is None or letter not in ("A.", "B."):
            keep.drop("malformed")
            continue
        right, wrong = options if letter == "A." else options[::-1]
        keep.add(
            f"piqa-{number}",
            " ".join(goal.lower().split()),
            goal,
            (right, wrong),
            ("human_correct", "human_wrong"),
        )
    return keep.finish("how_to")


def _options(text: str) -> tuple[str, str] | None:
    """Two options out of one string `A. ...\\nB. ...`."""
    first, separator, second = text.partition("\nB. ")
    if not separator or not first.startswith("A. "):
        return None
    return first[3:].strip(), second.strip()


def load_dialogue(*, turns: int = 3, max_words: int = 40, seed: int = 0) -> PreferenceSet:
    """Human chit-chat: y0 the human reply, y1 a human reply of another conversation, matched in length."""
    keep = Sieve(max_words=max_words, max_prompt_words=120)
    conversations = json.loads(assets.resolve("chitchat").read_text(encoding="utf-8"))
    found = []
    for key, conversation in conversations.items():
        texts = [
            " ".join(message["text"].strip() for message in turn)
            for turn in conversation["messages"]
        ]
        for position in range(1, len(texts)):
            start = max(0, position - turns)
            context = "\n".join(
                f"{'BA'[(position - i) % 2]}: {text}"
                for i, text in enumerate(texts[start:position], start=start)
            )
            found.append((f"chitchat-{key}-{position}", key, context, texts[position]))
    mismatched = _matched_others([row[3] for row in found], [row[1] for row in found], seed)
    for (row_id, group, context, reply), other in zip(found, mismatched, strict=True):
        keep.add(row_id, group, context, (reply, other), ("human_matched", "human_mismatched"))
    return keep.finish("dialogue")


def load_summaries(
    *, max_words: int = 60, max_prompt_words: int = 300, seed: int = 0
) -> PreferenceSet:
    """XSum articles (Narayan et al., 2018): y0 the human summary, y1 the summary of another article."""
    keep = Sieve(max_words=max_words, max_prompt_words=max_prompt_words)
    values = [value for _, _, value in json_lines(assets.resolve("xsum"))]
    summaries, ids = (
        [value["summary"].strip() for value in values],
        [value["id"] for value in values],
    )
    others = _matched_others(summaries, ids, seed)
    for value, summary, other in zip(values, summaries, others, strict=True):
        sources = ("human_matched", "human_mismatched")
        keep.add(
            f"xsum-{value['id']}", value["id"], value["document"].strip(), (summary, other), sources
        )
    return keep.finish("summaries")


def _matched_others(texts: list[str], groups: list[str], seed: int) -> list[str]:
    """For every text another one of about the same word count from another group: the next in length order."""
    rng = np.random.default_rng(seed)
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


class Sieve:
    """Collects rows; counts and drops the empty, the duplicate, the over-long and the malformed."""

    def __init__(self, max_words: int, max_prompt_words: int):
        self.max_words, self.max_prompt_words = max_words, max_prompt_words
        self.rows: list[Preference] = []
        self.dropped: Counter[str] = Counter()
        self.seen: set[tuple[str, tuple[str, ...]]] = set()

    def drop(self, reason: str) -> None:
        self.dropped[reason] += 1

    def add(
        self,
        row_id: str,
        group: str,
        prompt: str,
        responses: tuple[str, ...],
        sources: tuple[str, ...],
    ) -> None:
        if not prompt.strip() or not all(text.strip() for text in responses):
            return self.drop("empty")
        if len(set(responses)) < len(responses):
            return self.drop("equal responses")
        if (
            len(prompt.split()) > self.max_prompt_words
            or max(len(t.split()) for t in responses) > self.max_words
        ):
            return self.drop("over-long")
        if (prompt, responses) in self.seen:
            return self.drop("duplicate")
        self.seen.add((prompt, responses))
        self.rows.append(Preference(row_id, group, prompt, responses, sources))

    def finish(self, task: str) -> PreferenceSet:
        template = Template("chat", SYSTEM[task]) if task in SYSTEM else Template("plain")
        return PreferenceSet(
            self.rows, name=task, template=template, dropped=dict(self.dropped)
        ).validate()
