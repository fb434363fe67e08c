"""Why one sample is what it is: where it came from, what stands near it, and what became of it.

This module reads the run folder, a batch at a time, and reports only what the stages decided.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow.compute as pc

from divray.config import Config, read_config
from divray.errors import InputError
from divray.layout import SELECTED, TEST, Round
from divray.prompts.rows import candidate_ids
from divray.report.account import rounds_of
from divray.report.excerpts import sentences_of
from divray.run_folder import RunFolder
from divray.sampling import policy_model
from divray.scan import SENTENCE, Row, rows
from divray.schemas import COMPLETIONS, NAIVE, PROMPTS, SAMPLES
from divray.texts import SEED_PREFIX

CLUSTER_MEMBERS = 8
_SENTENCE = ["relation", *SENTENCE]
_SCORES = ["correctness", "correct", "unique", "novelty", "reason"]
_NOT_SCORED: Row = {"scores": {}, "cluster": None, "nearest": None, "conflict": None, "near_test": None, "selected": None}


def explain(uri: str, sample_id: str) -> Row:
    """What a run folder, finished or not, knows of one candidate, valid or not.

    Returns:
        Plain values: ``id``, ``relation``, ``sentence`` (row with ``text`` and spans, or none), ``origin`` (prompt, strategy,
        round, demonstrations, engine, model …), ``rejection``, ``scores``, ``cluster`` (``id``, ``size``, ``kept``, ``members``),
        ``nearest`` (a sentence row with ``id``, ``kept`` and ``similarity``), ``conflict``, ``near_test``, ``pairs``, ``selected``,
        ``outcome`` (a word) and ``why`` (a sentence).

    Raises:
        InputError: No run folder, or no such id.
    """
    folder = RunFolder(uri)
    config = read_config(folder)
    run = _Run(config, folder, rounds_of(config, folder))
    for own in reversed(run.rounds):
        # One request may ask for several candidates.
        alike = pc.starts_with(pc.field("candidate_id"), sample_id.rpartition("-")[0] + "-")
        for request in rows(folder, own.prompts, PROMPTS.names, alike):
            if sample_id in candidate_ids(request["candidate_id"], request["sentences"]):
                return _candidate(run, own, sample_id, request)
    raise InputError(folder.uri, sample_id, "no candidate of this run has that id", "Ids stand in `dataset/` and in `round-XX/samples`.")


def _candidate(run: _Run, own: Round, name: str, request: Row) -> Row:
    completion = run.row(own.completions, "candidate_id", request["candidate_id"], COMPLETIONS.names) or {}
    sample = run.row(own.samples, "candidate_id", name, SAMPLES.names) or {}
    columns = ["relation", *_SCORES, "cluster", "nearest_id", "similarity", "conflict", "near_test"]
    scored = run.row(own.scores, "candidate_id", name, columns)
    sentence = {key: sample[key] for key in _SENTENCE} if sample and not sample["rejection"] else None
    found: Row = {
        "id": name,
        "relation": request["relation"],
        "sentence": sentence,
        "origin": _origin(run, request, completion),
        "completion": completion.get("completion"),
        "rejection": sample.get("rejection", ""),
        **_NOT_SCORED,
        "gate": run.config.correctness.threshold,
        "threshold": run.config.diversity.threshold,
        "pairs": run.pairs(name),
    }
    if scored:
        found["scores"] = {key: scored[key] for key in _SCORES}
        found["cluster"] = run.cluster(scored["relation"], scored["cluster"])
        found["conflict"] = run.sentence(scored["conflict"]) if scored["conflict"] else None
        if scored["nearest_id"] not in ("", scored["conflict"]) and (nearest := run.sentence(scored["nearest_id"])):
            found["nearest"] = {**nearest, "similarity": scored["similarity"]}
            if scored["nearest_id"].startswith(SEED_PREFIX):
                found["threshold"] = min(found["threshold"], run.config.diversity.seed_threshold)
        if near_test := run.row(TEST, "example_id", scored["near_test"] or "", _SENTENCE):
            found["near_test"] = {**near_test, "id": scored["near_test"]}
    if run.folder.files(SELECTED, ".parquet"):
        found["selected"] = run.row(SELECTED, "sample_id", name, ["sample_id"]) is not None
    found["outcome"], found["why"] = _outcome(run, found)
    return found


def _origin(run: _Run, request: Row, completion: Row) -> Row:
    found: Row = {key: request[key] for key in ("round", "strategy", "prompt_id", "prompt", "pattern", "seed")}
    model, adapter = policy_model(run.config, run.folder, request["round"])
    found["model"] = adapter or model
    told = {key: completion.get(key) for key in ("engine", "prompt_tokens", "generated_tokens", "error")}
    found |= {key: value for key, value in told.items() if value not in (None, "")}
    if completion.get("started_at") and completion.get("finished_at"):
        found["seconds"] = round(completion["finished_at"] - completion["started_at"], 3)
    found["demonstrations"] = [run.sentence(name) or {"id": name} for name in request["demonstrations"] or []]
    return found


def _outcome(run: _Run, found: Row) -> tuple[str, str]:
    """What became of a candidate, in a word and in a sentence."""
    scores, config = found["scores"], run.config
    if found["completion"] is None:
        return "pending", "It has not been sampled yet."
    if found["rejection"]:
        return "rejected", f"Its completion gave no sample: {found['rejection'].replace('_', ' ')}."
    if not scores:
        return "pending", "It is a valid sample that has not been scored yet."
    reason, correctness = scores["reason"], f"{scores['correctness']:.2f}"
    if not scores["unique"]:
        outcome = "near test" if found["near_test"] else "conflict" if found["conflict"] else "near copy"
        return outcome, f"Dropped: {reason}."
    if not scores["correct"]:
        return "below the gate", f"Dropped: its score {correctness} is below the gate ({config.correctness.threshold}) ({reason})."
    if found["origin"]["strategy"] == NAIVE:
        return "baseline", "A sample of the naive baseline, which is for comparison only; divray selects none of these."
    if found["selected"]:
        return "selected", f"Selected: unique ({reason}) and correct ({correctness})."
    if found["selected"] is None:
        return "accepted", f"Unique ({reason}) and correct ({correctness}); nothing has been selected yet."
    return "more than K", f"Unique and correct, but none of the K = {config.selection.k} selected: others make a better set together."


@dataclass(frozen=True)
class _Run:
    """A run's tables, and the look-ups in them."""

    config: Config
    folder: RunFolder
    rounds: list[Round]

    def row(self, table: str, column: str, value: str, columns: list[str]) -> Row | None:
        return next(rows(self.folder, table, columns, pc.field(column) == value), None)

    def sentence(self, name: str) -> Row | None:
        """The sentence of a seed example or of a scored sample, and whether it was ``kept``."""
        found = sentences_of(self.folder, self.rounds, [name]).get(name)
        return {key: found[key] for key in _SENTENCE} | {"id": name, "kept": found["unique"]} if found else None

    def pairs(self, name: str) -> list[Row]:
        where = (pc.field("chosen_id") == name) | (pc.field("rejected_id") == name)
        columns = ["pair_id", "kind", "chosen_id", "rejected_id"]
        return [{"round": own.name, **row} for own in self.rounds for row in rows(self.folder, own.pairs, columns, where)]

    def cluster(self, relation: str, cluster: str) -> Row:
        where = (pc.field("relation") == relation) & (pc.field("cluster") == cluster)
        columns = ["candidate_id", *_SENTENCE, "unique", "similarity"]
        found = rows(self.folder, [own.scores for own in self.rounds], columns, where)
        members = [{"id": row.pop("candidate_id"), "kept": row.pop("unique"), **row} for row in found]
        members.sort(key=lambda member: (not member["kept"], member["id"]))
        kept = sum(bool(member["kept"]) for member in members)
        return {"id": cluster, "size": len(members), "kept": kept, "members": members[:CLUSTER_MEMBERS]}
