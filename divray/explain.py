"""Why one sample is what it is: where it came from, what stands near it, and what became of it.

Everything is read from the run folder, a batch at a time; nothing is computed that the stages did not decide, but for
the nearest neighbours, which are looked up anew among all sentences of the relation.
"""

from __future__ import annotations

import difflib
import heapq
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from divray.config import Config, read_config
from divray.dedup import Shingles
from divray.errors import InputError
from divray.prompts.plan import candidate_ids
from divray.report.account import rounds_of
from divray.report.excerpts import sentences_of
from divray.run_folder import SEEDS, TEST, Round, RunFolder
from divray.sampling.stage import policy_model
from divray.scan import SENTENCE, Row, batches, rows
from divray.schemas import COMPLETIONS, EXAMPLES, NAIVE, PROMPTS, SAMPLES, TUNED
from divray.texts import SEED_PREFIX, compared_texts, configured_shingles

CLUSTER_MEMBERS = 8
_SENTENCE = ["relation", *SENTENCE]
_SCORES = ["relation", "correctness", "correct", "unique", "novelty", "reason", "cluster", "conflict", "near_test"]


@dataclass(frozen=True)
class _Run:
    """What every look-up needs."""

    config: Config
    folder: RunFolder
    rounds: list[Round]

    def row(self, table: str, column: str, value: str, columns: list[str]) -> Row | None:
        return next(rows(self.folder, table, columns, pc.field(column) == value), None)

    def sentence(self, name: str) -> Row | None:
        """The sentence of a seed example or of a scored sample."""
        found = sentences_of(self.folder, self.rounds, [name]).get(name)
        return {key: found[key] for key in _SENTENCE} | {"id": name} if found else None


def explain(uri: str, sample_id: str, neighbours: int = 5) -> Row:
    """What the run folder knows of one candidate or seed example.

    Args:
        uri: A run folder, finished or not.
        sample_id: Id of a candidate, valid or not, or of a seed example (with or without the prefix ``seed:``).
        neighbours: How many of the nearest sentences of its relation are named.

    Returns:
        Plain values: ``id``, ``kind`` (``candidate`` or ``seed``), ``relation``, ``sentence`` (row with ``text`` and spans, or
        none), ``origin`` (prompt, strategy, round, demonstrations, engine, model …), ``rejection``, ``scores``,
        ``cluster`` (``id``, ``size``, ``kept``, ``members``), ``neighbours`` (each a sentence row with ``id``, ``similarity``
        and ``kept``), ``conflict``, ``near_test``, ``pairs``, ``selected``, ``outcome`` (a word) and ``why`` (a sentence).

    Raises:
        InputError: No run folder, or no such id; close ones are named.
    """
    folder = RunFolder(uri)
    config = read_config(folder)
    run = _Run(config, folder, rounds_of(config, folder))
    for own in reversed(run.rounds):
        if request := _request(run, own, sample_id):
            return _candidate(run, own, sample_id, request, neighbours)
    for name in (sample_id, sample_id.removeprefix(SEED_PREFIX)):
        if seed := run.row(SEEDS, "example_id", name, EXAMPLES.names):
            return _seed(run, seed, neighbours)
    close = _close_ids(run, sample_id)
    mend = f"Did you mean {', '.join(close)}?" if close else "Ids stand in `dataset/` and in `round-XX/samples`."
    raise InputError(folder.uri, sample_id, "no candidate or seed example of this run has that id", mend)


def _request(run: _Run, own: Round, name: str) -> Row | None:
    """The request row of a candidate, which may be one of several."""
    alike = pc.starts_with(pc.field("candidate_id"), name.rpartition("-")[0] + "-")
    for row in rows(run.folder, own.prompts, PROMPTS.names, alike):
        if name in candidate_ids(row["candidate_id"], row["sentences"] or 1):
            return row
    return None


def _candidate(run: _Run, own: Round, name: str, request: Row, count: int) -> Row:
    completion = run.row(own.completions, "candidate_id", request["candidate_id"], COMPLETIONS.names) or {}
    sample = run.row(own.samples, "candidate_id", name, SAMPLES.names) or {}
    scored = run.row(own.scores, "candidate_id", name, _SCORES) or {}
    sentence = {key: sample[key] for key in _SENTENCE} if sample and not sample["rejection"] else None
    naive = request["strategy"] == NAIVE
    near_test = run.row(TEST, "example_id", scored["near_test"], _SENTENCE) if scored.get("near_test") else None
    found: Row = {
        "id": name,
        "kind": "candidate",
        "relation": request["relation"],
        "sentence": sentence,
        "origin": _origin(run, request, completion),
        "completion": completion.get("completion"),
        "rejection": sample.get("rejection", ""),
        "scores": {key: scored[key] for key in ("correctness", "correct", "unique", "novelty", "reason") if scored},
        "gate": run.config.correctness.threshold,
        "threshold": run.config.diversity.threshold,
        "cluster": _cluster(run, scored["relation"], scored["cluster"]) if scored else None,
        "neighbours": _nearest(run, sentence, name, naive, count) if sentence else [],
        "conflict": run.sentence(scored["conflict"]) if scored.get("conflict") else None,
        "near_test": near_test and {**near_test, "id": scored["near_test"]},
        "pairs": _pairs(run, name),
        "selected": None,
    }
    if run.folder.files("comparison/selected", ".parquet"):
        found["selected"] = run.row("comparison/selected", "sample_id", name, ["sample_id"]) is not None
    found["outcome"], found["why"] = _outcome(run.config, run.folder, found, request["strategy"])
    return found


def _seed(run: _Run, seed: Row, count: int) -> Row:
    name, threshold = SEED_PREFIX + seed["example_id"], run.config.diversity.threshold
    sentence = {key: seed[key] for key in _SENTENCE}
    near = _nearest(run, sentence, name, False, max(count, CLUSTER_MEMBERS))
    copies = [row for row in near if row["similarity"] >= threshold]
    inside = [row["cluster"] for row in copies if row["cluster"]]
    prompts = rows(
        run.folder, [own.prompts for own in run.rounds], ["prompt_id", "demonstrations"], pc.field("relation") == seed["relation"]
    )
    shown = {row["prompt_id"] for row in prompts if {name, seed["example_id"]} & set(row["demonstrations"])}
    why = "A seed example: it stays whatever comes, and near-copies of it are dropped."
    why += f" {len(copies)} of the samples shown are near it." if copies else " No sample is a near-copy of it."
    return {
        "id": name,
        "kind": "seed",
        "relation": seed["relation"],
        "sentence": sentence,
        "origin": {"round": None, "strategy": "human example", "prompts": len(shown)},
        "rejection": "",
        "scores": {},
        "threshold": threshold,
        "cluster": _cluster(run, seed["relation"], inside[0]) if inside else None,
        "neighbours": near[:count],
        "conflict": None,
        "near_test": None,
        "pairs": _pairs(run, name),
        "selected": None,
        "outcome": "seed",
        "why": why,
    }


def _origin(run: _Run, request: Row, completion: Row) -> Row:
    found: Row = {key: request[key] for key in ("round", "strategy", "prompt_id", "prompt", "pattern", "seed")}
    model, adapter = policy_model(run.config, run.folder, request["round"])
    found["model"] = adapter if adapter and request["policy"] == TUNED else model
    for key in ("engine", "prompt_tokens", "generated_tokens", "error"):
        if completion.get(key) not in (None, ""):
            found[key] = completion[key]
    if completion.get("started_at") and completion.get("finished_at"):
        found["seconds"] = round(completion["finished_at"] - completion["started_at"], 3)
    found["demonstrations"] = [run.sentence(name) or {"id": name} for name in request["demonstrations"] or []]
    return found


def _pairs(run: _Run, name: str) -> list[Row]:
    where = (pc.field("chosen_id") == name) | (pc.field("rejected_id") == name)
    columns = ["pair_id", "kind", "chosen_id", "rejected_id"]
    return [{"round": own.name, **row} for own in run.rounds for row in rows(run.folder, own.pairs, columns, where)]


def _cluster(run: _Run, relation: str, cluster: str) -> Row:
    where = (pc.field("relation") == relation) & (pc.field("cluster") == cluster)
    members = [
        {"id": row.pop("candidate_id"), "kept": row.pop("unique"), **row}
        for row in rows(run.folder, [own.scores for own in run.rounds], ["candidate_id", *_SENTENCE, "unique", "similarity"], where)
    ]
    members.sort(key=lambda member: (not member["kept"], member["id"]))
    kept = sum(bool(member["kept"]) for member in members)
    return {"id": cluster, "size": len(members), "kept": kept, "members": members[:CLUSTER_MEMBERS]}


def _nearest(run: _Run, sentence: Row, name: str, naive: bool, count: int) -> list[Row]:
    """The ``count`` most similar sentences of the relation, seeds included, and the most similar one that was kept.

    Of equally similar ones the kept ones come first, then the smallest id.  Similarities are exact.
    """
    settings = run.config.diversity

    def sets(table: pa.Table) -> Shingles:
        return configured_shingles(compared_texts(table, settings.mask_entities), settings)

    def nearness(row: Row) -> tuple[float, bool, str]:
        return -row["similarity"], not row["kept"], row["id"]

    own = sets(pa.Table.from_pylist([sentence])).values
    of_relation = pc.field("relation") == sentence["relation"]
    of_kind = (pc.field("strategy") == NAIVE) if naive else (pc.field("strategy") != NAIVE)
    scored = {name: pc.field(name) for name in (*_SENTENCE, "cluster")} | {"id": pc.field("candidate_id"), "kept": pc.field("unique")}
    seeds = {name: pc.field(name) for name in _SENTENCE} | {"cluster": pc.scalar(""), "kept": pc.scalar(True)}
    seeds["id"] = pc.binary_join_element_wise(pc.scalar(SEED_PREFIX), pc.field("example_id"), pc.scalar(""))
    sources = (([own.scores for own in run.rounds], scored, of_relation & of_kind), ([SEEDS], seeds, of_relation))
    best: list[Row] = []
    kept: list[Row] = []
    for tables, wanted, where in sources:
        for batch in batches(run.folder, tables, wanted, where):
            table = pa.Table.from_batches([batch])
            others = sets(table)
            shared = np.add.reduceat(np.isin(others.values, own).astype(np.int64), others.offsets[:-1])
            similarity = shared / (np.diff(others.offsets) + len(own) - shared)
            table = table.append_column("similarity", pa.array(similarity.round(6)))
            near = [row for row in table.filter(pc.field("similarity") > 0).to_pylist() if row["id"] != name]
            kept = heapq.nsmallest(1, [*kept, *(row for row in near if row["kept"])], key=nearness)
            best = heapq.nsmallest(count, [*best, *near], key=nearness)
    return best + [row for row in kept if row not in best]


def _close_ids(run: _Run, wanted: str) -> list[str]:
    """Up to three ids like ``wanted``: of those with the longest common beginning the most similar."""

    def common(name: str) -> int:
        return next((place for place, (a, b) in enumerate(zip(name, wanted, strict=False)) if a != b), min(len(name), len(wanted)))

    best: list[str] = []
    for tables, column in (([own.prompts for own in run.rounds], "candidate_id"), ([SEEDS], "example_id")):
        for batch in batches(run.folder, tables, [column]):
            best = heapq.nlargest(200, dict.fromkeys([*best, *batch[column].to_pylist()]), key=common)
    return difflib.get_close_matches(wanted, best, n=3, cutoff=0.5)


def _outcome(config: Config, run: RunFolder, found: Row, strategy: str) -> tuple[str, str]:
    scores = found["scores"]
    if found["completion"] is None:
        return "pending", "It has not been sampled yet."
    if found["rejection"]:
        return "rejected", f"Its completion gave no sample: {found['rejection'].replace('_', ' ')}."
    if not scores:
        return "pending", "It is a valid sample that has not been scored yet."
    if not scores["unique"]:
        if found["near_test"]:
            return "near test", f"Dropped, since the test set is guarded: {scores['reason']}."
        if found["conflict"] and scores["reason"].startswith("labelling conflict"):
            return "conflict", f"Dropped: {scores['reason']}. One sentence can't teach two labels."
        limit = config.diversity.seed_threshold if "seed" in scores["reason"] else config.diversity.threshold
        return "near copy", f"Dropped: {scores['reason']}; from {limit:g} on it counts as one."
    if not scores["correct"]:
        return "below the gate", (
            f"Dropped: its score {scores['correctness']:.2f} is below the gate ({config.correctness.threshold}) ({scores['reason']})."
        )
    if strategy == NAIVE:
        return "baseline", "A sample of the naive baseline, which is only compared with; none of them is selected."
    if found["selected"]:
        return "selected", f"Selected: unique ({scores['reason']}) and correct ({scores['correctness']:.2f})."
    if found["selected"] is None:
        return "accepted", f"Unique ({scores['reason']}) and correct ({scores['correctness']:.2f}); nothing has been selected yet."
    taken = sum(batch.num_rows for batch in batches(run, "comparison/selected", ["relation"], pc.field("relation") == found["relation"]))
    if taken < config.selection.k:
        return "repeated", "Unique and correct, but the same text, but for case and blanks, stands in an earlier round."
    return (
        "more than K",
        f"In the data set, but not selected: there were more than K = {config.selection.k}, and others make a better set together.",
    )
