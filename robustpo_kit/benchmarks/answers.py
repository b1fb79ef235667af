"""AlpacaEval 2, Arena-Hard, MT-Bench: questions from local files, answers as each wants them.

The fields of questions and answers are those of the benchmarks' repositories: tatsu-lab/alpaca_eval
(README.md, example/outputs.json), lmarena/arena-hard-auto at version 0.1 (gen_answer.py,
data/arena-hard-v0.1/question.jsonl) and lm-sys/FastChat (fastchat/llm_judge/gen_model_answer.py).
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from robustpo_kit import policies
from robustpo_kit.benchmarks.files import Fields, read_rows
from robustpo_kit.data import Conversation
from robustpo_kit.errors import KitError
from robustpo_kit.policies import Policy, SamplingConfig
from robustpo_kit.records import digest, progress, read_json, write_json

# FastChat, fastchat/llm_judge/common.py: MT-Bench's temperature by category; 0.7 for others.
TEMPERATURES = {
    "extraction": 0.0, "math": 0.0, "coding": 0.0, "reasoning": 0.0, "stem": 0.1, "humanities": 0.1,
}  # fmt: skip
_MT_BENCH = {"temperature": "by category", "top_k": 50, "top_p": 1.0, "max_new_tokens": 1024}
_DORA = {"temperature": 0.8, "top_k": 50, "top_p": 0.9}
_GREEDY = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": 4096}
# DoRA App. C.3, which has no MT-Bench and lists no repetition penalty. gamma-PO App. B: as SimPO,
# whose repository (princeton-nlp/SimPO, eval/) has AlpacaEval's and Arena-Hard's of two of the
# models; MT-Bench is the benchmark's own.
DECODING: dict[str, dict[str, dict[str, Any]]] = {
    "dora": {
        "alpacaeval": _DORA | {"max_new_tokens": 1024},
        "arena-hard": _DORA | {"max_new_tokens": 4096},
    },
    "gamma/llama-3-8b-instruct": {
        "alpacaeval": {"temperature": 0.9, "top_k": 0, "top_p": 1.0, "max_new_tokens": 4096},
        "arena-hard": _GREEDY,
        "mt-bench": _MT_BENCH,
    },
    "gamma/mistral-7b-instruct": {
        "alpacaeval": {"temperature": 0.5, "top_k": 0, "top_p": 1.0, "max_new_tokens": 2048},
        "arena-hard": _GREEDY,
        "mt-bench": _MT_BENCH,
    },
}


@dataclasses.dataclass(frozen=True)
class Question:
    """A question of a benchmark: the user's turns, and the row of its file."""

    turns: tuple[str, ...]
    row: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Spoken:
    """What a model said in one turn."""

    text: str
    tokens: int  # by the model's own tokenizer


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """How questions are read and answers written."""

    ending: str  # of the file of answers
    fields: Fields  # of a question
    turns: Callable[[Mapping[str, Any]], Sequence[Any]]
    answer: Callable[[Question, Sequence[Spoken], str], dict[str, Any]]


def _alpaca_turns(row: Mapping[str, Any]) -> Sequence[Any]:
    return [row["instruction"]]


def _arena_turns(row: Mapping[str, Any]) -> Sequence[Any]:
    return [turn.get("content") if isinstance(turn, dict) else None for turn in row["turns"]]


def _mt_turns(row: Mapping[str, Any]) -> Sequence[Any]:
    return row["turns"]


def _alpaca_answer(question: Question, said: Sequence[Spoken], model: str) -> dict[str, Any]:
    kept = {name: question.row[name] for name in ("dataset", "datasplit") if name in question.row}
    told = {"instruction": question.turns[0], "output": said[0].text, "generator": model}
    return told | kept


def _arena_answer(question: Question, said: Sequence[Spoken], model: str) -> dict[str, Any]:
    turns = [{"content": turn.text, "token_len": turn.tokens} for turn in said]
    return _chat_answer(question, turns, model)


def _mt_answer(question: Question, said: Sequence[Spoken], model: str) -> dict[str, Any]:
    return _chat_answer(question, [turn.text for turn in said], model)


def _chat_answer(question: Question, turns: list[Any], model: str) -> dict[str, Any]:
    number = question.row["question_id"]
    return {
        "question_id": number,
        "answer_id": digest(number, model, turns, length=22),
        "model_id": model,
        "choices": [{"index": 0, "turns": turns}],
        "tstamp": time.time(),
    }


_CHAT: Fields = {"question_id": (str, int), "category": str, "turns": list}
BENCHMARKS = {
    "alpacaeval": Benchmark(".json", {"instruction": str}, _alpaca_turns, _alpaca_answer),
    "arena-hard": Benchmark(".jsonl", _CHAT, _arena_turns, _arena_answer),
    "mt-bench": Benchmark(".jsonl", _CHAT, _mt_turns, _mt_answer),
}


def questions(name: str, path: Path) -> list[Question]:
    """The questions of a benchmark's file.

    Raises:
        KitError: for an unknown benchmark, and for a defect of the file, naming row and field.
    """
    kind = _benchmark(name)
    found = []
    for number, row in enumerate(read_rows(path, kind.fields), start=1):
        turns = tuple(kind.turns(row))
        if not turns or not all(isinstance(turn, str) and turn.strip() for turn in turns):
            field = "instruction" if "turns" not in kind.fields else "turns"
            raise KitError(f"{Path(path).name}, row {number}, field {field}: a turn is no text")
        found.append(Question(turns, row))
    return found


def decoding(name: str, paper: str) -> dict[str, Any]:
    """What a paper decodes a benchmark with: temperature, top_k, top_p, max_new_tokens.

    Raises:
        KitError: naming what there is.
    """
    _benchmark(name)
    if name not in DECODING.get(paper, {}):
        have = [key for key, rows in DECODING.items() if name in rows]
        raise KitError(f"decoding: '{paper}' has none for {name}; choose {', '.join(have)}")
    return dict(DECODING[paper][name])


def answer(
    name: str,
    asked: Sequence[Question],
    policy: Policy,
    settings: Mapping[str, Any],
    *,
    model: str,
    seed: int,
    batch_size: int = 16,
    kept: Path | None = None,
) -> list[dict[str, Any]]:
    """A model's answers in the benchmark's own format; each turn sees those before it.

    Args:
        name: of the benchmark.
        asked: its questions.
        policy: answers them; its template makes model input of the turns.
        settings: of `decoding`; temperature 0 is greedy, "by category" MT-Bench's.
        model: what the answers call it.
        seed: of the draws.
        batch_size: questions at once.
        kept: a folder for the batches that are answered, which a call after a kill reads; the
            caller removes it.
    """
    kind = _benchmark(name)
    draw = _Draws(policy, seed, kept)
    said: list[list[Spoken]] = [[] for _ in asked]
    for turn in range(max(len(question.turns) for question in asked)):
        for temperature, rows in _by_temperature(asked, settings, turn).items():
            prompts = [_conversation(asked[row], said[row], turn) for row in rows]
            config = _config(settings, temperature, batch_size)
            purpose = f"{name}, turn {turn}, temperature {temperature}"
            for row, ids in zip(rows, draw(prompts, config, purpose), strict=True):
                text = str(policy.tokenizer.decode(ids, skip_special_tokens=True)).strip()
                said[row].append(Spoken(text, len(ids)))
    return [kind.answer(*parts, model) for parts in zip(asked, said, strict=True)]


class _Draws:
    """A policy's replies as tokens, each batch kept the moment it is drawn."""

    def __init__(self, policy: Policy, seed: int, kept: Path | None) -> None:
        self.policy, self.seed, self.kept = policy, seed, kept
        self.origin = policy.fingerprint() if kept else ""

    def __call__(
        self, prompts: Sequence[str], config: SamplingConfig, purpose: str
    ) -> list[list[int]]:
        drawn: list[list[int]] = []
        for start in progress(range(0, len(prompts), config.batch_size), purpose):
            part = prompts[start : start + config.batch_size]
            drawn += self._batch(part, config, purpose, start // config.batch_size)
        return drawn

    def _batch(
        self, part: Sequence[str], config: SamplingConfig, purpose: str, number: int
    ) -> list[list[int]]:
        decides = (self.origin, self.seed, purpose, number, dataclasses.asdict(config), list(part))
        file = self.kept / f"{digest(*decides, length=32)}.json" if self.kept else None
        if file and file.exists():
            return read_json(file)
        draws: Any = {"seed": self.seed, "number": number, "purpose": purpose}
        replies = policies.sample_batch(self.policy, part, config, **draws)
        ids = [list(reply.ids[: reply.tokens]) for (reply,) in replies]
        if file:
            write_json(file, ids)
        return ids


def _benchmark(name: str) -> Benchmark:
    if name not in BENCHMARKS:
        raise KitError(f"benchmark: '{name}' is unknown; choose {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


def _conversation(question: Question, said: Sequence[Spoken], turn: int) -> str:
    """The turns up to `turn`, the model's own between the user's; the first alone is a text."""
    if turn == 0:
        return question.turns[0]
    messages = [{"role": "user", "content": question.turns[0]}]
    for spoken, text in zip(said, question.turns[1 : turn + 1], strict=True):
        messages.append({"role": "assistant", "content": spoken.text})
        messages.append({"role": "user", "content": text})
    return Conversation.of(messages)


def _by_temperature(
    asked: Sequence[Question], settings: Mapping[str, Any], turn: int
) -> dict[float, list[int]]:
    """The questions that have this turn, by the temperature that they are answered at."""
    groups: dict[float, list[int]] = {}
    for row, question in enumerate(asked):
        temperature = settings["temperature"]
        if temperature == "by category":
            temperature = TEMPERATURES.get(str(question.row.get("category")), 0.7)
        if turn < len(question.turns):
            groups.setdefault(float(temperature), []).append(row)
    return groups


def _config(settings: Mapping[str, Any], temperature: float, batch_size: int) -> SamplingConfig:
    shared: Any = {"repetition_penalty": 1.0, "batch_size": batch_size}
    shared["max_new_tokens"] = settings["max_new_tokens"]
    if temperature == 0:
        return SamplingConfig(temperature=1.0, top_k=1, top_p=1.0, **shared)
    kept: Any = {name: settings[name] for name in ("top_k", "top_p")}
    return SamplingConfig(temperature=temperature, **kept, **shared)
