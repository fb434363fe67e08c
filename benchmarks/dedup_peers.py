"""The sides of ``benchmarks/dedup.py`` that are whole tools: text-dedup, data-juicer and datatrove, on one core.

Each runs in the environment where its tool is installed, reads the same Parquet file and keeps one row a cluster.  With
128 permutations and the banding that the tool itself computes for the threshold; datatrove, which computes none, with
its recommended 14 buckets of 8 hashes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

Answer = dict[str, Any]
PERMUTATIONS = 128


def text_dedup(corpus: str, threshold: float, kind: str, size: int, clock: Callable[[], None]) -> Answer:
    """Splits at everything that is neither letter nor digit; words alone."""
    import datasets
    from text_dedup.minhash import main

    _words(kind)
    datasets.disable_progress_bars()
    folder = Path(corpus).parent / "text-dedup"
    options = {"path": "parquet", "data_files": corpus, "split": "train", "column": "text", "cache_dir": folder / "cache", "num_proc": 1}
    options |= {"output": folder / "kept", "ngram": size, "min_length": 1, "num_perm": PERMUTATIONS, "threshold": threshold}
    clock()
    main([part for name, value in options.items() for part in (f"--{name}", str(value))], standalone_mode=False)
    return _kept(corpus, datasets.load_from_disk(str(folder / "kept"))["id"])


def data_juicer(corpus: str, threshold: float, kind: str, size: int, clock: Callable[[], None]) -> Answer:
    import datasets
    from data_juicer.ops.deduplicator.document_minhash_deduplicator import DocumentMinhashDeduplicator

    datasets.disable_progress_bars()
    datasets.disable_caching()
    tokenization = "space" if kind == "word" else "character"
    operator = DocumentMinhashDeduplicator(
        tokenization=tokenization, window_size=size, num_permutations=PERMUTATIONS, jaccard_threshold=threshold
    )
    clock()
    data = datasets.Dataset.from_parquet(corpus, cache_dir=str(Path(corpus).parent / "data-juicer"))
    made, _ = operator.process(data.map(operator.compute_hash))
    return _kept(corpus, made["id"])


def datatrove(corpus: str, threshold: float, kind: str, size: int, clock: Callable[[], None]) -> Answer:
    """The threshold is that of its banding, (1 / 14) ** (1 / 8) = 0.72; words alone."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.writers import ParquetWriter
    from loguru import logger

    _words(kind)
    logger.remove()
    folder = Path(corpus).parent / "datatrove"
    config = MinhashConfig(n_grams=size)

    def read() -> Any:
        return ParquetReader(str(Path(corpus).parent), glob_pattern=Path(corpus).name, id_key="id", doc_progress=False)

    def row(_: Any, document: Any) -> dict[str, Any]:  # its own takes the id 0 for none
        return {"id": document.id, "text": document.text}

    def run(stage: str, tasks: int, *steps: Any) -> None:
        LocalPipelineExecutor(list(steps), tasks=tasks, workers=1, logging_dir=str(folder / "logs" / stage)).run()

    clock()
    run("signatures", 1, read(), MinhashDedupSignature(str(folder / "signatures"), config))
    run("buckets", config.num_buckets, MinhashDedupBuckets(str(folder / "signatures"), str(folder / "buckets"), config=config))
    run("clusters", 1, MinhashDedupCluster(str(folder / "buckets"), str(folder / "remove"), config=config))
    run("filter", 1, read(), MinhashDedupFilter(str(folder / "remove")), ParquetWriter(str(folder / "kept"), compression=None, adapter=row))
    return _kept(corpus, [name for file in sorted((folder / "kept").glob("*.parquet")) for name in pq.read_table(file)["id"].to_pylist()])


def _words(kind: str) -> None:
    if kind != "word":
        raise ValueError("takes word n-grams alone")


def _kept(corpus: str, ids: Any) -> Answer:
    logging.disable()
    kept = {str(name) for name in ids}
    return {"kept": np.array([str(name) in kept for name in pq.read_table(corpus, columns=["id"])["id"].to_pylist()])}
