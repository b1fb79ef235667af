"""The mutants of mutation.py are code that differs, and the report of them is kept."""

import ast
import json

import mutation
import pandas as pd


def test_every_mutant_is_other_code_and_a_seed_draws_it_again():
    mutants = mutation.drawn(0)
    for mutant in mutants:
        text = (mutation.ROOT / mutant.file).read_text()
        assert ast.dump(ast.parse(mutant.text)) != ast.dump(ast.parse(text)), mutant[:-1]
    assert mutation.drawn(0) == mutants != mutation.drawn(1)
    assert {mutant.room for mutant in mutants} == set(mutation.ROOMS)


def test_the_report_kills_nine_in_ten_and_says_why_a_mutant_does_not_count():
    table = pd.read_csv(mutation.TABLE, keep_default_na=False)
    record = json.loads(mutation.TABLE.with_suffix(".json").read_text())
    real = table[table["note"] == ""]
    assert len(table) >= 150 and (real["now"] != mutation.SURVIVED).mean() >= 0.9
    assert (table.loc[table["note"] != "", "now"] == mutation.SURVIVED).all()
    said = mutation.summary(table)
    assert record["config"]["summary"] == said
    assert said in " ".join((mutation.ROOT / "CONTRIBUTING.md").read_text().split())
