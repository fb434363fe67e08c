"""The judge whose figure the report prints: nothing that it measures is known to the gate, to pairs or to the selection.

The gate sees the encoder's features; the audit sees what a small LLM, which no tuning moves, thinks of the sentence ``s`` with the entities
``h`` and ``t`` after the seed records of its relation.  With ``l`` the log-probabilities of the tokens of ``s`` in nats:

============  =========================================================================================
``sentence``  mean of l, less that of the task's seeds, each read without itself
``stumble``   mean of the three smallest of l, likewise
``passed``    1 for what the gate let through, 0 for the naive baseline's rest
============  =========================================================================================

It runs after the selection, and so on the selected samples alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from divray.config import Config
from divray.datasets.stage import read_relations, read_seeds, table_examples
from divray.prompts.record import as_lines, labels
from divray.relations import Example, Relation
from divray.run_folder import RunFolder
from divray.scoring.answers import Likelihood, by_prefix
from divray.scoring.judge import AUDIT, weights
from divray.scoring.stage import encoders

SIGNALS = ("sentence", "stumble", "passed")
_HARDEST, _BATCH = 3, 256


def readings(
    likelihood: Likelihood,
    relations: Sequence[Relation],
    seeds: Sequence[Example],
    examples: Sequence[Example],
    without: Sequence[Example] | None = None,
) -> np.ndarray:
    """``sentence`` and ``stumble`` of each example, not yet less the seeds', float64 ``[n, 2]``, three decimals.

    The arguments are those of :func:`divray.scoring.answers.ask`.
    """
    named = {relation.name: relation for relation in relations}

    def prefix(name: str, shown: list[Example]) -> str:
        records = "".join(f"{as_lines(named[name], seed)}\n\n" for seed in shown)
        return f"Relation: {name}\nMeaning: {named[name].description}\n\n{records}"

    found = np.zeros((len(examples), 2))
    for before, rows in by_prefix(prefix, seeds, examples, without):
        leads = []
        for row in rows:
            head, tail, sentence = labels(named[examples[row].relation])
            leads.append(f"{head} {examples[row].head_text}\n{tail} {examples[row].tail_text}\n{sentence}")
        for row, terms in zip(rows, likelihood.log_probabilities(before, leads, [f" {examples[row].text}" for row in rows]), strict=True):
            found[row] = terms.mean(), np.sort(terms)[:_HARDEST].mean()
    return found.round(3)


def audited(config: Config, run: RunFolder, rows: pa.Table) -> dict[str, float]:
    """Sample id -> the probability that it is right, as the LLM ``correctness.reader`` sees it.

    ``rows`` have the columns of ``schemas.DATASET``, and ``passed`` (bool); each sample once.
    """
    import ray.data

    if not rows.num_rows:
        return {}
    actors = encoders(config)
    # A relation's sentences stand together, since they share what is read before them.
    data = ray.data.from_arrow(rows.sort_by([("relation", "ascending"), ("sample_id", "ascending")]))
    read = data.map_batches(_Reader, batch_format="pyarrow", batch_size=_BATCH, fn_constructor_args=(config, run.uri), **actors)
    found: dict[str, float] = {}
    batches: Any = read.iter_batches(batch_format="pyarrow", batch_size=None)
    for batch in batches:
        found |= dict(zip(batch["sample_id"].to_pylist(), batch[AUDIT].to_pylist(), strict=True))
    return found


class _Reader:
    """Actor: the audit of each sample."""

    def __init__(self, config: Config, uri: str) -> None:
        import ray

        run = RunFolder(uri)
        relations = [relation for relation in read_relations(run) if relation.name != config.task.none_label]
        names = {relation.name for relation in relations}
        seeds = [seed for seed in read_seeds(run) if seed.relation in names]
        self.known = Likelihood(config.correctness.reader, "cuda" if ray.get_gpu_ids() else "cpu"), relations, seeds
        self.origin = readings(*self.known, seeds, without=seeds).mean(axis=0)

    def __call__(self, batch: pa.Table) -> pa.Table:
        read = readings(*self.known, table_examples(batch, "sample_id")) - self.origin
        signals = np.column_stack([read, batch["passed"].to_numpy()])
        return batch.select(["sample_id"]).append_column(AUDIT, pa.array(weights(AUDIT).probability(signals, SIGNALS), pa.float64()))
