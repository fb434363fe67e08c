"""The ``evaluate`` stage: RE models trained on each set of examples, compared on the human test set.

The stage trains one model for each set and each draw of the human examples (``evaluation.draws``).  All sets share the draws, so
differences are paired.  A training's key is a hash of all that its predictions depend on.  So a killed evaluation continues where it
stopped, and the stage trains on equal sets once.
"""

import hashlib
import itertools
import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, astuple, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from divray.config import Config
from divray.datasets.stage import read_relations
from divray.extraction.answers import external_answers, llm_answers
from divray.extraction.metrics import Scorer, false_positives
from divray.extraction.sets import MORE, WEIGHED, TrainingSets, examples_of
from divray.extraction.training import fit, train, untrained
from divray.layout import EVALUATION, NEGATIVES, SEEDS, SELECTED, TEST, UNLABELLED
from divray.relations import Example
from divray.resources import actor_pool
from divray.run_folder import RunFolder
from divray.scan import scored_rounds
from divray.schemas import NAIVE
from divray.stages import Progress

COMPARED = ("seeds", NAIVE, "round-00")
"""The sets that every other set is compared with."""

Answers = tuple[Sequence[str | None], Sequence[float | None]]
"""The predicted labels (``None``: no answer) and their probabilities (``None``: the answer has none)."""

RESAMPLES = 1000
RECALLS = (0.8, 0.6)
"""Where false positives are counted; few examples may not reach the first."""
MOST_KEPT = 20_000
"""A trainer that has the features of more sentences than this drops them all before the next training."""

_TEXT = dict.fromkeys(("example_id", "gold", "predicted"), pa.string())
PREDICTIONS = pa.schema({"set": pa.string(), "draw": pa.int64(), **_TEXT, "probability": pa.float64()})
"""``evaluation/predictions``: sorted by set (in order of the comparison), draw, and the test set's own order.
``probability`` is that of the predicted label.  In rows of the LLM and of other tools it is null, and ``predicted`` may be null."""


def run(config: Config, run: RunFolder, round: int = 0, on_progress: Progress | None = None) -> dict[str, Any]:
    """Write ``evaluation/predictions`` and ``evaluation.json``.

    ``evaluation.json`` maps each training set to ``metric``, ``mean`` and ``std`` (sample) of the main score, ``per_draw`` (one value if
    the set is the same in all draws), ``test`` (sentences), ``false_positives`` (with negatives: recall of :data:`RECALLS` -> mean of
    :func:`~divray.extraction.metrics.false_positives`, null if a draw does not reach it), ``examples`` (in all), ``k`` (their median per
    relation), ``f1_per_relation`` (mean of the draws; null without test sentences), and ``differences`` to the sets of :data:`COMPARED`
    (:func:`difference`).  A set of human and generated examples also has ``own_differences``, from the run's own draw alone: the LLM saw
    the examples of that draw.  After the sets come the answers of :mod:`divray.extraction.answers`, which have no draws.

    Returns counts: ``sets``, ``trainings`` (done now), ``kept`` (trainings done before), ``test`` (sentences).
    """
    relations, test, negatives = read_relations(run), examples_of(run, TEST), examples_of(run, NEGATIVES)
    sets = TrainingSets(config, run)
    compared = training_sets(run, [*config.prompts.strategies], twice=bool(sets.draws[0][MORE]))
    depends = [[astuple(one) for one in some] for some in (relations, [*test, *negatives])]
    first: dict[str, list[Example]] = {}
    keys: dict[str, list[str]] = defaultdict(list)
    jobs: dict[str, dict[str, Any]] = {}
    for name, tables in compared.items():
        for draw in range(len(sets.draws)):
            if examples := sets.examples(tables, draw):
                key = _part(examples, *depends, config.models.encoder, asdict(sets.settings))
                first.setdefault(name, examples)
                keys[name].append(key)
                jobs.setdefault(key, {"tables": tables, "draw": draw, "target": key})
    due = [job for key, job in jobs.items() if not run.table_files(key)]
    kept = len(jobs) - len(due)
    for done, _ in enumerate(itertools.chain([None], _trained(config, run, due)), kept):
        if on_progress:
            on_progress(done, len(jobs), "")

    labels, gold = [relation.name for relation in relations], [example.relation for example in test]
    scorer_of = partial(Scorer, labels=labels, none_label=config.task.none_label, metric=config.task.metric)
    results: dict[str, dict[str, Any]] = {}
    predictions: list[pa.Table] = []
    answers: dict[str, list[np.ndarray]] = {}

    def add(name: str, asked: list[Example], told: Sequence[Answers], examples: list[Example]) -> None:
        ids, truth = [example.example_id for example in asked], [example.relation for example in asked]
        for draw, columns in enumerate(told):
            predictions.append(pa.table([[name] * len(ids), [draw] * len(ids), ids, truth, *columns], schema=PREDICTIONS))
        scorer, counts = scorer_of(truth), Counter(example.relation for example in examples)
        numbered, sizes = [scorer.numbered(names) for names, _ in told], [counts[label] for label in labels]
        answers[name] = numbered if len(told) > 1 else numbered * len(sets.draws)
        more = {"test": len(asked), "false_positives": {}, "examples": sum(sizes), "k": statistics.median_low(sizes)}
        results[name] = {**summarise(scorer, numbered), **more}

    for name, examples in first.items():
        parts = [run.read_table(key) for key in (keys[name] if len(set(keys[name])) > 1 else keys[name][:1])]
        found = [(part["predicted"].to_pylist(), part["probability"].to_numpy()) for part in parts]
        add(name, test, [(names[: len(test)], certain[: len(test)]) for names, certain in found], examples)
        if negatives:
            for recall in RECALLS:
                shares = [false_positives(gold, *part, config.task.none_label, recall) for part in found]
                reached = [share for share in shares if share is not None]
                results[name]["false_positives"][str(recall)] = statistics.fmean(reached) if len(reached) == len(shares) else None
    for name, said in external_answers(run, test):
        add(name, test, [(said, [None] * len(test))], [])
    of_test = scorer_of(gold)
    for name, entry in results.items():
        others = [other for other in COMPARED if other in answers and other != name]
        entry["differences"] = {other: difference(of_test, answers[name], answers[other]) for other in others}
        if SEEDS in compared.get(name, ()) and not {SEEDS, MORE, UNLABELLED}.issuperset(compared[name]):
            entry["own_differences"] = {other: difference(of_test, answers[name][:1], answers[other][:1]) for other in others}
    if config.evaluation.llm:
        asked, answered = llm_answers(config, run)
        add("llm", asked, [(answered, [None] * len(asked))], sets.draws[0][SEEDS])
    run.write_table("evaluation/predictions", pa.concat_tables(predictions))
    run.write_json(EVALUATION, results)
    return {"sets": len(results), "trainings": len(due), "kept": kept, "test": len(test)}


def training_sets(run: RunFolder, strategies: Sequence[str], twice: bool) -> dict[str, list[str]]:
    """Name of each training set -> its tables, in the order of the comparison.  Several ``strategies`` get a set each; ``twice`` adds one
    with twice the human examples."""
    sets: dict[str, list[str]] = {"seeds": [SEEDS]}
    if twice:
        sets["twice the seeds"] = [SEEDS, MORE]
    parts = (NAIVE, *(strategies if len(strategies) > 1 else ()), *(own.name for own in scored_rounds(run)))
    sets |= {name: [f"{WEIGHED}/{name}"] for name in parts}
    if run.files(SELECTED, ".parquet"):
        sets |= {"generated": [WEIGHED], "selected": [SELECTED], "seeds+selected": [SEEDS, SELECTED], "seeds+generated": [SEEDS, WEIGHED]}
    if run.files(UNLABELLED, ".parquet"):
        sets |= {f"{name}+unlabelled": [*sets[name], UNLABELLED] for name in ("seeds", "seeds+generated") if name in sets}
    return sets


def summarise(scorer: Scorer, answers: Sequence[np.ndarray]) -> dict[str, Any]:
    """The main score's mean and spread over the draws, and each relation's mean, of one training set."""
    mains, each = [scorer(one) for one in answers], [scorer.per_relation(one) for one in answers]
    return {
        "metric": scorer.metric,
        "mean": statistics.fmean(mains),
        "std": statistics.stdev(mains) if len(mains) > 1 else 0.0,
        "per_draw": mains,
        "f1_per_relation": {name: statistics.fmean(one[name] for one in each) if name in each[0] else None for name in scorer.relations},
    }


def difference(scorer: Scorer, answers: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> dict[str, float]:
    """Mean of the main score of ``answers`` less that of ``others`` in the same draw.  ``low`` and ``high`` are its 95 % interval, from a
    bootstrap over draws and test sentences; ``n / (n - 1)`` widens it, since the spread of ``n`` resampled draws is too small.  With one
    draw it is the interval over test sentences alone."""
    size, count = len(scorer.gold), len(answers)

    def gain(draws: Iterable[int], rows: np.ndarray) -> float:
        return float(np.mean([scorer(answers[draw], rows) - scorer(others[draw], rows) for draw in draws]))

    rng = np.random.default_rng(0)
    made = [gain(rng.integers(0, count, count), rng.integers(0, size, size)) for _ in range(RESAMPLES)]
    mean, wider = gain(range(count), np.arange(size)), np.sqrt(count / max(1, count - 1))
    low, high = mean + wider * (np.percentile(made, [2.5, 97.5]) - mean)
    return {name: round(float(value), 6) for name, value in (("mean", mean), ("low", low), ("high", high))}


def _trained(config: Config, run: RunFolder, jobs: list[dict[str, Any]]) -> Iterator[Any]:
    """Train on the set and draw of each job, and write the predictions; yields each job when it is done."""
    import ray.data

    if not jobs:
        return
    trainer: Any = _Trainer
    data = ray.data.from_items(jobs, override_num_blocks=len(jobs))
    yield from data.map(trainer, fn_constructor_args=(config, run.uri), **actor_pool(config, len(jobs))).iter_rows()


class _Trainer:
    """Actor that trains on one set and draw and predicts the test set.  It keeps the features: 20 kB a sentence with a small encoder."""

    def __init__(self, config: Config, uri: str) -> None:
        self.config, self.run = config, RunFolder(uri)
        self.sets, self.relations = TrainingSets(config, self.run), read_relations(self.run)
        self.test = [*examples_of(self.run, TEST), *examples_of(self.run, NEGATIVES)]
        self.model = untrained(self.relations, config.models.encoder, self.sets.settings)
        self.features: dict[Any, np.ndarray] = {}

    def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        if len(self.features) > MOST_KEPT:
            self.features.clear()
        examples, settings, model = self.sets.examples(job["tables"], job["draw"]), self.sets.settings, self.model
        if settings.epochs:
            model = train(examples, self.relations, self.config.models.encoder, settings, self.config.seed)
        else:
            fit(model, examples, self.relations, settings, self._encoded)
        found = model.classify(self._encoded(self.test), model.tuned_scores(self.test))
        self.run.write_table(job["target"], pa.table({"predicted": found.labels, "probability": found.probabilities.max(axis=1)}))
        return job

    def _encoded(self, examples: Sequence[Example]) -> np.ndarray:
        keys = [(example.text, example.head, example.tail) for example in examples]
        new = {key: example for key, example in zip(keys, examples, strict=True) if key not in self.features}
        if new:
            self.features |= zip(new, self.model.features(list(new.values())), strict=True)
        return np.stack([self.features[key] for key in keys])


def _part(examples: Sequence[Example], *others: Any) -> str:
    """Name of the table of a training's predictions: a hash of all that they depend on.  Ids and order of ``examples`` do not count."""
    what = [sorted(astuple(replace(example, example_id="")) for example in examples), *others]
    return f"evaluation/parts/{hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:20]}"
