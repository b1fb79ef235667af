"""Every sentence of effect follows from a committed table, or says where else it comes from."""

import re

import claims
import pytest

from robustpo_kit.analysis import verdict

# Verbs that claim an effect, and measured numbers: decimals with their intervals or percentages.
EFFECT = re.compile(
    r"\b(gains?|gained|loses|lose(?! in %)|improves?|outperforms?|beats|moves? (?:less|further)|"
    r"stays? closer|better than|worse than|nothing is lost|separates)\b"
    r"|[+-]?\d+\.\d+ \[|\[[+-]?\d*\.\d+, "
)
ELSEWHERE = re.compile(r"paper|DoRA Table|Table \d|Figure \d")  # what others measured, as cited
KEPT = {  # words of a sentence that claims nothing of today's tables, and why
    "an invalid response loses": "a rule of the toy world",
    "where does each robust method win": "a question",
    "**win**, **lose**, **tie**": "what colours stand for",
    "at lambda = 1 DRO and DoRA lose win rate": "history, corrected under a later date",
    "reweighting by h~ gains where": "history, corrected under a later date",
    '"DoRA loses on clean data" and "DRO loses under flips"': "quoted, and taken back",
    "reweighting's gain in the toy world and DoRA's loss": "taken back there",
}


def sentences(text: str, name: str) -> list[str]:
    """Sentences of prose, without code, mathematics and what stands within marks."""
    if name.endswith(".py"):
        cells = re.split(r"^# %%", text, flags=re.M)
        start = " [markdown]\n"
        cells = [cell.removeprefix(start) for cell in cells if cell.startswith(start)]
        text = "\n\n".join(re.sub(r"^# ?", "", cell, flags=re.M) for cell in cells)
    if name == "CHANGELOG.md":  # what was built is not what was measured
        text = "\n\n".join(re.findall(r"^- (?:Measured|Corrected).*(?:\n  .*)*", text, flags=re.M))
    text = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    text = re.sub(r"^!\[.*$", "", text, flags=re.M)  # a picture
    text = re.sub(r"\$\$.*?\$\$|\$[^$]*\$|`[^`]*`", "", claims.MARK.sub("", text), flags=re.S)
    return re.split(r"(?<=[.;?])\s|\n\n|\|", text)


def unheld(text: str, name: str) -> list[str]:
    """Sentences of effect that no mark holds."""
    found = [part for part in sentences(text, name) if EFFECT.search(part)]
    found = [part for part in found if not ELSEWHERE.search(part)]
    return [part for part in found if not any(kept in part for kept in KEPT)]


@pytest.mark.parametrize("path", claims.texts(), ids=lambda path: path.name)
def test_the_texts_say_what_the_tables_say(path):
    for name, words in claims.MARK.findall(path.read_text(encoding="utf-8")):
        assert name in claims.CLAIMS, f"{path.name}: claims.py has no claim '{name}'"
        assert words == claims.CLAIMS[name](), f"{path.name}: `make claims` writes '{name}' anew"


@pytest.mark.parametrize("path", claims.texts(), ids=lambda path: path.name)
def test_marks_are_whole_and_do_not_begin_a_line(path):
    """A line that begins with a comment would be HTML to a Markdown reader, not prose."""
    text = path.read_text(encoding="utf-8")
    assert len(claims.MARK.findall(text)) == text.count("<!--claim ") == text.count("<!--/claim-->")
    assert not re.search(r"^(# )?<!--", text, re.M)


@pytest.mark.parametrize("path", claims.texts(), ids=lambda path: path.name)
def test_no_sentence_of_effect_stands_alone(path):
    alone = unheld(path.read_text(encoding="utf-8"), path.name)
    assert not alone, (
        f"{path.name}: make this sentence from its table (tests/claims.py, or a cell that prints "
        f"`analysis.verdict`), or add it to KEPT: {alone[0].strip()}"
    )


@pytest.mark.parametrize(
    "sentence",
    [
        "DoRA loses where the data is clean.",
        "The difference is +0.019 [-0.004, 0.044].",
        "DoRA stays closer to the target.",
    ],
)
def test_a_sentence_without_its_table_is_found(sentence):
    assert unheld(f"Prose. {sentence}\n", "README.md") == [sentence]
    assert unheld(f"# %% [markdown]\n# {sentence}\n# %%\n", "00.py")
    assert not unheld(f"DoRA <!--claim x-->{sentence}<!--/claim-->.", "README.md")
    assert not unheld(f"# %%\n# {sentence}\n", "00.py")


def test_other_tables_make_other_sentences(monkeypatch):
    table = claims.table("gamma_differences")
    columns = ["score", "score_low", "score_high"]
    monkeypatch.setattr(claims, "table", lambda name: table)
    table[columns] = [0.0, -0.1, 0.1]
    assert claims.CLAIMS["gamma_against_base"]().count("no difference shown") == 2
    table[columns] += 0.5
    row = table[table["policy"] == "gamma-dpo"].iloc[0]
    after = claims.CLAIMS["gamma_against_base"]()
    assert verdict(row, "score").startswith("gains") and after.count("gains") == 2


def test_every_table_carries_its_provenance():
    for path in (claims.RESULTS / "reference").glob("*.csv"):
        record = path.with_suffix(".json")
        assert record.exists(), path.name
        text = record.read_text(encoding="utf-8")
        keys = ("config", "seed", "versions", "device", "duration_s")
        assert all(f'"{key}"' in text for key in keys), path.name
