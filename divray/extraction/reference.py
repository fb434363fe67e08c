"""Embeddings of test sentences, for the report's comparison of diversity alone: nothing learns from them."""

from __future__ import annotations

import hashlib
from collections import Counter

import pyarrow as pa

from divray.config import Config
from divray.embeddings import Encoder, embedding_column
from divray.run_folder import TEST, RunFolder
from divray.texts import compared_texts

TEST_SENTENCES = 32
"""Test sentences a relation whose diversity is compared with that of the samples."""

TEST_EMBEDDINGS = "data/test_embeddings"


def embed_test(config: Config, uri: str) -> None:
    """Write ``data/test_embeddings``: ``example_id`` and ``embedding`` of the test sentences, by hash of their ids up to
    :data:`TEST_SENTENCES` a relation."""
    run = RunFolder(uri)
    test = run.read_table(TEST)
    names, relations = test["example_id"].to_pylist(), test["relation"].to_pylist()
    seen: Counter[str] = Counter()
    taken = []
    for row in sorted(range(len(names)), key=lambda row: hashlib.sha256(names[row].encode()).digest()):
        seen[relations[row]] += 1
        if seen[relations[row]] <= TEST_SENTENCES:
            taken.append(row)
    some = test.take(pa.array(sorted(taken), pa.int64()))
    embeddings = embedding_column(Encoder.of(config).encode(compared_texts(some, mask=True)))
    run.write_table(TEST_EMBEDDINGS, pa.table({"example_id": some["example_id"], "embedding": embeddings}))
