"""A language model as judge: the papers' question in both orders, its answers counted."""

import copy
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from robustpo_kit.errors import KitError
from robustpo_kit.judging.endpoint import Answer, Asker, Endpoint, Planner
from robustpo_kit.judging.forms import FORMS, refuses
from robustpo_kit.judging.judges import OTHER_WAY_ROUND, UNANSWERED
from robustpo_kit.records import digest


class EndpointJudge:
    """Asks an endpoint which of two replies is better, by one of FORMS.

    A pair has a verdict where both orders are answered: what both say, or a tie where they
    contradict each other. One order alone is the papers' way (`both_orders=False`; `compare` swaps
    at random). A form that rates one reply alone prefers the higher rating. Where an answer is
    missing there is no verdict (UNANSWERED), which `win_table` counts apart.

    `counts` says what came of it: pairs; consistent and inconsistent (of the two orders); refusals,
    cut (no verdict within the answer's tokens), unreadable; asked, cached, tokens (of `Asker`).
    """

    def __init__(
        self, endpoint: Endpoint, form: str = "dialogue", *, both_orders: bool = True
    ) -> None:
        if form not in FORMS:
            raise KitError(f"form: '{form}' is unknown; choose {', '.join(FORMS)}")
        self.form, self.both_orders = FORMS[form], both_orders
        self.name = f"{endpoint.model} by {form}"
        self.asker = Asker(endpoint)
        self._own: Counter[str] = Counter()

    @property
    def fingerprint(self) -> str:
        """Digest of the endpoint, what it is sent, and how its answers become verdicts."""
        question = self.asker.endpoint.question(self.form.text)
        return digest(question, self.form.label, self.both_orders, length=16)

    @property
    def counts(self) -> dict[str, int]:
        """What has been asked and answered so far."""
        return dict(self._own + self.asker.counts)

    def calls(self, works: Sequence[Callable[["EndpointJudge"], Any]]) -> list[int]:
        """How many calls each of `works`, which take a judge, would add; none is made."""
        planner = Planner(self.asker.endpoint, "5" if self.form.single else "C")
        judge = copy.copy(self)
        judge.asker, judge._own = planner, Counter()
        reached = [0]
        for work in works:
            work(judge)
            reached.append(len(planner.missing))
        return [after - before for before, after in itertools.pairwise(reached)]

    def verdicts(
        self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
    ) -> list[str]:
        """A, B, C or UNANSWERED for each prompt; errors as `Asker.ask`."""
        pairs = list(zip(prompts, first, second, strict=True))
        self._own["pairs"] += len(pairs)
        if self.form.single:
            both = self.ratings(prompts, first), self.ratings(prompts, second)
            return [_higher(*pair) for pair in zip(*both, strict=True)]
        answers = self._readings(pairs)
        if not self.both_orders:
            return [answer or UNANSWERED for answer in answers]
        turned = self._readings([(prompt, b, a) for prompt, a, b in pairs])
        return [self._agreed(*both) for both in zip(answers, turned, strict=True)]

    def ratings(self, prompts: Sequence[str], replies: Sequence[str]) -> list[float | None]:
        """The rating of each reply, None where there is none; of a form that rates one alone."""
        if not self.form.single:
            raise KitError(f"judge '{self.name}': its form compares two replies; take a single one")
        read = self._readings(list(zip(prompts, replies, strict=True)))
        return [None if rating is None else float(rating) for rating in read]

    def _readings(self, questions: Sequence[tuple[str, ...]]) -> list[str | None]:
        """What each answer says; one that says nothing is counted by its kind."""
        answers = self.asker.ask([self.form.ask(*parts) for parts in questions])
        read = [self.form.read(answer.text) for answer in answers]
        for answer, said in zip(answers, read, strict=True):
            if said is None:
                self._own[_kind(answer)] += 1
        return read

    def _agreed(self, answer: str | None, turned: str | None) -> str:
        """What both orders say; a tie where they contradict each other."""
        if answer is None or turned is None:
            return UNANSWERED
        same = answer == OTHER_WAY_ROUND[turned]
        self._own["consistent" if same else "inconsistent"] += 1
        return answer if same else "C"


def _higher(rating: float | None, other: float | None) -> str:
    """The verdict of two ratings."""
    if rating is None or other is None:
        return UNANSWERED
    if rating == other:
        return "C"
    return "A" if rating > other else "B"


def _kind(answer: Answer) -> str:
    """Why an answer has no verdict."""
    if answer.finish in ("refusal", "content_filter") or refuses(answer.text):
        return "refusals"
    return "cut" if answer.finish in ("length", "context_length_exceeded") else "unreadable"
