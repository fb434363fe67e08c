"""The RE model on human examples alone: mean and spread over draws, for several K.

    python benchmarks/classifier.py --data DATA [--draws 10] [--k 8 16 32] [--all] [--tuned-draws 10] [--out FILE]

DATA holds `semeval2010_task8` and `fewrel`; the quick start needs none.  Settings are the defaults of `extraction`; nothing is
chosen on the test part.  `--all` adds SemEval with every training sentence, `--tuned-draws` SemEval with the tuned network beside the
closed form (`extraction.epochs: 12`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine

HERE = Path(__file__).parent
TASKS = {"SemEval": ("examples/semeval2010_task8.yaml", "semeval2010_task8"), "FewRel": ("examples/fewrel.yaml", "fewrel")}
QUICK_START = ("divray/quickstart/quickstart.yaml", None)

EVERY = 100_000
"""More examples a label than there are."""
EPOCHS = 12
"""Of the tuned network."""


def scores(config_name: str, folder: Path | None, k: int | None, draws: int, epochs: int = 0) -> dict[str, Any]:
    """The main score of each draw."""
    from divray.config import load_config
    from divray.datasets.stage import load_task
    from divray.extraction.metrics import Scorer
    from divray.extraction.sets import usual
    from divray.extraction.training import fit_head, train, training_rows, untrained

    overrides = [
        f"evaluation.draws={draws}",
        f"extraction.epochs={epochs}",
        *([f"task.data={folder}"] if folder else []),
        *([f"task.seeds_per_relation={k}"] if k else []),
    ]
    config = load_config(HERE.parent / config_name, overrides)
    task, settings = load_task(config), usual(config)
    labels = [relation.name for relation in task.relations]
    scorer = Scorer([example.relation for example in task.test], labels, config.task.none_label, config.task.metric)
    started = time.perf_counter()
    model = untrained(task.relations, config.models.encoder, settings)
    described = model.described(task.relations)
    known: dict[Any, np.ndarray] = {}

    def encoded(examples: list[Any]) -> np.ndarray:
        keys = [(one.text, one.head, one.tail) for one in examples]
        new = {key: one for key, one in zip(keys, examples, strict=True) if key not in known}
        known.update(zip(new, model.features(list(new.values())), strict=True) if new else ())
        return np.stack([known[key] for key in keys])

    found, seconds = [], 0.0
    for number, draw in enumerate(task.draws):
        rows = training_rows(draw, task.relations)
        if epochs:
            model = train(draw, task.relations, config.models.encoder, settings, config.seed)
        else:
            fit_head(model, encoded(rows.examples), rows, described, settings)
        answers = model.classify(encoded(task.test), model.tuned_scores(task.test)).labels
        found.append(scorer(scorer.numbered(answers)))
        if number == 0:
            seconds = time.perf_counter() - started
    spread = statistics.stdev(found) if len(found) > 1 else None
    return {
        "k": "all" if k == EVERY else k or config.task.seeds_per_relation,
        "tuned": bool(epochs),
        "rows": len(task.seeds),
        "test": len(task.test),
        "draws": len(found),
        "mean": round(100 * statistics.fmean(found), 2),
        "sd": None if spread is None else round(100 * spread, 2),
        "seconds_of_the_first_draw": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--k", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--tuned-draws", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "classifier.json")
    arguments = parser.parse_args()
    cells: list[tuple[str, str, str | None, int | None, int, int]] = [("quick start", *QUICK_START, None, arguments.draws, 0)]
    for name, task in TASKS.items():
        cells += [(name, *task, k, arguments.draws, 0) for k in arguments.k]
    if arguments.all:
        cells.append(("SemEval", *TASKS["SemEval"], EVERY, 1, 0))
    if arguments.tuned_draws:
        cells += [("SemEval", *TASKS["SemEval"], k, arguments.tuned_draws, EPOCHS) for k in arguments.k]
        cells += [("SemEval", *TASKS["SemEval"], EVERY, 1, EPOCHS)] if arguments.all else []
    found: dict[str, Any] = {"machine": machine()}
    for name, config, folder, k, draws, epochs in cells:
        found.setdefault(name, []).append(scores(config, arguments.data / folder if folder else None, k, draws, epochs))
        print(name, json.dumps(found[name][-1]), flush=True)
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
