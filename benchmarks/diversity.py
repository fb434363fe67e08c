"""Which diversity figure goes with the RE model's F1?  Rank correlations over many generated sets of equal size and correctness.

    python benchmarks/diversity.py RUN [RUN …] [--sets 60] [--rows 8] [--held-out 100] [--out FILE]

The runs are of one task and one draw of the examples.  Their unique samples are the pool.  A set has as many samples of each
relation as any other: some are spread over the pool, some lie around one sample, so that sets differ in diversity.  Only sets
whose mean score of the gate is within 0.01 of the pool's count.  A classifier in closed form learns from each set alone, and from
seeds and set.  F1 is of training sentences that are no seeds (`--held-out` of each relation), or, for a task without such (0), of
the test part: a figure to report, by which nothing may be chosen.  Intervals are a bootstrap over sets.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine
from scipy.special import softmax
from scipy.stats import spearmanr

from divray.config import read_config
from divray.datasets.stage import load_task, read_relations, read_seeds
from divray.extraction.metrics import Scorer
from divray.extraction.training import Hyperparameters, closed_form, training_rows, untrained
from divray.measures import ngram_vectors, vendi_score
from divray.relations import Example
from divray.run_folder import RunFolder
from divray.schemas import NAIVE, SCORES
from divray.spans import Discriminant
from divray.texts import SPANS, compared_texts

DRAWN, CLOSE, RESAMPLES, WEIGHT = 4000, 0.01, 2000, 0.125


def pool_of(runs: Sequence[RunFolder]) -> tuple[list[Example], np.ndarray, np.ndarray, list[str]]:
    """Samples that are unique in their run, each sentence once; their scores by the gate ``[n]``, embeddings ``[n, d]``, masked texts."""
    found: dict[str, tuple[Example, float, list[float]]] = {}
    names = ["text", *SPANS, "relation", "strategy", "round", "unique", "correctness", "embedding"]
    for run in runs:
        for name in {file.split("/")[0] for file in run.files("", ".parquet") if "/scores/" in file}:
            table = run.read_table(f"{name}/scores", [one for one in names if one in SCORES.names])
            for row, text in zip(table.to_pylist(), compared_texts(table, mask=True), strict=True):
                if row["unique"] and row["strategy"] != NAIVE:
                    example = Example(row["text"], (row[SPANS[0]], row[SPANS[1]]), (row[SPANS[2]], row[SPANS[3]]), row["relation"])
                    found.setdefault(f"{row['relation']} {text}", (example, row["correctness"], row["embedding"]))
    rows = list(found.values())
    texts = [key.partition(" ")[2] for key in found]
    return [row[0] for row in rows], np.array([row[1] for row in rows]), np.array([row[2] for row in rows], np.float64), texts


def draw(groups: Sequence[np.ndarray], sizes: Sequence[int], embeddings: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rows of one set: of each relation so many, drawn from those nearest to one of them; how near is a matter of chance."""
    wide, rows = rng.random(), []
    for group, size in zip(groups, sizes, strict=True):
        near = group[np.argsort(-embeddings[group] @ embeddings[rng.choice(group)], kind="stable")]
        rows.append(rng.choice(near[: size + round(wide * (len(near) - size))], size, replace=False))
    return np.concatenate(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--sets", type=int, default=60)
    parser.add_argument("--rows", type=int, default=8, help="of each relation in a set; at most a third of the pool's")
    parser.add_argument("--held-out", type=int, default=100, help="training sentences of each relation to score on; 0: the test part")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    runs = [RunFolder(uri) for uri in arguments.runs]
    config, relations, seeds = read_config(runs[0]), read_relations(runs[0]), read_seeds(runs[0])
    if any(read_seeds(run) != seeds for run in runs):
        parser.error("the runs have other seed examples")
    scored = load_task(config).test
    if arguments.held_out:
        known = {one.text for one in (*seeds, *scored)}
        held = {"test": None, "test_per_relation": 2 * arguments.held_out, "fewer_seeds": True, "unlabelled": None, "negatives": None}
        found = load_task(config.model_copy(update={"task": config.task.model_copy(update=held)})).test
        own = {name: [one for one in found if one.relation == name and one.text not in known] for name in (r.name for r in relations)}
        scored = [one for some in own.values() for one in some[: arguments.held_out]]
    examples, correctness, embeddings, texts = pool_of(runs)
    names = [relation.name for relation in relations]
    model, settings = untrained(relations, config.models.encoder, Hyperparameters()), Hyperparameters()
    described = model.described(relations)
    encoded, human, asked = (model.features(some) for some in (examples, seeds, scored))
    scorer = Scorer([one.relation for one in scored], names, config.task.none_label, config.task.metric)
    everything = np.arange(len(scored))

    def fitted(rows: np.ndarray, weight: float, with_seeds: bool) -> Discriminant:
        """The classifier of generated rows, of seeds, or of both, without mirrored rows."""
        some = [*(seeds if with_seeds else []), *(examples[row] for row in rows)]
        features = np.concatenate([*([human] if with_seeds else []), encoded[rows]])
        weights = np.concatenate([np.ones(len(seeds) * with_seeds), np.full(len(rows), weight)])
        return closed_form(features, training_rows(some, relations).targets[: len(some)], weights, described, settings)

    def f1(made: Discriminant) -> float:
        return float(scorer(scorer.numbered([names[place] for place in made.scores(asked).argmax(axis=1)]), everything))

    base = fitted(np.zeros(0, np.int64), 1.0, True)
    doubt = softmax(base.scores(encoded) / base.scores(human).std(), axis=1)
    doubt[np.arange(len(examples)), [names.index(one.relation) for one in examples]] -= 1.0
    groups = [np.array([row for row, one in enumerate(examples) if one.relation == name]) for name in names]
    groups = [group for group in groups if len(group) >= 6]
    sizes = [min(arguments.rows, len(group) // 3) for group in groups]

    def gradients(rows: np.ndarray) -> np.ndarray:
        """Unit gradients of the cross-entropy by the classifier's weights: outer products of doubt and features, one row a sample."""
        product = (doubt[rows, :, None] * encoded[rows, None, :]).reshape(len(rows), -1)
        return np.asarray(product / np.maximum(np.linalg.norm(product, axis=1, keepdims=True), 1e-12))

    figures: dict[str, Callable[[np.ndarray], Any]] = {
        "vendi_ngram": lambda rows: ngram_vectors([texts[row] for row in rows]),
        "vendi_embedding": lambda rows: embeddings[rows] / np.linalg.norm(embeddings[rows], axis=1, keepdims=True),
        "vendi_gradient": gradients,
    }
    rng, made_sets = np.random.default_rng(0), list[dict[str, float]]()
    middle = np.mean([correctness[group].mean() for group in groups])
    for _ in range(DRAWN):
        rows = draw(groups, sizes, embeddings, rng)
        parts = np.split(rows, np.cumsum(sizes)[:-1])
        if abs(np.mean([correctness[part].mean() for part in parts]) - middle) > CLOSE or len(made_sets) == arguments.sets:
            continue
        entry = {name: float(np.mean([vendi_score(figure(part)) for part in parts])) for name, figure in figures.items()}
        each = WEIGHT * len(seeds) / len(rows)
        made_sets.append({**entry, "alone": f1(fitted(rows, 1.0, False)), "with_seeds": f1(fitted(rows, each, True))})
    values = {name: np.array([entry[name] for entry in made_sets]) for name in made_sets[0]}
    picks = np.random.default_rng(1).integers(0, len(made_sets), (RESAMPLES, len(made_sets)))
    result: dict[str, Any] = {
        "benchmark": "diversity",
        "machine": machine(),
        "task": config.task.name,
        "runs": len(runs),
        "pool": len(examples),
    }
    result |= {"sets": len(made_sets), "rows_of_a_set": sum(sizes), "scored_on": len(scored), "test_part": not arguments.held_out}
    result["f1"] = {name: [round(float(values[name].mean()), 4), round(float(values[name].std()), 4)] for name in ("alone", "with_seeds")}
    result["f1"]["seeds"] = round(f1(base), 4)
    result["rank_correlation"] = {}
    for name in figures:
        for score in ("alone", "with_seeds"):
            made = [spearmanr(values[name][some], values[score][some]).statistic for some in picks]
            low, high = np.nanpercentile(made, [2.5, 97.5])
            whole = spearmanr(values[name], values[score]).statistic
            result["rank_correlation"].setdefault(name, {})[score] = [round(float(value), 3) for value in (whole, low, high)]
    print(json.dumps(result, indent=1))
    if arguments.out:
        before = json.loads(arguments.out.read_text()) if arguments.out.exists() else []
        kept = [one for one in before if one["task"] != result["task"]]
        arguments.out.write_text(json.dumps([*kept, result], indent=1) + "\n")


if __name__ == "__main__":
    main()
