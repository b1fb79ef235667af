"""Declared studies: what a declaration may say, and what a table of results may not omit."""

import json

import pytest

from robustpo_kit import analysis
from robustpo_kit.errors import KitError


def declaration() -> dict:
    return {
        "name": "contamination",
        "question": "Does reweighting protect against contaminated rows?",
        "primary": [
            {
                "contrast": ["reweight", "erm"],
                "outcome": "gold",
                "where": {"dose": 0.6},
                "direction": "higher",
            },
            {
                "contrast": ["erm", "erm"],
                "outcome": "gold",
                "where": {"dose": 0.6},
                "against": {"dose": 0},
                "direction": "lower",
            },
        ],
        "seeds": [0, 1, 2, 3],
        "methods": {"erm": "dpo_pl(beta=0.1)", "reweight": "reweight(dpo_pl(beta=0.1))"},
        "doses": [0, 0.6],
        "stopping": "when every seed has run",
    }


def load(folder, declared):
    (folder / "contamination.json").write_text(json.dumps(declared))
    return analysis.Study.load("contamination", folder)


def test_a_declaration_is_read_as_it_stands(tmp_path):
    study = load(tmp_path, declaration())
    assert study.seeds == (0, 1, 2, 3) and study.doses == (0.0, 0.6) and study.settings == {}
    first, second = study.primary
    assert (first.method, first.baseline, first.direction) == ("reweight", "erm", "higher")
    assert first.against == first.where == {"dose": 0.6} and second.against == {"dose": 0}


BROKEN = [  # a change of a field (None: left out), and what the error says
    ("name", "others", "name = 'others' should be that of the file"),
    ("question", None, "question is missing"),
    ("stopping", " ", "stopping = ' ' should be text"),
    ("seeds", [], "seeds = [] should be a list of whole numbers"),
    ("seeds", [0, True], "seeds = [0, True] should be a list of whole numbers"),
    ("seeds", [1, 1], "seeds = [1, 1]: each may stand there once"),
    ("doses", ["much"], "doses = ['much'] should be a list of numbers"),
    ("methods", ["erm"], "methods = ['erm'] should be an object"),
    ("primary", [], "primary should be a list of 1 to 3 objects"),
    ("seedz", [1], "seedz is not a field; choose among name, question"),
]
BROKEN_PRIMARY = [
    ("contrast", ["dora", "erm"], "contrast has 'dora'; the methods are erm, reweight"),
    ("contrast", "erm", "contrast = 'erm' should be [method, baseline]"),
    ("contrast", ["erm", "erm"], "contrast = ['erm', 'erm']: both sides are the same rows"),
    ("outcome", None, "outcome is missing"),
    ("where", {"dose": 0.5}, "where has dose 0.5; the doses are [0.0, 0.6]"),
    ("direction", "up", "direction = 'up': choose among higher, lower, either, equivalent"),
    ("direction", "equivalent", "margin goes with direction 'equivalent'"),
    ("margin", 0.1, "margin goes with direction 'equivalent', and only with it"),
    ("method", "erm", "method is not a field; choose among contrast, outcome, where"),
]


@pytest.mark.parametrize(("field", "value", "message"), BROKEN)
def test_what_is_wrong_is_named_with_its_file(tmp_path, field, value, message):
    with pytest.raises(KitError) as raised:
        load(tmp_path, declaration() | {field: value})
    assert str(raised.value).startswith(f"contamination.json: {message}")


@pytest.mark.parametrize(("field", "value", "message"), BROKEN_PRIMARY)
def test_what_is_wrong_in_a_contrast_is_named_with_its_place(tmp_path, field, value, message):
    declared = declaration()
    declared["primary"][0] |= {field: value}
    with pytest.raises(KitError) as raised:
        load(tmp_path, declared)
    assert str(raised.value).startswith(f"contamination.json: primary[0].{message}")


def test_a_contrast_stands_once_and_a_study_is_where_it_is_said_to_be(tmp_path):
    declared = declaration()
    declared["primary"] = [declared["primary"][0]] * 2
    with pytest.raises(KitError, match="primary has the same contrast twice"):
        load(tmp_path, declared)
    with pytest.raises(KitError, match="flips.json: no such study; there are: contamination"):
        analysis.Study.load("flips", tmp_path)
    (tmp_path / "contamination.json").write_text("[]")
    with pytest.raises(KitError, match="contamination.json: the file should be an object"):
        analysis.Study.load("contamination", tmp_path)


def test_every_committed_study_is_a_study():
    from robustpo_kit import paths

    for path in paths.STUDIES.glob("*.json"):
        analysis.Study.load(path.stem)
