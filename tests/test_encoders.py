"""The tiny encoder: embeddings that ignore the company a text keeps, kept in memory, seeded."""

import pytest
import torch

from robustpo_kit import encoders
from robustpo_kit.errors import KitError

TEXTS = ["how to boil an egg", "a", "boil it for six minutes, then cool it", "a"]


def test_embeddings_have_length_one_and_ignore_the_batch(tiny):
    together = tiny.embed(TEXTS)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(4))
    alone = torch.cat([encoders.load("tiny").embed([text]) for text in TEXTS])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)  # padding does not leak
    assert torch.equal(together[1], together[3])


def test_a_text_is_encoded_once(tiny, monkeypatch):
    encoder = encoders.load("tiny")
    batches = []
    original = encoder._embed_batch
    monkeypatch.setattr(
        encoder, "_embed_batch", lambda batch: batches.append(batch) or original(batch)
    )
    encoder.embed(TEXTS)
    encoder.embed(TEXTS[::-1])
    assert sorted(text for batch in batches for text in batch) == sorted(set(TEXTS))
    assert encoder.embed([]).shape == (0, encoder.width)


def test_seed_decides_the_tiny_weights_and_leaves_the_global_state_alone():
    state = torch.get_rng_state()
    first, again, other = (encoders.load("tiny", seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.about() == again.about()
    assert first.about()["fingerprint"] != other.about()["fingerprint"]


def test_long_texts_are_cut(tiny):
    assert tiny.embed(["x" * 5000]).isfinite().all()


def test_unknown_encoders_are_refused(tmp_path):
    with pytest.raises(KitError, match="asset 'no-such-encoder'"):
        encoders.load("no-such-encoder")
    with pytest.raises(KitError, match="cannot be loaded"):
        encoders.load(str(tmp_path))
    with pytest.raises(ValueError, match="^dtype"):
        encoders.load("tiny", dtype="int8")
