"""The ``select`` stage: all accepted samples as a data set, in which the first K a relation are diverse and correct.

A sample of any round is accepted if it passed the gate and stayed unique; the naive baseline's are left out.  A sample ranks behind the
others if :data:`USES` better samples have its head, tail or wording.  A text that occurs twice, with other spans or in two rounds, counts
once, where it came first.  The report compares further sets by correctness and likeness to human sentences: one for each round, by the
same rule, and the naive baseline, without any rule.

The rule: for a set ``S`` of ``k`` samples with correctness ``c`` and unit embeddings whose cosines form ``C_S``, maximise ::

    F(S) = (1 - w) * mean(c_i for i in S) + w * log det(I + a C_S) / (k log(1 + a))

with ``w = selection.diversity_weight`` and ``a =`` :data:`SHARPNESS`.  The second term is the log-determinant of a determinantal point
process (Kulesza and Taskar 2012, arXiv 1207.6083) with a ridge.  It is 1 if all samples are orthogonal.  For a given ``k`` both terms are
monotone and the second is submodular, so the greedy choice reaches ``1 - 1/e`` of the best value (Nemhauser et al. 1978).  Gains come
from a growing Cholesky factor (Chen et al. 2018, arXiv 1709.05135).
"""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from divray import console
from divray.config import Config
from divray.datasets.stage import read_relations, stated
from divray.embeddings import embedding_matrix
from divray.layout import Round
from divray.resources import only_cpus
from divray.review import review_figures
from divray.run_folder import RunFolder
from divray.scan import tally
from divray.schemas import DATASET, NAIVE, SCORES
from divray.scoring.audit import audited
from divray.scoring.near_copies import with_columns
from divray.sections import SelectionConfig
from divray.selection.card import dataset_card
from divray.stages import Progress
from divray.texts import SENTENCE, names_of, wording

ALL, SELECTED = "dataset", "selected"
CANDIDATES = [name for name in SCORES.names if name in DATASET.names or name in ("candidate_id", "embedding")]
CHOSEN = pa.schema([pa.field("set", pa.string()), *DATASET])
"""A row of a training set, and which one it is: ``dataset``, ``round-00``, …, ``naive``."""

SHARPNESS = 10.0
"""Weight of the cosines against the ridge: the gain of an exact copy is 0.27 of that of an orthogonal sample."""

USES = 2
"""How many selected samples of a relation may share a head, a tail or a wording while other samples are left."""


def run(config: Config, run: RunFolder, round: int = 0, on_progress: Progress | None = None) -> dict[str, Any]:
    """Select from the scores of all rounds up to ``round``.

    Writes ``dataset/`` (every accepted sample by rank, and the card), ``comparison/selected``, ``…/round-XX`` and ``…/naive``, all as
    ``schemas.DATASET``.

    Returns:
        Counts: ``accepted``; ``selected``; ``reasons`` (relation that has fewer than K samples -> why, and what would help).
    """
    from ray.data.expressions import col

    relations, k = stated(read_relations(run), config.task.none_label), config.selection.k
    rounds = [Round.of(number) for number in range(round + 1)]
    only_cpus(True)
    scored = run.dataset(*(own.scores for own in rounds), columns=[*CANDIDATES, "correct", "unique"])
    candidates = scored.filter(expr=(col("unique") & col("correct")) | (col("strategy") == NAIVE), num_cpus=0.1)
    select = partial(chosen_samples, settings=config.selection, rounds=round + 1)
    groups = candidates.groupby("relation", num_partitions=min(max(1, len(relations)), 64))
    made = groups.map_groups(select, batch_format="pyarrow", num_cpus=config.cluster.worker_cpus)
    # The accepted samples without their vectors: a few hundred bytes each.
    batches: Any = made.iter_batches(batch_format="pyarrow", batch_size=None)
    parts = [batch.select(CHOSEN.names).cast(CHOSEN) for batch in batches if batch.num_rows]
    chosen = pa.concat_tables([CHOSEN.empty_table(), *parts])
    places = pc.index_in(chosen["relation"], pa.array([relation.name for relation in relations]))
    chosen = with_columns(chosen, {"place": places}).sort_by([("rank", "ascending"), ("place", "ascending")])
    chosen = _with_audit(config, run, chosen)

    dataset = chosen.filter(pc.field("set") == ALL)
    sets = {SELECTED: dataset.filter(pc.field("rank") <= k)}
    sets |= {name: chosen.filter(pc.field("set") == name) for name in (*(own.name for own in rounds), NAIVE)}
    found = Counter(sets[SELECTED]["relation"].to_pylist())
    short = [relation.name for relation in relations if found[relation.name] < k]
    counts = {"accepted": dataset.num_rows, "selected": sets[SELECTED].num_rows, "reasons": shortfalls(run, round, short)}
    for name, table in sets.items():
        run.write_table(f"comparison/{name}", table.select(DATASET.names))
    run.delete(ALL)
    run.write_parquet(f"{ALL}/data/train-00000.parquet", dataset.select(DATASET.names))
    write_card(config, run, counts)
    if short:
        console.log(f"{len(short)} of {len(relations)} relations have fewer than {k} samples; dataset/README.md says why")
    return counts


def _with_audit(config: Config, run: RunFolder, chosen: pa.Table) -> pa.Table:
    """``chosen`` with ``audit`` filled in for the first K of every set; the audit reads each sample once."""
    first = pc.less_equal(chosen["rank"], config.selection.k)
    rows = chosen.filter(first)
    rows = rows.take(pc.index_in(rows["sample_id"].unique(), rows["sample_id"].combine_chunks()))
    found = audited(config, run, rows)
    read = pa.array([found.get(name) for name in chosen["sample_id"].to_pylist()], pa.float64())
    return with_columns(chosen, {"audit": pc.if_else(first, read, None)})


def write_card(config: Config, run: RunFolder, counts: dict[str, Any]) -> None:
    """The dataset card, with the share of right sentences that people found so far (``divray review``)."""
    dataset, relations = run.read_table(f"{ALL}/data"), stated(read_relations(run), config.task.none_label)
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
    """The samples of one relation in every set (:data:`CHOSEN`), with a set for each of the first ``rounds`` rounds.

    ``rows`` have at least the columns of :data:`CANDIDATES`, in any order; the scores of naive ones may be null.
    """
    rows = rows.sort_by("candidate_id")
    naive, own = rows.filter(pc.field("strategy") == NAIVE), rows.filter(pc.field("strategy") != NAIVE)
    parts = [_chosen(naive.slice(0, settings.k), NAIVE)]
    subsets = [(ALL, own)] + [(Round.of(n).name, own.filter(pc.field("round") == n)) for n in range(rounds)]
    for name, subset in subsets:
        subset = _without_repeats(subset)
        correctness, embeddings = subset["correctness"].to_numpy(), embedding_matrix(subset["embedding"])
        levels, taken = _levels(subset), np.zeros(0, np.int64)
        for level in range(3):
            places = np.flatnonzero(levels <= level)
            begun = np.searchsorted(places, taken)
            taken = places[greedy_selection(correctness[places], embeddings[places], settings.k, settings.diversity_weight, begun)]
        if name == ALL:  # the rest follow, by falling correctness
            rest = np.setdiff1d(np.arange(subset.num_rows), taken)
            taken = np.append(taken, rest[np.argsort(-correctness[rest], kind="stable")])
        parts.append(_chosen(subset.take(taken), name))
    return pa.concat_tables(parts)


def _without_repeats(rows: pa.Table) -> pa.Table:
    """Of rows with the same text, ignoring case and extra blanks, keep the first by round and id; sort by id.  Scoring compares texts with
    masked entities, so it takes a sentence with head and tail exchanged for two."""
    rows = rows.sort_by([("round", "ascending"), ("candidate_id", "ascending")])
    texts = np.array([" ".join(text.casefold().split()) for text in rows["text"].to_pylist()], object)
    return rows.take(np.unique(texts, return_index=True)[1]).sort_by("candidate_id")


def _levels(rows: pa.Table) -> npt.NDArray[np.int64]:
    """When a row may be selected, ``[n]``.  0: by falling correctness, it is among the first :data:`USES` of its head, of its tail and of
    its wording; 1: beside those, among the first of its head and of its tail; 2: others.

    The LLM likes the names of its examples and one way to state a relation, and an RE model that meets one again and again learns that one.
    """
    keys = [[*enumerate((*names_of(row), wording(row)))] for row in rows.select(SENTENCE).to_pylist()]
    uses: Counter[tuple[int, Any]] = Counter()
    levels = np.full(rows.num_rows, 2)
    order = np.argsort(-rows["correctness"].to_numpy(), kind="stable").tolist()
    for level, compared in enumerate((3, 2)):
        for row in order:
            if levels[row] == 2 and all(uses[key] < USES for key in keys[row][:compared]):
                levels[row] = level
                uses.update(keys[row])
    return levels


def _chosen(rows: pa.Table, name: str) -> pa.Table:
    n = rows.num_rows
    made = {"set": [name] * n, "rank": range(1, n + 1), "audit": [None] * n}
    return with_columns(rows, {**made, "sample_id": rows["candidate_id"]}, CHOSEN)


def greedy_selection(
    correctness: npt.NDArray[np.float64], embeddings: npt.NDArray[Any], k: int, weight: float, first: Sequence[int] | np.ndarray = ()
) -> npt.NDArray[np.int64]:
    """Row numbers of the chosen samples in the order of choice, int64 ``[min(k, n)]``; ties (to nine digits) go to the first row.

    ``correctness`` is ``[n]`` in [0, 1]; ``embeddings`` are ``[n, d]``, unit length; ``weight`` in [0, 1] is the weight of diversity.
    The choice begins with the rows ``first``, at most ``k``.
    """
    vectors, count = np.asarray(embeddings, np.float64), len(correctness)
    chosen, left = np.zeros(min(k, count), np.int64), np.full(count, 1.0 + SHARPNESS)
    factor, open_ = np.zeros((count, len(chosen))), np.ones(count, bool)
    for step in range(len(chosen)):
        gain = np.round((1.0 - weight) * correctness + weight * np.log(left) / np.log1p(SHARPNESS), 9)
        best = chosen[step] = first[step] if step < len(first) else np.argmax(np.where(open_, gain, -np.inf))
        open_[best] = False
        shared = factor[:, :step] @ factor[best, :step]
        factor[:, step] = (SHARPNESS * (vectors @ vectors[best]) - shared) / np.sqrt(left[best])
        left = np.maximum(left - factor[:, step] ** 2, 1.0)  # a value below the ridge is a rounding error
    return chosen
