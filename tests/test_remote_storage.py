"""A run folder on an object store: an S3 server on loopback stands in for it."""

from __future__ import annotations

import os
import socket

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from begun_runs import begin

from divray import locks, pipeline
from divray.config import Config
from divray.dedup.files import deduplicate_files
from divray.errors import InputError
from divray.locks import locked
from divray.models import local_model
from divray.run_folder import RunFolder


def test_tables_records_and_models_live_there(bucket: str, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("DIVRAY_CACHE", str(tmp_path / "cache"))
    run = RunFolder(bucket)
    table = pa.table({"a": [1, 2, 3]})
    run.write_table("t", table, rows_per_file=2)
    assert run.read_table("t") == table
    run.finish("x", 1.0, {})
    assert run.record("x") is not None
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    run.upload(tmp_path / "model", "model")
    there = local_model(run.full_uri("model"))
    assert (tmp_path / "cache") in type(tmp_path)(there).parents
    assert (type(tmp_path)(there) / "config.json").read_text() == "{}"
    run.delete("t")
    assert not run.files("t")


def test_one_process_at_a_time_there(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(bucket.replace("runs/1", "locked runs/1"))
    with locked(run):
        (claim,) = run.files("")
        assert run.read_json(claim)["process"] == os.getpid()
        with pytest.raises(InputError, match=f"another run is at work here: process {os.getpid()} on "), locked(RunFolder(run.uri)):
            pass
    assert run.files("") == []
    for name, seconds in (("BEAT", 0.2), ("LOOK", 0.1)):
        monkeypatch.setattr(locks, name, seconds)
    for older, lease in (({"host": "elsewhere", "process": 1}, 1.0), ({"host": socket.gethostname(), "process": 2**22 + 1}, 120.0)):
        run.write_json(".lock.older", {**older, "since": "2030-01-01T00:00:00+00:00"})
        monkeypatch.setattr(locks, "LEASE", lease)
        with locked(run):
            assert run.files("") != [".lock.older"] and len(run.files("")) == 1


def test_near_duplicates_of_a_table_there(bucket: str) -> None:
    run = RunFolder(bucket)
    run.write_table("texts", pa.table({"text": ["a b c d", "e f g h", "A b c d"]}), rows_per_file=2)
    assert deduplicate_files(run.full_uri("texts"), run.full_uri("deduped"))["kept"] == 2
    assert run.files("deduped") == ["deduped/clusters.parquet", "deduped/kept.parquet"]
    assert pq.read_table(run.path("deduped/kept.parquet"), filesystem=run.fs)["text"].to_pylist() == ["a b c d", "e f g h"]
    run.write_table("lang=de/more", pa.table({"text": ["E f g h", "new words here"]}))
    pattern, before = run.full_uri("").replace("?", "lang=*/more/*.parquet?"), run.full_uri("deduped/kept.parquet")
    assert deduplicate_files(pattern, run.full_uri("added"), against=before)["near_reference"] == 1
    kept = pq.read_table(run.path("added/kept.parquet"), filesystem=run.fs)
    assert kept.to_pydict() == {"text": ["new words here"], "lang": ["de"]}
    for name in ("deduped", "texts", "added", "lang=de"):
        run.delete(name)


@pytest.mark.slow
def test_stages_run_there(bucket: str, quickstart: Config) -> None:
    import ray

    if ray.is_initialized():
        ray.shutdown()
    run = begin(quickstart, bucket.replace("runs/1", "runs/2"))
    try:
        for name in ("prepare", "prompt"):
            pipeline.run_stage(quickstart, run, pipeline.STAGES[name], 0)
        asked = quickstart.sampling.candidates_per_relation + quickstart.sampling.naive_candidates_per_relation
        assert run.dataset("round-00/prompts").count() == 6 * asked
        assert run.record("round-00.prompt") is not None
    finally:
        ray.shutdown()
