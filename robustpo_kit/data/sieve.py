"""The sieve that every task's rows go through: defects are dropped and counted."""

from robustpo_kit.data.loading import BadRows
from robustpo_kit.data.preferences import PreferenceSet
from robustpo_kit.data.rows import BadRowError, Preference
from robustpo_kit.data.shapes import BEHIND, PARTED
from robustpo_kit.data.template import Template

MANY_WORDS = 10_000  # a limit that only what is no text exceeds


class Sieve:
    """Collects rows; counts and drops the empty, the duplicate, the over-long and the malformed."""

    def __init__(
        self, bad: BadRows, *, max_words: int = MANY_WORDS, max_prompt_words: int = MANY_WORDS
    ):
        self.bad = bad
        self.max_words, self.max_prompt_words = max_words, max_prompt_words
        self.rows: list[Preference] = []
        self.dropped = bad.counts
        self._seen: set[tuple[str, tuple[str, ...]]] = set()

    def drop(self, reason: str) -> None:
        """Count a record that becomes no row."""
        self.dropped[reason] += 1

    def refuse(self, error: BadRowError) -> None:
        """Count dialogues that do not part in their last replies; tell `bad` of another defect."""
        if error.why.endswith((PARTED, BEHIND)):
            return self.drop(error.why)
        self.bad(error)

    def add(self, row: Preference) -> None:
        """Keep a row without defect; count any other under its first defect."""
        defect = self._defect(row)
        if defect:
            return self.drop(defect)
        self._seen.add((row.prompt, row.responses))
        self.rows.append(row)

    def _defect(self, row: Preference) -> str:
        """Why the row is dropped; empty where it is kept."""
        if not all(text.strip() for text in (row.prompt, *row.responses)):
            return "empty"
        if len(set(row.responses)) < len(row.responses):
            return "equal responses"
        longest = max(len(response.split()) for response in row.responses)
        if len(row.prompt.split()) > self.max_prompt_words or longest > self.max_words:
            return "over-long"
        if (row.prompt, row.responses) in self._seen:
            return "duplicate"
        return ""

    def finish(self, name: str, template: Template) -> PreferenceSet:
        """The rows kept, as a set that knows what was dropped; raises KitError on a bad row."""
        return PreferenceSet(
            self.rows, name=name, template=template, dropped=self.dropped
        ).validate()
