"""Every architecture is computed rightly, or refused: the common ones here, all of them if slow."""

import json

import architectures
import pandas as pd
import pytest
import transformers
from architectures import DTYPES, NAMES, NotMade, examined, findings, table_row

from robustpo_kit.policies import Fit, LogitScale, probing

TABLE = pd.read_csv(architectures.TABLE, keep_default_na=False).set_index("model_type")
VERSIONS = json.loads(architectures.TABLE.with_suffix(".json").read_text())["versions"]
PAPERS = ("mistral", "llama", "gemma2", "qwen2")  # of DoRA and gamma-PO
EDGES = {  # one a kind of what goes wrong at the edges
    "cohere": "shared",  # logits scaled outside the head
    "gemma3": "shared",  # a vision part; soft-capped logits
    "gpt_oss": "shared",  # attention sinks
    "deepseek_v3": "shared",  # values of another width than keys
    "afmoe": "shared",  # gated attention
    "qwen3_next": "separate",  # hybrid layers
    "llama4_text": "separate, own logits",  # chunked attention
    "bloom": "separate",  # a bias by position
    "xlnet": "refused",  # no language model from left to right
}


@pytest.mark.parametrize("name", PAPERS)
def test_the_papers_models_are_exact_and_share_their_prompts(name):
    found = findings(name)
    assert [finding.way for finding in found] == ["shared"] * len(DTYPES)
    assert not any(finding.wrong() or finding.reasons for finding in found)


@pytest.mark.parametrize("name", EDGES)
def test_edges_are_exact_fallen_back_or_refused(name):
    found = examined(name, "float32")
    assert found.way == EDGES[name] and not found.wrong()
    assert bool(found.reasons) == (found.way != "shared")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_no_architecture_is_wrong(name):
    """Nor a traceback, in float32 and bfloat16; the page says what is found here."""
    row = table_row(name)
    assert not row.get("wrong"), row
    if transformers.__version__ == VERSIONS["transformers"]:
        assert row["float32"] == TABLE.loc[name, "float32"]


@pytest.mark.parametrize("wrong", [LogitScale(), LogitScale(0.5, 3.0)])
def test_the_sweep_notices_a_wrong_way(wrong, monkeypatch):
    monkeypatch.setattr(probing, "_examined_before", {})
    monkeypatch.setattr(probing, "_examined", lambda core: Fit(False, wrong, False))
    assert examined("cohere", "float32").wrong()


def test_the_table_has_every_architecture_and_the_page_shows_it():
    if transformers.__version__ == VERSIONS["transformers"]:
        assert list(TABLE.index) == list(NAMES)
    assert architectures.PAGE.read_text() == architectures.page(TABLE.reset_index(), VERSIONS)
    for name in PAPERS:
        assert list(TABLE.loc[name, list(DTYPES)]) == ["shared", "shared"]
    for name, way in EDGES.items():
        assert TABLE.loc[name, "float32"] == way


def test_what_cannot_be_made_tiny_says_why():
    for name, row in TABLE[TABLE["float32"] == "not made"].iterrows():
        assert row["reason"], name
    with pytest.raises(NotMade, match="stays large"):
        architectures.tiny_config("gemma4_unified")
