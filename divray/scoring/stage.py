"""The ``score`` stage: embeddings, correctness, near-duplicates and novelty of every valid sample.

Once per run, a Ray task embeds the seeds.  The samples stream through actors that encode and judge them.  One task then looks for
conflicts across all relations (:mod:`divray.scoring.conflicts`).  For each pool, a task drops samples that are near-duplicates of each
other, of a seed or of a sample of an earlier round, and measures novelty.

A pool is the loop's rows of one relation, or the naive baseline's rows of it.
"""

from functools import partial
from hashlib import sha256
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from divray import scan
from divray.config import Config
from divray.datasets.stage import read_relations, read_seeds, table_examples
from divray.embeddings import embedding_column, embedding_matrix
from divray.engines.pool import held
from divray.layout import SEED_EMBEDDINGS, SEED_HEARD, SEEDS, TEST, TEST_EMBEDDINGS, Round, score_tables
from divray.resources import actor_pool, most_workers, only_cpus, task_gpus, worker
from divray.review import review_answers, reviewed_threshold
from divray.run_folder import RunFolder
from divray.schemas import NAIVE, SAMPLES, SCORES
from divray.scoring.conflicts import BARRED, across_relations, copies_of_seeds, marked
from divray.scoring.judge import Judging
from divray.scoring.near_copies import deduplicate, novelty, with_columns
from divray.stages import Progress
from divray.texts import SENTENCE, compared_texts

EMBEDDED = pa.schema([*SAMPLES, SCORES.field("embedding"), SCORES.field("correctness"), ("pool", pa.string())])
AUTO = 0.5
"""The threshold of ``auto`` before anybody has reviewed a sample: right and wrong are equally likely."""

ENCODED_ROWS, GPU_ROWS, TURNS = (32, 512), (1024, 4096), 4
"""The least and most rows in a block for an encoder on a CPU and on a GPU.  A CPU's least is small, so that several encoders share a small
round; in a GPU's smaller blocks most tokens would be padding.  Within these limits, each encoder gets :data:`TURNS` blocks."""

TEST_SENTENCES = 32
"""Number of test sentences of each relation whose diversity the report compares with the samples'."""

PART_ROWS = 4096
"""Least rows in a file of embedded samples, if there are that many."""


def run(config: Config, run: RunFolder, round: int = 0, on_progress: Progress | None = None) -> dict[str, Any]:
    """Write ``round-XX/scores`` (``schemas.SCORES``), ``data/seed_embeddings``, ``data/test_embeddings``.

    Returns:
        Counts without the naive baseline: ``scored``, ``unique``, ``correct`` (unique and correct), ``conflicts``, and, with
        ``diversity.guard_test``, ``near_test``.
    """
    import ray

    written, threshold = Round.of(round), gate(config, run)
    embedded = written.embedded
    for name in (embedded, written.scores):
        run.delete(name)
    if not run.files(SEED_HEARD, ".parquet"):  # else an earlier round wrote it
        ray.get(worker(config, gpus=True)(_hear_seeds).remote(config, run.uri))
    rows = sum(int(count) for (count,) in scan.tally(run, written.samples, ["relation"], where=pc.field("rejection") == "").values())
    blocks, encoders = encoder_pool(config, run, rows)
    read = run.dataset(written.samples, override_num_blocks=blocks, num_cpus=0.1)
    valid = read.map_batches(_valid, batch_format="pyarrow", num_cpus=0.1)
    encoded = valid.map_batches(_Features, **encoders)
    run.write_dataset(embedded, encoded, min_rows_per_file=PART_ROWS, ray_remote_args={"num_cpus": 0.1})

    only_cpus(True)
    if not run.files(embedded, ".parquet"):  # no valid sample; Ray writes no file without rows
        run.write_table(written.scores, SCORES.empty_table())
        return _counts(config, run, written)
    marks = worker(config)(across_relations).remote(config, run.uri, embedded, round)
    seeds = run.read_table(SEEDS)
    partitions = min(2 * max(1, len(set(seeds["relation"].to_pylist()))), 64)
    score = partial(_scored_pool, config=config, uri=run.uri, round=round, marks=marks, seeds=ray.put(seeds), threshold=threshold)
    groups = run.dataset(embedded).groupby("pool", num_partitions=partitions)
    scored = groups.map_groups(score, batch_format="pyarrow", num_cpus=config.cluster.worker_cpus)
    run.write_dataset(written.scores, scored.sort("candidate_id"))
    run.delete(embedded)
    return _counts(config, run, written)


def encoder_pool(config: Config, run: RunFolder, rows: int) -> tuple[int, dict[str, Any]]:
    """The number of blocks (:data:`ENCODED_ROWS`) for ``rows`` rows, and Ray Data's arguments for the pool of encoders.

    The pool has as many encoders as fit and have work.  Each is an actor made from the settings and the run's URI, one thread on a CPU.
    Call this before you make the dataset, since reading also holds CPUs.
    """
    least, largest = GPU_ROWS if task_gpus(config) else ENCODED_ROWS
    each = min(max(rows // (TURNS * most_workers(config)), least), largest)
    blocks = max(1, -(-rows // each))
    pool = actor_pool(config, blocks, beside=held())
    return blocks, {"batch_format": "pyarrow", "batch_size": None, "fn_constructor_args": (config, run.uri), **pool}


class _Features:
    """Actor: adds the embedding of the masked sentence, the judge's score of the sample, and its pool."""

    def __init__(self, config: Config, uri: str) -> None:
        run = RunFolder(uri)
        self.judging = Judging(config, read_relations(run), read_seeds(run))
        self.judge = self.judging.judge(embedding_matrix(run.read_table(SEED_HEARD)["heard"])[0])

    def __call__(self, batch: pa.Table) -> pa.Table:
        naive = pc.binary_join_element_wise(batch["relation"], NAIVE, "\n")
        pools = pc.if_else(pc.equal(batch["strategy"], NAIVE), naive, batch["relation"])
        embeddings = self.judging.encoder.encode(compared_texts(batch, mask=True))
        correctness = self.judging.correctness(self.judge, table_examples(batch, "candidate_id"))
        made = {"embedding": embedding_column(embeddings), "correctness": correctness, "pool": pools}
        return with_columns(batch, made, EMBEDDED)


def _valid(batch: pa.Table) -> pa.Table:
    return batch.filter(pc.equal(batch["rejection"], "")).select(SAMPLES.names).cast(SAMPLES)


def gate(config: Config, run: RunFolder) -> float:
    """The least score that passes: the setting; with ``auto``, a threshold from the reviewers' answers, or :data:`AUTO` without any."""
    if config.correctness.threshold != "auto":
        return config.correctness.threshold
    answers = review_answers(run)
    own = pc.field("candidate_id").isin(pa.array(list(answers), pa.string()))
    scored = list(scan.rows(run, score_tables(config.rounds), ["candidate_id", "correctness"], own)) if answers else []
    if not scored:
        return AUTO
    return reviewed_threshold([row["correctness"] for row in scored], [answers[row["candidate_id"]] for row in scored])


def _hear_seeds(config: Config, uri: str) -> None:
    """Embed the seeds and, for the report, some test sentences; store the judge's LLM signals of the seeds."""
    run = RunFolder(uri)
    judging = Judging(config, read_relations(run), read_seeds(run))
    tests = scan.rows(run, TEST, ["example_id", "relation", *SENTENCE])
    some = scan.first_of_each(tests, "relation", lambda row: sha256(row["example_id"].encode()).digest(), TEST_SENTENCES)
    shown = pa.Table.from_pylist([row for own in some.values() for row in own])
    for name, table in ((SEED_EMBEDDINGS, run.read_table(SEEDS)), (TEST_EMBEDDINGS, shown)):
        vectors = embedding_column(judging.encoder.encode(compared_texts(table, mask=True)))
        run.write_table(name, pa.table({"example_id": table["example_id"], "embedding": vectors}))
    run.write_table(SEED_HEARD, pa.table({"heard": embedding_column(judging.hear_seeds()[None])}))


def _scored_pool(rows: pa.Table, config: Config, uri: str, round: int, marks: Any, seeds: Any, threshold: float) -> pa.Table:
    """The scores (``schemas.SCORES``) of one relation's rows, or of its naive ones."""
    import ray

    relation = rows["relation"][0].as_py()
    is_naive = rows["strategy"][0].as_py() == NAIVE
    examples = ray.get(seeds)
    own = examples.filter(pc.equal(examples["relation"], relation))
    stayed = (pc.field("relation") == relation) & (pc.field("strategy") != NAIVE) & pc.field("unique")
    columns = ["candidate_id", *SENTENCE]
    before = None if is_naive else scan.table_of(RunFolder(uri), score_tables(round), columns, stayed)
    rows = rows.sort_by("candidate_id")
    rows = marked(rows, pa.concat_tables([ray.get(marks), copies_of_seeds(rows, own, config.diversity)]))
    barred = rows.filter(BARRED)
    gone = with_columns(barred, {"cluster": barred["candidate_id"], "unique": pa.repeat(False, barred.num_rows)})
    free = deduplicate(rows.filter(~BARRED), config.diversity, before)
    rows = pa.concat_tables([free, gone.select(free.column_names)]).sort_by("candidate_id")
    distances = novelty(embedding_matrix(rows["embedding"]), rows["unique"].to_numpy())
    return with_columns(rows, {"correct": pc.greater_equal(rows["correctness"], threshold), "novelty": distances}, SCORES)


def _counts(config: Config, run: RunFolder, written: Round) -> dict[str, int]:
    """The counts of :func:`run`."""
    accepted = pc.field("unique") & pc.field("correct")
    derived = {"correct": accepted, "conflicts": pc.field("conflict") != "", "near_test": pc.field("near_test") != ""}
    names = ("scored", "unique", *derived)
    found = scan.tally(run, written.scores, [], names[1:], derived, pc.field("strategy") != NAIVE)
    counts = dict(zip(names, map(int, found.get((), [0] * len(names))), strict=True))
    if not config.diversity.guard_test:
        del counts["near_test"]
    return counts
