"""AlpacaEval 2, Arena-Hard and MT-Bench: answers in their formats, stored judgments as scores."""

from robustpo_kit.benchmarks.answers import BENCHMARKS, Question, answer, decoding, questions
from robustpo_kit.benchmarks.files import read_rows, write_rows
from robustpo_kit.benchmarks.judging import annotate, play, rate
from robustpo_kit.benchmarks.leaderboard import read_gamed, reproduced
from robustpo_kit.benchmarks.length_control import length_controlled
from robustpo_kit.benchmarks.scores import alpacaeval, arena_hard, judgments, mt_bench

__all__ = [
    "BENCHMARKS",
    "Question",
    "alpacaeval",
    "annotate",
    "answer",
    "arena_hard",
    "decoding",
    "judgments",
    "length_controlled",
    "mt_bench",
    "play",
    "questions",
    "rate",
    "read_gamed",
    "read_rows",
    "reproduced",
    "write_rows",
]
