"""The bench on a tiny model: every contender runs, and its file says what it should."""

import importlib.util
import json

import pytest

from robustpo_kit import bench
from robustpo_kit.errors import KitError

pytest.importorskip("trl", reason="TRL is an optional peer")


RATIOS = (
    "ratio_vs_trl_pairs",
    "ratio_vs_separate_k4",
    "dora_over_erm",
    "gamma_over_base",
    "peak_memory_ratio_vs_trl",
)


def dialogues(path, n=12):
    """HH-RLHF dialogues of other words and lengths."""
    lines = []
    for i in range(n):
        prompt = f"\n\nHuman: question {i} {'why ' * (i % 4)}\n\nAssistant:"
        lines.append(
            json.dumps({"chosen": f"{prompt} because {'so ' * i}", "rejected": f"{prompt} no {i}"})
        )
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    file = dialogues(folder / "hh.jsonl")
    result = bench.run(str(file), str(folder / "out"), model="tiny", pairs=4, alternations=1)
    return result, folder / "out"


def test_the_file_holds_every_ratio_with_its_values_and_its_provenance(found):
    result, folder = found
    written = json.loads((folder / "bench.json").read_text())
    for name in RATIOS:
        values = written[name]["values"]
        assert len(values) >= 1 and all(value > 0 for value in values)
        assert min(values) <= written[name]["median"] <= max(values)
        assert name in written["targets"]
    assert written["versions"]["trl"] and written["device"] and written["duration_s"] > 0
    assert (written["config"]["model"], written["config"]["dtype"], written["seed"]) == (
        "tiny",
        "float32",
        0,
    )
    assert written["data"]["source"] == "hh.jsonl"  # no path of this machine
    assert len(written["scaling"]) == len(bench.SCALING)
    engine, *trl = (written[name][0] for name in bench.CONTENDERS)
    assert written["ratio_vs_trl_pairs"]["values"] == [
        min(t["seconds"] for t in trl) / engine["seconds"]
    ]
    assert written["peak_memory_ratio_vs_trl"]["values"] == [
        engine["peak_mb"] / min(t["peak_mb"] for t in trl)
    ]
    assert (
        0 < engine["steps_s"] < engine["seconds"]
        and engine["peak_mb"] > engine["above_model_mb"] > 0
    )
    assert result["layouts_k4"]["responses"] == 4
    assert 0 < written["gamma_over_base_own_ms"]["median"] < 1e3
    for idea in ("matrix_attention", "fused_lora", "shared_prefix"):
        assert len(written[f"gain_of_{idea}"]["values"]) == 1
    assert "ratio_vs_separate_k4" in bench.summary(written)


def test_the_table_and_the_figure_lie_beside_it(found):
    _, folder = found
    assert sorted(path.name for path in folder.iterdir()) == [
        "bench.csv",
        "bench.json",
        "bench.png",
    ]
    header, *rows = (folder / "bench.csv").read_text().splitlines()
    assert header == "quantity,alternation,value"
    assert set(RATIOS) <= {row.split(",")[0] for row in rows}
    assert (folder / "bench.png").read_bytes()[:4] == b"\x89PNG"


def test_what_it_cannot_do_is_said(tmp_path, monkeypatch):
    with pytest.raises(KitError, match="fewer than 50 pairs"):
        bench.run(str(dialogues(tmp_path / "hh.jsonl")), model="tiny", pairs=50)
    with pytest.raises(KitError, match=r"alternations \(0\)"):
        bench.run(model="tiny", alternations=0)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(KitError, match="TRL is not installed.*pip install"):
        bench.run(model="tiny")
