"""The ``score`` stage: embeddings, correctness, near-duplicates and novelty of every valid sample.

Four passes.  The samples stream through encoder actors; one task fits the judge of correctness; one task
looks across all relations (:mod:`divray.diversity.across`); each relation's rows are judged, deduplicated
against the seeds and the rounds before, and measured for novelty.  The rows of the naive baseline are
scored among themselves, so that they neither displace a sample of the loop nor vouch for one.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from divray.config import Config
from divray.diversity.across import across_relations, barred, dropped, marked, score_files
from divray.runs import RunFolder
from divray.schemas import NAIVE, SAMPLES, SCORES

FEATURES = pa.field("features", pa.list_(pa.float32()))
EMBEDDED = pa.schema([*SAMPLES, SCORES.field("embedding"), FEATURES, pa.field("pool", pa.string())])


def run(config: Config, run: RunFolder, round: int) -> dict[str, Any]:
    """Write ``round-XX/scores`` (``schemas.SCORES``), ``data/seed_embeddings``.

    Returns:
        Counts: ``scored``, ``unique``, ``correct`` (unique and correct), ``conflicts``, and ``near_test`` where the test set
        is guarded; without the naive baseline.
    """
    import ray

    folder = f"round-{round:02d}"
    embedded = f"{folder}/embedded"
    for name in (embedded, f"{folder}/scores"):
        run.delete(name)
    encoder = ray.data.ActorPoolStrategy(size=1)
    valid = run.dataset(f"{folder}/samples").map_batches(_valid, batch_format="pyarrow", num_cpus=0.1)
    valid.map_batches(
        _Features,
        batch_format="pyarrow",
        batch_size=256,
        compute=encoder,
        num_cpus=config.cluster.worker_cpus,
        fn_constructor_args=(config,),
    ).write_parquet(run.path(embedded), filesystem=run.fs, ray_remote_args={"num_cpus": 0.1})

    judge = ray.remote(num_cpus=config.cluster.worker_cpus)(_fit).remote(config, run.uri, embedded)
    marks = ray.remote(num_cpus=config.cluster.worker_cpus)(across_relations).remote(config, run.uri, embedded, round)
    if not run.files(embedded, ".parquet"):  # no valid sample; Ray writes no file without rows
        ray.get([judge, marks])
        run.write_table(f"{folder}/scores", SCORES.empty_table())
        return _counts(config, run, f"{folder}/scores")
    seeds = run.read_table("data/seeds")
    rows = run.dataset(embedded)
    score = partial(_score_pool, config=config, uri=run.uri, round=round, judge=judge, marks=marks, seeds=ray.put(seeds))
    partitions = min(2 * max(1, len(set(seeds["relation"].to_pylist()))), 64)
    scored = rows.groupby("pool", num_partitions=partitions).map_groups(score, batch_format="pyarrow", num_cpus=config.cluster.worker_cpus)
    scored.sort("candidate_id").write_parquet(run.path(f"{folder}/scores"), filesystem=run.fs)
    run.delete(embedded)
    return _counts(config, run, f"{folder}/scores")


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


def _score_pool(rows: pa.Table, config: Config, uri: str, round: int, judge: Any, marks: Any, seeds: Any) -> pa.Table:
    """One relation's rows (or its naive ones), scored (``schemas.SCORES``)."""
    import ray

    from divray.diversity.embeddings import embedding_matrix
    from divray.diversity.semantic import novelty
    from divray.diversity.stage import deduplicate, fixed_items

    if not rows.num_rows:
        return SCORES.empty_table()
    rows = rows.select(EMBEDDED.names).cast(EMBEDDED).sort_by("candidate_id")
    relation = rows["relation"][0].as_py()
    is_naive = rows["strategy"][0].as_py() == NAIVE
    correctness = ray.get(judge).score(rows, embedding_matrix(rows["features"]))
    rows = rows.append_column("correctness", pa.array(correctness, pa.float64()))
    rows = rows.append_column("correct", pa.array(correctness >= config.correctness.threshold))
    examples = ray.get(seeds)
    own = examples.filter(pc.equal(examples["relation"], relation))
    before = None if is_naive else _earlier(RunFolder(uri), relation, round)
    rows = marked(rows, ray.get(marks))
    out = barred(rows, config.diversity)
    free = deduplicate(rows.filter(pc.invert(out)), config.diversity, fixed_items(own, before))
    rows = pa.concat_tables([free, dropped(rows.filter(out)).select(free.column_names)]).sort_by("candidate_id")
    unique = rows["unique"].to_numpy(zero_copy_only=False).astype(bool)
    embeddings = embedding_matrix(rows["embedding"])
    rows = rows.append_column("novelty", pa.array(novelty(np.asarray(embeddings), unique), pa.float64()))
    return rows.select(SCORES.names).cast(SCORES)


def _earlier(run: RunFolder, relation: str, round: int) -> pa.Table | None:
    """This relation's samples of the rounds before, as far as near-duplicates need them."""
    import pyarrow.dataset as pads

    files = score_files(run, round)
    if not files:
        return None
    own = (pads.field("relation") == relation) & (pads.field("strategy") != NAIVE)
    columns = ["candidate_id", "text", "head_start", "head_end", "tail_start", "tail_end", "unique"]
    return pads.dataset(files, filesystem=run.fs).to_table(columns, filter=own)


def _counts(config: Config, run: RunFolder, table: str) -> dict[str, int]:
    counts = dict.fromkeys(("scored", "unique", "correct", "conflicts", "near_test"), 0)
    columns = ["strategy", "unique", "correct", "conflict", "near_test"]
    batch: Any
    for batch in run.dataset(table, columns=columns).iter_batches(batch_format="pyarrow", batch_size=None):
        own = batch.filter(pc.not_equal(batch["strategy"], NAIVE))
        counts["scored"] += own.num_rows
        counts["unique"] += pc.sum(own["unique"]).as_py() or 0
        counts["correct"] += pc.sum(pc.and_(own["unique"], own["correct"])).as_py() or 0
        for name, column in (("conflicts", "conflict"), ("near_test", "near_test")):
            counts[name] += pc.sum(pc.not_equal(own[column], "")).as_py() or 0
    return counts if config.diversity.guard_test else {name: count for name, count in counts.items() if name != "near_test"}
