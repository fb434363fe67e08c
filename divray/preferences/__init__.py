"""The ``mine`` stage: preference pairs for DPO, from the samples of a round or after the paper.

``mined`` follows DivPO (arXiv 2501.18101).  Of the candidates ``C`` of one prompt, with correctness ``r``,
novelty ``d`` and the share ``p`` (``preferences.quality``)::

    chosen   = argmax d over { c in C : c among the best p|C| by r, gate passed, unique }
    rejected = argmin d over { c in C : c among the worst p|C| by r }

A near-duplicate counts as not different at all (``d = 0``).  The next pair of a prompt takes the second
of either side, and so on; no candidate stands in two pairs.  An invalid completion, if it is whole, is
rejected only where a prompt has no valid candidate to reject: format is the constraint's business.  What
a prompt could not pair is paired with what other prompts of the same relation and strategy left over,
under the prompt of the chosen one (kind ``mined_across``).

``paper`` (arXiv 2505.23108) takes seed examples that the prompt does not show as chosen, against a seed of
another relation (``relabelled``), a demonstration with other entities and a slight edit (``near_copy``)
and a demonstration as it stands (``copy``).  The paper's guard against leaks (the relations in two
halves, one to tune on and one to generate for) is not built.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from divray.config import Config
from divray.errors import InputError
from divray.preferences.mined import CANDIDATES, mined_pairs
from divray.preferences.paper import near_copy, paper_pairs
from divray.runs import RunFolder
from divray.schemas import NAIVE, PAIRS

if TYPE_CHECKING:
    import ray.data

__all__ = ["mined_pairs", "near_copy", "paper_pairs", "run"]

NOT_WHOLE = ("engine_error", "empty", "truncated")
"""Rejections of completions that are no whole text."""


def run(config: Config, run: RunFolder, round: int) -> dict[str, Any]:
    """Write ``round-XX/pairs`` (``schemas.PAIRS``), sorted by ``pair_id``.

    Reads ``round-XX/scores`` and the rejections in ``round-XX/samples`` (``mined``), or ``round-XX/prompts``
    and ``data/seeds`` (``paper``), one relation at a time.

    Returns:
        Counts: ``pairs``, ``kinds`` (kind -> pairs), ``relations`` (name -> pairs).

    Raises:
        InputError: ``paper``, and every prompt shows every seed, so that none is left to be chosen.
    """
    folder = f"round-{round:02d}"
    if config.preferences.mode == "mined":
        rows = _candidates(run, folder)
        make: Any = partial(mined_pairs, settings=config.preferences)
    else:
        rows = run.dataset(f"{folder}/prompts", columns=["relation", "strategy", "prompt_id", "prompt", "demonstrations"])
        seeds = run.read_table("data/seeds")
        make = partial(paper_pairs, seeds=seeds, settings=config.preferences, seed=config.seed)
    partitions = min(max(1, len(run.read_json("data/relations.json"))), 64)
    groups = rows.groupby("relation", num_partitions=partitions)
    made = groups.map_groups(make, batch_format="pyarrow", num_cpus=config.cluster.worker_cpus)
    # Never more than max_pairs_per_relation times the relations: small, whatever the size of the round.
    batches: Any = made.iter_batches(batch_format="pyarrow", batch_size=None)
    parts = [batch.select(PAIRS.names).cast(PAIRS) for batch in batches if batch.num_rows]
    pairs = pa.concat_tables([PAIRS.empty_table(), *parts]).sort_by("pair_id")
    if config.preferences.mode == "paper" and not pairs.num_rows:
        problem = "every prompt shows every seed example, so none is left to be chosen in a pair"
        raise InputError("config", "prompts.demonstrations", problem, "Show fewer, or give more task.seeds_per_relation.")
    run.write_table(f"{folder}/pairs", pairs)
    names, kinds = pairs["relation"].to_pylist(), pairs["kind"].to_pylist()
    return {"pairs": pairs.num_rows, "kinds": dict(sorted(Counter(kinds).items())), "relations": dict(sorted(Counter(names).items()))}


def _candidates(run: RunFolder, folder: str) -> ray.data.Dataset:
    """The scored samples and the whole invalid completions, without the naive ones, under the same columns."""
    columns = ["candidate_id", "relation", "strategy", "prompt_id", "prompt", "completion", "rejection"]
    invalid = run.dataset(f"{folder}/samples", columns=columns).map_batches(_invalid, batch_format="pyarrow", num_cpus=0.1)
    if not run.files(f"{folder}/scores", ".parquet"):
        return invalid
    scored = run.dataset(f"{folder}/scores", columns=CANDIDATES.names[:-1])
    return scored.map_batches(_scored, batch_format="pyarrow", num_cpus=0.1).union(invalid)


def _scored(batch: pa.Table) -> pa.Table:
    if not batch.num_rows:
        return CANDIDATES.empty_table()
    table = batch.filter(pc.not_equal(batch["strategy"], NAIVE))
    return table.append_column("valid", pa.array([True] * table.num_rows, pa.bool_())).select(CANDIDATES.names).cast(CANDIDATES)


def _invalid(batch: pa.Table) -> pa.Table:
    if not batch.num_rows:
        return CANDIDATES.empty_table()
    whole = pc.invert(pc.is_in(batch["rejection"], pa.array(["", *NOT_WHOLE])))
    table = batch.filter(pc.and_(whole, pc.not_equal(batch["strategy"], NAIVE)))
    worst = {"correctness": 0.0, "correct": False, "unique": False, "novelty": 0.0, "valid": False}
    for name, value in worst.items():
        table = table.append_column(CANDIDATES.field(name), pa.array([value] * table.num_rows, CANDIDATES.field(name).type))
    return table.select(CANDIDATES.names).cast(CANDIDATES)
