"""Which judge of correctness tells right samples from wrong ones, on real labelled sentences?

    python benchmarks/correctness.py --data DATA/semeval2010_task8 [--fewrel DATA/fewrel] [--fine-tuned semeval-9]

Two questions, each for several judges, K = 8 seed examples a relation, mean of three seeds:

*clean*: held-out sentences under their own label against sentences of other relations, and against
the same relation reversed; area under the ROC curve within a relation (``auc_other``, ``auc_reversed``).

*noisy*: 60 samples a relation of which a share is right, as an LLM writes them; the rest states another
relation, none, or the relation reversed (2 : 2 : 1).  AUC, precision of the best scored 20, 40 and 60 %,
and precision and recall of the gate at several thresholds.

Tasks: ``semeval-18`` (the labels as released: head first, direction in the label), ``semeval-9`` (directions
merged: head = first argument, wherever it stands; reversed = head and tail exchanged), ``fewrel-16``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pyarrow as pa

from divray.correctness import correctness_scores, fit_judge, sentence_features
from divray.correctness.classifier import FEATURE_GRID, Labelled, by_fold, fit, on_grid
from divray.datasets import Source, examples_table
from divray.datasets.fewrel import read_fewrel
from divray.datasets.semeval import read_semeval
from divray.diversity.embeddings import Encoder
from divray.relations import Example, mask_entities
from divray.sections import CorrectnessConfig, ExtractionConfig

K, SAMPLES, MOST = 8, 60, 110
SEEDS = (0, 1, 2)
SHARES = (0.2, 0.35, 0.6)
KEPT = (0.2, 0.4, 0.6)
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
DIMENSION = 384


@dataclass(frozen=True)
class Task:
    """Sentences by relation, and sentences of no relation.

    ``opposite`` names the relation that is another one's reversal; elsewhere a reversed sentence is one
    with head and tail exchanged.
    """

    name: str
    right: dict[str, list[Example]]
    none: list[Example]
    opposite: dict[str, str]


def swapped(example: Example) -> Example:
    return replace(example, head=example.tail, tail=example.head, example_id=f"{example.example_id}-reversed")


def semeval_tasks(folder: Path) -> list[Task]:
    by_label: dict[str, list[Example]] = defaultdict(list)
    for example in read_semeval(Source(folder / "TRAIN_FILE.TXT")):
        by_label[example.relation].append(example)
    none = by_label.pop("Other")
    labels = {name: some for name, some in by_label.items() if len(some) >= K + 2 * MOST // 3}
    opposite = {name: re.sub(r"\((e\d),(e\d)\)", r"(\2,\1)", name) for name in labels}
    directed = Task("semeval-18", labels, none, opposite)
    merged: dict[str, list[Example]] = defaultdict(list)
    for name, some in sorted(by_label.items()):
        relation, _, arguments = name.partition("(")
        for example in some:
            merged[relation].append(replace(example if arguments.startswith("e1") else swapped(example), relation=relation))
    return [directed, Task("semeval-9", merged, none, {})]


def fewrel_task(folder: Path) -> Task:
    by_label: dict[str, list[Example]] = defaultdict(list)
    for example in read_fewrel(Source(folder / "val_wiki.json")):
        by_label[example.relation].append(example)
    return Task("fewrel-16", by_label, [], {})


@dataclass(frozen=True)
class Draw:
    """Seed examples, and samples with their intended relation and what they are: right, other, none or reversed."""

    seeds: list[Example]
    samples: list[Example]
    intended: list[str]
    kind: np.ndarray


def draw(task: Task, seed: int, right: float | None) -> Draw:
    """Draw seeds and samples; ``right=None`` draws the clean question (as many right as other as reversed)."""
    rng = np.random.default_rng(seed)
    pool = {name: [some[i] for i in rng.permutation(len(some))[:MOST]] for name, some in sorted(task.right.items())}
    none = [task.none[i] for i in rng.permutation(len(task.none))[:MOST]]
    free = {name: some[K:] for name, some in pool.items()}
    rows: list[tuple[Example, str, str]] = []
    for name in pool:
        count = SAMPLES if right is None else round(SAMPLES * right)
        opposite = task.opposite.get(name)
        backwards = free.get(opposite, []) if opposite else [swapped(e) for e in reversed(free[name])]
        others = [example for other in free if other not in (name, opposite) for example in free[other]]
        wrong = 2 * SAMPLES if right is None else SAMPLES - count
        reverse = min(len(backwards), SAMPLES if right is None else wrong // 5)
        nothing = 0 if right is None else min(len(none), 2 * wrong // 5)
        rows += [(e, name, "right") for e in free[name][:count]]
        rows += [(e, name, "reversed") for e in backwards[:reverse]]
        rows += [(none[i], name, "none") for i in rng.permutation(len(none))[:nothing]]
        rows += [(others[i], name, "other") for i in rng.permutation(len(others))[: wrong - reverse - nothing]]
    seeds = [example for some in pool.values() for example in some[:K]]
    return Draw(seeds, [r[0] for r in rows], [r[1] for r in rows], np.array([r[2] for r in rows]))


class Views:
    """Features of examples, every text embedded once in the whole benchmark."""

    def __init__(self) -> None:
        self.encoder = Encoder("embedded:minilm")
        self.known: dict[str, np.ndarray] = {}

    def encode(self, texts: list[str]) -> np.ndarray:
        new = sorted(set(texts) - self.known.keys(), key=lambda text: (len(text), text))
        if new:
            self.known.update(zip(new, self.encoder.encode(new), strict=True))
        return np.stack([self.known[text] for text in texts])

    def all(self, examples: Sequence[Example], reverse: bool = False) -> np.ndarray:
        return sentence_features(examples_table(examples), self.encode, reverse)

    def masked(self, examples: Sequence[Example], reverse: bool = False) -> np.ndarray:
        spans = [(e.text, e.tail, e.head) if reverse else (e.text, e.head, e.tail) for e in examples]
        return on_grid(self.encode([mask_entities(*span) for span in spans]), FEATURE_GRID).astype(np.float32)


Scores = Callable[[Draw, Views], np.ndarray]


def sample_table(drawn: Draw) -> pa.Table:
    table = examples_table([replace(e, relation=name) for e, name in zip(drawn.samples, drawn.intended, strict=True)])
    return table.append_column("candidate_id", pa.array([f"sample-{row:05d}" for row in range(table.num_rows)]))


def project_judge(signals: list[str], columns: slice | None = None, masked: bool = False, noisy: bool = True) -> Scores:
    """The project's own code on all features, on some columns of them, or on the masked sentence."""

    def scores(drawn: Draw, views: Views) -> np.ndarray:
        make = views.masked if masked else views.all
        cut = columns or slice(None)
        features, seeds, backwards = make(drawn.samples)[:, cut], make(drawn.seeds)[:, cut], make(drawn.seeds, True)[:, cut]
        table, config = sample_table(drawn), CorrectnessConfig.model_validate({"signals": signals})
        if noisy:
            return correctness_scores(table, features, examples_table(drawn.seeds), seeds, backwards, config)
        return fit_judge(examples_table(drawn.seeds), seeds, backwards, config).score(table, features)

    return scores


def without_reversed(drawn: Draw, views: Views) -> np.ndarray:
    """Seeds alone, without their reversed copies as classes."""
    names = sorted({e.relation for e in drawn.seeds})
    labels = np.array([names.index(e.relation) for e in drawn.seeds])
    model = fit(Labelled(views.all(drawn.seeds), labels, np.ones(len(labels)), labels), len(names))
    return model.probability(views.all(drawn.samples))[np.arange(len(drawn.samples)), [names.index(name) for name in drawn.intended]]


def unweighted(drawn: Draw, views: Views) -> np.ndarray:
    """Plain confident learning: out of fold, every sample with weight 1, no reversed copies."""
    names = sorted({e.relation for e in drawn.seeds})
    labels = np.array([names.index(e.relation) for e in drawn.seeds] + [names.index(name) for name in drawn.intended])
    inputs = np.concatenate([views.all(drawn.seeds), views.all(drawn.samples)])
    fold = np.r_[np.full(len(drawn.seeds), -1), np.random.default_rng(0).integers(5, size=len(drawn.samples))]
    data = Labelled(inputs, labels, np.ones(len(labels)), fold)
    models = [fit(data.where(fold != number), len(names)) for number in range(5)]
    probability = by_fold(models, inputs[fold >= 0], fold[fold >= 0], len(names))
    return probability[np.arange(len(probability)), labels[fold >= 0]]


def fine_tuned(drawn: Draw, views: Views) -> np.ndarray:
    """The RE model itself (typed markers) on the seeds and their reversed copies."""
    from divray.extraction.training import train

    examples = drawn.seeds + [replace(swapped(e), relation=f"not {e.relation}") for e in drawn.seeds]
    labels = sorted({e.relation for e in examples})
    model = train(examples, labels, "embedded:minilm", ExtractionConfig(), seed=0)
    probability = np.asarray(model.predict(drawn.samples).probabilities)
    return probability[np.arange(len(probability)), [labels.index(name) for name in drawn.intended]]


def auc(scores: np.ndarray, drawn: Draw, kinds: tuple[str, ...]) -> float | None:
    """Mean over relations of the area under the ROC curve, right against ``kinds``."""
    from sklearn.metrics import roc_auc_score

    values, intended = [], np.array(drawn.intended)
    for name in sorted(set(drawn.intended)):
        rows = (intended == name) & np.isin(drawn.kind, ("right", *kinds))
        truth = drawn.kind[rows] == "right"
        if truth.any() and not truth.all():
            values.append(roc_auc_score(truth, scores[rows]))
    return float(np.mean(values)) if values else None


def clean_row(scores: np.ndarray, drawn: Draw) -> dict[str, float | None]:
    return {"auc_other": auc(scores, drawn, ("other",)), "auc_reversed": auc(scores, drawn, ("reversed",))}


def noisy_row(scores: np.ndarray, drawn: Draw) -> dict[str, float | None]:
    truth, intended = drawn.kind == "right", np.array(drawn.intended)
    groups = [np.flatnonzero(intended == name) for name in sorted(set(drawn.intended))]
    row: dict[str, float | None] = {"auc": auc(scores, drawn, ("other", "none", "reversed"))}
    row |= {f"auc_{kind}": auc(scores, drawn, (kind,)) for kind in ("other", "none", "reversed")}
    for share in KEPT:
        best = [rows[np.argsort(-scores[rows], kind="stable")[: int(share * len(rows))]] for rows in groups]
        row[f"precision@{share}"] = float(np.mean([truth[rows].mean() for rows in best]))
    return row


def gate_row(scores: np.ndarray, drawn: Draw) -> dict[str, float]:
    truth, intended = drawn.kind == "right", np.array(drawn.intended)
    row = {}
    for threshold in THRESHOLDS:
        kept = scores >= threshold
        row[f"precision>={threshold}"] = float(truth[kept].mean())
        row[f"recall>={threshold}"] = float(kept[truth].mean())
        row[f"fewest>={threshold}"] = float(min(kept[intended == name].sum() for name in set(drawn.intended)))
    return row


def mean(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {key: None if rows[0][key] is None else round(float(np.mean([row[key] for row in rows])), 3) for key in rows[0]}


EMBEDDINGS = slice(0, 4 * DIMENSION)
CLEAN: dict[str, Scores] = {
    "seeds: masked sentence": project_judge(["seeds"], masked=True, noisy=False),
    "seeds: connective": project_judge(["seeds"], slice(0, DIMENSION), noisy=False),
    "seeds: four embeddings": project_judge(["seeds"], EMBEDDINGS, noisy=False),
    "seeds: n-grams": project_judge(["seeds"], slice(4 * DIMENSION, None), noisy=False),
    "seeds: all, no reversed copies": without_reversed,
    "seeds: all": project_judge(["seeds"], noisy=False),
}
NOISY: dict[str, Scores] = {
    "seeds": project_judge(["seeds"]),
    "out_of_fold, unweighted": unweighted,
    "out_of_fold": project_judge(["out_of_fold"]),
    "seeds + out_of_fold, four embeddings": project_judge(["seeds", "out_of_fold"], EMBEDDINGS),
    "seeds + out_of_fold": project_judge(["seeds", "out_of_fold"]),
}
DEFAULT = "seeds + out_of_fold"


def measure(task: Task, views: Views, tuned: bool) -> dict[str, Any]:
    clean, noisy = CLEAN, NOISY | ({"fine-tuned RE model": fine_tuned} if tuned else {})
    result: dict[str, Any] = {"relations": len(task.right), "clean": {}, "noisy, 0.35 right": {}, "gate": {}}
    drawn = [draw(task, seed, None) for seed in SEEDS]
    for name, scores in clean.items():
        result["clean"][name] = mean([clean_row(scores(one, views), one) for one in drawn])
        print(f"{task.name:12s} clean  {name:38s}", result["clean"][name], flush=True)
    drawn = [draw(task, seed, 0.35) for seed in SEEDS]
    for name, scores in noisy.items():
        started = time.process_time()
        values = [scores(one, views) for one in drawn]
        seconds = (time.process_time() - started) / len(drawn)
        row = mean([noisy_row(one, d) for one, d in zip(values, drawn, strict=True)])
        result["noisy, 0.35 right"][name] = row | {"cpu_seconds": round(seconds, 1)}
        print(f"{task.name:12s} noisy  {name:38s}", result["noisy, 0.35 right"][name], flush=True)
    for share in SHARES:
        drawn = [draw(task, seed, share) for seed in SEEDS]
        result["gate"][f"{share} right"] = mean([gate_row(noisy[DEFAULT](one, views), one) for one in drawn])
        print(f"{task.name:12s} gate   {share} right", result["gate"][f"{share} right"], flush=True)
    return result


def environment() -> dict[str, str | int | None]:
    import sklearn
    import torch

    versions: dict[str, str | int | None] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "sklearn": sklearn.__version__,
    }
    return versions | {"numpy": np.__version__, "machine": platform.machine(), "cpus": os.cpu_count(), "encoder": "all-MiniLM-L6-v2"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with SemEval-2010 Task 8's TRAIN_FILE.TXT")
    parser.add_argument("--fewrel", type=Path, help="folder with FewRel's val_wiki.json")
    parser.add_argument(
        "--fine-tuned", nargs="*", default=[], metavar="TASK", help="tasks where the RE model is fine-tuned as a judge, too (minutes)"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "correctness.json")
    arguments = parser.parse_args()
    tasks = semeval_tasks(arguments.data) + ([fewrel_task(arguments.fewrel)] if arguments.fewrel else [])
    views = Views()
    settings = {"seed_examples": K, "samples_per_relation": SAMPLES, "seeds": list(SEEDS)}
    result: dict[str, Any] = {"environment": environment(), "settings": settings, "tasks": {}}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for task in tasks:
        result["tasks"][task.name] = measure(task, views, task.name in arguments.fine_tuned)
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
