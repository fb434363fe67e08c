"""Fit the judges on sentences that were read, and measure them on the third that is held out by relation.

    python benchmarks/reading/fit.py --data DATA [--llm REFERENCE] --signals FILE [--write] [--out FILE]

DATA holds `semeval2010_task8` and `fewrel`, whose seeds two of the three tasks need; `--llm` names the LLM whose answers
`gate_llm` listens to.  Signals are computed once and kept in FILE.  `--write` puts the weights into `divray/scoring/weights.json`.

The first sentences of the quick start were written from its first five examples a relation, the later ones (`"seeds": "drawn"`) from
the five that its seed draws; each is judged beside its own.

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

GATE = ("own", "reversal", "near", "head", "tail", "roles", "kinds", "length")
PARTS: dict[str, tuple[str, ...]] = {
    "states": GATE,
    "states_fluency": (*GATE, "fluency"),
    "states_llm": (*GATE, "answer"),
    "states_fluency_llm": (*GATE, "fluency", "answer"),
    "reads": ("length",),
    "reads_fluency": ("length", "fluency"),
    "audit": ("sentence", "stumble", "passed"),
}
"""Of the judges. ``states…`` is fitted to whether readers say that the relation stands there between whole mentions, ``reads…`` to
whether a sentence that states it is right, the audit to whether a sentence is right."""
GATES = {"": ("states", "reads"), "_fluency": ("states_fluency", "reads_fluency"), "_fluency_llm": ("states_fluency_llm", "reads_fluency")}
DEFAULT = "_fluency"
"""The gate that decides the audit's ``passed``."""
THRESHOLD = 0.8
"""The gate of the audit's ``passed``: `correctness.threshold`."""
STRENGTH = 0.3
"""Inverse regularisation C, for signals of unit variance."""
ASKED = 5
"""Of so many sentences of the quick start one is asked about, since a larger LLM takes a second or more for each on two cores."""
FIRST = 5
"""Examples a relation from which the quick start's first sentences were written."""
TASKS = {
    "quick start": ("divray/quickstart/quickstart.yaml", None, ["task.seeds_per_relation=10"]),
    "quick start, drawn": ("divray/quickstart/quickstart.yaml", None, []),
    "SemEval": ("examples/semeval2010_task8.yaml", "semeval2010_task8", []),
    "SemEval, seed 0": ("examples/semeval2010_task8.yaml", "semeval2010_task8", ["seed=0"]),
    "FewRel": ("examples/fewrel.yaml", "fewrel", []),
    "FewRel, seed 0": ("examples/fewrel.yaml", "fewrel", ["seed=0"]),
}
"""Task of a sentence, and the examples that it was written from where they were others -> configuration, data, settings."""


def read_set() -> list[dict[str, Any]]:
    """Sentences with ``right`` and ``states`` (bool), ``votes`` (reader -> the three answers)."""
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
        rows.append({**row, "votes": own, "right": right, "states": sum(one[0] and one[1] for one in own.values()) * 2 > len(own)})
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


def signals_of(rows: list[dict[str, Any]], data: Path, llm: str | None, kept: Path) -> dict[str, np.ndarray]:
    """Signal -> its value for each row ``[n]``; computed where ``kept`` lacks it.  ``answer`` is there where an LLM is named."""
    from divray.config import load_config
    from divray.datasets import load_task
    from divray.relations import Example
    from divray.scoring.answers import Likelihood, readings, some_of
    from divray.scoring.judge import Judging

    known: dict[str, dict[str, list[float]]] = json.loads(kept.read_text()) if kept.exists() else {}
    for task_name, (config_name, folder, settings) in TASKS.items():
        own = [row for row in rows if ", ".join(filter(None, (row["task"], row.get("seeds")))) == task_name]
        overrides = [*settings, *([f"task.data={data / folder}", "task.unlabelled=null"] if folder else [])]
        config = load_config(ROOT / config_name, overrides)
        task = load_task(config)
        first = task_name == "quick start"  # the examples have numbers from 1
        seeds = [seed for seed in task.seeds if not first or int(seed.example_id.rpartition("/")[2]) <= FIRST]
        judging = Judging(config, task.relations, seeds)

        def heard(examples: list[Example], judging: Judging = judging) -> np.ndarray:
            return signals_by(judging, examples)[:, :-1]

        def read(examples: list[Example], judging: Judging = judging, reader: str = config.correctness.reader) -> np.ndarray:
            likelihood, known_to_it = Likelihood(reader), (judging.relations, judging.seeds)
            origin = readings(likelihood, *known_to_it, some_of(judging.seeds)).mean(axis=0)
            return readings(likelihood, *known_to_it, examples) - origin

        def answers(examples: list[Example], judging: Judging = judging) -> np.ndarray:
            judging.answerer = Likelihood(str(llm))
            return signals_by(judging, examples)[:, -1:]

        for kind, of in (("gate", heard), ("readings", read), ("answer", answers)):
            wanted = own if kind != "answer" else own[::ASKED] if llm and task_name == "quick start" else []
            missing = [row for row in wanted if row["id"] not in known.setdefault(kind, {})]
            if not missing:
                continue
            examples = [Example(row["text"], tuple(row["head"]), tuple(row["tail"]), row["relation"]) for row in missing]
            known[kind] |= {row["id"]: value.tolist() for row, value in zip(missing, of(examples), strict=True)}
            kept.write_text(json.dumps(known))
            print(task_name, kind, len(missing), flush=True)
    columns = {"gate": PARTS["states_fluency"], "readings": ("sentence", "stumble"), "answer": ("answer",)}
    return {
        name: np.array([known[kind].get(row["id"], [np.nan] * len(names))[place] for row in rows])
        for kind, names in columns.items()
        if kind in known
        for place, name in enumerate(names)
    }


def signals_by(judging: Any, examples: list[Any]) -> np.ndarray:
    relations, texts = [example.relation for example in examples], [example.text for example in examples]
    return np.asarray(judging.judge(judging.hear_seeds()).signals(relations, texts, judging.spans.encode(examples), judging.hear(examples)))


def fit(own: np.ndarray, right: np.ndarray, names: tuple[str, ...]) -> dict[str, Any]:
    """Weights of one judge, as they stand in ``weights.json``; ``own`` are its signals ``[n, len(names)]``."""
    from sklearn.linear_model import LogisticRegression

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


def gate_of(
    names: tuple[str, str], signals: dict[str, np.ndarray], states: np.ndarray, right: np.ndarray, rows: np.ndarray
) -> tuple[dict[str, dict[str, Any]], np.ndarray]:
    """The weights of a gate's two parts, fitted on some rows, and its probability for all ``[n]``."""
    from divray.scoring.judge import judge_of

    made, product = {}, np.ones(len(right))
    for name, label, known in zip(names, (states, right), (rows, rows & states), strict=True):
        values = np.column_stack([signals[one] for one in PARTS[name]])
        made[name] = fit(values[known], label[known], PARTS[name])
        product = product * judge_of(made[name]).probability(values, PARTS[name])
    return made, product


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
    from sklearn.model_selection import GroupKFold

    from divray.scoring import judge

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--llm")
    parser.add_argument("--signals", type=Path, required=True)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--out", type=Path, default=HERE.parent / "results" / "reading.json")
    arguments = parser.parse_args()
    twice = read_set()
    rows = [row for row in twice if row["right"] is not None]
    signals = signals_of(rows, arguments.data, arguments.llm, arguments.signals)
    right = np.array([row["right"] for row in rows])
    held = np.array([row["held_out"] for row in rows])
    groups = [f"{row['llm']}, {row['strategy']}" for row in rows]
    relations = np.array([f"{row['task']} {row['relation']}" for row in rows])
    path = ROOT / "divray" / "scoring" / "weights.json"
    made: dict[str, Any] = json.loads(path.read_text())
    found: dict[str, Any] = {"machine": machine(), "read": len(rows), "held_out": int(held.sum()), "read_twice": len(twice)}
    found["kappa"] = agreement(twice)
    states = np.array([row["states"] for row in rows])

    def report(name: str, probability: np.ndarray, known: np.ndarray, gate: np.ndarray) -> None:
        for part, mask in (("chosen_on", ~held & known), ("held_out", held & known)):
            own = [group for group, kept in zip(groups, mask, strict=True) if kept]
            found.setdefault(name, {})[part] = measure(probability[mask], right[mask], own, gate[mask])

    passed = np.zeros(len(rows), bool)
    for name, parts in GATES.items():
        if not {signal for part in parts for signal in PARTS[part]} <= set(signals):
            continue
        known = ~np.isnan(np.column_stack([signals[one] for one in PARTS[parts[0]]])).any(axis=1)  # not all are asked about
        if not known.any():
            continue
        fitted, probability = gate_of(parts, signals, states, right, ~held & known)
        made |= fitted
        if name == DEFAULT:  # out of fold, since a judge is too sure of what it was fitted on
            for own, left in GroupKFold(8).split(rows, groups=relations):
                others = np.isin(np.arange(len(rows)), own) & ~held
                outside = gate_of(parts, signals, states, right, others)[1]
                passed[left] = np.where(held, probability, outside)[left] >= THRESHOLD
        report(f"gate{name}", probability, known, passed if name == DEFAULT else probability >= THRESHOLD)
    if "answer" in signals:
        known = ~np.isnan(signals["answer"])
        made |= gate_of(("states_llm", "reads"), signals, states, right, ~held & known)[0]
    values = np.column_stack([signals["sentence"], signals["stumble"], passed])
    known = ~np.isnan(values).any(axis=1)
    made["audit"] = fit(values[known & ~held], right[known & ~held], PARTS["audit"])
    report("audit", judge.judge_of(made["audit"]).probability(values, PARTS["audit"]), known, passed)
    if arguments.write:
        path.write_text(json.dumps(made, indent=1) + "\n")
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
