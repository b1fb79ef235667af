"""Judging: who wins against the human reply, by a judge that has passed an audit."""

from robustpo_kit.judging.audits import GIVEN, LEAST, audit, check_admitted
from robustpo_kit.judging.endpoint import REQUEST, Answer, Asker, Endpoint
from robustpo_kit.judging.forms import FORMS, Form
from robustpo_kit.judging.judges import UNANSWERED, FunctionJudge, Judge, RewardJudge, compare
from robustpo_kit.judging.language import EndpointJudge
from robustpo_kit.judging.tables import difference_table, win_table
from robustpo_kit.judging.text import distinct_n, text_table

__all__ = [
    "FORMS",
    "GIVEN",
    "LEAST",
    "REQUEST",
    "UNANSWERED",
    "Answer",
    "Asker",
    "Endpoint",
    "EndpointJudge",
    "Form",
    "FunctionJudge",
    "Judge",
    "RewardJudge",
    "audit",
    "check_admitted",
    "compare",
    "difference_table",
    "distinct_n",
    "text_table",
    "win_table",
]
