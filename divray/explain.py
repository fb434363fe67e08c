"""Explain one sample: where it came from, which sentences are near it, and what the stages decided about it.

This module reads the run folder, a batch at a time, and decides nothing itself.
"""

import pyarrow.compute as pc

from divray.config import Config, read_config
from divray.errors import InputError
from divray.layout import SELECTED, TEST, Round
from divray.prompts.rows import candidate_ids
from divray.report.account import rounds_of
from divray.report.excerpts import sentences_of
from divray.run_folder import RunFolder
from divray.sampling import policy_model
from divray.scan import Row, rows
from divray.schemas import COMPLETIONS, NAIVE, PROMPTS, SAMPLES
from divray.texts import SENTENCE, marked

CLUSTER_MEMBERS = 8
_SCORES = ["correctness", "correct", "unique", "novelty", "reason"]


def explain(uri: str, sample_id: str) -> Row:
    """What a run folder records about one candidate.  The run may be unfinished, the candidate invalid.

    Returns:
        Plain values, ``None`` or empty if there is nothing: ``id``, ``relation``, ``outcome`` (a short label), ``why`` (a sentence),
        ``sentence``, ``rejection``, ``scores``, ``nearest`` (the sentence that this one copies, with ``similarity``), ``conflict``,
        ``near_test``, ``cluster`` (``id``, ``size``, ``kept``, ``members``), ``pairs``, ``origin`` (strategy, round, demonstrations,
        engine, model …), ``prompt`` and ``completion``.  Sentences have the head in ``[ ]`` and the tail in ``{ }``.  Every other sentence
        is in a mapping with its ``id``, its ``relation`` and, unless it is a test sentence, whether it was ``kept``.

    Raises:
        InputError: There is no run folder, or it has no such id.
    """
    folder = RunFolder(uri)
    config = read_config(folder)
    rounds = rounds_of(config, folder)
    own, request = _request(folder, rounds, sample_id)
    completion = _row(folder, own.completions, "candidate_id", request["candidate_id"], COMPLETIONS.names)
    sample = _row(folder, own.samples, "candidate_id", sample_id, SAMPLES.names)
    columns = ["relation", *_SCORES, "cluster", "nearest_id", "similarity", "conflict", "near_test"]
    scored = _row(folder, own.scores, "candidate_id", sample_id, columns)
    demonstrations = request["demonstrations"] or []
    others = sentences_of(folder, rounds, [*demonstrations, scored.get("nearest_id", ""), scored.get("conflict", "")])
    shown = {name: _shown(name, row) for name, row in others.items()}
    found: Row = {
        "sentence": marked(sample) if sample and not sample["rejection"] else None,
        "rejection": sample.get("rejection", ""),
        "scores": {},
        "nearest": None,
        "conflict": shown.get(scored.get("conflict", "")),
        "near_test": None,
        "cluster": None,
        "pairs": _pairs(folder, rounds, sample_id),
        "origin": _origin(config, folder, request, completion),
        "prompt": request["prompt"],
        "completion": completion.get("completion"),
    }
    found["origin"]["demonstrations"] = [shown.get(name, {"id": name}) for name in demonstrations]
    if scored:
        found["scores"] = {key: round(value, 3) if isinstance(value := scored[key], float) else value for key in _SCORES}
        found["scores"]["gate"] = config.correctness.threshold
        found["cluster"] = _cluster(folder, rounds, scored["relation"], scored["cluster"])
        if not scored["conflict"] and (nearest := shown.get(scored["nearest_id"])):
            found["nearest"] = {**nearest, "similarity": round(scored["similarity"], 3)}
        if test := _row(folder, TEST, "example_id", scored["near_test"], ["relation", *SENTENCE]):
            found["near_test"] = _shown(scored["near_test"], test)
    selected = bool(_row(folder, SELECTED, "sample_id", sample_id, ["sample_id"])) if folder.files(SELECTED, ".parquet") else None
    outcome, why = _outcome(config, found, selected)
    return {"id": sample_id, "relation": request["relation"], "outcome": outcome, "why": why, **found}


def _request(folder: RunFolder, rounds: list[Round], sample_id: str) -> tuple[Round, Row]:
    """The round and the request row that asks for a candidate; one request may ask for several candidates."""
    for own in reversed(rounds):
        alike = pc.starts_with(pc.field("candidate_id"), sample_id.rpartition("-")[0] + "-")
        for request in rows(folder, own.prompts, PROMPTS.names, alike):
            if sample_id in candidate_ids(request["candidate_id"], request["sentences"]):
                return own, request
    raise InputError(folder.uri, sample_id, "no candidate of this run has that id", "Ids stand in `dataset/` and in `round-XX/samples`.")


def _row(folder: RunFolder, table: str, column: str, value: str, columns: list[str]) -> Row:
    """The first row of ``table`` with ``value`` in ``column``; an empty row if there is none."""
    return next(rows(folder, table, columns, pc.field(column) == value), {})


def _shown(name: str, row: Row) -> Row:
    kept = {"kept": row["unique"]} if "unique" in row else {}
    return {"id": name, "relation": row["relation"], **kept, "sentence": marked(row)}


def _origin(config: Config, folder: RunFolder, request: Row, completion: Row) -> Row:
    found: Row = {key: request[key] for key in ("round", "strategy", "prompt_id", "pattern", "seed")}
    model, adapter = policy_model(config, folder, request["round"])
    found["model"] = adapter or model
    told = {key: completion.get(key) for key in ("engine", "prompt_tokens", "generated_tokens", "error")}
    found |= {key: value for key, value in told.items() if value not in (None, "")}
    if completion.get("started_at") and completion.get("finished_at"):
        found["seconds"] = round(completion["finished_at"] - completion["started_at"], 3)
    return found


def _cluster(folder: RunFolder, rounds: list[Round], relation: str, cluster: str) -> Row:
    where = (pc.field("relation") == relation) & (pc.field("cluster") == cluster)
    found = rows(folder, [own.scores for own in rounds], ["candidate_id", "relation", *SENTENCE, "unique"], where)
    members = sorted((_shown(row["candidate_id"], row) for row in found), key=lambda member: (not member["kept"], member["id"]))
    kept = sum(bool(member["kept"]) for member in members)
    return {"id": cluster, "size": len(members), "kept": kept, "members": members[:CLUSTER_MEMBERS]}


def _pairs(folder: RunFolder, rounds: list[Round], name: str) -> list[Row]:
    where = (pc.field("chosen_id") == name) | (pc.field("rejected_id") == name)
    columns = ["pair_id", "kind", "chosen_id", "rejected_id"]
    return [{"round": own.name, **row} for own in rounds for row in rows(folder, own.pairs, columns, where)]


def _outcome(config: Config, found: Row, selected: bool | None) -> tuple[str, str]:
    """A candidate's outcome, as a short label and as a sentence; ``selected`` is ``None`` before the selection."""
    scores = found["scores"]
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
        return "below the gate", f"Unique ({reason}), but its score {correctness} is below the gate ({config.correctness.threshold})."
    if found["origin"]["strategy"] == NAIVE:
        return "baseline", "A sample of the naive baseline, which is for comparison only; divray selects none of these."
    if selected:
        return "selected", f"Selected: unique ({reason}) and correct ({correctness})."
    if selected is None:
        return "accepted", f"Unique ({reason}) and correct ({correctness}); nothing has been selected yet."
    return "more than K", f"Unique and correct, but it is none of the K = {config.selection.k} selected: together, those make a better set."
