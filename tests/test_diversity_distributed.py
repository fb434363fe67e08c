from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from divray.diversity.columns import DedupSettings
from divray.diversity.distributed import _added, judge_on_ray, work_name
from divray.diversity.files import ParquetSource, deduplicate_files
from divray.diversity.tables import judge, near_duplicate_clusters
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
