"""Answers judged by a judge of the kit, as judgments in each benchmark's format.

The benchmarks' own numbers need their own judges and questions (GPT-4 of a certain month); these
are for comparing models here.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from robustpo_kit.benchmarks.answers import Question
from robustpo_kit.errors import KitError
from robustpo_kit.judging import EndpointJudge, Judge
from robustpo_kit.records import stream

PREFERENCE = {"A": 2.0, "B": 1.0, "C": 1.5}  # for the model, shown first
LABEL = {"A": "A>B", "B": "B>A", "C": "A=B"}
Answers = Sequence[Mapping[str, Any]]


def annotate(
    judge: Judge, answers: Answers, reference: Answers, *, seed: int
) -> list[dict[str, Any]]:
    """AlpacaEval's annotations: the model's outputs against the reference's.

    Args:
        judge: sees the two outputs in an order drawn at random.
        answers, reference: outputs to the same instructions, in the same order.
        seed: of the orders.
    """
    _check([row["instruction"] for row in answers], [row["instruction"] for row in reference])
    first, second = [], []
    swapped = stream(seed, "order of outputs").random(len(answers)) < 0.5
    for ours, theirs, swap in zip(answers, reference, swapped, strict=True):
        shown = [ours["output"], theirs["output"]]
        first.append(shown[int(swap)])
        second.append(shown[1 - int(swap)])
    verdicts = judge.verdicts([row["instruction"] for row in answers], first, second)
    rows = []
    for ours, theirs, swap, verdict in zip(answers, reference, swapped, verdicts, strict=True):
        preference = PREFERENCE.get(verdict)
        if swap and preference is not None:
            preference = 3 - preference
        rows.append(
            {
                "instruction": ours["instruction"],
                "output_1": theirs["output"],
                "generator_1": theirs["generator"],
                "output_2": ours["output"],
                "generator_2": ours["generator"],
                "annotator": judge.name,
                "preference": preference,
            }
        )
    return rows


def play(
    judge: Judge, questions: Sequence[Question], answers: Answers, baseline: Answers
) -> list[dict[str, Any]]:
    """Arena-Hard's judgments: two games a question, the baseline shown first, then the model."""
    numbers = [question.row["question_id"] for question in questions]
    _check(numbers, [row["question_id"] for row in answers])
    _check(numbers, [row["question_id"] for row in baseline])
    prompts = [question.turns[0] for question in questions]
    ours, theirs = _first_turns(answers), _first_turns(baseline)
    first = judge.verdicts(prompts, theirs, ours)
    second = judge.verdicts(prompts, ours, theirs)
    rows = []
    for row, *verdicts in zip(answers, first, second, strict=True):
        games = [{"score": LABEL.get(verdict)} for verdict in verdicts]
        told = {"question_id": row["question_id"], "model": row["model_id"]}
        rows.append(told | {"judge": judge.name, "games": games})
    return rows


def _first_turns(answers: Answers) -> list[str]:
    return [_turns(row)[0]["content"] for row in answers]


def rate(
    judge: EndpointJudge, questions: Sequence[Question], answers: Answers
) -> list[dict[str, Any]]:
    """MT-Bench's judgments: a rating of each turn, which the judge reads behind those before it."""
    _check(
        [question.row["question_id"] for question in questions],
        [row["question_id"] for row in answers],
    )
    turns = []
    for question, row in zip(questions, answers, strict=True):
        said = _turns(row)
        for number in range(len(question.turns)):
            before = itertools.chain(*zip(question.turns[:number], said[:number], strict=True))
            prompt = "\n\n".join([*before, question.turns[number]])
            turns.append((row, number + 1, prompt, said[number]))
    ratings = judge.ratings([turn[2] for turn in turns], [turn[3] for turn in turns])
    return [
        {
            "question_id": row["question_id"],
            "model": row["model_id"],
            "judge": [judge.name, "single"],
            "turn": number,
            "score": -1 if rating is None else rating,
        }
        for (row, number, _, _), rating in zip(turns, ratings, strict=True)
    ]


def _turns(row: Mapping[str, Any]) -> Any:
    return row["choices"][0]["turns"]


def _check(names: Sequence[Any], others: Sequence[Any]) -> None:
    """The same questions in the same order."""
    for number, pair in enumerate(zip(names, others, strict=False), start=1):
        if pair[0] != pair[1]:
            raise KitError(f"answers, row {number}: to another question than its counterpart")
    if len(names) != len(others):
        raise KitError(f"answers: {len(others)} for {len(names)}; one a question is expected")
