"""The ``select`` stage: all accepted samples as a data set, in which the first K a relation are diverse and correct.

Accepted are the samples of all rounds that passed the gate and stayed unique, without those of the naive baseline; nothing else fills
a gap.  The rule is in :mod:`divray.selection.objective`.  A text that stands in several rounds counts once, where it came first, and a
sample whose head or tail others have already stands behind those with names of their own.  The same rule on the samples of one round
alone, and the naive baseline without any rule, give the training sets of the comparison.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from divray import console
from divray.config import Config
from divray.datasets.stage import read_relations, stated
from divray.embeddings import embedding_matrix
from divray.resources import only_cpus
from divray.review import review_figures
from divray.run_folder import Round, RunFolder
from divray.scan import tally
from divray.schemas import DATASET, NAIVE
from divray.scoring.audit import audited
from divray.scoring.stage import gate
from divray.sections import SelectionConfig
from divray.selection.card import dataset_card
from divray.selection.objective import greedy_selection, objective
from divray.stages import Progress

__all__ = ["chosen_samples", "greedy_selection", "objective", "run"]

ALL, SELECTED = "dataset", "selected"
_OWN = [name for name in DATASET.names if name not in ("sample_id", "rank", "audit")]
CANDIDATES = pa.schema(
    [pa.field("candidate_id", pa.string()), *(DATASET.field(name) for name in _OWN), pa.field("embedding", pa.list_(pa.float32()))]
)
CHOSEN = pa.schema([pa.field("set", pa.string()), pa.field("objective", pa.float64()), *DATASET])
"""A row of a training set: which one (``dataset``, ``round-00``, …, ``naive``) and the value of its relation in it."""

TOLD = 3
"""Relations that fall short and are told of."""

USES = 2
"""Selected samples of a relation that may share a head or a tail, while there are others."""


def run(config: Config, run: RunFolder, round: int = 0, on_progress: Progress | None = None) -> dict[str, Any]:
    """Write ``dataset/`` with its card, and the training sets ``comparison/selected``, ``…/round-XX`` and ``…/naive``.

    ``dataset/data/train-00000.parquet`` holds every accepted sample, by rank: the first K a relation come first.

    Reads ``round-XX/scores`` of all rounds up to ``round``, one relation at a time.  All tables are ``schemas.DATASET``.

    Returns:
        Counts: ``accepted``; ``selected``; ``relations`` (name -> samples); ``shortfall`` (name -> samples missing to K);
        ``reasons`` (name -> why it fell short, and what would help); ``objective`` (name -> its value); ``comparison`` (set -> samples).
    """
    import ray.data

    relations, k = stated(config, read_relations(run)), config.selection.k
    rounds = [Round.of(number) for number in range(round + 1)]
    only_cpus(True)
    files = run.table_files(*(own.scores for own in rounds))
    columns = [*CANDIDATES.names, "correct", "unique"]
    scored = ray.data.read_parquet(files, filesystem=run.fs, columns=columns, file_extensions=None)
    candidates = scored.map_batches(_candidates, batch_format="pyarrow", num_cpus=0.1)
    select = partial(chosen_samples, settings=config.selection, rounds=round + 1)
    groups = candidates.groupby("relation", num_partitions=min(max(1, len(relations)), 64))
    made = groups.map_groups(select, batch_format="pyarrow", num_cpus=config.cluster.worker_cpus)
    # The accepted samples without their vectors: a few hundred bytes each.
    batches: Any = made.iter_batches(batch_format="pyarrow", batch_size=None)
    parts = [batch.select(CHOSEN.names).cast(CHOSEN) for batch in batches if batch.num_rows]
    chosen = pa.concat_tables([CHOSEN.empty_table(), *parts])
    places = pa.array([relation.name for relation in relations])
    chosen = chosen.append_column("place", pc.index_in(chosen["relation"], places)).sort_by([("rank", "ascending"), ("place", "ascending")])
    chosen = _with_audit(config, run, chosen)

    names = [SELECTED, *(own.name for own in rounds), NAIVE]
    dataset = chosen.filter(pc.field("set") == ALL)
    sets = {name: chosen.filter(pc.field("set") == name) for name in names}
    sets[SELECTED] = dataset.filter(pc.field("rank") <= k)
    found = Counter(sets[SELECTED]["relation"].to_pylist())
    values = dict(zip(dataset["relation"].to_pylist(), dataset["objective"].to_pylist(), strict=True))
    short = [relation.name for relation in relations if found[relation.name] < k]
    counts = {
        "accepted": dataset.num_rows,
        "selected": sets[SELECTED].num_rows,
        "relations": {relation.name: found[relation.name] for relation in relations},
        "shortfall": {name: k - found[name] for name in short},
        "reasons": shortfalls(run, round, short),
        "objective": {name: values[name] for name in sorted(values)},
        "comparison": {name: sets[name].num_rows for name in names},
    }
    for name in names:
        run.write_table(f"comparison/{name}", sets[name].select(DATASET.names))
    run.delete(ALL)
    run.write_parquet(f"{ALL}/data/train-00000.parquet", dataset.select(DATASET.names))
    write_card(config, run, counts)
    for name, reason in list(counts["reasons"].items())[:TOLD]:
        console.log(f"{name}: {found[name]} of {k} samples; {reason}")
    if len(short) > TOLD:
        console.log(f"{len(short) - TOLD} more relations fall short; dataset/README.md says why")
    return counts


def _candidates(batch: pa.Table) -> pa.Table:
    """Unique and correct samples, and of the naive ones all."""
    if not batch.num_rows:
        return CANDIDATES.empty_table()
    kept = (pc.field("unique") & pc.field("correct")) | (pc.field("strategy") == NAIVE)
    return batch.filter(kept).select(CANDIDATES.names).cast(CANDIDATES)


def _with_audit(config: Config, run: RunFolder, chosen: pa.Table) -> pa.Table:
    """``audit`` filled in for the first K of every set; each sample is read once, and only naive ones can have failed the gate."""
    first = pc.less_equal(chosen["rank"], config.selection.k)
    rows = chosen.filter(first)
    rows = rows.take(pc.index_in(rows["sample_id"].unique(), rows["sample_id"].combine_chunks()))
    passed = pc.or_(pc.not_equal(rows["strategy"], NAIVE), pc.greater_equal(rows["correctness"], gate(config, run)))
    found = audited(config, run, rows.append_column("passed", passed))
    read = pa.array([found.get(name) for name in chosen["sample_id"].to_pylist()], pa.float64())
    return chosen.set_column(chosen.schema.get_field_index("audit"), DATASET.field("audit"), pc.if_else(first, read, None))


def write_card(config: Config, run: RunFolder, counts: dict[str, Any]) -> None:
    """The dataset card, with the share of right sentences that people found so far (``divray review``)."""
    dataset, relations = run.read_table(f"{ALL}/data"), stated(config, read_relations(run))
    run.write_text(f"{ALL}/README.md", dataset_card(config, relations, dataset, counts, review_figures(run)))


def shortfalls(run: RunFolder, last: int, short: list[str]) -> dict[str, str]:
    """Each of the relations ``short`` of samples -> what became of its candidates, and what would give more."""
    if not short:
        return {}
    rounds, own = [Round.of(number) for number in range(last + 1)], pc.field("strategy") != NAIVE
    parsed = tally(run, [one.samples for one in rounds], ["relation", "valid"], derived={"valid": pc.field("rejection") == ""}, where=own)
    judged = tally(run, [one.scores for one in rounds], ["relation", "unique", "correct"], where=own)
    said = {}
    for name in short:
        valid, invalid = (int(parsed.get((name, one), (0,))[0]) for one in (True, False))
        accepted, below, *copies = (int(judged.get((name, u, c), (0,))[0]) for u in (True, False) for c in (True, False))
        help = "more candidates (sampling.candidates_per_relation)"
        if sum(copies) > max(below, invalid):
            help = "more or more different seeds"
        elif below + invalid > 4 * accepted:
            help = "a larger LLM, or pairs of your own (prompts.pairs_file)"
        said[name] = (
            f"of {valid + invalid} candidates {invalid} were no valid record, {sum(copies)} near another or a seed, "
            f"{below} below the gate; {help} would give more"
        )
    return said


def chosen_samples(rows: pa.Table, settings: SelectionConfig, rounds: int) -> pa.Table:
    """The samples of one relation in every set (:data:`CHOSEN`).

    Args:
        rows: Columns of :data:`CANDIDATES`, in any order; the scores of naive rows may be null.
        settings: K and the weight of diversity.
        rounds: How many rounds get a set of their own.
    """
    if not rows.num_rows:
        return CHOSEN.empty_table()
    rows = rows.select(CANDIDATES.names).cast(CANDIDATES).sort_by("candidate_id")
    naive, own = rows.filter(pc.field("strategy") == NAIVE), rows.filter(pc.field("strategy") != NAIVE)
    parts = [_chosen(naive.slice(0, settings.k), NAIVE, None)]
    subsets = [(ALL, own)] + [(Round.of(n).name, own.filter(pc.field("round") == n)) for n in range(rounds)]
    for name, subset in subsets:
        distinct = _without_repeats(subset)
        correctness, embeddings = distinct["correctness"].to_numpy(), embedding_matrix(distinct["embedding"])
        every, taken = np.arange(distinct.num_rows), np.zeros(0, np.int64)
        for some in (np.flatnonzero(_fresh(distinct)), every):
            left = np.setdiff1d(some, taken)
            more = greedy_selection(correctness[left], embeddings[left], settings.k - len(taken), settings.diversity_weight)
            taken = np.append(taken, left[more])
        value = objective(correctness[taken], embeddings[taken], settings.diversity_weight)
        if name == ALL:  # what was not chosen follows, the likeliest right first
            rest = np.setdiff1d(every, taken)
            taken = np.append(taken, rest[np.argsort(-correctness[rest], kind="stable")])
        parts.append(_chosen(distinct.take(taken), name, value))
    return pa.concat_tables(parts)


def _fresh(rows: pa.Table) -> np.ndarray:
    """Whether a row, by falling correctness, is among the first :data:`USES` of its head and of its tail, bool ``[n]``.

    The LLM likes the names of its examples, and an RE model that meets one name again and again learns the name.
    """
    names = [
        [text[start:end].casefold() for text, start, end in zip(*(rows[name].to_pylist() for name in columns), strict=True)]
        for columns in (("text", "head_start", "head_end"), ("text", "tail_start", "tail_end"))
    ]
    uses: Counter[tuple[int, str]] = Counter()
    fresh = np.zeros(rows.num_rows, bool)
    for row in np.argsort(-rows["correctness"].to_numpy(), kind="stable").tolist():
        own = [(place, entities[row]) for place, entities in enumerate(names)]
        fresh[row] = all(uses[one] < USES for one in own)
        uses.update(own if fresh[row] else ())
    return fresh


def _without_repeats(own: pa.Table) -> pa.Table:
    """Of the rows with the same text, whatever its case and blanks, the first by round and id; sorted by id."""
    own = own.sort_by([("round", "ascending"), ("candidate_id", "ascending")])
    first: dict[str, int] = {}
    for row, text in enumerate(own["text"].to_pylist()):
        first.setdefault(" ".join(text.casefold().split()), row)
    return own.take(pa.array(first.values(), pa.int64())).sort_by("candidate_id")


def _chosen(rows: pa.Table, name: str, value: float | None) -> pa.Table:
    n, table = rows.num_rows, rows.drop_columns("embedding").rename_columns(["sample_id", *_OWN])
    made = {"set": [name] * n, "objective": [value] * n, "rank": range(1, n + 1), "audit": [None] * n}
    for column, values in made.items():
        table = table.append_column(column, pa.array(values, CHOSEN.field(column).type))
    return table.select(CHOSEN.names).cast(CHOSEN)
