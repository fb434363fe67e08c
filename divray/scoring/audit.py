"""The second judge: the report prints its figure, and nothing in the loop depends on it.  It reads the first K samples of each set.

A small LLM reads the relation's seed records, then the sample's entities and sentence.  This LLM is never tuned and is not the gate's.
The judge combines these signals, with ``l`` the log-probabilities of the sentence's tokens in nats:

============  =========================================================================================
``sentence``  mean of l, less the same averaged over some of the task's seeds; no seed is read after itself
``stumble``   mean of the three smallest of l, less the same averaged over those seeds
``passed``    1 if the gate's score is at least :data:`PASSED`, whatever the run's threshold
``inside``    log-odds from the LLM's hidden states, if ``weights.json`` has a probe for this LLM
============  =========================================================================================
"""

import numpy as np
import pyarrow as pa

from divray.config import Config
from divray.datasets.stage import examples_table, read_relations, read_seeds, table_examples
from divray.run_folder import RunFolder
from divray.schemas import EXAMPLES
from divray.scoring.answers import Likelihood, readings, some_of
from divray.scoring.judge import known_of, probability, probe_for
from divray.scoring.stage import encoder_pool

AUDIT, AUDIT_PROBED = "audit", "audit_probed"
"""Names in ``weights.json`` of the weights for any LLM, and for the one with a probe."""
PASSED = 0.8
"""The default gate's threshold, with which the weights were fitted (``benchmarks/reading/fit.py``)."""


def audited(config: Config, run: RunFolder, rows: pa.Table) -> dict[str, float]:
    """Sample id -> the audit's probability that the sample is right.

    ``rows`` have columns of ``schemas.DATASET``, each sample once.  ``correctness.reader`` names the LLM.
    """
    import ray.data

    if not rows.num_rows:
        return {}
    known = some_of(known_of(config, read_relations(run), read_seeds(run))[1])
    seeds = examples_table(known).rename_columns(["sample_id", *EXAMPLES.names[1:]])
    # Sorted by relation: sentences of one relation share the text that the LLM reads before them.
    read = pa.concat_tables([rows.select(seeds.column_names).cast(seeds.schema), seeds])
    read = read.sort_by([("relation", "ascending"), ("sample_id", "ascending")])
    blocks, readers = encoder_pool(config, run, read.num_rows)
    data = ray.data.from_arrow(read, override_num_blocks=blocks).map_batches(_Reader, **readers)
    found = {row["sample_id"]: row["read"] for row in data.iter_rows()}
    origin = np.array([found[seed.example_id] for seed in known]).mean(axis=0)
    names = rows["sample_id"].to_pylist()
    sentence, stumble, inside = np.array([found[name] for name in names]).T
    passed = (rows["correctness"].to_numpy() >= PASSED).astype(float)
    signals = {"sentence": sentence - origin[0], "stumble": stumble - origin[1], "passed": passed, "inside": inside}
    judge = AUDIT_PROBED if probe_for(AUDIT_PROBED, config.correctness.reader) else AUDIT
    return dict(zip(names, probability(judge, signals).tolist(), strict=True))


class _Reader:
    """Actor: computes the LLM's signals for each sentence."""

    def __init__(self, config: Config, uri: str) -> None:
        import ray

        run = RunFolder(uri)
        self.likelihood = Likelihood(config.correctness.reader, "cuda" if ray.get_gpu_ids() else "cpu")
        self.known = known_of(config, read_relations(run), read_seeds(run))
        self.probe = probe_for(AUDIT_PROBED, config.correctness.reader)

    def __call__(self, batch: pa.Table) -> pa.Table:
        read = readings(self.likelihood, *self.known, table_examples(batch, "sample_id"), self.probe)
        return batch.select(["sample_id"]).append_column("read", pa.array(read.tolist(), pa.list_(pa.float64())))
