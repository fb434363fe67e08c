"""One side of ``benchmarks/dedup.py``, in a process of its own: prints seconds and peak memory, saves what it found.

    python dedup_sides.py SIDE CORPUS.parquet THRESHOLD SHINGLES OUT

The clock starts once everything is imported, and for compiled functions once they are; the corpus is read inside it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from dedup_peers import PERMUTATIONS, Answer, data_juicer, datatrove, text_dedup


def grams(text: str, kind: str, size: int) -> list[str]:
    """What the peers are fed: the same shingles as the project's."""
    parts = text.lower().split()
    if kind == "char":
        plain = " ".join(parts)
        return [plain[i : i + size] for i in range(max(1, len(plain) - size + 1))]
    return [" ".join(parts[i : i + size]) for i in range(max(1, len(parts) - size + 1))]


def read_texts(corpus: str) -> list[str]:
    return pq.read_table(corpus, columns=["text"])["text"].to_pylist()


def divray(corpus: str, threshold: float, kind: str, size: int, clock: Callable[[], None]) -> Answer:
    from divray.dedup.tables import DedupSettings, judge

    settings = DedupSettings(id_column="id", kind=kind, size=size, threshold=threshold)  # type: ignore[arg-type]
    judge(pq.read_table(corpus).slice(0, 3000).to_reader(), settings)
    clock()
    file = pq.ParquetFile(corpus)
    batches = file.iter_batches(batch_size=1 << 16, columns=["id", "text"], use_threads=False)
    made = judge(pa.RecordBatchReader.from_batches(file.schema_arrow, batches), settings)
    return {"kept": made.decided.kept}


def divray_pairs(corpus: str, threshold: float, kind: str, size: int, clock: Callable[[], None]) -> Answer:
    """Not timed: the pairs behind ``divray``, and its clusters."""
    from divray.dedup.shingle import fold, shingle
    from divray.dedup.tables import DedupSettings, judge
    from divray.dedup.verify import near_duplicates

    table = pq.read_table(corpus)
    sets, _, group = fold(shingle(table["text"], kind, size))  # type: ignore[arg-type]
    pairs = near_duplicates(sets, threshold)
    settings = DedupSettings(id_column="id", kind=kind, size=size, threshold=threshold)  # type: ignore[arg-type]
    made = judge(table.to_reader(), settings)
    return {"group": group, "left": pairs.left, "right": pairs.right, "cluster": made.decided.cluster}


def rensa_deduplicator(bands: int | None) -> Callable[..., Answer]:
    def side(corpus: str, threshold: float, kind: str, size: int, clock: Callable[[], None]) -> Answer:
        from rensa import RMinHashDeduplicator

        clock()
        texts = read_texts(corpus)
        deduplicator = RMinHashDeduplicator(threshold=threshold, num_perm=PERMUTATIONS, use_lsh=True, num_bands=bands, seed=42)
        kept: list[bool] = []
        for start in range(0, len(texts), 10_000):  # in parts, so that not all token lists are alive at once
            entries = [(str(start + i), grams(text, kind, size)) for i, text in enumerate(texts[start : start + 10_000])]
            kept += deduplicator.add_pairs(entries)
        return {"kept": np.array(kept, bool)}

    return side


def datasketch(bands: int | None) -> Callable[..., Answer]:
    def side(corpus: str, threshold: float, kind: str, size: int, clock: Callable[[], None]) -> Answer:
        from datasketch import MinHash, MinHashLSH

        clock()
        sets = [[gram.encode() for gram in set(grams(text, kind, size))] for text in read_texts(corpus)]
        params = None if bands is None else (bands, PERMUTATIONS // bands)
        lsh = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, params=params)
        sketches = MinHash.bulk(sets, num_perm=PERMUTATIONS)
        kept = np.ones(len(sets), bool)
        for row, sketch in enumerate(sketches):
            if lsh.query(sketch):
                kept[row] = False
            else:
                lsh.insert(row, sketch, check_duplication=False)
        return {"kept": kept}

    return side


DUCKDB = """
create table grams as
  select id, unnest(list_distinct({shingles})) as gram
  from (select id, {parts} as p from read_parquet('{corpus}'));
create table tokens as
  select id, r.token from grams join
    (select gram, row_number() over (order by count(*), gram) as token from grams group by gram) r using (gram);
drop table grams;
create table sets as select id, list(token order by token) as l, len(l) as s from tokens group by id;
create table prefixes as
  select id, s, unnest(l[1 : (s - ceil({t} * s - 1e-9) + 1)::int]) as token from sets;
create table candidates as
  select distinct a.id as i, b.id as j from prefixes a join prefixes b using (token)
  where a.id < b.id and least(a.s, b.s) >= {t} * greatest(a.s, b.s) - 1e-9;
create table near as
  select i, j from
    (select i, j, a.s as sa, b.s as sb, len(list_intersect(a.l, b.l)) as o
     from candidates join sets a on a.id = i join sets b on b.id = j)
  where o / (sa + sb - o)::double >= {t};
"""
DUCKDB_PARTS = {
    "word": (
        "string_split(lower(text), ' ')",  # the corpora have one blank between words
        "case when len(p) < {n} then [array_to_string(p, ' ')] "
        "else list_transform(range(1, len(p) - {n} + 2), lambda i: array_to_string(p[i : i + {n} - 1], ' ')) end",
    ),
    "char": (
        "lower(text)",
        "case when length(p) < {n} then [p] else list_transform(range(1, length(p) - {n} + 2), lambda i: substring(p, i, {n})) end",
    ),
}


def duckdb(corpus: str, threshold: float, kind: str, size: int, clock: Callable[[], None]) -> Answer:
    """The same prefix-filter join in SQL, on strings; also the truth."""
    import duckdb as db

    parts, shingles = DUCKDB_PARTS[kind]
    connection = db.connect()
    connection.execute("set threads = 1")
    clock()
    connection.execute(DUCKDB.format(corpus=corpus, t=threshold, parts=parts, shingles=shingles.format(n=size)))
    found = connection.execute("select i, j from near").fetchnumpy()
    return {"left": found["i"], "right": found["j"]}


SIDES: dict[str, Callable[..., Answer]] = {
    "divray": divray,
    "divray-pairs": divray_pairs,
    "rensa-deduplicator": rensa_deduplicator(None),
    "rensa-deduplicator-32": rensa_deduplicator(32),
    "datasketch": datasketch(None),
    "datasketch-32": datasketch(32),
    "duckdb": duckdb,
    "text-dedup": text_dedup,
    "data-juicer": data_juicer,
    "datatrove": datatrove,
}


def spent() -> list[float]:
    """Seconds now, and CPU seconds of this process and of those that it has started and that have ended."""
    return [time.perf_counter(), sum(os.times()[:4])]


def main(side: str, corpus: str, threshold: str, shingles: str, out: str) -> None:
    kind, _, size = shingles.partition(":")
    started: list[float] = []

    def clock() -> None:
        started[:] = spent()

    answer = SIDES[side](corpus, float(threshold), kind, int(size), clock)
    ended = spent()
    np.savez(out, **answer)
    # Not getrusage's: that begins with what the parent held when it forked.
    status = Path("/proc/self/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    seconds, cpu = (round(now - then, 3) for now, then in zip(ended, started or ended, strict=True))
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "peak_mib": round(peak)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
