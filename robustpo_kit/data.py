"""Preference data: one immutable row type, validation that names file, row and field, and the loaders.

Human text comes from pinned wheels (`assets`), the papers' sets from the Hub or local files of the same format.
"""

import gzip
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from robustpo_kit import assets, paths
from robustpo_kit.records import KitError, atomic_write

SYSTEM = {
    "how_to": "Answer the question in one or two short sentences.",
    "dialogue": "You are in a casual chat. Write the next message in one short sentence.",
    "summaries": "Summarize the article in one sentence.",
}


@dataclass(frozen=True)
class Preference:
    """One prompt with K responses. Column 0 is the chosen one of a pair; `golden` is the column from the target Q0."""

    row_id: str
    group: str  # conversation or prompt: splits and clusters never cut through it
    prompt: str
    responses: tuple[str, ...]
    sources: tuple[str, ...]  # who wrote each response
    rewards: tuple[float, ...] | None = None
    golden: int | None = 0
    flipped: bool = False
    h: float | None = None  # calibration factor h~ of the sample


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
            raise ValueError("template kind 'chat' needs a tokenizer with a chat template; use 'plain'")
        messages = [{"role": "system", "content": self.system}] if self.system else []
        messages.append({"role": "user", "content": prompt})
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


class PreferenceSet(Sequence[Preference]):
    """An immutable sequence of rows, with where they came from and what was dropped on the way."""

    def __init__(
        self,
        rows: Iterable[Preference],
        *,
        name: str = "preferences",
        template: Template = Template("plain"),
        dropped: Mapping[str, int] | None = None,
    ):
        self.rows = tuple(rows)
        self.name = name
        self.template = template
        self.dropped = dict(dropped or {})

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self._with(self.rows[index]) if isinstance(index, slice) else self.rows[index]

    def __iter__(self) -> Iterator[Preference]:
        return iter(self.rows)

    def __repr__(self) -> str:
        return f"PreferenceSet({self.name}: {len(self)} rows, K = {self.responses_per_prompt})"

    def _with(self, rows: Iterable[Preference]) -> "PreferenceSet":
        return PreferenceSet(rows, name=self.name, template=self.template, dropped=self.dropped)

    @property
    def responses_per_prompt(self) -> int:
        """The largest K of the set; 0 for an empty one."""
        return max((len(row.responses) for row in self.rows), default=0)

    def select(self, indices: Iterable[int]) -> "PreferenceSet":
        """The rows at `indices`, in that order."""
        return self._with(self.rows[i] for i in indices)

    def map(self, function: Callable[[Preference], Preference]) -> "PreferenceSet":
        """A set with `function` applied to every row."""
        return self._with(function(row) for row in self.rows)

    def validate(self) -> "PreferenceSet":
        """Return self; raises KitError naming set, row and field of the first defect."""
        seen: set[str] = set()
        for number, row in enumerate(self.rows, start=1):
            _check_row(row, f"{self.name}, row {number}")
            if row.row_id in seen:
                raise KitError(f"{self.name}, row {number}, field row_id: '{row.row_id}' appears twice; ids are unique")
            seen.add(row.row_id)
        return self

    @classmethod
    def from_jsonl(cls, path: str | Path, *, template: Template = Template("plain")) -> "PreferenceSet":
        """Read and validate JSON lines (or .gz), with `prompt` and `responses`, or `prompt`, `chosen`, `rejected`.

        Raises KitError naming file, line and field.
        """
        path = Path(path)
        rows = [_row_from_json(value, where, number) for number, where, value in _json_lines(path)]
        if not rows:
            raise KitError(f"{paths.show(path)}: holds no rows; expected one JSON object a line")
        return cls(rows, name=path.name, template=template).validate()

    def to_jsonl(self, path: str | Path) -> None:
        """Write one JSON object a line, by rename."""
        with atomic_write(Path(path)) as temporary, open(temporary, "w", encoding="utf-8") as stream:
            for row in self.rows:
                stream.write(json.dumps(row.__dict__, ensure_ascii=False) + "\n")

    def split(self, sizes: Mapping[str, int], seed: int) -> dict[str, "PreferenceSet"]:
        """Disjoint parts of about the given row counts, whole groups only; raises KitError when rows run out."""
        members: dict[str, list[int]] = {}
        for index, row in enumerate(self.rows):
            members.setdefault(row.group, []).append(index)
        groups = list(members)
        order = iter(np.random.default_rng(seed).permutation(len(groups)))
        parts = {}
        for name, size in sizes.items():
            chosen: list[int] = []
            while len(chosen) < size:
                try:
                    chosen += members[groups[next(order)]]
                except StopIteration:
                    raise KitError(
                        f"{self.name}: {len(self)} rows are too few for the splits {dict(sizes)}; "
                        f"lower '{name}' or another split"
                    ) from None
            parts[name] = self.select(chosen)
        return parts

    def flip(self, rate: float, seed: int) -> "PreferenceSet":
        """Label noise: a fixed share of rows has its preference reversed, once, marked in `flipped`.

        Without rewards columns 0 and 1 swap; with rewards the ranking is mirrored (best and worst exchange rewards).
        """
        if not 0 <= rate <= 1:
            raise ValueError(f"rate = {rate}: a share between 0 and 1 is expected")
        count = round(rate * len(self))
        chosen = set(np.random.default_rng(seed).permutation(len(self))[:count].tolist())
        return self._with(_flip(row) if i in chosen else row for i, row in enumerate(self.rows))

    def with_rewards(self, rewards: Any) -> "PreferenceSet":
        """Rows with `rewards` [N, K]; raises ValueError on another shape or a value that is not finite."""
        rewards = np.asarray(rewards, dtype=float)
        if rewards.shape != (len(self), self.responses_per_prompt) or not np.isfinite(rewards).all():
            raise ValueError(
                f"rewards: shape {rewards.shape}, finite: {bool(np.isfinite(rewards).all())}; expected finite "
                f"[{len(self)}, {self.responses_per_prompt}]"
            )
        return self._with(replace(row, rewards=tuple(r.tolist())) for row, r in zip(self.rows, rewards, strict=True))

    def with_h(self, h: Any) -> "PreferenceSet":
        """Rows with calibration factors `h` [N] >= 0; raises ValueError on another shape or value."""
        h = np.asarray(h, dtype=float)
        if h.shape != (len(self),) or not np.isfinite(h).all() or (h < 0).any():
            raise ValueError(f"h: expected {len(self)} finite values >= 0, got shape {h.shape}")
        return self._with(replace(row, h=float(value)) for row, value in zip(self.rows, h, strict=True))

    def pairs(self, how: str = "columns") -> "PreferenceSet":
        """K = 2 rows: columns 0 and 1, or (`best_worst`) the responses of highest and lowest reward."""
        return self.map(lambda row: take(row, (0, 1) if how == "columns" else _best_worst(row)))

    def golden_only(self) -> "PreferenceSet":
        """K = 1 rows that hold the golden response, for supervised fine-tuning."""
        return self._with(take(row, (row.golden,)) for row in self.rows if row.golden is not None)


def take(row: Preference, columns: Sequence[int]) -> Preference:
    """`row` with only `columns`, in that order."""
    return replace(
        row,
        responses=tuple(row.responses[c] for c in columns),
        sources=tuple(row.sources[c] for c in columns),
        rewards=None if row.rewards is None else tuple(row.rewards[c] for c in columns),
        golden=columns.index(row.golden) if row.golden in columns else None,
    )


def _best_worst(row: Preference) -> tuple[int, int]:
    if row.rewards is None:
        raise KitError(f"row '{row.row_id}', field rewards: missing; pairs('best_worst') needs a reward a response")
    order = sorted(range(len(row.rewards)), key=lambda k: -row.rewards[k])
    return order[0], order[-1]


def _flip(row: Preference) -> Preference:
    if row.rewards is None:
        swapped = take(row, (1, 0, *range(2, len(row.responses))))
        return replace(swapped, flipped=not row.flipped)
    order = sorted(range(len(row.rewards)), key=lambda k: row.rewards[k])
    mirrored = list(row.rewards)
    for low, high in zip(order, reversed(order), strict=True):
        mirrored[low] = row.rewards[high]
    flipped = replace(row, rewards=tuple(mirrored), flipped=not row.flipped)
    return take(flipped, (1, 0)) if len(row.responses) == 2 else flipped


def _check_row(row: Preference, where: str) -> None:
    if not row.prompt.strip():
        raise KitError(f"{where}, field prompt: empty; remove the row or give the prompt")
    if len(row.responses) < 1:
        raise KitError(f"{where}, field responses: none; at least one is expected")
    if len(row.sources) != len(row.responses):
        raise KitError(f"{where}, field sources: {len(row.sources)} for {len(row.responses)} responses; one each")
    for column, response in enumerate(row.responses):
        if not response.strip():
            raise KitError(f"{where}, field responses[{column}]: empty; remove the row or give the response")
    if row.rewards is not None:
        if len(row.rewards) != len(row.responses):
            raise KitError(f"{where}, field rewards: {len(row.rewards)} for {len(row.responses)} responses; one each")
        if not all(math.isfinite(value) for value in row.rewards):
            raise KitError(f"{where}, field rewards: a value is not finite")
    if row.golden is not None and not 0 <= row.golden < len(row.responses):
        raise KitError(f"{where}, field golden: {row.golden} is not a column of {len(row.responses)} responses")
    if row.h is not None and not (math.isfinite(row.h) and row.h >= 0):
        raise KitError(f"{where}, field h: {row.h}; a finite value >= 0 is expected")


def _json_lines(path: Path) -> Iterator[tuple[int, str, dict]]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as stream:
            for number, line in enumerate(stream, start=1):
                if not line.strip():
                    continue
                where = f"{paths.show(path)}, row {number}"
                try:
                    value = json.loads(line)
                except json.JSONDecodeError as error:
                    raise KitError(f"{where}: not JSON ({error.msg} at column {error.colno})") from None
                if not isinstance(value, dict):
                    raise KitError(f"{where}: a JSON {type(value).__name__}; an object is expected")
                yield number, where, value
    except FileNotFoundError:
        raise KitError(f"{paths.show(path)}: no such file") from None
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
        raise KitError(f"{paths.show(path)}: cannot be read as UTF-8 JSON lines ({error})") from None


_FIELDS = {
    "row_id",
    "group",
    "prompt",
    "responses",
    "sources",
    "rewards",
    "golden",
    "flipped",
    "h",
    "chosen",
    "rejected",
}


def _row_from_json(value: dict, where: str, number: int) -> Preference:
    unknown = set(value) - _FIELDS
    if unknown:
        raise KitError(f"{where}, field {sorted(unknown)[0]}: unknown; known fields: {', '.join(sorted(_FIELDS))}")
    pair = "responses" not in value
    needed = ("prompt", "chosen", "rejected") if pair else ("prompt", "responses")
    for field in needed:
        if field not in value:
            raise KitError(f"{where}, field {field}: missing; give prompt and responses, or prompt, chosen, rejected")
    _typed(value, "prompt", str, where)
    for field in ("chosen", "rejected") if pair else ():
        _typed(value, field, str, where)
    responses = [value["chosen"], value["rejected"]] if pair else value["responses"]
    _texts(responses, "responses", where)
    sources = value.get("sources") or [f"source_{k}" for k in range(len(responses))]
    _texts(sources, "sources", where)
    rewards = value.get("rewards")
    if rewards is not None and not (isinstance(rewards, list) and all(_is_number(r) for r in rewards)):
        raise KitError(f"{where}, field rewards: {rewards!r}; a list of numbers is expected")
    for field, kind in (("golden", int), ("flipped", bool), ("h", (int, float))):
        if value.get(field) is not None:
            _typed(value, field, kind, where)
    return Preference(
        row_id=str(value.get("row_id", number)),
        group=str(value.get("group", value["prompt"])),
        prompt=value["prompt"],
        responses=tuple(responses),
        sources=tuple(sources),
        rewards=None if rewards is None else tuple(float(r) for r in rewards),
        golden=value.get("golden", 0),
        flipped=bool(value.get("flipped", False)),
        h=value.get("h"),
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _typed(value: dict, field: str, kind: Any, where: str) -> None:
    good = isinstance(value[field], kind) and (kind is bool or not isinstance(value[field], bool))
    if not good:
        raise KitError(f"{where}, field {field}: {value[field]!r:.60} has the wrong type")


def _texts(value: Any, field: str, where: str) -> None:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise KitError(f"{where}, field {field}: a list of strings is expected")


# ---- loaders ---------------------------------------------------------------------------------------------------


def load(task: str, *, limit: int | None = None) -> PreferenceSet:
    """The preference set of a task: how_to, dialogue, summaries, hh, tldr, ultrafeedback, or a JSON lines file.

    Raises KitError for an unknown task or a missing asset.
    """
    if task in LOADERS:
        rows = LOADERS[task]()
    elif Path(task).suffix in (".jsonl", ".gz"):
        rows = PreferenceSet.from_jsonl(task)
    else:
        raise KitError(f"task: '{task}' is unknown; choose {', '.join(LOADERS)} or give a .jsonl file")
    return rows if limit is None else rows[:limit]


def load_how_to(*, max_words: int = 60) -> PreferenceSet:
    """PIQA's labelled goals (Bisk et al., 2020): y0 the correct human solution, y1 the subtly wrong one."""
    keep = _Sieve(max_words=max_words, max_prompt_words=max_words)
    for number, _, value in _json_lines(assets.resolve("piqa")):
        options = _options(value.get("options", ""))
        letter = value.get("answer", "")[:2]
        goal = value.get("question", "").strip()
        if options is None or letter not in ("A.", "B."):
            keep.drop("malformed")
            continue
        right, wrong = options if letter == "A." else options[::-1]
        keep.add(
            f"piqa-{number}", " ".join(goal.lower().split()), goal, (right, wrong), ("human_correct", "human_wrong")
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
    keep = _Sieve(max_words=max_words, max_prompt_words=120)
    conversations = json.loads(assets.resolve("chitchat").read_text(encoding="utf-8"))
    found = []
    for key, conversation in conversations.items():
        texts = [" ".join(message["text"].strip() for message in turn) for turn in conversation["messages"]]
        for position in range(1, len(texts)):
            start = max(0, position - turns)
            context = "\n".join(
                f"{'BA'[(position - i) % 2]}: {text}" for i, text in enumerate(texts[start:position], start=start)
            )
            found.append((f"chitchat-{key}-{position}", key, context, texts[position]))
    mismatched = _matched_others([row[3] for row in found], [row[1] for row in found], seed)
    for (row_id, group, context, reply), other in zip(found, mismatched, strict=True):
        keep.add(row_id, group, context, (reply, other), ("human_matched", "human_mismatched"))
    return keep.finish("dialogue")


def load_summaries(*, max_words: int = 60, max_prompt_words: int = 300, seed: int = 0) -> PreferenceSet:
    """XSum articles (Narayan et al., 2018): y0 the human summary, y1 the summary of another article."""
    keep = _Sieve(max_words=max_words, max_prompt_words=max_prompt_words)
    values = [value for _, _, value in _json_lines(assets.resolve("xsum"))]
    summaries, ids = [value["summary"].strip() for value in values], [value["id"] for value in values]
    others = _matched_others(summaries, ids, seed)
    for value, summary, other in zip(values, summaries, others, strict=True):
        sources = ("human_matched", "human_mismatched")
        keep.add(f"xsum-{value['id']}", value["id"], value["document"].strip(), (summary, other), sources)
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


class _Sieve:
    """Collects rows; counts and drops the empty, the duplicate, the over-long and the malformed."""

    def __init__(self, max_words: int, max_prompt_words: int):
        self.max_words, self.max_prompt_words = max_words, max_prompt_words
        self.rows: list[Preference] = []
        self.dropped: Counter[str] = Counter()
        self.seen: set[tuple[str, tuple[str, ...]]] = set()

    def drop(self, reason: str) -> None:
        self.dropped[reason] += 1

    def add(self, row_id: str, group: str, prompt: str, responses: tuple[str, ...], sources: tuple[str, ...]) -> None:
        if not prompt.strip() or not all(text.strip() for text in responses):
            return self.drop("empty")
        if len(set(responses)) < len(responses):
            return self.drop("equal responses")
        if len(prompt.split()) > self.max_prompt_words or max(len(t.split()) for t in responses) > self.max_words:
            return self.drop("over-long")
        if (prompt, responses) in self.seen:
            return self.drop("duplicate")
        self.seen.add((prompt, responses))
        self.rows.append(Preference(row_id, group, prompt, responses, sources))

    def finish(self, task: str) -> PreferenceSet:
        template = Template("chat", SYSTEM[task]) if task in SYSTEM else Template("plain")
        return PreferenceSet(self.rows, name=task, template=template, dropped=dict(self.dropped)).validate()


def load_hh(source: str | Path = "Anthropic/hh-rlhf", *, limit: int | None = None) -> PreferenceSet:
    """HH-RLHF pairs (Bai et al., 2022) from the Hub or a local .jsonl(.gz) with full dialogues chosen, rejected."""
    keep = _Sieve(max_words=10_000, max_prompt_words=10_000)
    for number, value in _records(source, "train", limit):
        chosen, rejected = value.get("chosen"), value.get("rejected")
        if not isinstance(chosen, str) or not isinstance(rejected, str):
            raise KitError(f"{source}, row {number}, field chosen/rejected: two dialogues as text are expected")
        cut = chosen.rfind("\n\nAssistant:") + len("\n\nAssistant:")
        if not chosen.startswith("\n\nHuman:") or chosen[:cut] != rejected[:cut]:
            keep.drop("malformed")
            continue
        prompt = chosen[:cut].strip()
        group = prompt.split("\n\nAssistant:")[0]
        # the leading space belongs to the response: prompt + response is then the dialogue to the letter
        keep.add(
            f"hh-{number}", group, prompt, (chosen[cut:].rstrip(), rejected[cut:].rstrip()), ("chosen", "rejected")
        )
    return keep.finish("hh")


def load_tldr(
    source: str | Path = "CarperAI/openai_summarize_comparisons", *, limit: int | None = None
) -> PreferenceSet:
    """TL;DR comparisons (Stiennon et al., 2020): columns prompt, chosen, rejected."""
    return _load_columns(source, "tldr", limit, lambda value: value["prompt"])


def load_ultrafeedback(
    source: str | Path = "HuggingFaceH4/ultrafeedback_binarized", *, limit: int | None = None
) -> PreferenceSet:
    """UltraFeedback Binarized (Cui et al., 2024): `chosen` and `rejected` are message lists, the last the reply."""
    return _load_columns(source, "ultrafeedback", limit, lambda value: value["prompt"])


def _load_columns(source: str | Path, task: str, limit: int | None, prompt_of: Callable[[dict], str]) -> PreferenceSet:
    keep = _Sieve(max_words=10_000, max_prompt_words=10_000)
    split = "train_prefs" if task == "ultrafeedback" else "train"
    for number, value in _records(source, split, limit):
        try:
            prompt, pair = prompt_of(value), tuple(_last_text(value[field]) for field in ("chosen", "rejected"))
        except (KeyError, TypeError, IndexError) as error:
            raise KitError(f"{source}, row {number}, field {error}: missing or of another form") from None
        keep.add(f"{task}-{number}", prompt, prompt, pair, ("chosen", "rejected"))
    rows = keep.finish(task)
    rows.template = Template("chat") if task == "ultrafeedback" else rows.template
    return rows


def _last_text(value: str | list[dict]) -> str:
    return value if isinstance(value, str) else value[-1]["content"]


def _records(source: str | Path, split: str, limit: int | None) -> Iterator[tuple[int, dict]]:
    """Numbered records of a local JSON lines file, or of a Hub data set (or its local mirror folder)."""
    if Path(source).is_file():
        for number, _, value in _json_lines(Path(source)):
            if limit is not None and number > limit:
                return
            yield number, value
        return
    from datasets import load_dataset

    try:
        rows = load_dataset(str(source), split=split)
    except (OSError, ValueError, ConnectionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise KitError(f"{source}: neither a local file nor to be had from the Hub ({reason})") from None
    for number, value in enumerate(rows if limit is None else rows.select(range(min(limit, len(rows)))), start=1):
        yield number, value


LOADERS: dict[str, Callable[[], PreferenceSet]] = {
    "how_to": load_how_to,
    "dialogue": load_dialogue,
    "summaries": load_summaries,
    "hh": load_hh,
    "tldr": load_tldr,
    "ultrafeedback": load_ultrafeedback,
}
