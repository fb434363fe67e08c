"""The ``select`` stage: all accepted samples as a data set, in which the first K a relation are diverse and correct.

Accepted are the samples of all rounds that passed the gate and stayed unique, without those of the naive baseline; nothing else fills
a gap.  The rule is in :mod:`divray.selection.objective`.  A text that stands in several rounds counts once, where it came first, and a
sample whose head or tail others have already stands behind those with names of their own.  The same rule on the samples of one round
alone, and the naive baseline without any rule, give the training sets of the comparison.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from divray import console
from divray.config import Config
from divray.datasets.stage import read_relations
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

if TYPE_CHECKING:
    import ray.data

__all__ = ["chosen_samples", "greedy_selection", "objective", "run"]

ALL, SELECTED = "dataset", "selected"
_OWN = [name for name in DATASET.names if name not in ("sample_id", "rank", "audit")]
SCORED_COLUMNS = ["candidate_id", *_OWN, "correct", "unique", "embedding"]
CHOSEN = pa.schema([pa.field("set", pa.string()), pa.field("objective", pa.float64()), *DATASET])
"""A row of a training set: which one (``dataset``, ``round-00``, …, ``naive``) and the value of its relation in it."""

USES = 2
"""Selected samples of a relation that may share a head or a tail, while there are others."""


def run(config: Config, run: RunFolder, round: int = 0, on_progress: Progress | None = None) -> dict[str, Any]:
    """Write ``dataset/`` with its card, and the training sets ``comparison/selected``, ``…/round-XX`` and ``…/naive``.

    ``dataset/data/train-00000.parquet`` holds every accepted sample, by rank: the first K a relation come first.

    Reads ``round-XX/scores`` of all rounds up to ``round`` and the valid naive samples in
    ``round-00/samples``, one relation at a time.  All tables are ``schemas.DATASET``; the scores of a naive sample without any are null.

    Returns:
        Counts: ``accepted``; ``selected``; ``relations`` (name -> samples); ``shortfall`` (name -> samples missing to K);
        ``reasons`` (name -> why it fell short, and what would help); ``objective`` (name -> its value); ``comparison`` (set -> samples).
    """
    relations = [relation for relation in read_relations(run) if relation.name != config.task.none_label]
    only_cpus(True)
    candidates = _candidates(run, round)
    select = partial(chosen_samples, settings=config.selection, rounds=round + 1)
    groups = candidates.groupby("relation", num_partitions=min(max(1, len(relations)), 64))
    made = groups.map_groups(select, batch_format="pyarrow", num_cpus=config.cluster.worker_cpus)
    # The accepted samples without their vectors: a few hundred bytes each.
    batches: Any = made.iter_batches(batch_format="pyarrow", batch_size=None)
    parts = [batch.select(CHOSEN.names).cast(CHOSEN) for batch in batches if batch.num_rows]
    chosen = pa.concat_tables([CHOSEN.empty_table(), *parts])
    places = pa.array([relation.name for relation in relations])
    chosen = chosen.append_column("place", pc.index_in(chosen["relation"], places)).sort_by([("rank", "ascending"), ("place", "ascending")])

    first = pc.less_equal(chosen["rank"], config.selection.k)
    chosen = _with_audit(chosen, audited(config, run, _once(chosen.filter(first), gate(config, run))), first)

    names = [SELECTED, *(Round.of(number).name for number in range(round + 1)), NAIVE]
    dataset = chosen.filter(pc.equal(chosen["set"], ALL))
    sets = {name: chosen.filter(pc.equal(chosen["set"], name)) for name in names}
    sets[SELECTED] = dataset.filter(pc.less_equal(dataset["rank"], config.selection.k))
    found = Counter(sets[SELECTED]["relation"].to_pylist())
    values = dict(zip(dataset["relation"].to_pylist(), dataset["objective"].to_pylist(), strict=True))
    short = [relation.name for relation in relations if found[relation.name] < config.selection.k]
    counts = {
        "accepted": dataset.num_rows,
        "selected": sets[SELECTED].num_rows,
        "relations": {relation.name: found[relation.name] for relation in relations},
        "shortfall": {name: config.selection.k - found[name] for name in short},
        "reasons": shortfalls(run, round, short),
        "objective": {name: values[name] for name in sorted(values)},
        "comparison": {name: sets[name].num_rows for name in names},
    }
    for name in names:
        run.write_table(f"comparison/{name}", sets[name].select(DATASET.names))
    run.delete(ALL)
    run.write_parquet(f"{ALL}/data/train-00000.parquet", dataset.select(DATASET.names))
    write_card(config, run, counts)
    for name, reason in counts["reasons"].items():
        console.log(f"{name}: {found[name]} of {config.selection.k} samples; {reason}")
    return counts


def _once(chosen: pa.Table, threshold: float) -> pa.Table:
    """Each sample once, with ``passed``; only naive ones, which may lack a score, can have failed the gate."""
    first = pc.index_in(pa.array(sorted(set(chosen["sample_id"].to_pylist())), pa.string()), chosen["sample_id"].combine_chunks())
    rows = chosen.take(first)
    passed = pc.or_(pc.not_equal(rows["strategy"], NAIVE), pc.fill_null(pc.greater_equal(rows["correctness"], threshold), False))
    return rows.append_column("passed", passed)


def _with_audit(chosen: pa.Table, found: dict[str, float], first: pa.ChunkedArray) -> pa.Table:
    read = pa.array([found.get(name) for name in chosen["sample_id"].to_pylist()], pa.float64())
    return chosen.set_column(chosen.schema.get_field_index("audit"), DATASET.field("audit"), pc.if_else(first, read, None))


def write_card(config: Config, run: RunFolder, counts: dict[str, Any]) -> None:
    """The dataset card, with the share of right sentences that people found so far (``divray review``)."""
    relations = [relation for relation in read_relations(run) if relation.name != config.task.none_label]
    dataset = run.read_table(f"{ALL}/data")
    run.write_text(f"{ALL}/README.md", dataset_card(config, relations, dataset, counts, review_figures(run)))


def shortfalls(run: RunFolder, last: int, short: list[str]) -> dict[str, str]:
    """Each of the relations ``short`` of samples -> what became of its candidates, and what would give more."""
    if not short:
        return {}
    lost: dict[str, Counter[str]] = {name: Counter() for name in short}
    for number in range(last + 1):
        written = Round.of(number)
        for table, columns, outcome in ((written.samples, ["rejection"], _parsed), (written.scores, ["unique", "correct"], _judged)):
            for row in tally(run, table, ["relation", "strategy", *columns]).items():
                (relation, strategy, *values), (count, *_) = row
                if strategy != NAIVE and relation in lost:
                    lost[relation][outcome(*values)] += int(count)
    return {
        relation: f"of {found['valid'] + found['no valid record']} candidates {found['no valid record']} were no valid record, "
        f"{found['near another or a seed']} near another or a seed, {found['below the gate']} below the gate; "
        f"{_help(found)} would give more"
        for relation, found in lost.items()
    }


def _parsed(rejection: str) -> str:
    return "no valid record" if rejection else "valid"


def _judged(unique: bool, correct: bool) -> str:
    return "near another or a seed" if not unique else "accepted" if correct else "below the gate"


def _help(found: Counter[str]) -> str:
    if found["near another or a seed"] > max(found["below the gate"], found["no valid record"]):
        return "more or more different seeds"
    if found["below the gate"] + found["no valid record"] > 4 * found["accepted"]:
        return "a larger LLM, or pairs of your own (prompts.pairs_file)"
    return "more candidates (sampling.candidates_per_relation)"


def _candidates(run: RunFolder, last: int) -> ray.data.Dataset:
    import ray.data

    naive = run.dataset(Round.of(0).samples, columns=["candidate_id", *_OWN[:-2], "rejection"])
    candidates = naive.map_batches(_naive, batch_format="pyarrow", num_cpus=0.1)
    files = run.table_files(*(Round.of(number).scores for number in range(last + 1)))
    if not files:
        return candidates
    scored = ray.data.read_parquet(files, filesystem=run.fs, columns=SCORED_COLUMNS, file_extensions=None)
    return candidates.union(scored.map_batches(_wanted, batch_format="pyarrow", num_cpus=0.1))


def _wanted(batch: pa.Table) -> pa.Table:
    """Unique and correct samples, and of the naive ones all, for the sake of their scores."""
    if not batch.num_rows:
        return _CANDIDATES.empty_table()
    naive = pc.equal(batch["strategy"], NAIVE)
    kept = batch.filter(pc.or_(pc.and_(batch["unique"], batch["correct"]), naive)).select(SCORED_COLUMNS)
    return kept.drop_columns(["correct", "unique"]).cast(_CANDIDATES)


def _naive(batch: pa.Table) -> pa.Table:
    """Valid naive samples, without scores."""
    if not batch.num_rows:
        return _CANDIDATES.empty_table()
    kept = batch.filter(pc.and_(pc.equal(batch["strategy"], NAIVE), pc.equal(batch["rejection"], ""))).drop_columns("rejection")
    for field in (*(DATASET.field(name) for name in _OWN[-2:]), _CANDIDATES.field("embedding")):
        kept = kept.append_column(field, pa.nulls(kept.num_rows, field.type))
    return kept.select(_CANDIDATES.names).cast(_CANDIDATES)


_CANDIDATES = pa.schema(
    [pa.field("candidate_id", pa.string()), *(DATASET.field(name) for name in _OWN), pa.field("embedding", pa.list_(pa.float32()))]
)


def chosen_samples(rows: pa.Table, settings: SelectionConfig, rounds: int) -> pa.Table:
    """The samples of one relation in every set (:data:`CHOSEN`).

    Args:
        rows: Columns of ``schemas.DATASET`` with ``candidate_id`` for ``sample_id``, and ``embedding``, in any
            order. Naive rows may come twice, with scores and without.
        settings: K and the weight of diversity.
        rounds: How many rounds get a set of their own.
    """
    if not rows.num_rows:
        return CHOSEN.empty_table()
    rows = rows.select(_CANDIDATES.names).cast(_CANDIDATES)
    is_naive = pc.equal(rows["strategy"], NAIVE)
    naive, own = rows.filter(is_naive), rows.filter(pc.invert(is_naive)).sort_by("candidate_id")
    parts = [_chosen(_first_of_each(naive).slice(0, settings.k), NAIVE, None)]
    subsets = [(ALL, own)] + [(Round.of(n).name, own.filter(pc.equal(own["round"], n))) for n in range(rounds)]
    for name, subset in subsets:
        distinct = _without_repeats(subset)
        correctness = distinct["correctness"].to_numpy()
        embeddings = (
            np.asarray(pc.list_flatten(distinct["embedding"])).reshape(distinct.num_rows, -1) if distinct.num_rows else np.zeros((0, 1))
        )
        fresh = np.flatnonzero(_fresh(distinct))
        taken = fresh[greedy_selection(correctness[fresh], embeddings[fresh], settings.k, settings.diversity_weight)]
        if len(taken) < settings.k:
            others = np.setdiff1d(np.arange(distinct.num_rows), taken)
            more = greedy_selection(correctness[others], embeddings[others], settings.k - len(taken), settings.diversity_weight)
            taken = np.concatenate([taken, others[more]])
        value = objective(correctness[taken], embeddings[taken], settings.diversity_weight)
        if name == ALL:  # what was not chosen follows, the likeliest right first
            rest = np.setdiff1d(np.arange(distinct.num_rows), taken)
            taken = np.concatenate([taken, rest[np.argsort(-correctness[rest], kind="stable")]])
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


def _first_of_each(naive: pa.Table) -> pa.Table:
    """One row an id, the one with scores where there is one, sorted by id."""
    order = naive.sort_by([("candidate_id", "ascending"), ("correctness", "ascending")])  # nulls come last
    ids = order["candidate_id"].to_pylist()
    first = [row for row, name in enumerate(ids) if row == 0 or ids[row - 1] != name]
    return order.take(np.array(first, dtype=np.int64))


def _without_repeats(own: pa.Table) -> pa.Table:
    """Of the rows with the same text, whatever its case and blanks, the first by round and id; sorted by id."""
    keys = zip(own["round"].to_pylist(), own["candidate_id"].to_pylist(), range(own.num_rows), strict=True)
    texts = [" ".join(text.casefold().split()) for text in own["text"].to_pylist()]
    first: dict[str, int] = {}
    for _, _, row in sorted(keys):
        first.setdefault(texts[row], row)
    return own.take(np.array(sorted(first.values()), dtype=np.int64))


def _chosen(rows: pa.Table, name: str, value: float | None) -> pa.Table:
    table = rows.drop_columns("embedding").rename_columns(["sample_id", *_OWN])
    table = table.append_column("rank", pa.array(range(1, rows.num_rows + 1), pa.int32()))
    table = table.append_column("audit", pa.nulls(rows.num_rows, pa.float64())).select(DATASET.names)
    table = table.add_column(0, "objective", pa.array([value] * rows.num_rows, pa.float64()))
    return table.add_column(0, "set", pa.array([name] * rows.num_rows, pa.string())).cast(CHOSEN)
