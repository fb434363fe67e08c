"""What generated sentences add to human ones: a whole run for each task, K, LLM and draw, compared in pairs.

    python benchmarks/effect.py --data DATA --work FOLDER [--tasks SemEval FewRel] [--k 4 8 16 32] [--llms …] [--draws 5]
                                [--set section.key=value …] [--out FILE]

Each draw is a run of its own with its own human examples, so that no sentence was written from another draw's.  FOLDER keeps the
runs: a killed benchmark goes on where it was, and a cell that is there is only read.  The intervals are a paired bootstrap over
draws and test sentences; with one draw, over test sentences alone.  A cell is worth reading from five draws on.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from machine import machine

HERE = Path(__file__).parent
TASKS = {
    "quick start": ("divray/quickstart/quickstart.yaml", None),
    "SemEval": ("examples/semeval2010_task8.yaml", "semeval2010_task8"),
    "FewRel": ("examples/fewrel.yaml", "fewrel"),
}
BASE = "seeds"
RESAMPLES = 1000


class Drawn(NamedTuple):
    """One run: a scorer of its test sentences, and the numbered answers of each training set."""

    ids: list[str]  # of the test sentences
    scorer: Any
    answers: dict[str, np.ndarray]
    accepted: int


def run(folder: Path, config: str, overrides: list[str]) -> Drawn:
    """Make the run, or what is left of it, and read its predictions; a folder of other settings is an error."""
    from divray.config import load_config
    from divray.extraction.metrics import Scorer
    from divray.pipeline import open_run

    settings = load_config(HERE.parent / config, overrides)
    made = open_run(settings, str(folder))
    if not (folder / "summary.json").exists():
        command = [sys.executable, "-m", "divray.cli", "run", str(HERE.parent / config), "--out", str(folder), *overrides]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    summary = made.read_json("summary.json")
    answers: dict[str, list[str | None]] = defaultdict(list)
    gold: dict[str, list[str]] = defaultdict(list)
    ids: list[str] = []
    for row in made.read_table("evaluation/predictions").to_pylist():
        if row["draw"] == 0:
            answers[row["set"]].append(row["predicted"])
            gold[row["set"]].append(row["gold"])
            ids += [row["example_id"]] * (row["set"] == BASE)
    labels = [relation["name"] for relation in made.read_json("data/relations.json")]
    scorer = Scorer(gold[BASE], labels, settings.task.none_label, settings.task.metric)
    same = {name: scorer.numbered(found) for name, found in answers.items() if gold[name] == gold[BASE]}
    return Drawn(ids, scorer, same, summary["correct"])


def compared(draws: list[Drawn], name: str, other: str | None) -> dict[str, float] | None:
    """Mean score of a set over the draws, or its mean difference to ``other``, with a 95 % interval, in points."""
    if not all({name, other or name} <= one.answers.keys() for one in draws):
        return None

    def value(one: Drawn, rows: np.ndarray) -> float:
        return float(one.scorer(one.answers[name], rows) - (one.scorer(one.answers[other], rows) if other else 0.0))

    rng = np.random.default_rng(0)
    mean, made = np.mean([value(one, np.arange(len(one.ids))) for one in draws]), []
    for _ in range(RESAMPLES):
        # Draws with the same test sentences share the resampled ones, too.
        rows = {tuple(one.ids): rng.integers(0, len(one.ids), len(one.ids)) for one in draws}
        made.append(np.mean([value(draws[place], rows[tuple(draws[place].ids)]) for place in rng.integers(0, len(draws), len(draws))]))
    low, high = mean + np.sqrt(len(draws) / max(1, len(draws) - 1)) * (np.percentile(made, [2.5, 97.5]) - mean)
    return {key: round(100 * float(number), 2) for key, number in (("mean", mean), ("low", low), ("high", high))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="holds semeval2010_task8 and fewrel; the quick start needs none")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=["SemEval", "FewRel"], choices=list(TASKS))
    parser.add_argument("--k", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--llms", nargs="+", default=["embedded:smollm2", "embedded:gemma3-270m"])
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--set", dest="overrides", nargs="*", default=[], metavar="section.key=value", help="for every run")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "effect.json")
    arguments = parser.parse_args()
    before = json.loads(arguments.out.read_text())["cells"] if arguments.out.exists() else []
    for task, k, llm in ((task, k, llm) for task in arguments.tasks for k in arguments.k for llm in arguments.llms):
        config, data = TASKS[task]
        draws = []
        for seed in range(arguments.draws):
            folder = arguments.work / re.sub(r"[^\w.-]+", "-", f"{task}-{k}-{llm}-{seed}")
            own = [f"seed={seed}", f"task.seeds_per_relation={k}", f"models.llm={llm}", "evaluation.draws=1", "evaluation.llm=false"]
            draws.append(run(folder, config, [*own, *([f"task.data={arguments.data / data}"] if data else []), *arguments.overrides]))
        names = sorted({name for one in draws for name in one.answers})
        cell: dict[str, Any] = {"task": task, "k": k, "llm": Path(llm).name, "overrides": arguments.overrides}
        others = [one for one in before if any(one.get(key) != value for key, value in cell.items())]
        cell |= {"draws": len(draws), "accepted": [one.accepted for one in draws]}
        cell["scores"] = {name: compared(draws, name, None) for name in names}
        cell["differences_to_seeds"] = {name: compared(draws, name, BASE) for name in names if name != BASE}
        last = max((name for name in names if name.startswith("round-")), default="round-00")
        cell["last_round_less_first"] = compared(draws, last, "round-00") if last != "round-00" else None
        gains = [cell["differences_to_seeds"].get(name) for name in ("seeds+generated", "twice the seeds")]
        cell["share_of_the_way"] = round(gains[0]["mean"] / gains[1]["mean"], 2) if all(gains) and gains[1]["mean"] > 0 else None
        print(json.dumps(cell), flush=True)
        before = [*others, {**cell, "machine": machine()}]
        result = {"benchmark": "effect", "cells": before}
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
