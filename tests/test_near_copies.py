from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divray.schemas import EXAMPLES, SCORES
from divray.scoring.conflicts import copies_of_seeds
from divray.scoring.near_copies import deduplicate, novelty
from divray.sections import DiversityConfig
from divray.texts import compared_texts

ADDED = ["cluster", "nearest_id", "similarity", "unique", "reason"]
PLAIN = DiversityConfig(mask_entities=False)


def samples(texts: dict[str, str], correctness: list[float] | None = None) -> pa.Table:
    columns = {"candidate_id": pa.array(texts.keys(), pa.string()), "text": pa.array(texts.values(), pa.string())}
    return pa.table(columns | {"correctness": pa.array(correctness or [None] * len(texts), pa.float64())})


def shuffle(table: pa.Table, random: Any) -> pa.Table:
    return table.take(pa.array(random.sample(range(table.num_rows), table.num_rows), pa.int64()))


def marked(rows: list[tuple[str, str, str, str]], id_column: str = "candidate_id") -> pa.Table:
    """Rows of (id, text, head, tail)."""
    values = []
    for name, text, head, tail in rows:
        h, t = text.index(head), text.index(tail)
        values.append(
            {id_column: name, "text": text, "head_start": h, "head_end": h + len(head), "tail_start": t, "tail_end": t + len(tail)}
        )
    spans = (EXAMPLES.field(n) for n in EXAMPLES.names[2:7])
    schema = pa.schema([pa.field(id_column, pa.string()), *spans, pa.field("correctness", pa.float64())])
    return pa.Table.from_pylist(values, schema)


def by_id(table: pa.Table) -> dict[str, dict[str, object]]:
    return {row["candidate_id"]: {name: row[name] for name in ADDED} for row in table.to_pylist()}


def test_near_copies_go_and_the_most_correct_stays() -> None:
    table = samples(
        {"c": "the a b c d e f", "a": "the a b c d e g", "b": "something else is written in here", "d": "the a b x y z"},
        correctness=[0.9, 0.2, 0.5, 0.5],
    )
    made = deduplicate(table, DiversityConfig(mask_entities=False, threshold=0.6))
    rows = by_id(made)
    assert list(rows) == ["c", "a", "b", "d"]
    assert rows["a"] == {
        "cluster": "a",
        "nearest_id": "c",
        "similarity": pytest.approx(4 / 6),
        "unique": False,
        "reason": "near copy of c (0.67)",
    }
    assert rows["c"]["unique"] and rows["c"]["cluster"] == "a" and rows["c"]["nearest_id"] == ""
    assert rows["b"] == {"cluster": "b", "nearest_id": "", "similarity": 0.0, "unique": True, "reason": "kept: no near neighbour"}
    for name in ADDED:
        assert made.schema.field(name).type == SCORES.field(name).type


def test_masking_compares_structure() -> None:
    table = marked(
        [
            ("a", "Ann Lee was born in Rome, said the mayor .", "Ann Lee", "Rome"),
            ("b", "Bob was born in New York, said the mayor .", "Bob", "New York"),
            ("c", "Rome is where Ann Lee spent her first years .", "Ann Lee", "Rome"),
        ]
    )
    assert compared_texts(table, True)[1] == "HEAD was born in TAIL, said the mayor ."
    assert [row["unique"] for row in by_id(deduplicate(table, DiversityConfig())).values()] == [True, False, True]
    assert all(row["unique"] for row in by_id(deduplicate(table, PLAIN)).values())


def test_earlier_samples_always_stay() -> None:
    earlier = marked([("r0-1", "Ed moved from Ulm to Bonn .", "Ed", "Ulm")])
    table = marked([("r1-1", "Jo moved from Bern to Bonn .", "Jo", "Bern")])
    table = table.set_column(table.num_columns - 1, "correctness", pa.array([1.0]))
    (row,) = by_id(deduplicate(table, DiversityConfig(), earlier)).values()
    assert row["reason"] == "near copy of r0-1 (1.00)" and row["cluster"] == "r0-1"


@pytest.mark.parametrize(("threshold", "copies"), [(0.7, ["r1-1", "r1-2"]), (0.2, ["r1-1", "r1-2", "r1-3"])])
def test_copies_of_seeds_go(threshold: float, copies: list[str]) -> None:
    seeds = marked([("7", "Ann was born in Rome that year .", "Ann", "Rome")], "example_id")
    table = marked(
        [
            ("r1-1", "Cy was born in Graz that year .", "Cy", "Graz"),
            ("r1-2", "Cy was born in Graz that day .", "Cy", "Graz"),
            ("r1-3", "Cy was born in Graz on a cold day .", "Cy", "Graz"),
            ("r1-4", "Jo moved from Bern to Bonn .", "Jo", "Bern"),
        ]
    )
    rows = copies_of_seeds(table, seeds, DiversityConfig(threshold=threshold)).to_pylist()
    assert [row["candidate_id"] for row in rows] == copies
    assert (rows[0]["reason"], rows[0]["nearest_id"], rows[0]["similarity"]) == ("near copy of seed:7 (1.00)", "seed:7", 1.0)


WORDS = st.lists(st.sampled_from("abcd"), max_size=6).map(" ".join)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(WORDS, st.sampled_from([0.1, 0.9])), max_size=12), st.integers(0, 4), st.randoms(use_true_random=False))
def test_any_order_of_rows_gives_the_same(rows: list[tuple[str, float]], fixed: int, random: Any) -> None:
    config = DiversityConfig(mask_entities=False, threshold=0.5)
    table = samples({f"s{i:02d}": text for i, (text, _) in enumerate(rows)}, [score for _, score in rows])
    kept, table = table.slice(0, fixed), table.slice(fixed)
    wanted = deduplicate(table, config, kept)
    assert deduplicate(shuffle(table, random), config, shuffle(kept, random)).sort_by("candidate_id").equals(wanted)
    # Brute force: kept ones are pairwise apart, each dropped one is near a kept one, and named is the nearest.
    names = table["candidate_id"].to_pylist() + kept["candidate_id"].to_pylist()
    texts = dict(zip(names, table["text"].to_pylist() + kept["text"].to_pylist(), strict=True))
    grams = {}
    for name, text in texts.items():
        words = text.split()
        grams[name] = {tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))}
    made = by_id(wanted)
    staying = {name for name in texts if name not in made or made[name]["unique"]}
    for name, row in made.items():
        similarity = {o: len(grams[name] & grams[o]) / len(grams[name] | grams[o]) for o in staying - {name}}
        best = max(similarity.values(), default=0.0)
        assert (best >= 0.5) != row["unique"]
        named = ("", 0.0) if row["unique"] else (min(o for o in similarity if similarity[o] == best), best)
        assert (row["nearest_id"], row["similarity"]) == named


def test_empty_table_and_identical_rows() -> None:
    assert deduplicate(samples({}), PLAIN).num_rows == 0
    made = by_id(deduplicate(samples({f"s{i:05d}": "" for i in range(20_000)}), PLAIN))
    assert [name for name, row in made.items() if row["unique"]] == ["s00000"]
    assert made["s19999"]["reason"] == "near copy of s00000 (1.00)"


def test_novelty_is_the_distance_to_the_nearest_other_unique_one() -> None:
    vectors = np.random.default_rng(0).normal(size=(2500, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    unique = np.random.default_rng(1).random(2500) < 0.4
    cosines = vectors.astype(np.float64) @ vectors.T.astype(np.float64)
    np.fill_diagonal(cosines, -2)
    cosines[:, ~unique] = -2
    made = novelty(vectors, unique)
    assert np.allclose(made, 1 - cosines.max(axis=1), atol=2e-6)
    order = np.random.default_rng(2).permutation(2500)
    assert (novelty(vectors[order], unique[order]) == made[order]).all()


def test_novelty_without_others_is_one() -> None:
    assert novelty(np.ones((1, 4), np.float32) / 2, np.array([True])).tolist() == [1.0]
    assert novelty(np.ones((2, 4), np.float32) / 2, np.array([False, False])).tolist() == [1.0, 1.0]
    assert novelty(np.ones((2, 4), np.float32) / 2, np.array([True, False])).tolist() == [1.0, 0.0]
    assert novelty(np.zeros((0, 0), np.float32), np.zeros(0, bool)).tolist() == []
