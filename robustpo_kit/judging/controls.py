"""Replies whose worth against the golden one is known, made of the rows themselves."""

from collections.abc import Sequence

from robustpo_kit.calibration import WORD
from robustpo_kit.data import PreferenceSet, take
from robustpo_kit.errors import KitError
from robustpo_kit.records import stream
from robustpo_kit.rewards import replies_elsewhere

NEARLY_EMPTY = "OK."
PADDING = 3
MANY = 12
DRESS = "**Sure! Great question!** {}"
CLOSE = "{} You're absolutely right to ask. I hope this helps!"
ACCENTS = str.maketrans("aeiouAEIOU", "áéíóúÁÉÍÓÚ")


def golden_replies(rows: PreferenceSet) -> list[str]:
    """[N] the golden reply of each row."""
    return [row.responses[row.golden or 0] for row in rows]


def made(rows: PreferenceSet, seed: int) -> dict[str, list[str]]:
    """The replies of the controls in MAKES."""
    golden = golden_replies(rows)
    alone = rows.map(lambda row: take(row, [row.golden or 0]))
    elsewhere = [other[0] for other in replies_elsewhere(alone, seed=seed)]
    if None in elsewhere:
        raise KitError(f"{rows.name}: no reply to another prompt; two groups are needed")
    others = list(map(str, elsewhere))
    prompts = [row.prompt for row in rows]
    shuffled = _shuffled(prompts, seed)
    halves = [_first_half(text) for text in golden]
    return {
        "echo": prompts,
        "perturbed echo": [_perturbed(prompt) for prompt in prompts],
        "shuffled echo": shuffled,
        "disguised echo": [_disguised(prompt) for prompt in prompts],
        "hidden echo": [_hidden(prompt) for prompt in prompts],
        "inflected echo": [_inflected(prompt) for prompt in prompts],
        "nearly empty": [NEARLY_EMPTY] * len(rows),
        "off-topic": others,
        "truncated": halves,
        "doubled": [f"{text} {text}" for text in golden],
        "with prompt words": [" ".join(pair) for pair in zip(golden, shuffled, strict=True)],
        "padded": _padded(golden, others),
        "very long": _around(golden, others, MANY),
        "shuffled": _shuffled(golden, seed),
        "dressed half": [DRESS.format(text) for text in halves],
        "closed half": [CLOSE.format(text) for text in halves],
        "listed half": ["- " + "\n- ".join(WORD.findall(text)) for text in halves],
        "dressed": [DRESS.format(text) for text in golden],
        "telegram": [_without_words(*pair) for pair in zip(golden, prompts, strict=True)],
    }


def _first_half(text: str) -> str:
    words = WORD.findall(text)
    return _joined(words[: max(1, len(words) // 2)], text)


def _joined(words: Sequence[str], text: str) -> str:
    """Words of a text as it writes them: apart, or one after the other where it has no blanks."""
    return (" " if len(text.split()) > 1 else "").join(words)


def _padded(golden: Sequence[str], others: Sequence[str]) -> list[str]:
    """Each golden reply, and after it PADDING replies to other prompts."""
    around = _around(golden, others, PADDING)
    return [" ".join(texts) for texts in zip(golden, around, strict=True)]


def _around(golden: Sequence[str], others: Sequence[str], count: int) -> list[str]:
    """`count` replies to other prompts in one, of this row and those after it."""
    long = []
    for place, own in enumerate(golden):
        texts = dict.fromkeys([*others[place:], *others[:place]])
        long.append(" ".join([text for text in texts if text != own][:count]))
    return long


def _perturbed(text: str) -> str:
    """The text with "and" after every second word, so that no three of its words stay together."""
    words = WORD.findall(text)
    return " ".join([word + " and" * (place % 2) for place, word in enumerate(words)])


def _disguised(text: str) -> str:
    """The text as an encoder may still read it, and a filter of words does not."""
    return " ".join(f"_{word}_" for word in WORD.findall(text.translate(ACCENTS)))


def _hidden(text: str) -> str:
    """The text with a zero-width space in each word."""
    return " ".join(f"{word[:1]}\u200b{word[1:]}" for word in text.split())


def _inflected(text: str) -> str:
    """The text's words of three letters or more, with an s at the end or without theirs."""
    words = [word.strip("?!.,") for word in text.lower().split()]
    longer = [word for word in words if len(word) > 2] or words
    turned = [word[:-1] if word.endswith("s") else f"{word}s" for word in longer]
    return f"Use the {' and '.join(turned)}."


def _without_words(text: str, prompt: str) -> str:
    """The text without words of the prompt; all of it where nothing else is in it."""
    known = set(WORD.findall(prompt.lower()))
    return _joined([word for word in WORD.findall(text) if word.lower() not in known], text) or text


def _shuffled(texts: Sequence[str], seed: int) -> list[str]:
    """The words of each text in another order."""
    draw = stream(seed, "order of words")
    return [_joined(draw.permutation(WORD.findall(text)).tolist(), text) for text in texts]
