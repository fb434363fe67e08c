from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from divray.diversity import distributed, neighbours
from divray.diversity.columns import DedupSettings
from divray.diversity.distributed import _added, judge_on_ray, work_name
from divray.diversity.files import deduplicate_files
from divray.diversity.partitions import Held, Task, join_part, send
from divray.diversity.prefixes import count_elements, postings, prefixes
from divray.diversity.sources import ParquetSource, judge_files
from divray.diversity.tables import judge, near_duplicate_clusters
from divray.errors import InputError
from divray.runs import RunFolder

SETTINGS = DedupSettings(id_column="id", size=2, threshold=0.6)


@pytest.fixture(scope="module")
def texts() -> pa.Table:
    """600 rows: near-copies, equal rows, rows without text; nine tenths of them begin alike."""
    draw = random.Random(5)
    words = [f"w{i}" for i in range(40)]
    rows: list[str | None] = []
    for _ in range(600):
        text = " ".join(draw.choices(words, k=draw.randint(0, 9)))
        if draw.random() < 0.9:
            text = "the very same beginning " + text
        if rows and draw.random() < 0.5:
            parts = (draw.choice(rows) or "").split()
            if parts and draw.random() < 0.7:
                parts[draw.randrange(len(parts))] = draw.choice(words)
            text = " ".join(parts)
        rows.append(text if draw.random() < 0.97 else None)
    return pa.table({"id": draw.sample(range(10_000), 600), "text": rows})


def test_any_slices_and_partitions_give_what_one_process_gives(ray_two_cpus: None, texts: pa.Table, tmp_path: Path) -> None:
    pq.write_table(texts.slice(0, 400), tmp_path / "a.parquet", row_group_size=150)
    pq.write_table(texts.slice(400), tmp_path / "b.parquet")
    pq.write_table(texts.slice(100, 5), tmp_path.with_suffix(".test"))
    files, tests = ParquetSource.open(str(tmp_path)), ParquetSource.open(str(tmp_path.with_suffix(".test")))
    for rule in ("component", "independent"):
        settings = DedupSettings(id_column="id", size=2, threshold=0.6, rule=rule)  # type: ignore[arg-type]
        for against, earlier in ((None, None), (tests, None), (tests, tests)):
            batches = [None if one is None else one.batches() for one in (against, earlier)]
            wanted = judge(files.batches(), settings, *batches)
            for slice_rows, partitions in ((1000, 1), (60, 3), (33, None)):
                made = judge_on_ray(files, settings, against, earlier, slice_rows=slice_rows, partitions=partitions)
                assert pa.Table.from_batches(made.batches()) == pa.Table.from_batches(wanted.batches())
    order = pa.array(random.Random(1).sample(range(600), 600))
    shuffled = tmp_path / "shuffled"
    shuffled.mkdir()
    pq.write_table(texts.take(order), shuffled / "c.parquet")
    made = judge_on_ray(ParquetSource.open(str(shuffled)), SETTINGS, slice_rows=100)
    wanted = judge(texts.to_batches(), SETTINGS)
    assert pa.Table.from_batches(made.batches()) == pa.Table.from_batches(wanted.batches()).take(order)


def test_counters_of_several_slices_are_added_and_stop_at_255() -> None:
    draw = np.random.default_rng(5)
    tables = [draw.integers(0, 256, (1 << 18) + 3, dtype=np.uint8) for _ in range(3)]
    wanted = np.minimum(np.sum(tables, axis=0, dtype=np.int64), 255)
    for table in tables:
        table.flags.writeable = False  # as they come from the object store
    assert (_added(*tables) == wanted).all()
    assert _added(tables[0]) is tables[0]


def test_a_ray_dataset_is_a_table(ray_two_cpus: None, texts: pa.Table) -> None:
    import ray.data

    made = near_duplicate_clusters(ray.data.from_arrow(texts), SETTINGS)
    assert made == near_duplicate_clusters(texts, SETTINGS)


def test_an_interrupted_call_goes_on(ray_two_cpus: None, texts: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(texts, tmp_path / "in.parquet")
    source, out = str(tmp_path / "in.parquet"), tmp_path / "out"
    files = ParquetSource.open(source)
    work = RunFolder(str(out)).inner(work_name(files, SETTINGS, None, None))
    judge_on_ray(files, SETTINGS, work=work)
    edges = work.files("")
    assert len(edges) == 2
    stamps = [(out / work.root / name).stat().st_mtime_ns for name in edges[1:]]
    work.delete(edges[0])
    seen: list[str] = []
    write = RunFolder.write_parquet
    monkeypatch.setattr(RunFolder, "write_parquet", lambda self, name, table: (seen.append(name), write(self, name, table)))
    judge_on_ray(files, SETTINGS, work=work)
    assert seen == edges[:1]
    assert [(out / work.root / name).stat().st_mtime_ns for name in edges[1:]] == stamps
    deduplicate_files(source, str(out), SETTINGS, on_ray=True)
    assert sorted(file.name for file in out.iterdir()) == ["clusters.parquet", "kept.parquet"]
    deduplicate_files(source, str(tmp_path / "alone"), SETTINGS)
    for name in ("kept.parquet", "clusters.parquet"):
        assert pq.read_table(out / name) == pq.read_table(tmp_path / "alone" / name)


def test_the_other_tables_count_for_the_partitions(
    ray_two_cpus: None, texts: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(texts.slice(0, 20), tmp_path / "in.parquet")
    pq.write_table(texts.slice(20, 400), tmp_path / "earlier.parquet")
    pq.write_table(texts.slice(420), tmp_path / "test.parquet")
    files, earlier, tests = (ParquetSource.open(str(tmp_path / f"{name}.parquet")) for name in ("in", "earlier", "test"))
    monkeypatch.setattr(distributed, "ROWS_PER_PARTITION", 100)
    work = RunFolder(str(tmp_path / "work"))
    made = judge_on_ray(files, SETTINGS, tests, earlier, work)
    assert len(work.files("")) == 6
    assert pa.Table.from_batches(made.batches()) == pa.Table.from_batches(judge_files(files, SETTINGS, tests, earlier).batches())


def test_references_are_not_compared_with_each_other(texts: pa.Table) -> None:
    given = texts["text"].drop_null()
    parts = [SETTINGS.shingle(given.slice(0, 50)), SETTINGS.shingle(given.slice(50))]
    table = count_elements(parts[1], counts=count_elements(parts[0], 16))
    pieces = [send(Held(sets, None), base, table, SETTINGS.threshold, 1) for sets, base in zip(parts, (0, 50), strict=True)]
    every, some = (join_part(Task(SETTINGS.threshold, 1, own), 0, *pieces).to_pandas() for own in (len(given), 50))
    near = some[some["similarity"] < 1]
    assert (near[["left", "right"]].min(axis=1) < 50).all()
    wanted = every[(every["similarity"] == 1) | (every[["left", "right"]].min(axis=1) < 50)]
    assert 0 < len(some) == len(wanted) < len(every)


@pytest.mark.parametrize("partitions", [2, 3, 11])
def test_a_phrase_of_most_texts_is_a_matter_of_several_partitions(partitions: int) -> None:
    """900 texts whose only words in common are a phrase that each of them has, so that all pairs meet in its keys."""
    draw = random.Random(9)
    texts = [
        "the very same phrase in all of these texts",
        *(f"the very same phrase in all of these texts x{draw.randrange(300)}" for _ in range(899)),
    ]
    parts = [SETTINGS.shingle(texts[:500]), SETTINGS.shingle(texts[500:])]
    table = count_elements(parts[1], counts=count_elements(parts[0], 16))

    def edges(of: int, most: int | None = None) -> list[pd.DataFrame]:
        sent = [send(Held(sets, None), base, table, 0.6, of) for sets, base in zip(parts, (0, 500), strict=True)]
        sent = [one if of > 1 else [one] for one in sent]
        return [join_part(Task(0.6, of, 900, most), number, *[one[number] for one in sent]).to_pandas() for number in range(of)]

    def rows(made: list[pd.DataFrame]) -> list[tuple[int, int, float]]:
        return sorted(pd.concat(made).itertuples(index=False, name=None))

    every = SETTINGS.shingle(sorted(set(texts)))
    share = 1.5 * postings(prefixes(every, 0.6, table)).visits() / min(partitions, 8)
    made, found = edges(partitions, int(share)), rows(edges(1))
    assert rows(made) == found
    assert max(map(len, made)) < 1.5 * len(found) / min(partitions, 8)


def test_ray_is_exact_or_says_why_not(ray_two_cpus: None, texts: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(texts, tmp_path / "in.parquet")
    files = ParquetSource.open(str(tmp_path / "in.parquet"))
    for name in ("EXACT_ROWS", "EXACT_VISITS", "EXACT_VISITS_PER_SET"):
        monkeypatch.setattr(neighbours, name, 0)
    with pytest.raises(InputError, match=r"^texts: one partition of the exact join would look at .* more than 0") as raised:
        deduplicate_files(str(tmp_path / "in.parquet"), str(tmp_path / "out"), SETTINGS, on_ray=True)
    assert "--method exact" in str(raised.value) and "Traceback" not in str(raised.value)
    exact = replace(SETTINGS, method="exact")
    made = judge_on_ray(files, exact)
    assert pa.Table.from_batches(made.batches()) == pa.Table.from_batches(judge_files(files, exact).batches())


def test_minhash_on_ray_proposes_what_it_does_in_one_process(ray_two_cpus: None, texts: pa.Table, tmp_path: Path) -> None:
    pq.write_table(texts, tmp_path / "in.parquet")
    pq.write_table(texts.slice(100, 5), tmp_path / "test.parquet")
    files, tests = (ParquetSource.open(str(tmp_path / f"{name}.parquet")) for name in ("in", "test"))
    for kind, size, method in (("word", 2, "minhash"), ("char", 4, "auto"), ("char", 4, "minhash")):
        settings = DedupSettings(id_column="id", kind=kind, size=size, threshold=0.6, method=method)  # type: ignore[arg-type]
        wanted = judge_files(files, replace(settings, method="minhash"), tests)
        for slice_rows, partitions in ((1000, 1), (60, 3), (33, None)):
            made = judge_on_ray(files, settings, tests, slice_rows=slice_rows, partitions=partitions)
            assert pa.Table.from_batches(made.batches()) == pa.Table.from_batches(wanted.batches())
    assert wanted.counts()["leaked"] > 5 and wanted.counts()["clusters"] > 20


def test_tables_without_rows_or_texts(ray_two_cpus: None, tmp_path: Path) -> None:
    schema = pa.schema([("id", pa.string()), ("text", pa.string())])
    pq.write_table(pa.table([["p", "q", "r"], ["a b c", "a b c", "d"]], schema=schema), tmp_path / "some.parquet")
    pq.write_table(pa.table([["s", "t"], [None, None]], schema=schema), tmp_path / "null.parquet")
    pq.write_table(schema.empty_table(), tmp_path / "empty.parquet")
    pq.ParquetWriter(tmp_path / "none.parquet", schema).close()
    assert pq.read_metadata(tmp_path / "none.parquet").num_row_groups == 0
    some, *others = (ParquetSource.open(str(tmp_path / f"{name}.parquet")) for name in ("some", "null", "empty", "none"))
    for other in others:
        for given in ((other,), (some, other, other), (other, some, some), (other, other, None), (other, None, other)):
            rest = (*given[1:], None, None)[:2]
            made, wanted = judge_on_ray(given[0], SETTINGS, *rest), judge_files(given[0], SETTINGS, *rest)
            assert made.schema() == wanted.schema() and made.schema().field("id").type == pa.large_string()
            assert pa.Table.from_batches(made.batches(), made.schema()) == pa.Table.from_batches(wanted.batches(), wanted.schema())
