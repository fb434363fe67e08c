"""The ``evaluate`` stage: RE models trained on each set of examples, compared on the human test set.

Every (training set, seed) is one Ray task.  Its predictions are kept under a key made of all that
they depend on, so that a killed evaluation goes on where it was, and equal sets are trained once.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import astuple
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from divray.config import Config
from divray.extraction.inputs import SEEDS, SELECTED, TEST, examples_of, labels_of, remote, tuned, types_usable
from divray.extraction.metrics import main_score, score
from divray.extraction.reference import TEST_EMBEDDINGS, embed_test
from divray.relations import Example
from divray.runs import RunFolder

Progress = Callable[[int, int, str], None]
"""Called with (models done, models in all, a word on what goes on); the LLM counts as one."""

PREDICTIONS = pa.schema(
    [
        pa.field("set", pa.string()),
        pa.field("seed", pa.int64()),
        pa.field("example_id", pa.string()),
        pa.field("gold", pa.string()),
        pa.field("predicted", pa.string()),
        pa.field("probability", pa.float64()),
    ]
)
"""``evaluation/predictions``: sorted by set (in order of the comparison), seed, and the test set's own order.
``probability`` is that of the predicted label; the LLM's rows have none, and ``predicted`` may be null."""


def run(config: Config, run: RunFolder, round: int = 0, on_progress: Progress | None = None) -> dict[str, Any]:
    """Write ``evaluation/predictions``, ``evaluation.json`` and ``data/test_embeddings``.

    ``evaluation.json`` maps each training set to ``metric``, ``mean`` and ``std`` (sample) of the main
    score, ``per_seed`` and ``seeds``, ``examples`` in all, ``k`` (median a relation),
    ``examples_per_relation``, ``scores`` (all scores, one a seed), ``f1_per_relation`` (mean of the seeds)
    and ``settings`` (encoder, whether types were used, hyperparameters).

    Returns:
        Counts: ``sets``, ``trainings`` done now, ``kept`` from before, ``test`` sentences.
    """
    import ray

    tables = training_sets(run)
    sets = {name: examples for name in tables if (examples := examples_of(run, tables[name]))}
    labels, test = labels_of(run), examples_of(run, [TEST])
    typed = {name: types_usable(examples, [*examples_of(run, [SEEDS]), *test]) for name, examples in sets.items()}
    settings = tuned(config, run).model_dump(exclude={"search"})
    tested = [astuple(example) for example in test]
    keys: dict[tuple[str, int], str] = {}
    wanted: dict[str, tuple[list[str], bool, int]] = {}
    for name, examples in sets.items():
        for seed in config.evaluation.seeds:
            key = _key(examples, typed[name], labels, tested, config.models.encoder, settings, seed)
            keys[name, seed] = key
            wanted.setdefault(key, (tables[name], typed[name], seed))
    missing = {key: task for key, task in wanted.items() if not run.exists(_part(key))}
    total = len(wanted) + config.evaluation.llm
    embedded = None if run.files(TEST_EMBEDDINGS) else remote(embed_test, config).remote(config, run.uri)
    _train_missing(config, run, missing, len(wanted), (lambda done: on_progress(done, total, "")) if on_progress else None)

    if embedded is not None:
        ray.get(embedded)
    results, predictions = {}, []
    for name, examples in sets.items():
        parts = [pq.read_table(run.path(_part(keys[name, seed])), filesystem=run.fs) for seed in config.evaluation.seeds]
        for seed, part in zip(config.evaluation.seeds, parts, strict=True):
            predictions.append(_prediction_table(name, seed, test, part["predicted"].to_pylist(), part["probability"].to_pylist()))
        answers = [part["predicted"].to_pylist() for part in parts]
        results[name] = {
            **summarise([e.relation for e in test], answers, labels, config),
            "seeds": list(config.evaluation.seeds),
            **_sizes(examples, labels),
            "settings": {"encoder": config.models.encoder, "typed": typed[name], **settings},
        }
    if config.evaluation.llm:
        from divray.extraction.llm import extract

        tell = (lambda done, rows, note: on_progress(total - 1, total, note or f"llm: {done} of {rows} sentences")) if on_progress else None
        asked, answers, shown = extract(config, run, tell)
        predictions.append(_prediction_table("llm", config.seed, asked, answers, [None] * len(asked)))
        results["llm"] = {
            **summarise([e.relation for e in asked], [answers], labels, config),
            "seeds": [],
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
    sets = {"seeds": [SEEDS], **{name: [f"comparison/{name}"] for name in compared}}
    if run.files(SELECTED, ".parquet"):
        sets |= {"generated": [SELECTED], "seeds+generated": [SEEDS, SELECTED]}
    return sets


def summarise(gold: Sequence[str], answers: Sequence[Sequence[str | None]], labels: Sequence[str], config: Config) -> dict[str, Any]:
    """The main score's mean and spread, and all scores, of one training set.

    Args:
        gold: True labels (n).
        answers: Predicted labels (n) of each seed; ``None`` where there is none.
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
        "per_seed": mains,
        "scores": [_without_relations(values) for values in scores],
        "f1_per_relation": {name: statistics.fmean(values["per_relation"][name]["f1"] for values in scores) for name in relations},
    }


def _train_missing(
    config: Config,
    run: RunFolder,
    missing: dict[str, tuple[list[str], bool, int]],
    total: int,
    on_progress: Callable[[int], None] | None,
) -> None:
    import ray.data

    tell = on_progress or (lambda done: None)
    tell(total - len(missing))
    if not missing:
        return
    jobs = [{"tables": tables, "typed": typed, "seed": seed, "target": _part(key)} for key, (tables, typed, seed) in missing.items()]
    cluster = config.cluster
    trained = ray.data.from_items(jobs, override_num_blocks=len(jobs)).map(
        partial(_train_and_predict, config=config, uri=run.uri),
        num_cpus=cluster.worker_cpus,
        concurrency=min(cluster.concurrent_trials, len(jobs)),
    )
    for done, _ in enumerate(trained.iter_rows(), total - len(missing) + 1):
        tell(done)


def _train_and_predict(job: dict[str, Any], config: Config, uri: str) -> dict[str, Any]:
    from divray.extraction.training import train

    run = RunFolder(uri)
    model = train(examples_of(run, job["tables"]), labels_of(run), config.models.encoder, tuned(config, run), job["seed"], job["typed"])
    found = model.predict(examples_of(run, [TEST]))
    run.write_parquet(job["target"], pa.table({"predicted": found.labels, "probability": found.probabilities.max(axis=1)}))
    return {"target": job["target"]}


def _key(examples: Sequence[Example], *others: Any) -> str:
    """Names what a training depends on; the ids and the order of its examples are no part of that."""
    what = [sorted(astuple(example)[:-1] for example in examples), *others]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:20]


def _part(key: str) -> str:
    return f"evaluation/parts/{key}.parquet"


def _prediction_table(
    name: str, seed: int, test: Sequence[Example], predicted: Sequence[str | None], probability: Sequence[float | None]
) -> pa.Table:
    columns = [
        [name] * len(test),
        [seed] * len(test),
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
