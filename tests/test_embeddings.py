from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from divray.embeddings import Encoder, embedding_column, embedding_matrix

TEXTS = [
    "The engine was built by the company in 1998 .",
    "A cat slept on the warm roof of the old barn while the rain fell and nobody came to look for it until late .",
    "",
    "Rome",
    "The company built the engine in 1998 .",
    *(f"Sentence number {i} has {'some ' * (i % 9)}words ." for i in range(80)),
]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder("embedded:minilm", device="cpu")


def test_embeddings_do_not_depend_on_their_company(encoder: Encoder) -> None:
    whole = encoder.encode(TEXTS)
    assert whole.shape == (len(TEXTS), encoder.dimension) and whole.dtype == np.float32
    assert np.allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-5)
    order = np.random.default_rng(0).permutation(len(TEXTS))
    assert (encoder.encode([TEXTS[i] for i in order]) == whole[order]).all()
    assert (np.concatenate([encoder.encode(TEXTS[:3]), encoder.encode(TEXTS[3:7])]) == whole[:7]).all()


def test_embeddings_are_the_mean_of_the_last_hidden_states(encoder: Encoder) -> None:
    import torch

    made = encoder.encode(TEXTS[:2])
    for text, vector in zip(TEXTS[:2], made, strict=True):
        with torch.inference_mode():
            hidden = encoder.model(**encoder.tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        wanted = torch.nn.functional.normalize(hidden.mean(0), dim=0).numpy()
        assert np.abs(vector - wanted).max() < 2e-6
    assert float(made[0] @ encoder.encode([TEXTS[4]])[0]) > float(made[0] @ made[1]) + 0.3


def test_threads_are_put_back(encoder: Encoder) -> None:
    import torch

    before = torch.get_num_threads()
    encoder.encode(["a"])
    assert torch.get_num_threads() == before


def test_long_texts_are_cut(encoder: Encoder) -> None:
    long = "one two three four " * 64
    assert (encoder.encode([long + " eleven"]) == encoder.encode([long + " twelve thirteen"])).all()


def test_columns_and_matrices() -> None:
    matrix = np.arange(6, dtype=np.float32).reshape(3, 2)
    column = embedding_column(matrix)
    assert (embedding_matrix(column) == matrix).all()
    assert (embedding_matrix(pa.chunked_array([column.slice(1)])) == matrix[1:]).all()
    assert embedding_matrix(column.slice(0, 0)).shape == (0, 0)
