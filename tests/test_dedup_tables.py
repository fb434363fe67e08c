from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divray import cli
from divray.dedup import files
from divray.dedup.files import deduplicate_files
from divray.dedup.tables import DedupSettings, near_duplicate_clusters
from divray.errors import InputError

WORDS = st.lists(st.sampled_from("abcd"), max_size=7).map(" ".join)
NAMES = ["id", "cluster", "nearest_id", "similarity", "kept", "reason"]


def grams(text: str, n: int) -> set[tuple[str, ...]]:
    words = text.lower().split()
    return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))}


def by_id(table: pa.Table) -> dict[Any, dict[str, Any]]:
    return {row["id"]: row for row in table.to_pylist()}


def parquet(path: Path, **columns: Any) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def outcome(folder: Path) -> tuple[pa.Table, pa.Table]:
    assert sorted(file.name for file in folder.iterdir()) == ["clusters.parquet", "kept.parquet"]
    return pq.read_table(folder / "kept.parquet"), pq.read_table(folder / "clusters.parquet")


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.one_of(WORDS, st.none()), max_size=14),
    st.lists(st.one_of(WORDS, st.none()), max_size=3),
    st.sampled_from(["component", "independent"]),
    st.sampled_from(["exact", "minhash"]),
    st.sampled_from([0.5, 0.75, 1.0]),
    st.integers(1, 5),
)
def test_every_row_is_as_brute_force_says(
    texts: list[str | None], reference: list[str | None], rule: str, method: str, threshold: float, batch_rows: int
) -> None:
    ids = [(7 * i) % 17 for i in range(len(texts))]
    table = pa.table({"name": pa.array(ids, pa.int32()), "text": pa.array(texts, pa.string())})
    against = pa.table({"text": pa.array(reference, pa.string())})
    chosen = DedupSettings(id_column="name", size=2, threshold=threshold, rule=rule, method=method)  # type: ignore[arg-type]
    made = near_duplicate_clusters(table.to_reader(batch_rows), chosen, against)
    assert made.column_names == NAMES and made["id"].to_pylist() == ids and made["cluster"].type == pa.int32()
    assert made.equals(near_duplicate_clusters(table, chosen, against))
    if method == "minhash":  # may miss a pair, hence a looser check
        assert pc.all(pc.greater_equal(made["similarity"], threshold), min_count=0).as_py()
        return
    rows = by_id(made)
    sets = {i: grams(text, 2) for i, text in zip(ids, texts, strict=True) if text is not None}
    near = lambda a, b: len(a & b) / len(a | b)  # noqa: E731
    leaked = {}
    for i, set_ in sets.items():
        found = [(near(set_, grams(text, 2)), number) for number, text in enumerate(reference) if text is not None]
        if max((value for value, _ in found), default=0) >= threshold:
            leaked[i] = max(found, key=lambda one: one[0])  # the first of equally similar ones
    free = {i: set_ for i, set_ in sets.items() if i not in leaked}
    for i in ids:
        row = rows[i]
        if i not in free:
            assert row["kept"] == (i not in leaked) and row["cluster"] == i and row["nearest_id"] is None
            assert row["reason"] == ("kept: no text" if i not in leaked else f"near reference text {leaked[i][1]} ({leaked[i][0]:.2f})")
            continue
        close = {j: near(free[i], free[j]) for j in free if j != i and near(free[i], free[j]) >= threshold}
        assert row["similarity"] == max(close.values(), default=None)
        if close:
            assert row["nearest_id"] == min(close, key=lambda j: (-close[j], not rows[j]["kept"], j))
        else:
            assert row["kept"] and row["reason"] == "kept: no near neighbour" and row["nearest_id"] is None
        kept_near = {j: value for j, value in close.items() if rows[j]["kept"]}
        if rule == "independent":
            assert row["kept"] == (not kept_near)
        if not row["kept"] and kept_near:
            best = min(kept_near, key=lambda j: (-kept_near[j], j))
            assert row["reason"] == f"near copy of {best} ({kept_near[best]:.2f})"
        assert all(rows[j]["cluster"] == row["cluster"] for j in close)
    if rule == "component":
        for cluster in {rows[i]["cluster"] for i in free}:
            assert sum(rows[i]["kept"] for i in free if rows[i]["cluster"] == cluster) == 1
            assert cluster == min(i for i in free if rows[i]["cluster"] == cluster)


@settings(max_examples=60, deadline=None)
@given(st.lists(WORDS, max_size=12), st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing_but_their_order(texts: list[str], random: Any) -> None:
    table = pa.table({"id": pa.array([f"n{i}" for i in range(len(texts))], pa.string()), "text": pa.array(texts, pa.string())})
    order = pa.array(random.sample(range(len(texts)), len(texts)), pa.int64())
    options = {"id_column": "id", "size": 2, "threshold": 0.5}
    assert near_duplicate_clusters(table, **options).take(order).equals(near_duplicate_clusters(table.take(order), **options))


def test_empty_one_word_and_null_texts() -> None:
    table = pa.table({"text": ["", " \t", "word", "Word", None, None, "two words", "words two"]})
    rows = near_duplicate_clusters(table).to_pylist()
    assert [row["kept"] for row in rows] == [True, False, True, False, True, True, True, True]
    assert [row["id"] for row in rows] == list(range(8))
    assert rows[1]["reason"] == "near copy of 0 (1.00)" and rows[4]["reason"] == "kept: no text"


def test_a_text_of_a_megabyte() -> None:
    long = " ".join(f"word{i % 90_001}" for i in range(120_000))
    assert len(long) > 1_000_000
    rows = near_duplicate_clusters(pa.table({"text": [long, "short", long + " more", long[850_000:]]})).to_pylist()
    assert [row["kept"] for row in rows] == [True, True, False, True]
    assert rows[2]["similarity"] > 0.99
    repeated = near_duplicate_clusters(pa.table({"text": ["a " * 500_000, "a a a", "a" * 1_000_000]}))
    assert repeated["kept"].to_pylist() == [True, False, True]


def test_ids_that_differ_in_blanks_alone_are_two() -> None:
    table = pa.table({"id": ["p q", "p  q", "P q", "p\xa0q", "中文", "中 文"], "text": list("abcdef")})
    assert near_duplicate_clusters(table, id_column="id")["kept"].to_pylist() == [True] * 6


def test_a_million_identical_rows() -> None:
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 1_000_000 + [1], pa.int8()), ["one and the same sentence", "another one"])
    made = near_duplicate_clusters(pa.table({"text": texts}))
    assert made.filter(made["kept"])["id"].to_pylist() == [0, 1_000_000]
    assert made["reason"][999_999].as_py() == "near copy of 0 (1.00)"
    assert pc.max(made["cluster"].slice(0, 1_000_000)).as_py() == 0


def test_bytes_that_are_no_utf8_are_compared_as_replacement_characters(tmp_path: Path) -> None:
    raw = pa.array([b"caf\xe9 au lait", b"caf\xff au lait", b"caf\xc3\xa9 au lait"], pa.binary())
    texts = pa.StringArray.from_buffers(3, *raw.buffers()[1:])
    source = parquet(tmp_path / "bad.parquet", text=texts)
    deduplicate_files(source, str(tmp_path / "out"))
    kept, clusters = outcome(tmp_path / "out")
    assert clusters["kept"].to_pylist() == [True, False, True]
    assert kept["text"].cast(pa.binary()).to_pylist() == [b"caf\xe9 au lait", b"caf\xc3\xa9 au lait"]


def test_files_folders_patterns_and_their_order(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    parquet(folder / "b.parquet", key=["x"], text=["the same few words"], extra=[3])
    parquet(folder / "a.parquet", key=["z", "y"], text=["the same few words", "something else"], extra=[1, 2])
    (folder / "notes.txt").write_text("no table")
    chosen = DedupSettings(id_column="key")
    for name in (str(folder), str(folder / "*.parquet"), folder.as_uri()):
        counts = deduplicate_files(name, str(tmp_path / "out"), chosen)
        assert counts == {"rows": 3, "kept": 2, "clusters": 1, "near_reference": 0}
        kept, clusters = outcome(tmp_path / "out")
        assert clusters["id"].to_pylist() == ["z", "y", "x"] and clusters["cluster"].to_pylist() == ["x", "y", "x"]
        assert kept.to_pydict() == {"key": ["y", "x"], "text": ["something else", "the same few words"], "extra": [2, 3]}
    assert deduplicate_files(str(folder / "b.parquet"), str(tmp_path / "out"))["rows"] == 1


def test_a_test_set_is_guarded(tmp_path: Path) -> None:
    source = parquet(tmp_path / "in.parquet", text=["a b c d e f", "a b c d e g", "x y z", "q r s"])
    tests = parquet(tmp_path / "test.parquet", text=["unlike all", "a b c d e f"])
    counts = deduplicate_files(source, str(tmp_path / "out"), DedupSettings(threshold=0.6), tests)
    assert counts == {"rows": 4, "kept": 2, "clusters": 0, "near_reference": 2}
    kept, clusters = outcome(tmp_path / "out")
    assert kept["text"].to_pylist() == ["x y z", "q r s"]
    assert clusters["reason"].to_pylist()[:2] == ["near reference text 1 (1.00)", "near reference text 1 (0.60)"]


def test_an_empty_file_gives_empty_files(tmp_path: Path) -> None:
    source = parquet(tmp_path / "in.parquet", text=pa.array([], pa.string()), more=pa.array([], pa.int8()))
    assert deduplicate_files(source, str(tmp_path / "out"))["rows"] == 0
    kept, clusters = outcome(tmp_path / "out")
    assert kept.num_rows == clusters.num_rows == 0
    assert kept.column_names == ["text", "more"] and clusters.column_names == NAMES


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"body": ["a"]}, "text: no such column. The columns are: body"),
        ({"text": [1]}, "text: a column of int64; texts must be strings"),
        ({"text": ["a"]}, "id: no such column"),
        ({"text": ["a"], "id": [1.5]}, "id: a column of double"),
        ({"text": ["a", "b", "c"], "id": [5, 4, 5]}, "id: 5 occurs twice"),
        ({"text": ["a", "b", "c"], "id": ["p", "q", "q"]}, "id: 'q' occurs twice"),
        ({"text": ["a", "b", "c", "d"], "id": ["p q", "p  q", "r", "p  q"]}, "id: 'p  q' occurs twice"),
        ({"text": ["a", "b"], "id": [1, None]}, "id: null in row 1"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_is_written(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    source = parquet(tmp_path / "in.parquet", **columns)
    with pytest.raises(InputError, match=message):
        deduplicate_files(source, str(tmp_path / "out"), DedupSettings(id_column="id"))
    assert not any((tmp_path / "out").glob("*"))


def test_bad_files(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    (tmp_path / "empty").mkdir()
    (tmp_path / "no.parquet").write_bytes(b"")
    for name, message in (
        ("missing", "no such file or folder"),
        ("empty", "no Parquet file there"),
        ("no.parquet", "not readable ("),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            deduplicate_files(str(tmp_path / name), out)
    folder = tmp_path / "mixed"
    folder.mkdir()
    parquet(folder / "a.parquet", text=["a"])
    parquet(folder / "b.parquet", text=["a"], more=[1])
    with pytest.raises(InputError, match="columns differ"):
        deduplicate_files(str(folder), out)
    for options in ({"threshold": 0.0}, {"size": 0}):
        with pytest.raises(InputError):
            DedupSettings(**options)  # type: ignore[arg-type]


def test_a_failure_leaves_the_older_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = parquet(tmp_path / "in.parquet", text=["a b c", "a b c"]), tmp_path / "out"
    deduplicate_files(source, str(out))
    before = [file.read_bytes() for file in sorted(out.iterdir())]

    def broken(*_: Any) -> Any:
        raise RuntimeError("disk full")
        yield

    monkeypatch.setattr(files, "_staying", broken)
    with pytest.raises(RuntimeError):
        deduplicate_files(source, str(out))
    assert [file.read_bytes() for file in sorted(out.iterdir())] == before
    with pytest.raises(RuntimeError):
        deduplicate_files(source, str(tmp_path / "new"))
    assert not any((tmp_path / "new").iterdir())


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = parquet(tmp_path / "in.parquet", name=["p", "q"], body=["One two three, four", "one two three four"])
    command = ["dedup", source, "--out", str(tmp_path / "out"), "--text-column", "body", "--id-column", "name"]
    assert cli.main([*command, "--threshold", "0.9"]) == 0
    assert "2 rows: 2 stay, 0 clusters" in capsys.readouterr().out
    assert cli.main([*command, "--shingles", "char:4", "--threshold", "0.6"]) == 0
    assert outcome(tmp_path / "out")[0]["name"].to_pylist() == ["p"]
    assert cli.main([*command, "--shingles", "wird:3"]) == 2
    assert "word:3" in capsys.readouterr().err


@settings(max_examples=60, deadline=None)
@given(st.lists(WORDS, max_size=10), st.lists(WORDS, max_size=10))
def test_batches_one_after_the_other_keep_no_two_near(first: list[str], second: list[str]) -> None:
    tables = [
        pa.table({"id": pa.array([start + i for i in range(len(texts))], pa.int64()), "text": pa.array(texts, pa.string())})
        for start, texts in ((0, first), (100, second))
    ]
    chosen = DedupSettings(id_column="id", size=2, threshold=0.6, rule="independent")
    kept = tables[0].filter(near_duplicate_clusters(tables[0], chosen)["kept"])
    made = near_duplicate_clusters(tables[1], chosen, kept)
    added = tables[1].filter(made["kept"])
    stays = pa.concat_tables([kept, added])
    assert near_duplicate_clusters(stays, chosen)["kept"].to_pylist() == [True] * stays.num_rows


def test_a_long_text_of_common_words_is_found_in_a_reference() -> None:
    long = " ".join(str(number) for number in range(200_000))
    reference = pa.table({"text": [long, *(f"{number} {number + 1} {number + 2} x{number}" for number in range(500))]})
    made = near_duplicate_clusters(pa.table({"text": [long + " more", "0 1 2 x0"]}), against=reference)
    assert made["reason"].to_pylist() == ["near reference text 0 (1.00)", "near reference text 1 (1.00)"]


def test_ids_of_no_rows_have_the_type_of_the_input() -> None:
    for kind, wanted in ((pa.string(), pa.large_string()), (pa.int32(), pa.int32())):
        none = pa.schema([("id", kind), ("text", pa.string())]).empty_table()
        for source in (none, none.to_reader()):
            assert near_duplicate_clusters(source, id_column="id")["nearest_id"].type == wanted
        assert near_duplicate_clusters(none)["id"].type == pa.int64()


ROWS = {"id": [1, 2, 3, 4, 5], "text": ["a b c d e", "a b c d f", "a b c g f", "A B C D E", "a b h g f"]}
"""A chain, 1 to 2 to 3 to 5, and 4, which is 1 but for the case."""


@pytest.mark.parametrize(
    ("options", "kept", "said"),
    [
        ([], [2], "5 rows: 1 stay, 1 clusters ->"),
        (["--rule", "independent"], [2, 5], "5 rows: 2 stay, 1 clusters ->"),
        (["--method", "exact"], [2], "1 stay"),
        (["--method", "minhash"], [2], "1 stay"),
        (["--against", "TEST"], [3], "1 stay, 1 clusters, 3 near texts of "),
    ],
)
def test_every_option_reaches_the_join(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, options: list[str], kept: list[int], said: str
) -> None:
    pq.write_table(pa.table(ROWS), tmp_path / "in.parquet")
    pq.write_table(pa.table({"text": ["a b c d h"]}), tmp_path / "TEST")
    given = [str(tmp_path / option) if option.isupper() else option for option in options]
    command = ["dedup", str(tmp_path / "in.parquet"), "--out", str(tmp_path / "out"), "--id-column", "id", "--shingles", "word:1"]
    code = cli.main([*command, "--threshold", "0.5", *given])
    out, error = capsys.readouterr()
    assert code == 0 and said in out, error
    assert pq.read_table(tmp_path / "out" / "kept.parquet")["id"].to_pylist() == kept
