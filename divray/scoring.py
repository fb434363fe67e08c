"""The ``score`` stage: embeddings, correctness, near-duplicates and novelty of every valid sample.

Five passes.  The samples stream through encoder actors; one task fits the judge of correctness; one task
looks across all relations (:mod:`divray.diversity.across`); the rows are judged by batches, and each relation's
texts, without vectors, are deduplicated against the seeds and the rounds before; the rows are measured for
novelty by batches again (:mod:`divray.diversity.novelties`).  The rows of the naive baseline are scored among
themselves, so that they neither displace a sample of the loop nor vouch for one.
"""

from __future__ import annotations

from collections import Counter
from functools import cache, partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from divray.cluster import uses_gpu
from divray.config import Config
from divray.diversity.across import across_relations, barred, dropped, marked, score_files
from divray.diversity.novelties import novelties, pools_of, staying_vectors
from divray.diversity.texts import SPANS
from divray.runs import RunFolder
from divray.schemas import NAIVE, SAMPLES, SCORES

FEATURES = pa.field("features", pa.list_(pa.float32()))
EMBEDDED = pa.schema([*SAMPLES, SCORES.field("embedding"), FEATURES, pa.field("pool", pa.string())])

COMPARED = pa.schema(
    [*(EMBEDDED.field(name) for name in ("candidate_id", "relation", "strategy", "text", *SPANS, "pool")), SCORES.field("correctness")]
)
"""What is grouped by relation."""

_DECISIONS = ("cluster", "nearest_id", "similarity", "unique", "conflict", "conflict_relation", "near_test", "reason")
DECIDED = pa.schema(
    [COMPARED.field("candidate_id"), *(SCORES.field(name) for name in ("correctness", *_DECISIONS)), EMBEDDED.field("pool")]
)

PART_ROWS = 4096
"""Rows of a file, and of a task that measures novelty, at least where there are as many."""


def run(config: Config, run: RunFolder, round: int) -> dict[str, Any]:
    """Write ``round-XX/scores`` (``schemas.SCORES``), ``data/seed_embeddings``.

    Returns:
        Counts: ``scored``, ``unique``, ``correct`` (unique and correct), ``conflicts``, and ``near_test`` where the test set
        is guarded; without the naive baseline.
    """
    import ray

    folder = f"round-{round:02d}"
    embedded, decided = f"{folder}/embedded", f"{folder}/decided"
    for name in (embedded, decided, f"{folder}/scores"):
        run.delete(name)
    task: Any = ray.remote(num_cpus=config.cluster.worker_cpus)
    actors = encoders(config)
    valid = run.dataset(f"{folder}/samples").map_batches(_valid, batch_format="pyarrow", num_cpus=0.1)
    valid.map_batches(_Features, batch_format="pyarrow", batch_size=256, fn_constructor_args=(config,), **actors).write_parquet(
        run.path(embedded), filesystem=run.fs, min_rows_per_file=PART_ROWS, ray_remote_args={"num_cpus": 0.1}
    )

    judge = task(_fit).options(num_gpus=actors["num_gpus"]).remote(config, run.uri, embedded)
    marks = task(across_relations).remote(config, run.uri, embedded, round)
    if not run.files(embedded, ".parquet"):  # no valid sample; Ray writes no file without rows
        ray.get([judge, marks])
        run.write_table(f"{folder}/scores", SCORES.empty_table())
        return _counts(config, run, folder)
    seeds = run.read_table("data/seeds")
    partitions = min(2 * max(1, len(set(seeds["relation"].to_pylist()))), 64)
    by_batch: dict[str, Any] = {"batch_format": "pyarrow", "num_cpus": config.cluster.worker_cpus}
    decide = partial(_decide_pool, config=config, uri=run.uri, round=round, marks=marks, seeds=ray.put(seeds))
    rows = run.dataset(embedded, columns=[*COMPARED.names[:-1], FEATURES.name])
    groups = rows.map_batches(partial(_judged, judge=judge), **by_batch).groupby("pool", num_partitions=partitions)
    groups.map_groups(decide, **by_batch).write_parquet(run.path(decided), filesystem=run.fs, row_group_size=PART_ROWS)

    parts, verdicts = ([run.path(file) for file in run.files(table, ".parquet")] for table in (embedded, decided))
    staying = {pool: task(staying_vectors).remote(run.uri, parts, verdicts, pool) for pool in pools_of(run.uri, verdicts)}
    measure = partial(_measured, uri=run.uri, verdicts=verdicts, staying=staying, threshold=config.correctness.threshold)
    rows = run.dataset(embedded, columns=[*SAMPLES.names, "embedding", "pool"])
    scored = rows.map_batches(measure, batch_size=PART_ROWS, **by_batch)
    scored.sort("candidate_id").write_parquet(run.path(f"{folder}/scores"), filesystem=run.fs)
    for name in (embedded, decided):
        run.delete(name)
    return _counts(config, run, folder)


def encoders(config: Config) -> dict[str, Any]:
    """The pool of encoder actors: up to one a GPU where the LLM's device is one, else one a CPU (an encoder is one thread),
    less the CPU that Ray's other tasks need."""
    import ray

    total, gpu, cpus = ray.cluster_resources(), uses_gpu(config), config.cluster.worker_cpus
    most = total.get("GPU", 1) if gpu else (total.get("CPU", 1) - 1) / max(1, cpus)
    pool = ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, int(most)))
    return {"compute": pool, "num_cpus": cpus, "num_gpus": 1 if gpu else 0}


class _Features:
    """Actor: adds the embedding of the masked sentence and the features of the judge."""

    def __init__(self, config: Config) -> None:
        from divray.diversity.embeddings import Encoder

        self.encoder = Encoder.of(config)

    def __call__(self, batch: pa.Table) -> pa.Table:
        from divray.correctness import sentence_features
        from divray.diversity.embeddings import embedding_column
        from divray.diversity.texts import compared_texts

        if not batch.num_rows:
            return EMBEDDED.empty_table()
        embedding = self.encoder.encode(compared_texts(batch, mask=True))
        features = sentence_features(batch, self.encoder.encode)
        pools = [f"{relation}\n{NAIVE}" if strategy == NAIVE else relation for relation, strategy in _pairs(batch)]
        batch = batch.append_column(SCORES.field("embedding"), embedding_column(embedding))
        batch = batch.append_column(FEATURES, embedding_column(features)).append_column("pool", pa.array(pools, pa.string()))
        return batch.select(EMBEDDED.names).cast(EMBEDDED)


def _pairs(batch: pa.Table) -> zip[tuple[str, str]]:
    return zip(batch["relation"].to_pylist(), batch["strategy"].to_pylist(), strict=True)


def _valid(batch: pa.Table) -> pa.Table:
    return batch.filter(pc.equal(batch["rejection"], "")).select(SAMPLES.names).cast(SAMPLES)


def _fit(config: Config, uri: str, embedded: str) -> Any:
    """The judge, from the seeds and (a bounded number of) this round's samples; also embeds the seeds."""
    from divray.correctness import fit_judge, fitting_rows, sentence_features
    from divray.diversity.embeddings import Encoder, embedding_column, embedding_matrix
    from divray.diversity.texts import compared_texts

    run = RunFolder(uri)
    encoder = Encoder.of(config)
    seeds = run.read_table("data/seeds")
    forward = sentence_features(seeds, encoder.encode)
    backward = sentence_features(seeds, encoder.encode, reverse=True)
    seed_embeddings = embedding_column(encoder.encode(compared_texts(seeds, mask=True)))
    run.write_table("data/seed_embeddings", pa.table({"example_id": seeds["example_id"], "embedding": seed_embeddings}))

    columns = ["candidate_id", "relation", "strategy", "text", "head_start", "head_end", "tail_start", "tail_end"]
    if not run.files(embedded, ".parquet"):
        return fit_judge(seeds, forward, backward, config.correctness, none_label=config.task.none_label)
    samples = run.read_table(embedded, columns).sort_by("candidate_id")
    samples = samples.filter(pc.not_equal(samples["strategy"], NAIVE))
    samples = samples.take(fitting_rows(samples, config.correctness.fit_per_relation))
    features = _features_of(run, embedded, samples["candidate_id"])
    return fit_judge(
        seeds, forward, backward, config.correctness, samples, embedding_matrix(features["features"]), none_label=config.task.none_label
    )


def _features_of(run: RunFolder, table: str, ids: pa.ChunkedArray) -> pa.Table:
    """``candidate_id`` and ``features`` of the rows of ``ids``, which are sorted; reads no other features into memory."""
    import pyarrow.dataset as pads

    files = [run.path(file) for file in run.files(table, ".parquet")]
    wanted = pads.field("candidate_id").isin(ids.combine_chunks())
    return pads.dataset(files, filesystem=run.fs).to_table(["candidate_id", "features"], filter=wanted).sort_by("candidate_id")


def _judged(batch: pa.Table, judge: Any) -> pa.Table:
    """What near-duplicates and their order need of each row: :data:`COMPARED`."""
    import ray

    from divray.diversity.embeddings import embedding_matrix

    if not batch.num_rows:
        return COMPARED.empty_table()
    correctness = ray.get(judge).score(batch, embedding_matrix(batch[FEATURES.name]))
    return batch.append_column("correctness", pa.array(correctness, pa.float64())).select(COMPARED.names).cast(COMPARED)


def _decide_pool(rows: pa.Table, config: Config, uri: str, round: int, marks: Any, seeds: Any) -> pa.Table:
    """What stays of one relation's rows (or its naive ones), and why: :data:`DECIDED`."""
    import ray

    from divray.diversity.stage import deduplicate, fixed_items

    if not rows.num_rows:
        return DECIDED.empty_table()
    relation = rows["relation"][0].as_py()
    is_naive = rows["strategy"][0].as_py() == NAIVE
    examples = ray.get(seeds)
    own = examples.filter(pc.equal(examples["relation"], relation))
    before = None if is_naive else _earlier(RunFolder(uri), relation, round)
    rows = marked(rows.select(COMPARED.names).cast(COMPARED).sort_by("candidate_id"), ray.get(marks))
    out = barred(rows, config.diversity)
    free = deduplicate(rows.filter(pc.invert(out)), config.diversity, fixed_items(own, before))
    rows = pa.concat_tables([free, dropped(rows.filter(out)).select(free.column_names)]).sort_by("candidate_id")
    return rows.select(DECIDED.names).cast(DECIDED)


def _measured(batch: pa.Table, uri: str, verdicts: list[str], staying: dict[str, Any], threshold: float) -> pa.Table:
    """A batch of any relations, with what was decided of it and its novelty (``schemas.SCORES``)."""
    import pyarrow.dataset as pads

    if not batch.num_rows:
        return SCORES.empty_table()
    ids = pads.field("candidate_id")
    ends = pc.min_max(batch["candidate_id"])
    near = pads.dataset(verdicts, filesystem=RunFolder(uri).fs).to_table(filter=(ids >= ends["min"]) & (ids <= ends["max"]))
    own = near.take(pc.index_in(batch["candidate_id"], value_set=near["candidate_id"].combine_chunks()))
    made = {name: own[name] for name in DECIDED.names if name in SCORES.names and name not in SAMPLES.names}
    made["correct"] = pc.greater_equal(own["correctness"], threshold)
    made["novelty"] = pa.array(novelties(batch, staying), pa.float64())
    for name, column in made.items():
        batch = batch.append_column(SCORES.field(name), column)
    return batch.select(SCORES.names).cast(SCORES)


def _earlier(run: RunFolder, relation: str, round: int) -> pa.Table | None:
    """This relation's samples of the rounds before, as far as near-duplicates need them."""
    import pyarrow.dataset as pads

    files = score_files(run, round)
    if not files:
        return None
    own = (pads.field("relation") == relation) & (pads.field("strategy") != NAIVE)
    columns = ["candidate_id", "text", "head_start", "head_end", "tail_start", "tail_end", "unique"]
    return pads.dataset(files, filesystem=run.fs).to_table(columns, filter=own)


def _counts(config: Config, run: RunFolder, folder: str) -> dict[str, int]:
    """The counts of :func:`run`; those of each relation also go to Prometheus."""
    counts = dict.fromkeys(("scored", "unique", "correct", "conflicts", "near_test"), 0)
    relations: Counter[tuple[str, str]] = Counter()
    columns = ["relation", "strategy", "unique", "correct", "conflict", "near_test"]
    batch: Any
    for batch in run.dataset(f"{folder}/scores", columns=columns).iter_batches(batch_format="pyarrow", batch_size=None):
        own = batch.filter(pc.not_equal(batch["strategy"], NAIVE))
        unique = own.filter(own["unique"])
        for name, rows in (("scored", own), ("unique", unique), ("correct", unique.filter(unique["correct"]))):
            counts[name] += rows.num_rows
            for entry in rows["relation"].value_counts().to_pylist():
                relations[entry["values"], name] += entry["counts"]
        for name, column in (("conflicts", "conflict"), ("near_test", "near_test")):
            counts[name] += pc.sum(pc.not_equal(own[column], "")).as_py() or 0
    gauge = _gauge()
    for (relation, name), count in relations.items():
        outcome = {"scored": "valid", "correct": "accepted"}.get(name, name)
        gauge.set(count, {"round": folder, "relation": relation, "outcome": outcome})
    return counts if config.diversity.guard_test else {name: count for name, count in counts.items() if name != "near_test"}


@cache
def _gauge() -> Any:
    from ray.util.metrics import Gauge

    return Gauge("divray_samples", "Samples of a round: valid, unique, accepted (unique and correct).", ("round", "relation", "outcome"))
