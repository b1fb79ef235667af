"""The numbers that the README states are those of the committed tables."""

import re
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "data" / "results" / "reference"


def table(name):
    return pd.read_csv(REFERENCE / f"{name}.csv")


def stated(label):
    """The cells of the README's result row that begins with `label`."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    row = re.search(rf"^\| {re.escape(label)} \|(.*)\|$", text, re.M)
    assert row, f"the README has no result row '{label}'"
    return row[1]


def interval(row, value, places=2):
    middle, low, high = (f"{row[value + end]:.{places}f}" for end in ("", "_low", "_high"))
    return f"{middle} [{low}, {high}]"


def classifier(name, head, stage):
    found = table("classifier_metrics")
    return found[
        (found["classifier"] == name) & (found["head"] == head) & (found["stage"] == stage)
    ].iloc[0]


def test_classifier_quality():
    for label, name, head in (
        ("classifier, golden against the rest (fine-tuned, shared)", "fine-tuned, shared", "rest"),
        (
            "classifier, golden against SmolLM2 (frozen, per source)",
            "frozen, per source",
            "smollm2",
        ),
    ):
        row, before = classifier(name, head, "temperature"), classifier(name, head, "before")
        assert f"AUC {interval(row, 'auc')}" in stated(label)
        assert f"ECE {before['ece']:.3f} before, {row['ece']:.3f} after temperature" in stated(
            label
        )


def test_confidence_and_h():
    by_source = table("confidence_by_source").groupby("source")["c"].mean()
    words = ", ".join(f"{name} {by_source[key]:.2f}" for name, key in (
        ("correct human", "human_correct"), ("wrong human", "human_wrong"), ("SmolLM2", "smollm2")
    ))  # fmt: skip
    assert words in stated("mean confidence c by source")
    h = (
        table("h_by_sample")
        .query("classifier == 'frozen, per source'")
        .groupby("sample")["h"]
        .mean()
    )
    assert f"{h['clean']:.2f} clean, {h['contaminated']:.2f} contaminated" in stated(
        "mean h~ of samples"
    )


@pytest.mark.parametrize("judge", ["plain", "length-controlled"])
def test_win_and_lose(judge):
    rows = table("dora_win_rates").query("judge == @judge").set_index("policy")
    for name, policy in (("ERM", "dpo_pl erm"), ("DoRA", "dpo_pl dora")):
        row = rows.loc[policy]
        assert f"{100 * row['win']:.0f} / {100 * row['lose']:.0f}" in stated(
            f"win / lose in %, DPO-PL {name}, {judge} judge"
        )


def test_slope_difference():
    row = table("confidence_slope_difference").iloc[0]
    assert f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]" in stated(
        "slope difference, DoRA minus ERM"
    )


def test_gamma_spread():
    steps = table("gamma_curves").query("policy == 'gamma-simpo'")
    words = f"{steps['gamma_min'].min():.2f} to {steps['gamma_max'].max():.2f} around gamma0 = 4"
    assert words in stated("target margins of gamma-SimPO")


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("pairs a second against the faster TRL", "ratio_vs_trl_pairs"),
        ("pairs a second against TRL as it comes", "ratio_vs_trl_default_pairs"),
        ("peak memory against the leaner TRL", "peak_memory_ratio_vs_trl"),
        ("K = 4 responses, shared against separate rows", "ratio_vs_separate_k4"),
        ("step time, DoRA over ERM", "dora_over_erm"),
        ("step time, gamma-SimPO over SimPO", "gamma_over_base"),
    ],
)
def test_speed_and_memory(label, name):
    found = pd.read_csv(REFERENCE.parent / "bench" / "bench.csv").query("quantity == @name")[
        "value"
    ]
    times = " times" if name.startswith("ratio") else ""
    assert f"{found.median():.2f}{times} | {found.min():.2f} to {found.max():.2f}" in stated(label)


def test_every_table_carries_its_provenance():
    for path in REFERENCE.glob("*.csv"):
        record = path.with_suffix(".json")
        assert record.exists(), path.name
        text = record.read_text(encoding="utf-8")
        assert all(
            f'"{key}"' in text for key in ("config", "seed", "versions", "device", "duration_s")
        ), path.name
