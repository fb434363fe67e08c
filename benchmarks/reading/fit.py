"""Fit the judges on sentences that were read, and measure them on the third that is held out by relation.

    python benchmarks/reading/fit.py --data DATA [--llm REFERENCE] --signals FILE [--write] [--out FILE]

DATA holds `semeval2010_task8` and `fewrel`, whose seeds two of the three tasks need; `--llm` names the LLM whose answers
`gate_llm` listens to.  Signals are computed once and kept in FILE.  `--write` puts the weights into `divray/scoring/weights.json`.

The first sentences of the quick start were written from its first five examples a relation, the later ones (`"seeds": "drawn"`) from
the five that its seed draws; each is judged beside its own.

A sentence is right if it states its relation, its entities are whole mentions, and it reads as English: by two readings that
agree, else by a third.  Each judge is a logistic regression on signals clipped to the middle 96 % of their range; the default gate's
sees the hidden states of `correctness.fluency` besides, held more tightly.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable
from functools import partial
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
    "probed": (*GATE, "fluency", "probe"),
    "audit": ("sentence", "stumble", "passed"),
    "audit_probed": ("sentence", "stumble", "passed", "inside"),
}
"""Of the judges. ``states…`` is fitted to whether readers say that the relation stands there between whole mentions, ``reads…`` to
whether a sentence that states it is right, ``probed`` and the audit to whether a sentence is right."""
GATES: dict[str, tuple[str, ...]] = {
    "": ("states", "reads"),
    "_fluency": ("states_fluency", "reads_fluency"),
    "_fluency_llm": ("states_fluency_llm", "reads_fluency"),
    "_probed": ("probed",),
}
DEFAULT = "_probed"
"""The gate that decides the audit's ``passed``."""
THRESHOLD = 0.8
"""The gate of the audit's ``passed``: `correctness.threshold`."""
STRENGTH, TIGHT = 0.3, 0.05
"""Inverse regularisation C, for signals of unit variance; factor of the hidden states', which makes theirs ``TIGHT ** 2`` of that."""
PROBES = {"probe": ("embedded:smollm2", 20), "inside": ("embedded:gemma3-270m", 12)}
"""Whose states a probe sees, and after which layer: two thirds of the way."""
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
    """Signal -> its value for each row ``[n]``, of a probe the states ``[n, 2 d]`` that it sees; computed where ``kept`` lacks it.
    ``answer`` is there where an LLM is named."""
    from divray.config import load_config
    from divray.datasets import load_task
    from divray.relations import Example
    from divray.scoring.answers import Likelihood, read_after_seeds, readings, some_of
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
            return signals_by(judging, examples)[:, : len(GATE) + 1]

        def inside(name: str, examples: list[Example], judging: Judging = judging) -> np.ndarray:
            llm, layer = PROBES[name]
            states = read_after_seeds(Likelihood(llm), judging.relations, judging.seeds, examples, layer)
            return np.array([found for _, _, found in sorted(states, key=lambda told: told[0])]).round(3)

        def read(examples: list[Example], judging: Judging = judging, reader: str = config.correctness.reader) -> np.ndarray:
            likelihood, known_to_it = Likelihood(reader), (judging.relations, judging.seeds)
            origin = readings(likelihood, *known_to_it, some_of(judging.seeds)).mean(axis=0)
            return (readings(likelihood, *known_to_it, examples) - origin)[:, :2]

        def answers(examples: list[Example], judging: Judging = judging) -> np.ndarray:
            judging.answerer = Likelihood(str(llm))
            return signals_by(judging, examples)[:, len(GATE) + 1 : -1]

        kinds: dict[str, Callable[[list[Example]], np.ndarray]] = {"gate": heard, "readings": read, "answer": answers}
        for kind, of in (kinds | {name: partial(inside, name) for name in PROBES}).items():
            wanted = own if kind != "answer" else own[::ASKED] if llm and task_name == "quick start" else []
            missing = [row for row in wanted if row["id"] not in known.setdefault(kind, {})]
            if not missing:
                continue
            examples = [Example(row["text"], tuple(row["head"]), tuple(row["tail"]), row["relation"]) for row in missing]
            known[kind] |= {row["id"]: value.tolist() for row, value in zip(missing, of(examples), strict=True)}
            kept.write_text(json.dumps(known))
            print(task_name, kind, len(missing), flush=True)
    columns = {"gate": PARTS["states_fluency"], "readings": ("sentence", "stumble"), "answer": ("answer",)}
    found = {
        name: np.array([known[kind].get(row["id"], [np.nan] * len(names))[place] for row in rows])
        for kind, names in columns.items()
        if kind in known
        for place, name in enumerate(names)
    }
    return found | {name: np.array([known[name][row["id"]] for row in rows]) for name in PROBES}


def signals_by(judging: Any, examples: list[Any]) -> np.ndarray:
    relations, texts = [example.relation for example in examples], [example.text for example in examples]
    return np.asarray(judging.judge(judging.hear_seeds()).signals(relations, texts, judging.spans.encode(examples), judging.hear(examples)))


def fit(own: np.ndarray, right: np.ndarray, names: tuple[str, ...], inside: np.ndarray | None = None) -> dict[str, Any]:
    """Weights of one judge, as they stand in ``weights.json``; ``own`` are its signals ``[n, len(names)]``.  With hidden states ``inside``
    ``[n, 2 d]``, the last name is that of their probe."""
    from sklearn.linear_model import LogisticRegression

    low, high = np.percentile(own, [2, 98], axis=0)
    inputs = np.clip(own, low, high)
    width = inputs.shape[1]
    inputs = inputs if inside is None else np.concatenate([inputs, inside], axis=1)
    scale, mean = inputs.std(axis=0) + 1e-9, inputs.mean(axis=0)
    scale[width:] /= TIGHT
    model = LogisticRegression(C=STRENGTH, max_iter=3000).fit((inputs - mean) / scale, right)
    weight = model.coef_[0] / scale
    bias = float(model.intercept_[0] - (weight * mean).sum())
    listed = [
        {"name": name, "weight": round(float(w), 5), "low": round(float(a), 4), "high": round(float(b), 4)}
        for name, w, a, b in zip(names[:width], weight[:width], low, high, strict=True)
    ]
    if inside is None:
        return {"signals": listed, "bias": round(bias, 5)}
    llm, layer = PROBES[names[-1]]
    listed.append({"name": names[-1], "weight": 1.0, "low": -1e4, "high": 1e4})
    return {"signals": listed, "bias": round(bias, 5), "probe": {"llm": llm, "layer": layer, "weights": weight[width:].round(7).tolist()}}


def gate_of(
    names: tuple[str, ...], signals: dict[str, np.ndarray], states: np.ndarray, right: np.ndarray, rows: np.ndarray
) -> tuple[dict[str, dict[str, Any]], np.ndarray]:
    """The weights of a gate's one or two parts, fitted on some rows, and its probability for all ``[n]``."""
    made, product = {}, np.ones(len(right))
    labels = ((right, rows),) if len(names) == 1 else ((states, rows), (right, rows & states))
    for name, (label, known) in zip(names, labels, strict=True):
        made[name], probability = judge_from(name, signals, label, known)
        product = product * probability
    return made, product


def judge_from(name: str, signals: dict[str, np.ndarray], label: np.ndarray, known: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
    """The weights of one judge, fitted on the rows ``known``, and its probability for all ``[n]``."""
    from divray.scoring.judge import judge_of

    names = PARTS[name]
    probe = next((one for one in names if one in PROBES), None)
    values = np.column_stack([signals[one] for one in names if one != probe])
    made = fit(values[known], label[known], names, signals[probe][known] if probe else None)
    if probe:
        values = np.column_stack([values, signals[probe] @ np.array(made["probe"]["weights"])])
    return made, judge_of(made).probability(values, names)


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
    found: dict[str, Any] = {"machine": machine(), "read": len(rows), "held_out": int(held.sum()), "read_twice": len(twice)}
    found["kappa"] = agreement(twice)
    states = np.array([row["states"] for row in rows])

    def report(name: str, probability: np.ndarray, known: np.ndarray, gate: np.ndarray) -> None:
        for part, mask in (("chosen_on", ~held & known), ("held_out", held & known)):
            own = [group for group, kept in zip(groups, mask, strict=True) if kept]
            found.setdefault(name, {})[part] = measure(probability[mask], right[mask], own, gate[mask])

    fresh: dict[str, Any] = {}
    passed = np.zeros(len(rows), bool)
    for name, parts in GATES.items():
        wanted = {signal for part in parts for signal in PARTS[part]} - PROBES.keys()
        if not wanted <= set(signals):
            continue
        known = ~np.isnan(np.column_stack([signals[one] for one in wanted])).any(axis=1)  # not all are asked about
        if not known.any():
            continue
        fitted, probability = gate_of(parts, signals, states, right, ~held & known)
        fresh = fitted | fresh  # a part that two gates share was fitted on all
        if name == DEFAULT:  # out of fold, since a judge is too sure of what it was fitted on
            for own, left in GroupKFold(8).split(rows, groups=relations):
                others = np.isin(np.arange(len(rows)), own) & ~held
                outside = gate_of(parts, signals, states, right, others)[1]
                passed[left] = np.where(held, probability, outside)[left] >= THRESHOLD
        report(f"gate{name}", probability, known, passed if name == DEFAULT else probability >= THRESHOLD)
    if "answer" in signals:
        known = ~np.isnan(signals["answer"])
        fresh = gate_of(("states_llm", "reads"), signals, states, right, ~held & known)[0] | fresh
    for name in ("audit", "audit_probed"):
        fresh[name], probability = judge_from(name, {**signals, "passed": passed.astype(float)}, right, ~held)
        report(name, probability, np.ones(len(rows), bool), passed)
    if arguments.write:
        text = json.dumps(json.loads(path.read_text()) | fresh, indent=1)
        path.write_text(re.sub(r"\[[-\d.e,\s]+\]", lambda numbers: " ".join(numbers[0].split()), text) + "\n")
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
