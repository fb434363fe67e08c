"""The ``mine`` stage: preference pairs for DPO, from the samples of a round or after the paper.

``mined`` (:mod:`divray.preferences.mined`) sets right, fluent and different samples against ones that are wrong in a named way.

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
from divray.datasets.stage import read_relations, read_seeds
from divray.errors import InputError
from divray.preferences.mined import CANDIDATES, mined_pairs
from divray.preferences.paper import near_copy, paper_pairs
from divray.prompts.rows import accepted_samples, gives_pair
from divray.run_folder import Round, RunFolder
from divray.schemas import NAIVE, PAIRS
from divray.stages import Progress

if TYPE_CHECKING:
    import ray.data

__all__ = ["mined_pairs", "near_copy", "paper_pairs", "run"]

NOT_WHOLE = ("engine_error", "rejected_request", "prompt_too_long", "empty", "truncated", "not_written")
"""Rejections of completions that are no whole text."""

OTHERS = 32
"""Right samples of each relation that serve as wrong ones of the others."""


def run(config: Config, run: RunFolder, round: int = 0, on_progress: Progress | None = None) -> dict[str, Any]:
    """Write ``round-XX/pairs`` (``schemas.PAIRS``), sorted by ``pair_id``.

    Reads ``round-XX/scores`` and the rejections in ``round-XX/samples`` (``mined``), or ``round-XX/prompts``
    and ``data/seeds`` (``paper``), one relation at a time.

    Returns:
        Counts: ``pairs``, ``kinds`` (kind -> pairs), ``relations`` (name -> pairs).

    Raises:
        InputError: ``paper``, and every prompt shows every seed, so that none is left to be chosen.
    """
    own = Round.of(round)
    relations = {relation.name: relation for relation in read_relations(run)}
    shared: dict[str, Any] = {
        "relations": relations,
        "seeds": read_seeds(run),
        "settings": config.preferences,
        "seed": config.seed,
        "chat": config.prompts.style == "chat",
    }
    if config.preferences.mode == "mined":
        rows = _candidates(run, own)
        others = {name: accepted[:OTHERS] for name, accepted in accepted_samples(run, [round]).items()}
        make: Any = partial(mined_pairs, others=others, **shared)
    else:
        rows = run.dataset(own.prompts, columns=["relation", "strategy", "prompt_id", "prompt", "head", "demonstrations"])
        make = partial(paper_pairs, **shared)
    groups = rows.groupby("relation", num_partitions=min(max(1, len(relations)), 64))
    made = groups.map_groups(make, batch_format="pyarrow", num_cpus=config.cluster.worker_cpus)
    # Never more than max_pairs_per_relation times the relations: small, whatever the size of the round.
    batches: Any = made.iter_batches(batch_format="pyarrow", batch_size=None)
    parts = [batch.select(PAIRS.names).cast(PAIRS) for batch in batches if batch.num_rows]
    pairs = pa.concat_tables([PAIRS.empty_table(), *parts]).sort_by("pair_id")
    if config.preferences.mode == "paper" and not pairs.num_rows:
        raise none_left_to_choose()
    run.write_table(own.pairs, pairs)
    names, kinds = pairs["relation"].to_pylist(), pairs["kind"].to_pylist()
    return {"pairs": pairs.num_rows, "kinds": dict(sorted(Counter(kinds).items())), "relations": dict(sorted(Counter(names).items()))}


def none_left_to_choose() -> InputError:
    """What is wrong where no prompt leaves a seed example for the pairs after the paper."""
    problem = "every prompt shows every seed example, so none is left to be chosen in a pair"
    return InputError("config", "prompts.demonstrations", problem, "Show fewer, or give more task.seeds_per_relation.")


def _candidates(run: RunFolder, own: Round) -> ray.data.Dataset:
    """The scored samples and the whole invalid completions, without the naive ones, under the same columns."""
    columns = ["candidate_id", "relation", "strategy", "prompt_id", "prompt", "completion", "rejection"]
    samples = run.dataset(own.samples, columns=columns)
    invalid = samples.map_batches(partial(_rows, valid=False), batch_format="pyarrow", num_cpus=0.1)
    if not run.files(own.scores, ".parquet"):
        return invalid
    scored = run.dataset(own.scores, columns=CANDIDATES.names[:-2])
    return scored.map_batches(partial(_rows, valid=True), batch_format="pyarrow", num_cpus=0.1).union(invalid)


def _rows(batch: pa.Table, valid: bool) -> pa.Table:
    """Rows of :data:`CANDIDATES`: scored samples, or whole but invalid completions, which have no scores."""
    if not batch.num_rows:
        return CANDIDATES.empty_table()
    kept = pc.not_equal(batch["strategy"], NAIVE)
    # A list of records is no text that a prompt for one would be continued with.
    kept = pc.and_(kept, pc.not_equal(batch["strategy"], "all_at_once"))
    if not valid:
        kept = pc.and_(kept, pc.invert(pc.is_in(batch["rejection"], pa.array(["", *NOT_WHOLE]))))
    table = batch.filter(kept)
    table = table.append_column("given", gives_pair(table["prompt"])).append_column("valid", pa.array([valid] * table.num_rows, pa.bool_()))
    for field in CANDIDATES:
        if field.name not in table.column_names:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    return table.select(CANDIDATES.names).cast(CANDIDATES)
