"""Fit the judges on sentences that were read, and measure them on the third that is held out by relation.

    python benchmarks/reading/fit.py --data DATA [--llm REFERENCE] --signals FILE [--write] [--out FILE]

DATA holds `semeval2010_task8` and `fewrel`, whose seeds two of the three tasks need; `--llm` names the LLM whose answers
`gate_llm` listens to.  Signals are computed once and kept in FILE.  `--write` puts the weights into `divray/scoring/weights.json`.

A sentence is right if it states its relation, its entities are whole mentions, and it reads as English: by two readings that
agree, else by a third.  Each judge is a logistic regression on signals clipped to the middle 96 % of their range.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))

GATE = ("span_own", "span_reversal", "span_near", "span_head", "span_tail")
JUDGES: dict[str, tuple[str, ...]] = {
    "gate": GATE,
    "gate_llm": (*GATE, "direction", "sentence", "stumble", "answer"),
    "audit": ("class", "margin", "reversal", "near", "nearer", "head", "tail"),
}
STRENGTH = 0.3
"""Inverse regularisation C, for signals of unit variance."""
TASKS = {
    "quick start": ("divray/quickstart/quickstart.yaml", None),
    "SemEval": ("examples/semeval2010_task8.yaml", "semeval2010_task8"),
    "FewRel": ("examples/fewrel.yaml", "fewrel"),
}


def read_set() -> list[dict[str, Any]]:
    """Sentences with ``right`` (bool), ``votes`` (reader -> the three answers)."""
    votes: dict[str, dict[int, tuple[int, int, int]]] = defaultdict(dict)
    for line in (HERE / "labels.tsv").read_text().splitlines()[1:]:
        name, reader, *answers = line.split("\t")
        votes[name][int(reader)] = (int(answers[0]), int(answers[1]), int(answers[2]))
    rows = []
    for line in (HERE / "sentences.jsonl").read_text().splitlines():
        row = json.loads(line)
        own = votes[row["id"]]
        if 1 not in own or 2 not in own:
            continue
        agreed = all(own[1]) == all(own[2])
        right = all(own[1]) if agreed else all(own[3]) if 3 in own else None
        rows.append({**row, "votes": own, "right": right})
    return rows


def kappa(one: list[Any], other: list[Any]) -> float:
    from sklearn.metrics import cohen_kappa_score

    return round(float(cohen_kappa_score(one, other)), 3)


def agreement(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Cohen's kappa of the first two readings, for each question and for all three together."""
    found = {
        name: kappa([row["votes"][1][place] for row in rows], [row["votes"][2][place] for row in rows])
        for place, name in enumerate(("states", "spans", "english"))
    }
    return {**found, "right": kappa([all(row["votes"][1]) for row in rows], [all(row["votes"][2]) for row in rows])}


def signals_of(rows: list[dict[str, Any]], data: Path, llm: str | None, kept: Path) -> np.ndarray:
    """The signals of each row, ``[n, len(SIGNALS)]``; the last column is the other LLM's where one is named."""
    from divray.config import load_config
    from divray.datasets import load_task
    from divray.relations import Example
    from divray.scoring.judging import Judging

    known: dict[str, list[float]] = json.loads(kept.read_text()) if kept.exists() else {}
    for task_name, (config_name, folder) in TASKS.items():
        own = [row for row in rows if row["task"] == task_name and row["id"] not in known]
        if not own:
            continue
        overrides = [f"task.data={data / folder}"] if folder else []
        config = load_config(ROOT / config_name, [*overrides, *([f"correctness.llm={llm}"] if llm else [])])
        task = load_task(config)
        examples = [Example(row["text"], tuple(row["head"]), tuple(row["tail"]), row["relation"]) for row in own]
        values = Judging(config, task.relations, task.seeds).signals(examples)
        known |= {row["id"]: [float(value) for value in found] for row, found in zip(own, values, strict=True)}
        kept.write_text(json.dumps(known))
        print(task_name, len(own), flush=True)
    return np.array([known[row["id"]] for row in rows])


def fit(signals: np.ndarray, right: np.ndarray, names: tuple[str, ...]) -> dict[str, Any]:
    """Weights of one judge, as they stand in ``weights.json``."""
    from sklearn.linear_model import LogisticRegression

    from divray.scoring.judge import SIGNALS

    own = signals[:, [SIGNALS.index(name) for name in names]]
    low, high = np.percentile(own, [2, 98], axis=0)
    clipped = np.clip(own, low, high)
    scale, mean = clipped.std(axis=0) + 1e-9, clipped.mean(axis=0)
    model = LogisticRegression(C=STRENGTH, max_iter=2000).fit((clipped - mean) / scale, right)
    weight = model.coef_[0] / scale
    bias = float(model.intercept_[0] - (weight * mean).sum())
    listed = [
        {"name": name, "weight": round(float(w), 5), "low": round(float(a), 4), "high": round(float(b), 4)}
        for name, w, a, b in zip(names, weight, low, high, strict=True)
    ]
    return {"signals": listed, "bias": round(bias, 5)}


def measure(probability: np.ndarray, right: np.ndarray, groups: list[str], gate: np.ndarray | None = None) -> dict[str, Any]:
    """AUC, within groups of 50 or more too; calibration by tenths; and of what the gate lets through."""
    from sklearn.metrics import roc_auc_score

    found: dict[str, Any] = {"sentences": len(right), "right": round(float(right.mean()), 3)}
    found["auc"] = round(float(roc_auc_score(right, probability)), 3)
    found["auc_within"] = {}
    for group in sorted(set(groups)):
        own = np.array([name == group for name in groups])
        if own.sum() >= 50 and 0 < right[own].sum() < own.sum():
            found["auc_within"][f"{group} ({own.sum()})"] = round(float(roc_auc_score(right[own], probability[own])), 3)
    order = np.argsort(probability)
    found["reported_minus_read_by_tenths"] = [round(float(probability[t].mean() - right[t].mean()), 3) for t in np.array_split(order, 10)]
    if gate is not None and gate.any():
        found["passing"] = {
            "sentences": int(gate.sum()),
            "read": round(float(right[gate].mean()), 3),
            "reported": round(float(probability[gate].mean()), 3),
        }
    return found


def main() -> None:
    from machine import machine

    from divray.scoring import judge

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--llm")
    parser.add_argument("--signals", type=Path, required=True)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--out", type=Path, default=HERE.parent / "results" / "reading.json")
    arguments = parser.parse_args()
    twice = [row for row in read_set() if not row["id"].startswith("E")]  # those were read after the judges were fitted
    rows = [row for row in twice if row["right"] is not None]
    signals = signals_of(rows, arguments.data, arguments.llm, arguments.signals)
    right = np.array([row["right"] for row in rows])
    held = np.array([row["held_out"] for row in rows])
    groups = [f"{row['llm']}, {row['strategy']}" for row in rows]
    made = {name: fit(signals[~held], right[~held], names) for name, names in JUDGES.items() if name != "gate_llm" or arguments.llm}
    if arguments.write:
        path = ROOT / "divray" / "scoring" / "weights.json"
        before = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**before, **made}, indent=1) + "\n")
        judge.weights.cache_clear()
    found: dict[str, Any] = {"machine": machine(), "read": len(rows), "held_out": int(held.sum()), "read_twice": len(twice)}
    found["kappa"] = agreement(twice)
    passing = judge.weights("gate").probability(signals) >= 0.5
    for name in made:
        probability = judge.weights(name).probability(signals)
        for part, mask in (("chosen_on", ~held), ("held_out", held)):
            own = [group for group, kept in zip(groups, mask, strict=True) if kept]
            found.setdefault(name, {})[part] = measure(probability[mask], right[mask], own, passing[mask])
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
