"""Views of a sentence's tokens, and the linear discriminant on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from divray.models import local_model
from divray.relations import Example
from divray.spans import BLOCKS, collate, discriminant, encode_spans, exchanged, pooled


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(local_model("embedded:minilm"))


TEXT = "Yesterday Ada Lovelace was born in the town of Rome with a smile."
FORWARD = Example(TEXT, (10, 22), (47, 51), "r")
BACKWARD = Example(TEXT, (47, 51), (10, 22), "r")


def words(tokenizer: Any, encoded: Any, view: int) -> str:
    return tokenizer.decode([one for one, own in zip(encoded.ids, encoded.view, strict=True) if own == view])


def test_each_token_has_one_view(tokenizer: Any) -> None:
    (one,) = encode_spans(tokenizer, [FORWARD], 96)
    assert [words(tokenizer, one, view) for view in range(4)] == [
        "ada lovelace",
        "rome",
        "was born in the town of",
        "yesterday with a smile.",
    ]
    assert one.forward and [one.view[0], one.view[-1]] == [-1, -1]  # special tokens
    (other,) = encode_spans(tokenizer, [BACKWARD], 96)
    assert words(tokenizer, other, 0) == "rome" and not other.forward
    assert encode_spans(tokenizer, [], 96) == []


@pytest.mark.parametrize("most", [8, 12, 40])
def test_a_long_sentence_keeps_both_entities(tokenizer: Any, most: int) -> None:
    text = "word " * 60 + "Ada " + "and so on " * 30 + "Rome " + "again " * 60
    head, tail = text.index("Ada"), text.index("Rome")
    (one,) = encode_spans(tokenizer, [Example(text, (head, head + 3), (tail, tail + 4), "r")], most)
    assert len(one.ids) == most == len(one.view)
    assert (words(tokenizer, one, 0), words(tokenizer, one, 1)) == ("ada", "rome")


def test_pooled_views_are_unit_means_in_the_place_of_their_order(tokenizer: Any) -> None:
    import torch

    batch = collate(encode_spans(tokenizer, [FORWARD, BACKWARD], 96), 0, "cpu", 24)
    states = torch.randn(1, batch.ids.shape[1], 5, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1)
    found = pooled(states, batch, (0.5, 0.5, 1.0, 0.25)).numpy()
    assert found.shape == (2, BLOCKS * 5) and batch.ids.shape[1] == 24
    lengths = np.linalg.norm(found.reshape(2, BLOCKS, 5), axis=2)
    assert np.allclose(lengths, [[0.5, 0.5, 1, 0, 0.25, 0], [0.5, 0.5, 0, 1, 0, 0.25]], atol=1e-6)
    assert np.allclose(exchanged(found[:1]), found[1:], atol=1e-6)


@pytest.mark.parametrize("rows", [12, 300])
def test_discriminant_is_scikit_learns_with_the_same_shrinkage(rows: int) -> None:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    rng = np.random.default_rng(3)
    labels = np.arange(rows) % 3
    inputs = rng.normal(size=(rows, 40)) + 2 * np.eye(3, 40)[labels]
    own = discriminant(inputs, labels, 4, 0.8)
    peer = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.8, priors=[1 / 3] * 3).fit(inputs, labels)
    scores, theirs = own.scores(inputs)[:, :3], peer.decision_function(inputs)
    assert np.allclose(scores - scores.mean(1, keepdims=True), theirs - theirs.mean(1, keepdims=True), rtol=0.02, atol=0.02)
    assert (own.scores(inputs)[:, 3] < -1e3).all()  # a class without rows


def test_a_weight_of_two_is_a_row_twice() -> None:
    rng = np.random.default_rng(4)
    inputs, labels = rng.normal(size=(10, 6)), np.arange(10) % 2
    weighed = discriminant(inputs, labels, 2, 0.5, np.array([2.0, *[1.0] * 9]))
    doubled = discriminant(np.concatenate([inputs, inputs[:1]]), np.append(labels, labels[0]), 2, 0.5)
    assert np.allclose(weighed.weights, doubled.weights, atol=1e-5) and np.allclose(weighed.bias, doubled.bias, atol=1e-5)
