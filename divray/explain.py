"""Why one sample is what it is: where it came from, what stands near it, and what became of it.

Everything is read from the run folder, a batch at a time; nothing is computed that the stages did not decide, but for
the nearest neighbours, which are looked up anew among all sentences of the relation.
"""

from __future__ import annotations

from typing import Any

from divray.config import Config, read_config
from divray.errors import InputError
from divray.report.account import rounds_of
from divray.report.lookup import (
    CLUSTER_MEMBERS,
    SENTENCE,
    close_ids,
    cluster_of,
    field,
    nearest_sentences,
    pairs_with,
    prompts_of,
    row_of,
    sentence_of,
)
from divray.report.scan import batches
from divray.run_folder import RunFolder
from divray.sampling.stage import policy_model
from divray.schemas import NAIVE, TUNED
from divray.texts import SEED_PREFIX

Row = dict[str, Any]


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
    run = RunFolder(uri)
    config = read_config(run)
    folders = [f"round-{number:02d}" for number in rounds_of(config, run)]
    for folder in reversed(folders):
        prompt = row_of(run, f"{folder}/prompts", "candidate_id", sample_id)
        if prompt:
            return _candidate(config, run, folder, folders, prompt, neighbours)
    for name in (sample_id, sample_id.removeprefix(SEED_PREFIX)):
        if seed := row_of(run, "data/seeds", "example_id", name):
            return _seed(config, run, folders, seed, neighbours)
    close = close_ids(run, folders, sample_id)
    mend = f"Did you mean {', '.join(close)}?" if close else "Ids stand in `dataset/` and in `round-XX/samples`."
    raise InputError(run.uri, sample_id, "no candidate or seed example of this run has that id", mend)


def _candidate(config: Config, run: RunFolder, folder: str, folders: list[str], prompt: Row, count: int) -> Row:
    name = prompt["candidate_id"]
    completion = row_of(run, f"{folder}/completions", "candidate_id", name) or {}
    sample = row_of(run, f"{folder}/samples", "candidate_id", name) or {}
    scored = row_of(run, f"{folder}/scores", "candidate_id", name) or {}
    sentence = {key: sample[key] for key in SENTENCE} if sample and not sample["rejection"] else None
    found: Row = {
        "id": name,
        "kind": "candidate",
        "relation": prompt["relation"],
        "sentence": sentence,
        "origin": _origin(config, run, folder, folders, prompt, completion),
        "completion": completion.get("completion"),
        "rejection": sample.get("rejection", ""),
        "scores": {key: scored[key] for key in ("correctness", "correct", "unique", "novelty", "reason") if key in scored},
        "gate": config.correctness.threshold,
        "threshold": config.diversity.threshold,
        "cluster": None,
        "neighbours": [],
        "conflict": None,
        "near_test": None,
        "pairs": pairs_with(run, folders, name),
        "selected": None,
    }
    if sentence:
        naive = prompt["strategy"] == NAIVE
        found["neighbours"] = nearest_sentences(config.diversity, run, folders, sentence, name, naive, count)
    if scored:
        found["cluster"] = cluster_of(run, folders, scored["relation"], scored["cluster"])
        for key, other in (("conflict", scored.get("conflict")), ("near_test", scored.get("near_test"))):
            if other:
                found[key] = sentence_of(run, folders, other, test=key == "near_test")
    if run.files("comparison/selected", ".parquet"):
        found["selected"] = row_of(run, "comparison/selected", "sample_id", name, ["sample_id"]) is not None
    found["outcome"], found["why"] = _outcome(config, run, found, prompt["strategy"])
    return found


def _seed(config: Config, run: RunFolder, folders: list[str], seed: Row, count: int) -> Row:
    name = SEED_PREFIX + seed["example_id"]
    sentence = {key: seed[key] for key in SENTENCE}
    near = nearest_sentences(config.diversity, run, folders, sentence, name, False, max(count, CLUSTER_MEMBERS))
    inside = [row["cluster"] for row in near if row["similarity"] >= config.diversity.threshold and row["cluster"]]
    shown = sum(
        name in prompt["demonstrations"] or seed["example_id"] in prompt["demonstrations"] for prompt in prompts_of(run, folders, seed)
    )
    copies = sum(row["similarity"] >= config.diversity.threshold for row in near)
    why = "A seed example: it stays whatever comes, and near-copies of it are dropped."
    why += f" {copies} of the samples shown are near it." if copies else " No sample is a near-copy of it."
    return {
        "id": name,
        "kind": "seed",
        "relation": seed["relation"],
        "sentence": sentence,
        "origin": {"round": None, "strategy": "human example", "prompts": shown},
        "rejection": "",
        "scores": {},
        "threshold": config.diversity.threshold,
        "cluster": cluster_of(run, folders, seed["relation"], inside[0]) if inside else None,
        "neighbours": near[:count],
        "conflict": None,
        "near_test": None,
        "pairs": pairs_with(run, folders, name),
        "selected": None,
        "outcome": "seed",
        "why": why,
    }


def _origin(config: Config, run: RunFolder, folder: str, folders: list[str], prompt: Row, completion: Row) -> Row:
    found: Row = {key: prompt[key] for key in ("round", "strategy", "prompt_id", "prompt", "pattern", "seed") if key in prompt}
    model, adapter = policy_model(config, run, prompt["round"])
    found["model"] = adapter if adapter and prompt["policy"] == TUNED else model
    for key in ("engine", "prompt_tokens", "generated_tokens", "error"):
        if completion.get(key) not in (None, ""):
            found[key] = completion[key]
    if completion.get("started_at") and completion.get("finished_at"):
        found["seconds"] = round(completion["finished_at"] - completion["started_at"], 3)
    found["demonstrations"] = [sentence_of(run, folders, name) or {"id": name} for name in prompt.get("demonstrations") or []]
    return found


def _limit(config: Config, reason: str) -> float:
    return config.diversity.seed_threshold if "seed" in reason else config.diversity.threshold


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
        return "near copy", f"Dropped: {scores['reason']}; from {_limit(config, scores['reason']):g} on it counts as one."
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
    taken = sum(batch.num_rows for batch in batches(run, "comparison/selected", ["relation"], field("relation") == found["relation"]))
    if taken < config.selection.k:
        return "repeated", "Unique and correct, but the same text, but for case and blanks, stands in an earlier round."
    return (
        "more than K",
        f"In the data set, but not selected: there were more than K = {config.selection.k}, and others make a better set together.",
    )
