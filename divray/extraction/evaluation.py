"""The ``evaluate`` stage: RE models trained on each set of examples, compared on the human test set.

Every set is trained once a draw of the human examples (``evaluation.draws``), and the draws are the same for all sets, so that
differences are paired.  Their 95 % intervals are a bootstrap over draws and test sentences.  Predictions are kept under a key
made of all that they depend on, so that a killed evaluation goes on where it was, and equal sets are trained once.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from divray.config import Config
from divray.datasets.stage import read_relations
from divray.embeddings import Encoder, embedding_column
from divray.extraction.inputs import MORE, SELECTED, draws_of, examples_of, negatives_of, set_of, tuned
from divray.extraction.llm import extract
from divray.extraction.metrics import Resampled, false_positives, main_score, score
from divray.extraction.training import fit_head, train, training_rows, untrained
from divray.relations import Example
from divray.resources import most_workers, only_cpus, task_gpus, worker
from divray.run_folder import SEEDS, TEST, RunFolder
from divray.stages import Progress
from divray.texts import compared_texts

COMPARED = ("seeds", "naive", "round-00")
"""The sets that each set after them is compared with."""

RESAMPLES = 1000
AT_ONCE = 2
"""RE models that are trained at the same time, at least."""

PREDICTIONS = pa.schema(
    [
        pa.field("set", pa.string()),
        pa.field("draw", pa.int64()),
        pa.field("example_id", pa.string()),
        pa.field("gold", pa.string()),
        pa.field("predicted", pa.string()),
        pa.field("probability", pa.float64()),
    ]
)
"""``evaluation/predictions``: sorted by set (in order of the comparison), draw, and the test set's own order.
``probability`` is that of the predicted label; the LLM's rows have none, and ``predicted`` may be null."""


def run(config: Config, run: RunFolder, round: int = 0, on_progress: Progress | None = None) -> dict[str, Any]:
    """Write ``evaluation/predictions``, ``evaluation.json`` and ``data/test_embeddings``.

    ``evaluation.json`` maps each training set to ``metric``, ``mean`` and ``std`` (sample) of the main
    score, ``per_draw`` and ``draws``, ``false_positives`` (see :mod:`divray.extraction.metrics`; null without negatives),
    ``examples`` in all, ``k`` (median a relation),
    ``examples_per_relation``, ``scores`` (all scores, one a draw), ``f1_per_relation`` (mean of the draws), ``differences`` to the
    sets of :data:`COMPARED` (``mean``, ``low``, ``high``) and ``settings`` (encoder, hyperparameters).

    Returns:
        Counts: ``sets``, ``trainings`` done now, ``kept`` from before, ``test`` sentences.
    """
    import ray

    tables = training_sets(run)
    relations, test, draws = read_relations(run), examples_of(run, [TEST]), draws_of(run)
    labels = [relation.name for relation in relations]
    described = [astuple(relation) for relation in relations]
    settings = tuned(config, run)
    negatives = negatives_of(run)
    tested = [astuple(example) for example in [*test, *negatives]]
    sets: dict[str, list[Example]] = {}
    keys: dict[tuple[str, int], str] = {}
    wanted: dict[str, tuple[list[str], int]] = {}
    for name, parts in tables.items():
        for number, draw in enumerate(draws):
            examples, weights = set_of(run, parts, draw, settings)
            if not examples:
                continue
            sets.setdefault(name, examples)
            key = _key(examples, weights, described, tested, config.models.encoder, asdict(settings))
            keys[name, number] = key
            wanted.setdefault(key, (parts, number))
    missing = {key: task for key, task in wanted.items() if not run.exists(_part(key))}
    total = len(wanted) + config.evaluation.llm
    embedded = None if run.files(TEST_EMBEDDINGS) else worker(config, gpus=True)(embed_test).remote(config, run.uri)
    _train_missing(config, run, missing, len(wanted), (lambda done: on_progress(done, total, "")) if on_progress else None)

    if embedded is not None:
        ray.get(embedded)
    gold = [example.relation for example in test]
    results: dict[str, Any] = {}
    predictions, answers = [], {}
    for name, examples in sets.items():
        found = [pq.read_table(run.path(_part(keys[name, number])), filesystem=run.fs) for number in range(len(draws))]
        alarms = [
            false_positives(gold, part["predicted"].to_pylist(), part["probability"].to_numpy(), config.task.none_label)
            for part in found
            if negatives
        ]
        found = [part.slice(0, len(test)) for part in found]
        for number, part in enumerate(found):
            predictions.append(_prediction_table(name, number, test, part["predicted"].to_pylist(), part["probability"].to_pylist()))
        answers[name] = [part["predicted"].to_pylist() for part in found]
        results[name] = {
            **summarise(gold, answers[name], labels, config),
            "draws": list(range(len(draws))),
            "false_positives": statistics.fmean(alarms) if alarms else None,
            **_sizes(examples, labels),
            "settings": {"encoder": config.models.encoder, **asdict(settings)},
        }
        results[name]["differences"] = {
            other: difference(gold, answers[name], answers[other], labels, config)
            for other in COMPARED
            if other in answers and other != name
        }
    if config.evaluation.llm:
        tell = (lambda done, rows, note: on_progress(total - 1, total, note or f"llm: {done} of {rows} sentences")) if on_progress else None
        asked, said, shown = extract(config, run, tell)
        predictions.append(_prediction_table("llm", 0, asked, said, [None] * len(asked)))
        results["llm"] = {
            **summarise([e.relation for e in asked], [said], labels, config),
            "draws": [],
            **_sizes(shown, labels),
            "settings": {"model": config.models.llm, "test": len(asked)},
        }
    run.write_table("evaluation/predictions", pa.concat_tables(predictions))
    run.write_json("evaluation.json", results)
    return {"sets": len(results), "trainings": len(missing), "kept": len(wanted) - len(missing), "test": len(test)}


def training_sets(run: RunFolder) -> dict[str, list[str]]:
    """Name of each training set -> the tables that make it up, in the order of the comparison."""
    compared = sorted({file.split("/")[1] for file in run.files("comparison", ".parquet")}, key=lambda name: (name != "naive", name))
    compared = [name for name in compared if f"comparison/{name}" != SELECTED]
    sets = {"seeds": [SEEDS]}
    if draws_of(run)[0][MORE]:
        sets["twice the seeds"] = [SEEDS, MORE]
    sets |= {name: [f"comparison/{name}"] for name in compared}
    if run.files(SELECTED, ".parquet"):
        sets |= {"generated": [SELECTED], "seeds+generated": [SEEDS, SELECTED]}
    return sets


def summarise(gold: Sequence[str], answers: Sequence[Sequence[str | None]], labels: Sequence[str], config: Config) -> dict[str, Any]:
    """The main score's mean and spread, and all scores, of one training set.

    Args:
        gold: True labels (n).
        answers: Predicted labels (n) of each draw; ``None`` where there is none.
        labels: All labels of the task.
        config: ``task.metric`` and ``task.none_label`` count here.
    """
    metric = config.task.metric
    scores = [score(gold, answer, labels, config.task.none_label, metric) for answer in answers]
    mains = [main_score(values, metric) for values in scores]
    relations = scores[0]["per_relation"]
    return {
        "metric": metric,
        "mean": statistics.fmean(mains),
        "std": statistics.stdev(mains) if len(mains) > 1 else 0.0,
        "per_draw": mains,
        "scores": [_without_relations(values) for values in scores],
        "f1_per_relation": {name: statistics.fmean(values["per_relation"][name]["f1"] for values in scores) for name in relations},
    }


def difference(
    gold: Sequence[str],
    answers: Sequence[Sequence[str | None]],
    others: Sequence[Sequence[str | None]],
    labels: Sequence[str],
    config: Config,
) -> dict[str, float]:
    """Mean paired difference of the main score, and its 95 % interval by a bootstrap over draws and test sentences.

    Args:
        gold: True labels (n).
        answers: Predicted labels (n) of each draw.
        others: Those of the set compared with, in the same draws.
        labels: All labels of the task.
        config: ``task`` counts here.
    """
    score_of = Resampled(gold, labels, config.task.none_label, config.task.metric)
    one, other = (np.stack([score_of.numbered(answer) for answer in rows]) for rows in (answers, others))
    everything = np.arange(len(gold))
    rng = np.random.default_rng(0)
    made = []
    for _ in range(RESAMPLES):
        draws, rows = rng.integers(0, len(one), len(one)), rng.integers(0, len(gold), len(gold))
        made.append(np.mean([score_of(one[draw], rows) - score_of(other[draw], rows) for draw in draws]))
    low, high = np.percentile(made, [2.5, 97.5])
    whole = np.mean([score_of(mine, everything) - score_of(theirs, everything) for mine, theirs in zip(one, other, strict=True)])
    return {"mean": round(float(whole), 6), "low": round(float(low), 6), "high": round(float(high), 6)}


def _train_missing(
    config: Config,
    run: RunFolder,
    missing: dict[str, tuple[list[str], int]],
    total: int,
    on_progress: Callable[[int], None] | None,
) -> None:
    import ray.data

    tell = on_progress or (lambda done: None)
    tell(total - len(missing))
    if not missing:
        return
    jobs = [{"tables": tables, "draw": draw, "target": _part(key)} for key, (tables, draw) in missing.items()]
    trainer: Any = _Trainer
    only_cpus(not task_gpus(config))
    most = max(AT_ONCE, most_workers(config, gpus=True))
    trained = ray.data.from_items(jobs, override_num_blocks=len(jobs)).map(
        trainer,
        fn_constructor_args=(config, run.uri),
        num_cpus=config.cluster.worker_cpus,
        num_gpus=task_gpus(config),
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(most, len(jobs))),
    )
    for done, _ in enumerate(trained.iter_rows(), total - len(missing) + 1):
        tell(done)


class _Trainer:
    """Actor: trains on one set and draw, and predicts the test set; in closed form every sentence is encoded once."""

    def __init__(self, config: Config, uri: str) -> None:
        self.config, self.run = config, RunFolder(uri)
        self.settings, self.relations = tuned(config, self.run), read_relations(self.run)
        self.test, self.draws = [*examples_of(self.run, [TEST]), *negatives_of(self.run)], draws_of(self.run)
        self.model = untrained(self.relations, config.models.encoder, self.settings)
        self.described = self.model.described([relation.description for relation in self.relations])
        self.features: dict[Any, np.ndarray] = {}

    def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        examples, weights = set_of(self.run, job["tables"], self.draws[job["draw"]], self.settings)
        if self.settings.epochs:
            model = train(examples, self.relations, self.config.models.encoder, self.settings, self.config.seed, weights)
            found = model.predict(self.test)
        else:
            rows = training_rows(examples, self.relations, weights)
            fit_head(self.model, self._encoded(rows.examples), rows, self.described, self.settings)
            found = self.model.classify(self._encoded(self.test))
        table = pa.table({"predicted": found.labels, "probability": found.probabilities.max(axis=1)})
        self.run.write_parquet(job["target"], table)
        return {"target": job["target"]}

    def _encoded(self, examples: Sequence[Example]) -> np.ndarray:
        keys = [(example.text, example.head, example.tail) for example in examples]
        new = {key: example for key, example in zip(keys, examples, strict=True) if key not in self.features}
        if new:
            self.features |= zip(new, self.model.features(list(new.values())), strict=True)
        return np.stack([self.features[key] for key in keys])


def _key(examples: Sequence[Example], *others: Any) -> str:
    """Names what a training depends on; the ids and the order of its examples are no part of that."""
    what = [sorted(astuple(example)[:-1] for example in examples), *others]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:20]


def _part(key: str) -> str:
    return f"evaluation/parts/{key}.parquet"


def _prediction_table(
    name: str, draw: int, test: Sequence[Example], predicted: Sequence[str | None], probability: Sequence[float | None]
) -> pa.Table:
    columns = [
        [name] * len(test),
        [draw] * len(test),
        [example.example_id for example in test],
        [example.relation for example in test],
        list(predicted),
        list(probability),
    ]
    return pa.table([pa.array(values, field.type) for values, field in zip(columns, PREDICTIONS, strict=True)], schema=PREDICTIONS)


def _sizes(examples: Sequence[Example], labels: Sequence[str]) -> dict[str, Any]:
    counts = Counter(example.relation for example in examples)
    each = {label: counts[label] for label in labels}
    return {"examples": len(examples), "k": statistics.median_low(each.values()), "examples_per_relation": each}


def _without_relations(values: dict[str, Any]) -> dict[str, Any]:
    return {key: _without_relations(value) if isinstance(value, dict) else value for key, value in values.items() if key != "per_relation"}


TEST_SENTENCES = 32
"""Test sentences a relation whose diversity is compared with that of the samples."""

TEST_EMBEDDINGS = "data/test_embeddings"


def embed_test(config: Config, uri: str) -> None:
    """Write ``data/test_embeddings``: ``example_id`` and ``embedding`` of the test sentences, by hash of their ids up to
    :data:`TEST_SENTENCES` a relation."""
    run = RunFolder(uri)
    test = run.read_table(TEST)
    names, relations = test["example_id"].to_pylist(), test["relation"].to_pylist()
    seen: Counter[str] = Counter()
    taken = []
    for row in sorted(range(len(names)), key=lambda row: hashlib.sha256(names[row].encode()).digest()):
        seen[relations[row]] += 1
        if seen[relations[row]] <= TEST_SENTENCES:
            taken.append(row)
    some = test.take(pa.array(sorted(taken), pa.int64()))
    embeddings = embedding_column(Encoder.of(config).encode(compared_texts(some, mask=True)))
    run.write_table(TEST_EMBEDDINGS, pa.table({"example_id": some["example_id"], "embedding": embeddings}))
