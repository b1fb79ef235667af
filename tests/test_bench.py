"""The bench on a tiny model: every contender runs, and its file says what it should."""

import importlib.util
import itertools
import json

import pandas as pd
import pytest
import torch

from robustpo_kit import bench, data, policies
from robustpo_kit.bench import contenders, inside, layouts
from robustpo_kit.bench.epochs import StepClock
from robustpo_kit.bench.models import bench_policy
from robustpo_kit.data import PreferenceSet
from robustpo_kit.errors import KitError
from robustpo_kit.policies import attention

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
    sizes = {(row["contender"], row["prompt_tokens"], row["k"]) for row in written["sizes"]}
    assert sizes == set(itertools.product(bench.CONTENDERS, (64, 256), (2, 4, 8)))
    assert set(written["skipped"]) == {"trl_liger", "flash_pref"}
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
        "bench.pdf",
        "bench.png",
    ]
    header, *rows = (folder / "bench.csv").read_text().splitlines()
    assert header == "quantity,alternation,value"
    assert set(RATIOS) <= {row.split(",")[0] for row in rows}
    assert (folder / "bench.png").read_bytes()[:4] == b"\x89PNG"


def test_layouts_are_timed_by_the_prompts_share_of_a_row(tmp_path, monkeypatch):
    def in_this_process(task, rows):
        PreferenceSet(rows["lists"]).to_jsonl(tmp_path / "lists.jsonl")
        return contenders.contender(task, tmp_path)

    monkeypatch.setattr(layouts, "child", in_this_process)
    file = dialogues(tmp_path / "hh.jsonl")
    found = bench.run_layouts(str(file), str(tmp_path / "out"), model="tiny", alternations=2)
    table = pd.read_csv(tmp_path / "out" / "layouts.csv")
    assert list(table["quantile"]) == [q for q in layouts.QUANTILES for _ in range(2)]
    shares = table["prompt_tokens"] / (table["prompt_tokens"] + table["response_tokens"])
    assert shares.is_monotonic_increasing and 0 < shares.iloc[0] < shares.iloc[-1] < 1
    assert list(table["ratio"]) == pytest.approx(table["separate"] / table["shared"], rel=1e-4)
    assert len(bench.layouts_summary(found).splitlines()) == len(layouts.QUANTILES)
    written = json.loads((tmp_path / "out" / "layouts.json").read_text())
    assert written["device"] and written["seed"] == 0 and written["versions"]["torch"]
    with pytest.raises(KitError, match="fewer than 2 rows fit 512 tokens"):
        bench.run_layouts(str(dialogues(tmp_path / "one.jsonl", n=1)), model="tiny")
    with pytest.raises(KitError, match=r"alternations \(0\) should be"):
        bench.run_layouts(alternations=0)


def test_what_it_cannot_do_is_said(tmp_path, monkeypatch):
    with pytest.raises(KitError, match="fewer than 50 pairs"):
        bench.run(str(dialogues(tmp_path / "hh.jsonl")), model="tiny", pairs=50)
    with pytest.raises(KitError, match=r"alternations \(0\)"):
        bench.run(model="tiny", alternations=0)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(KitError, match="TRL is not installed.*pip install"):
        bench.run(model="tiny")


# ---------------------------------------------------------------- what is timed


CONFIG = bench.BenchConfig(model="tiny", batch_size=2)


@pytest.fixture
def policy():
    """Tiny, in the precision in which attention is computed by matrix products."""
    policy = bench_policy(CONFIG)
    policy.model.to(torch.bfloat16)
    return policy


@pytest.fixture
def pairs(tmp_path):
    rows = [{"prompt": f"why {i}", "chosen": "because", "rejected": "no " * i} for i in (1, 2)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return data.load(tmp_path / "pairs.jsonl")


@pytest.fixture
def products(monkeypatch) -> list[int]:
    """The lengths of the blocks whose attention is computed by matrix products."""
    lengths = []
    real = attention._matrix_attention

    def counted(q, *others):
        lengths.append(q.shape[2])
        return real(q, *others)

    monkeypatch.setattr(attention, "_matrix_attention", counted)
    return lengths


def test_a_step_leaves_weights_and_gradients_as_they_were(policy, pairs):
    before = [parameter.clone() for parameter in policy.model.parameters()]
    step = inside.Step(CONFIG, policy, pairs, "dpo(beta=0.1)")
    step()
    for parameter, value in zip(policy.model.parameters(), before, strict=True):
        assert torch.equal(parameter, value)
        assert parameter.grad is None or not parameter.grad.any()
    assert 0 < step.objective_ms(repeats=3) < 1e3


@pytest.mark.skipif(torch.cuda.is_available(), reason="matrix products are for CPUs")
def test_ideas_are_left_out_and_come_back(policy, pairs, products, monkeypatch):
    used = {}

    def take_each(steps, turns):
        for name, step in steps.items():
            products.clear()
            step()
            used[name] = len(products)
        return {}

    monkeypatch.setattr(inside, "alternate", take_each)
    inside.leave_ideas_out(CONFIG, policy, pairs, 1)
    assert used["nothing"] == used["fused_lora"] > 0
    assert used["matrix_attention"] == used["shared_prefix"] == 0
    assert any(isinstance(module, policies.FusedLinear) for module in policy.model.modules())


@pytest.mark.skipif(torch.cuda.is_available(), reason="matrix products are for CPUs")
def test_plain_attention_scores_alike(policy, products):
    rows = [policies.TokenRow("0", (5, 6, 7), ((8, 9), (10,)), (0, 0))]
    scores = {
        kernel: policies.sequence_logps(policy.model, policies.collate(rows, kernel=kernel))
        for kernel in ("sdpa", "plain_sdpa")
    }
    assert products
    torch.testing.assert_close(scores["sdpa"], scores["plain_sdpa"], rtol=0.02, atol=0.02)
    with pytest.raises(ValueError, match="kernel: 'plain' should be one of"):
        policies.collate(rows, kernel="plain")


def test_the_clock_of_steps_runs_from_their_start_to_their_optimizer():
    times = iter([10.0, 11.5, 20.0, 20.25])
    steps = StepClock(lambda: next(times))
    for _ in range(2):
        steps.on_step_begin(None, None, None, model=None)
        steps.on_pre_optimizer_step(None, None, None, model=None)
    assert steps.seconds == 1.75


def test_steps_alternate_and_the_first_turn_is_not_counted(monkeypatch):
    taken, times = [], iter(range(100))
    monkeypatch.setattr(inside, "clock", lambda: next(times))
    steps = {name: (lambda name=name: taken.append(name)) for name in "ab"}
    seconds = inside.alternate(steps, 2)
    assert "".join(taken) == "baabba"
    assert seconds == {"a": [1, 1], "b": [1, 1]}
