"""What a language model is asked as a judge, and how its answer is read.

`dialogue` and `summary` are the papers' (DoRA App. C.4, after Rafailov et al. 2023) word for word;
where lines break is ours. The two forms that rate one reply alone are ours, in the same manner: the
paper has none.
"""

import re
from dataclasses import dataclass

REFUSAL = re.compile(
    r"^\W*(?:i['’]?m (?:very |really |so )?sorry|i apologi[sz]e|sorry\b|as an ai\b|"
    r"i(?: can['’]?t| cannot| can not| won['’]?t| will not|['’]m (?:not able|unable)| am (?:not "
    r"able|unable))\b)",
    re.IGNORECASE,
)
BEFORE = r"[^\w\n]*(?:\d+[.)]\s*)?[^\w\n]*"  # marks of lists and of bold type
BETWEEN = r"[\s*_:'\"’‘“<(\[]*"  # a label and its verdict
ALONE = r"[\s*_'\"’”>)\].:!]*$"  # nothing but marks follows
CLOSING = " \t*_'\"’”>)]}"
OF_TEN = re.compile(r"\(?\s*(?:/|out of|of)\s*10\b\)?")
# what may follow a verdict in its line, whatever it names: a sentence's end, or a reason
ENDED = re.compile(r"[.!]['\"*_)]*(?:\s|$)")
REASON = re.compile(
    r"[,;:–—-]*\s*(?:as|because|for|since|which)\b|\s*(?:comparison|explanation)\s*:|"
    r"is\s+(?!(?:not|no|never|less|hardly)\b)(?:\w+\s+)?(?:better|best|more|preferred)\b",
    re.IGNORECASE,
)
ASIDE = re.compile(r"[,;:(–—-]")


@dataclass(frozen=True)
class Form:
    """A question about two replies, or about one alone, and the label before its verdict."""

    text: str  # with {prompt}, and with {first} and {second}, or with {reply}
    label: str

    @property
    def single(self) -> bool:
        """Whether one reply is rated alone."""
        return "{reply}" in self.text

    def ask(self, prompt: str, *replies: str) -> str:
        """The question about two replies, or about one."""
        names = ("reply",) if self.single else ("first", "second")
        return self.text.format(prompt=prompt, **dict(zip(names, replies, strict=True)))

    def read(self, answer: str) -> str | None:
        """A, B, C or a rating from 1 to 10, as text; None where an answer says none or several."""
        value, name = "[ABC]", r"(?:(?:response|summary)\s+)?"
        if self.single:
            value, name = r"\d+(?:\.\d+)?", ""
        verdict = rf"{BETWEEN}(?i:{name})['\"’<]*({value})\b"
        found = set()
        for line in answer.splitlines():
            said = re.match(rf"{BEFORE}(?i:{self.label}){verdict}(.*)", line)
            if said and self._stands(said[2]):
                found.add(said[1])
            # behind the explanation, in its line
            found |= set(
                re.findall(rf"(?i:(?<!not )(?<!n't ){self.label})\W*:{verdict}{ALONE}", line)
            )
        # the verdict alone, above its explanation
        first = answer.strip().partition("\n")[0]
        found |= set(re.findall(rf"\A[\s*_'\"’‘“<(\[]*({value}){ALONE}", first))
        if self.single:
            found = {rating for rating in found if 1 <= float(rating) <= 10}
        return found.pop() if len(found) == 1 else None

    def _stands(self, rest: str) -> bool:
        """Whether a verdict is one with what follows in its line: no list, no scale, no turn."""
        rest = rest.lstrip(CLOSING)
        if self.single:
            rest = OF_TEN.sub("", rest, count=1).lstrip(CLOSING)
        if not rest or ENDED.match(rest) or REASON.match(rest):
            return True
        another = r"\d" if self.single else r"\b(?:[ABC]|tie|tied|both|neither|not)\b"
        return bool(ASIDE.match(rest)) and not re.search(another, rest)


def refuses(answer: str) -> bool:
    """Whether an answer without a verdict begins as refusals do; told by its words alone."""
    return bool(REFUSAL.match(answer))


_DIALOGUE = """\
For the following query to a chatbot, which response is more helpful?

Query: {prompt}

Response A: {first}

Response B: {second}

FIRST, state only 'A' or 'B' to indicate which response is more helpful, state 'C' if its a tie. \
SECOND, provide a one-sentence comparison of the two responses and explain which you feel is more \
helpful. Your response should use the format:
More helpful: <'A' or 'B' or 'C'>
Comparison: <one-sentence comparison and explanation>"""

_SUMMARY = """\
Which of the following summaries does a better job of summarizing the most important points in the \
given forum post, without including unimportant or irrelevant details? A good summary is both \
precise and concise.

Post: {prompt}

Summary A: {first}

Summary B: {second}

FIRST, state only 'A' or 'B' to indicate which summary is preferred, state 'C' if its a tie. \
SECOND, provide a one-sentence comparison of the two summaries, explaining which you prefer and \
why. Your response should use the format:
Preferred: <'A' or 'B' or 'C'>
Comparison: <one-sentence comparison and explanation>"""

_RATE = """\
FIRST, state only a whole number from 1 (worst) to 10 (best). SECOND, provide a one-sentence \
explanation. Your response should use the format:
Rating: <whole number from 1 to 10>
Explanation: <one-sentence explanation>"""

_DIALOGUE_SINGLE = f"""\
How helpful is the following response to a query to a chatbot?

Query: {{prompt}}

Response: {{reply}}

{_RATE}"""

_SUMMARY_SINGLE = f"""\
How good a job does the following summary do of summarizing the most important points in the given \
forum post, without including unimportant or irrelevant details? A good summary is both precise \
and concise.

Post: {{prompt}}

Summary: {{reply}}

{_RATE}"""

FORMS = {
    "dialogue": Form(_DIALOGUE, "More helpful"),
    "summary": Form(_SUMMARY, "Preferred"),
    "dialogue-single": Form(_DIALOGUE_SINGLE, "Rating"),
    "summary-single": Form(_SUMMARY_SINGLE, "Rating"),
}
