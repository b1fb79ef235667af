"""Linear heads against a closed form, the fine-tuning loop's promises, length buckets."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from robustpo_kit import encoders
from robustpo_kit.encoders import FineTune
from robustpo_kit.errors import KitError

PAIRS = [("p", "aaa"), ("p", "zzz"), ("question", "answer")]


def bce(scores, targets):
    return torch.nn.functional.binary_cross_entropy_with_logits(scores[:, 0], targets)


def test_logistic_fit_agrees_with_scikit_learn():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 5))
    y = (x[:, 0] + rng.standard_normal(300) > 0.5).astype(float)
    ours = encoders.fit_logistic(x, y, 2.0)
    theirs = LogisticRegression(C=0.5, tol=1e-10, max_iter=10_000).fit(x, y)
    np.testing.assert_allclose(ours.weight, theirs.coef_[0], atol=1e-4)
    assert ours.bias == pytest.approx(theirs.intercept_[0], abs=1e-4)


def test_relevance_features_hold_the_cosine_and_its_summands(tiny):
    features = encoders.relevance_features(tiny, PAIRS)
    np.testing.assert_allclose(features[:, 0] / 10, features[:, 1:].sum(1) / tiny.width, rtol=1e-9)
    a, b = tiny.embed(["question"]), tiny.embed(["answer"])
    assert features[2, 0] == pytest.approx(10 * float(a @ b.T), rel=1e-5)


def test_scorer_starts_at_zero_and_frozen_layers_stay(tiny):
    examples, targets = [[pair] for pair in PAIRS[:2] * 8], [1.0, 0.0] * 8
    config = FineTune(epochs=10, batch_size=4, learning_rate=1e-2, frozen_layers=1)
    start = encoders.PairScorer(tiny, 1, 64)
    assert (encoders.score_pairs(start, tiny, PAIRS) == 0).all()
    scorer = encoders.fine_tune(tiny, examples, targets, bce, config, seed=0)
    before, after = start.state_dict(), scorer.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and not any("embeddings" in name or "layer.0." in name for name in moved)
    assert moved <= set(scorer.trained_state())
    high, low, _ = encoders.score_pairs(scorer, tiny, PAIRS)
    assert high > 0.5 > -0.5 > low


def test_scores_do_not_depend_on_the_batch(tiny):
    scorer = encoders.fine_tune(
        tiny, [[p] for p in PAIRS], [1, 0, 1], bce, FineTune(epochs=2, frozen_layers=0), seed=0
    )
    together = encoders.score_pairs(scorer, tiny, PAIRS, batch_size=3)
    alone = np.concatenate([encoders.score_pairs(scorer, tiny, [pair]) for pair in PAIRS])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_every_example_appears_once_an_epoch_in_batches_of_like_length():
    lengths = np.random.default_rng(0).integers(1, 100, size=205)
    batches = encoders.length_bucketed(lengths, 16, np.random.default_rng(1))
    assert sorted(i for batch in batches for i in batch) == list(range(205))
    spread = np.mean([np.ptp(lengths[batch]) for batch in batches])
    assert spread < 0.3 * np.ptp(lengths)


def test_bad_arguments_are_named(tiny):
    with pytest.raises(ValueError, match="^examples"):
        encoders.fine_tune(tiny, [PAIRS[:1], PAIRS[:2]], [1, 0], bce, FineTune(), seed=0)
    with pytest.raises(ValueError, match="^penalty"):
        encoders.fit_logistic(np.ones((2, 1)), np.array([0, 1]), 0.0)
    with pytest.raises(ValueError, match="epochs"):
        FineTune(epochs=0)


def test_a_stored_scorer_is_whole_of_this_version_and_of_its_encoder(tiny, tmp_path):
    scorer = encoders.LinearScorer(np.arange(3.0), 0.5)
    tables = {"rows": pd.DataFrame({"row_id": ["007", "NA"], "kind": ["x", "y"]})}
    state = {f"head.{name}": value for name, value in scorer.trained_state().items()}
    encoders.save_bundle(tmp_path, "head", state, {"folds": 2}, tiny, tables)
    bundle = encoders.load_bundle(tmp_path, "head", None)
    again = bundle.scorer("head.", {})
    assert bundle.about == {"folds": 2} and (again.weight == scorer.weight).all()
    assert again.bias == 0.5 and bundle.tables["rows"].row_id.tolist() == ["007", "NA"]
    with pytest.raises(KitError, match="trained on 'tiny' with other weights"):
        encoders.load_bundle(tmp_path, "head", encoders.load("tiny", seed=1))
    (tmp_path / "rows.csv").write_text("row_id,kind\n")
    with pytest.raises(KitError, match=r"rows\.csv: differs from its recorded sha256"):
        encoders.load_bundle(tmp_path, "head", tiny)
    (tmp_path / "head.json").write_text('{"made_by": "elsewhere"}')
    with pytest.raises(KitError, match="field made_by: not a scorer stored by this version"):
        encoders.load_bundle(tmp_path, "head", tiny)
