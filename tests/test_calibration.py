"""h~ in closed form, calibrators against simulated truth, classifiers of readable sources."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss
from training_setting import made_up_rows, made_up_word

from robustpo_kit import calibration, encoders
from robustpo_kit.calibration.classifiers import _combine, raw_logits
from robustpo_kit.calibration.quality import area_under_curve
from robustpo_kit.data import Preference, PreferenceSet
from robustpo_kit.encoders import FineTune, Learned
from robustpo_kit.errors import KitError

SHARES = st.floats(0, 1, allow_nan=False)
GOOD = torch.tensor([[0.2, 0.7, 0.9]], dtype=torch.float64)


# ---- h~ ------------------------------------------------------------------------------------------


@given(
    st.integers(2, 6).flatmap(
        lambda k: st.lists(st.lists(SHARES, min_size=k, max_size=k), min_size=1, max_size=4)
    )
)
def test_relative_factor_at_equal_shares_is_the_sum_of_probabilities(values):
    probs = torch.tensor(values, dtype=torch.float64)
    share = 1 / probs.shape[1]
    h = calibration.calibration_factor(probs, alpha=share, beta=share)
    torch.testing.assert_close(h, probs.sum(1), rtol=1e-12, atol=1e-12)
    assert torch.equal(calibration.uniform_factor(probs), h)


@given(st.lists(SHARES, min_size=2, max_size=6), st.sampled_from(["relative", "stabilised"]))
def test_bounded_kinds_stay_between_zero_and_k(values, kind):
    probs = torch.tensor([values], dtype=torch.float64)
    share = 1 / len(values)
    h = calibration.calibration_factor(probs, alpha=share, beta=share, kind=kind).item()
    assert 0 <= h <= len(values) * (1 + 1e-12)


def test_stabilised_at_equal_shares():
    h = calibration.calibration_factor(GOOD, alpha=1 / 3, beta=1 / 3, kind="stabilised")
    expected = (3 * GOOD / (2 - GOOD)).mean(1)
    torch.testing.assert_close(h, expected, rtol=1e-12, atol=0)


def test_raw_is_equation_6_as_printed_and_unbounded():
    beta, imbalance = torch.tensor([0.5, 0.2, 0.3]), torch.tensor([1.0, 2.0, 3.0])
    h = calibration.calibration_factor(GOOD, alpha=0.5, beta=beta, imbalance=imbalance, kind="raw")
    by_hand = (1 * 0.2 / (0.5 * 0.8) + 2 * 0.7 / (0.2 * 0.3) + 3 * 0.9 / (0.3 * 0.1)) / 3
    assert h.item() == pytest.approx(by_hand, rel=1e-6)
    assert (
        calibration.calibration_factor(torch.ones(1, 2), alpha=0.5, beta=0.5, kind="raw")
        .isinf()
        .all()
    )


def test_relative_is_the_density_ratio_to_the_mixture():
    """Two Gaussians, Bayes classifier of prior 1 : m: P / (alpha P + beta Q) exactly."""
    x = torch.linspace(-3, 3, 40, dtype=torch.float64).reshape(20, 2)
    golden, other = torch.exp(-((x - 1) ** 2) / 2), torch.exp(-((x + 1) ** 2) / 2)
    m, alpha, beta = 3.0, 0.4, 0.6
    c = golden / (golden + m * other)
    h = calibration.calibration_factor(c, alpha=alpha, beta=beta, imbalance=m)
    torch.testing.assert_close(
        h, (golden / (alpha * golden + beta * other)).mean(1), rtol=1e-12, atol=0
    )


def test_factor_grows_with_every_probability():
    raised = GOOD.clone()
    raised[0, 1] += 0.1
    for kind in ("relative", "stabilised", "raw"):
        low, high = (
            calibration.calibration_factor(p, alpha=0.3, beta=0.2, kind=kind)
            for p in (GOOD, raised)
        )
        assert (high > low).all()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("probs", {"probs": GOOD[:, :1]}),
        ("probs", {"probs": GOOD[0]}),
        ("probs", {"probs": GOOD + 0.2}),
        ("probs", {"probs": GOOD - 0.3}),
        ("probs", {"probs": GOOD * float("nan")}),
        ("probs", {"probs": torch.ones(2, 2, dtype=torch.long)}),
        ("alpha", {"alpha": 0.0}),
        ("alpha", {"alpha": 1.5}),
        ("alpha", {"alpha": float("nan")}),
        ("beta", {"beta": 0.0}),
        ("beta", {"beta": -0.1}),
        ("beta", {"beta": [0.5, 0.5]}),
        ("beta", {"beta": [0.5, 0.5, float("nan")]}),
        ("beta", {"beta": 2.0}),
        ("imbalance", {"imbalance": 0.0}),
        ("kind", {"kind": "bounded"}),
    ],
)
def test_bad_arguments_are_named(name, change):
    arguments = {"probs": GOOD, "alpha": 0.5, "beta": 0.5} | change
    with pytest.raises(ValueError, match=f"^{name}"):
        calibration.calibration_factor(**arguments)


# ---- measures and calibrators --------------------------------------------------------------------


def simulated(count, *, distortion, seed=0):
    """Labels drawn from sigmoid(z), and logits distortion * z, as a misjudging classifier has."""
    rng = np.random.default_rng(seed)
    z = 2 * rng.standard_normal(count)
    return distortion * z, (rng.random(count) < 1 / (1 + np.exp(-z))).astype(float)


def test_known_temperature_is_recovered():
    for distortion in (0.5, 1.0, 3.0):
        logits, labels = simulated(40_000, distortion=distortion)
        assert calibration.fit_temperature(logits, labels).temperature == pytest.approx(
            distortion, rel=0.04
        )


def test_calibration_repairs_overconfidence_on_new_rows():
    logits, labels = simulated(20_000, distortion=3.0)
    new_logits, new_labels = simulated(20_000, distortion=3.0, seed=1)
    before = calibration.quality(new_labels, calibration.Temperature()(new_logits))
    assert before["ece"] > 0.08
    for fit in (calibration.fit_temperature, calibration.fit_isotonic):
        after = calibration.quality(new_labels, fit(logits, labels)(new_logits))
        assert after["ece"] < 0.015
        assert after["nll"] < before["nll"] and after["brier"] < before["brier"]
        assert after["auc"] == pytest.approx(before["auc"], abs=2e-3)


def test_isotonic_is_monotone_and_never_certain():
    logits, labels = simulated(300, distortion=1.0)
    probs = calibration.fit_isotonic(logits, labels)(np.linspace(-50, 50, 1001))
    assert (np.diff(probs) >= 0).all()
    assert probs.min() >= 1 / 302 and probs.max() <= 1 - 1 / 302


def test_ece_is_near_zero_when_calibrated_and_known_when_not():
    rng = np.random.default_rng(0)
    probs = rng.random(50_000)
    labels = (rng.random(50_000) < probs).astype(float)
    assert calibration.ece(labels, probs) < 0.01
    assert calibration.ece(labels, probs, scheme="mass") < 0.01
    assert calibration.ece([1, 0, 1, 0], [0.9] * 4) == pytest.approx(0.4)


def test_quality_agrees_with_scikit_learn_and_counts_pairs():
    labels, probs = np.array([1, 0, 1, 0, 1.0]), np.array([0.9, 0.2, 0.4, 0.6, 0.6])
    found = calibration.quality(labels, probs)
    assert found["nll"] == pytest.approx(log_loss(labels, probs))
    assert found["brier"] == pytest.approx(brier_score_loss(labels, probs))
    assert found["auc"] == pytest.approx(
        (2 + 1 + 1.5) / 6
    )  # golden above other: 0.9 twice, 0.4 once, 0.6 once, tie
    assert found["golden_share"] == 0.6 and found["n"] == 5


def test_reliability_counts_every_response_once():
    labels, probs = np.array([1, 0, 1, 0, 1.0]), np.array([0.0, 0.1, 0.55, 0.95, 1.0])
    table = calibration.reliability(labels, probs)
    assert table["count"].tolist() == [1, 1, 1, 2]
    assert table["golden_share"].tolist() == [1, 0, 1, 0.5]
    assert (
        calibration.reliability(labels, probs, bins=5, scheme="mass")["count"].tolist() == [1] * 5
    )


def test_measures_refuse_nonsense():
    for labels, probs in (
        ([1, 2], [0.5, 0.5]),
        ([1, 0], [0.5, 1.5]),
        ([1, 0], [0.5, np.nan]),
        ([1], [0.5, 0.5]),
    ):
        with pytest.raises(ValueError):
            calibration.ece(labels, probs)


# ---- classifiers ---------------------------------------------------------------------------------


def made_up(count, *, readable=True, seed=0):
    """Golden replies of the letters a-h, two other sources of i-p and q-x; or all of the same."""
    letters = ("abcdefgh", "ijklmnop", "qrstuvwx") if readable else ("abcdefgh",) * 3

    def text(rng, alphabet):
        return " ".join(made_up_word(rng, alphabet) for _ in range(rng.integers(2, 6)))

    def write(rng, i):
        return i // 2, text(rng, "aeiou"), tuple(text(rng, alphabet) for alphabet in letters)

    return made_up_rows(count, seed, ("human", "model1", "model2"), write)


@pytest.fixture(scope="module")
def trained(tiny):
    rows = made_up(60)
    return rows, calibration.fit_classifier(rows, seed=0, encoder=tiny, penalty=1.0)


@pytest.mark.parametrize("kind", ["shared", "per_source"])
def test_frozen_classifier_tells_sources_apart_on_new_rows(tiny, kind):
    fitted = calibration.fit_classifier(made_up(60), seed=0, kind=kind, encoder=tiny, penalty=1.0)
    c = fitted.score_set(made_up(40, seed=1))
    assert calibration.quality([1, 0, 0] * 40, c.reshape(-1))["auc"] > 0.9
    assert fitted.heads == (("rest",) if kind == "shared" else ("model1", "model2"))
    assert fitted.imbalance == (
        {"rest": 2.0} if kind == "shared" else {"model1": 1.0, "model2": 1.0}
    )


def test_fine_tuned_classifier_learns_and_leaves_the_encoder_and_the_global_seed_alone(
    tiny,
):
    before, state = tiny.about(), torch.get_rng_state()
    config = FineTune(epochs=4, learning_rate=3e-3, frozen_layers=0)
    fitted = calibration.fit_classifier(
        made_up(40), seed=0, encoder=tiny, features="fine_tuned", folds=2, fine_tune=config
    )
    assert (
        calibration.quality([1, 0, 0] * 40, fitted.score_set(made_up(40, seed=1)).reshape(-1))[
            "auc"
        ]
        > 0.9
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert (
        dataclasses.replace(tiny).about() == before
    )  # a fresh object: its fingerprint is computed anew


def test_out_of_fold_scores_come_from_models_that_never_saw_the_group(tiny):
    """Replies without a trace of their source: a leak would show as an AUC far above one half."""
    rows = made_up(60, readable=False)
    fitted = calibration.fit_classifier(rows, seed=0, encoder=tiny, penalty=1e-3)
    table = fitted.out_of_fold
    assert (table.groupby("group")["fold"].nunique() == 1).all()
    assert sorted(table["fold"].unique()) == [0, 1, 2, 3]
    pairs = [(row.prompt, reply) for row in rows for reply in row.responses]
    labels, fold = table["label"].to_numpy(), table["fold"].to_numpy()
    seen = []
    for left_out, model in enumerate(fitted.models["rest"]):
        inside, own = fold != left_out, raw_logits(model, tiny, pairs)
        seen.append(area_under_curve(labels[inside], own[inside]))
    assert np.mean(seen) > 0.75  # the models do overfit their training rows
    assert abs(area_under_curve(labels, table["logit"].to_numpy()) - 0.5) < 0.12


def test_training_rows_are_refused(trained):
    rows, fitted = trained
    again = rows.select([3]).map(lambda row: dataclasses.replace(row, row_id="line 1"))
    with pytest.raises(ValueError, match="row 'line 1' .*trained on"):
        fitted.score_set(again)
    assert fitted.score(["p"], ["y"], row_ids=["r0-5"]).shape == (1,)  # an id alone says nothing


def test_a_scorer_stored_without_texts_goes_by_ids_and_says_so(trained, tmp_path):
    rows, fitted = trained
    without = Learned(fitted.learned.row_ids, None)
    dataclasses.replace(fitted, learned=without).save(tmp_path)
    old = calibration.SourceClassifier.load(tmp_path, fitted.encoder)
    with pytest.raises(ValueError, match="stored without its texts; fit it again"):
        old.score_set(rows.select([3]))


def test_per_source_heads_combine_as_densities_do():
    """1 golden to 2 of Q1 and 1 of Q2, in any unit: golden against all is P / (P + 2 Q1 + Q2)."""
    p, q1, q2 = np.array([0.5, 0.1]), np.array([0.2, 0.3]), np.array([0.1, 0.9])
    heads = {"one": p / (p + 2 * q1), "two": p / (p + q2)}
    np.testing.assert_allclose(_combine(heads, None), p / (p + 2 * q1 + q2))
    by_own = _combine(heads, ["two", "human"])
    np.testing.assert_allclose(by_own, [heads["two"][0], p[1] / (p[1] + 2 * q1[1] + q2[1])])


def test_the_golden_column_is_judged_by_all_heads_whoever_wrote_it(tiny):
    """A contaminated sample claims that its reply is golden: its true source may not unmask it."""
    fitted = calibration.fit_classifier(
        made_up(60), seed=0, kind="per_source", encoder=tiny, penalty=1.0
    )
    row = made_up(1, seed=1)[0]
    dirty = dataclasses.replace(
        row, responses=(row.responses[1], *row.responses[1:]), sources=("model1", *row.sources[1:])
    )
    c = fitted.score_set(PreferenceSet([dirty]))[0]
    assert c[0] == pytest.approx(fitted.score([row.prompt], [row.responses[1]])[0])
    assert c[1] == pytest.approx(
        fitted.score([row.prompt], [row.responses[1]], sources=["model1"])[0]
    )
    assert c[0] < c[1]  # further from golden than any one source alone says


def test_one_prior_scores_every_column_by_all_heads(tiny):
    fitted = calibration.fit_classifier(
        made_up(24), seed=0, kind="per_source", encoder=tiny, folds=2
    )
    rows = renamed(made_up(6, seed=5))
    own, one = fitted.score_set(rows), fitted.score_set(rows, one_prior=True)
    flat = calibration.flat_responses(rows)
    together = fitted.score(list(flat["prompt"]), list(flat["response"]))
    np.testing.assert_array_equal(one.reshape(-1), together)
    np.testing.assert_array_equal(own[:, 0], one[:, 0])  # the golden column, in either
    assert (own[:, 1:] > one[:, 1:]).all()  # one source's odds against those of all


def test_slot_ratios_are_the_odds_against_one_source_without_the_prior(tiny):
    fitted = calibration.fit_classifier(
        made_up(24), seed=0, kind="per_source", encoder=tiny, folds=2
    )
    rows, head = renamed(made_up(6, seed=5)), fitted.heads[-1]
    golden = [row.responses[row.golden] for row in rows]
    c = fitted.score([row.prompt for row in rows], golden, sources=[head] * len(rows))
    np.testing.assert_allclose(
        fitted.slot_ratios(rows, head), fitted.imbalance[head] * c / (1 - c), rtol=1e-9
    )
    with pytest.raises(ValueError, match="source = 'nobody': one of"):
        fitted.slot_ratios(rows, "nobody")
    with pytest.raises(ValueError, match="was trained on"):
        fitted.slot_ratios(made_up(24), head)
    unclaimed = rows.map(lambda row: dataclasses.replace(row, golden=None))
    with pytest.raises(ValueError, match="claims no golden slot"):
        fitted.slot_ratios(unclaimed, head)


def test_the_calibration_of_least_held_out_nll_is_chosen(tiny):
    fitted = calibration.fit_classifier(
        made_up(40), seed=0, encoder=tiny, folds=2, calibrator="least_nll"
    )
    metrics = fitted.metrics(draws=5)
    best = metrics.loc[metrics["nll"].idxmin()]
    assert metrics["used"].sum() == 1 and best["used"]
    table = fitted.out_of_fold
    np.testing.assert_allclose(calibration.quality(table["label"], table["c"])["nll"], best["nll"])


def test_every_auc_comes_without_the_cut_replies_too(trained):
    _, fitted = trained
    table = fitted.out_of_fold
    cut = set(zip(table["row_id"][:20], table["column"][:20], strict=True))
    row = fitted.metrics(draws=5, cut=cut).iloc[0]
    whole = table[20:]
    expected = area_under_curve(whole["label"].to_numpy(), whole["logit"].to_numpy())
    assert row["auc_whole"] == pytest.approx(expected)
    assert row["auc"] == pytest.approx(fitted.metrics(draws=5).iloc[0]["auc_whole"])


def test_detectors_are_compared_with_and_without_cut_slots():
    clean, cut = np.arange(40) % 2 == 0, np.arange(40) % 4 == 1
    weights = {"perfect": clean, "nothing": np.ones(40), "length": ~cut}
    table = calibration.detectors(clean, weights, np.arange(40), cut=cut, draws=20)
    found = table.set_index(["weight", "samples"])["auc"]
    assert found["perfect", "all"] == 1 and found["nothing", "all"] == 0.5
    assert (found["length", "all"], found["length", "none cut"]) == (0.75, 0.5)
    assert table["n"].tolist() == [40, 30] * 3 and table["contaminated"].tolist() == [20, 10] * 3


def renamed(rows):
    """Rows that no classifier was trained on."""
    return rows.map(lambda row: dataclasses.replace(row, row_id=f"new-{row.row_id}"))


def test_golden_sources_decide_wherever_a_reply_stands(tiny):
    rows = made_up(24)
    swapped = rows.map(
        lambda row: Preference(
            row.row_id, row.group, row.prompt, row.responses[::-1], row.sources[::-1], golden=0
        )
    )
    fitted = calibration.fit_classifier(
        swapped, seed=0, encoder=tiny, golden_sources=("human",), folds=2
    )
    assert fitted.out_of_fold.groupby("column")["label"].mean().tolist() == [0, 0, 1]
    claimed = calibration.fit_classifier(swapped, seed=0, encoder=tiny, folds=2)
    assert claimed.out_of_fold.groupby("column")["label"].mean().tolist() == [1, 0, 0]


def test_same_seed_same_classifier(tiny):
    rows, new = made_up(24), made_up(6, seed=1)
    config = FineTune(epochs=1, frozen_layers=0)
    for features in ("frozen", "fine_tuned"):
        first, second = (
            calibration.fit_classifier(
                rows, seed=3, encoder=tiny, features=features, folds=2, fine_tune=config
            )
            for _ in range(2)
        )
        np.testing.assert_array_equal(first.score_set(new), second.score_set(new))


@pytest.mark.parametrize(
    ("features", "calibrator"), [("frozen", "temperature"), ("fine_tuned", "isotonic")]
)
def test_stored_classifier_scores_alike_and_holds_no_pickle(tiny, tmp_path, features, calibrator):
    fitted = calibration.fit_classifier(
        made_up(24),
        seed=0,
        kind="per_source",
        encoder=tiny,
        features=features,
        calibrator=calibrator,
        folds=2,
        fine_tune=FineTune(epochs=1, frozen_layers=1),
    )
    fitted.save(tmp_path)
    loaded = calibration.SourceClassifier.load(tmp_path)
    tiny._cache.clear()  # both embed the same texts in the same batches
    np.testing.assert_allclose(
        loaded.score_set(made_up(6, seed=1)), fitted.score_set(made_up(6, seed=1)), rtol=1e-6
    )
    pd.testing.assert_frame_equal(loaded.out_of_fold, fitted.out_of_fold, check_exact=False)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors", ".csv"}


@pytest.mark.parametrize("calibrator", ["temperature", "isotonic"])
def test_the_order_of_stored_fields_does_not_matter(tiny, tmp_path, calibrator):
    fitted = calibration.fit_classifier(
        made_up(24), seed=0, kind="per_source", encoder=tiny, calibrator=calibrator, folds=2
    )
    fitted.save(tmp_path)
    path = tmp_path / "classifier.json"

    def turned_round(value):
        if not isinstance(value, dict):
            return value
        return {key: turned_round(value[key]) for key in reversed(value)}

    path.write_text(json.dumps(turned_round(json.loads(path.read_text()))))
    loaded = calibration.SourceClassifier.load(tmp_path)
    assert loaded.calibrators == fitted.calibrators and loaded.imbalance == fitted.imbalance
    new = made_up(6, seed=1)
    tiny._cache.clear()  # both embed the same texts in the same batches
    np.testing.assert_allclose(loaded.score_set(new), fitted.score_set(new), rtol=1e-6)


def test_damaged_or_foreign_classifiers_are_refused(trained, tmp_path):
    _, fitted = trained
    fitted.save(tmp_path)
    with pytest.raises(KitError, match="field encoder"):
        calibration.SourceClassifier.load(tmp_path, encoders.load("tiny", seed=1))
    path = tmp_path / "classifier.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(KitError, match=r"classifier\.safetensors: differs"):
        calibration.SourceClassifier.load(tmp_path)
    with pytest.raises(KitError, match="no such file"):
        calibration.SourceClassifier.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("kind", {"kind": "pooled"}),
        ("features", {"features": "tfidf"}),
        ("calibrator", {"calibrator": "platt"}),
        ("folds", {"folds": 1}),
        ("preferences", {"folds": 100}),
        ("penalty", {"penalty": 0.0}),
        ("preferences", {"golden_sources": ("nobody",)}),
    ],
)
def test_fit_names_the_bad_argument(tiny, name, change):
    with pytest.raises(ValueError, match=f"^{name}"):
        calibration.fit_classifier(made_up(8), **({"seed": 0, "encoder": tiny} | change))


def test_metrics_and_reliability_tables_have_every_stage(trained):
    _, fitted = trained
    table = fitted.metrics(draws=20)
    assert table["stage"].tolist() == ["before", "temperature", "isotonic"]
    assert (
        (table["auc_low"] <= table["auc"].iloc[0]) & (table["auc"].iloc[0] <= table["auc_high"])
    ).all()
    assert (table["n"] == 180).all()
    counts = fitted.reliability().groupby("stage")["count"].sum()
    assert counts.tolist() == [180, 180, 180]


def test_response_table_is_tidy_and_holds_no_text(trained):
    rows, _ = trained
    values = np.arange(180.0).reshape(60, 3)
    table = calibration.response_table(rows, values, "value")
    assert list(table.columns) == ["row_id", "group", "column", "source", "words", "value"]
    row = table.iloc[7]  # the second response of the third row
    assert (row["row_id"], row["column"], row["source"], row["value"]) == ("r0-2", 1, "model1", 7)
    assert row["words"] == len(rows[2].responses[1].split())
    with pytest.raises(ValueError, match="values: shape"):
        calibration.response_table(rows, values[:3])
