"""Fit the judges on sentences that were read, and measure them on the third that is held out by relation.

    python benchmarks/reading/fit.py --data DATA --signals FILE [--write] [--out FILE]

DATA holds `semeval2010_task8` and `fewrel`, whose seeds two of the tasks need.  Signals are computed once and kept in FILE.  `--write`
puts the weights into `divray/scoring/weights.json`.

The first sentences of the quick start were written from its first five examples a relation, the later ones (`"seeds": "drawn"`) from
the five that its seed draws; each is judged beside its own.

A sentence is right if it states its relation, its entities are whole mentions, and it reads as English: by two readings that
agree, else by a third.  Each judge is a logistic regression on signals clipped to the middle 96 % of their range; the default gate's
sees the hidden states of `correctness.fluency` besides, held more tightly.  The figures `held_out` are of a fit on the rest. The
weights written are fitted on all; the figures `each_by_the_others` judge each relation by a fit that has not seen it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import cohen_kappa_score, roc_auc_score
from sklearn.model_selection import GroupKFold

from divray.config import Config, load_config
from divray.datasets.own import read_relations_file
from divray.datasets.stage import load_task
from divray.relations import Example, Relation
from divray.scoring.answers import HARDEST, Likelihood, read_after_seeds, readings, some_of
from divray.scoring.judge import SIGNALS, Judging, log_odds

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))
from machine import machine  # noqa: E402

GATE = ("own", "reversal", "near", "head", "tail", "roles", "kinds", "length")
PARTS: dict[str, tuple[str, ...]] = {
    "plain": GATE,
    "fluency": (*GATE, "fluency"),
    "probed": (*GATE, "fluency", "probe"),
    "audit": ("sentence", "stumble", "passed"),
    "audit_probed": ("sentence", "stumble", "passed", "inside"),
}
"""Of the judges: what each hears; ``passed`` is what ``probed`` lets through by a fit on other relations."""
KINDS = {"gate": (PARTS["fluency"], "probe"), "audit": (("sentence", "stumble"), "inside")}
"""What one LLM says of a sentence, and the probe of its states."""
THRESHOLD = 0.8
"""The gate of the audit's ``passed``: `correctness.threshold`."""
STRENGTH, TIGHT = 0.3, 0.08
"""Inverse regularisation C, for signals of unit variance; factor of the hidden states', which makes theirs ``TIGHT ** 2`` of that."""
ANSWER = {"name": "answer", "weight": 1.0, "low": -4.0, "high": 4.0}
"""What a gate makes of the answer of `correctness.llm`; not fitted, since LLMs differ too much."""
PROBES = {"probe": ("embedded:smollm2", 20), "inside": ("embedded:gemma3-270m", 12)}
"""Whose states a probe sees, and after which layer: two thirds of the way."""
FIRST = 5
"""Examples a relation from which the quick start's first sentences were written."""
DATA_OF = {"SemEval": "semeval2010_task8", "FewRel": "fewrel"}
QUICK_START = ROOT / "divray" / "quickstart" / "quickstart.yaml"


def known_of(task: str, seeds: str | None, data: Path) -> tuple[Config, Sequence[Relation], list[Example]]:
    """Settings of a task, its relations, and the examples that its sentences were written from."""
    config, overrides = QUICK_START, []
    if folder := DATA_OF.get(task):
        config, overrides = ROOT / "examples" / f"{folder}.yaml", [f"task.data={data / folder}", "task.unlabelled=null"]
        overrides += [f"seed={seeds.split()[1]}"] if seeds else []
    if task.startswith("own, "):
        relations = read_relations_file(HERE / "relations" / f"{task.removeprefix('own, ')}.yaml")
        found = [replace(seed, example_id=f"{own.name}/{number}") for own in relations for number, seed in enumerate(own.examples)]
        return load_config(config), relations, found
    first = task == "quick start" and not seeds  # from its first five examples
    loaded = load_task(load_config(config, [*overrides, *(["task.seeds_per_relation=10"] * first)]))
    kept = [seed for seed in loaded.seeds if not first or int(seed.example_id.rpartition("/")[2]) <= FIRST]
    return load_config(config, overrides), loaded.relations, kept


def read_set() -> list[dict[str, Any]]:
    """Sentences with ``right`` (bool, ``None`` where readers disagree), ``votes`` (reader -> the three answers)."""
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
    return round(float(cohen_kappa_score(one, other)), 3)


def agreement(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Cohen's kappa of the first two readings, for each question and for all three together."""
    found = {
        name: kappa([row["votes"][1][place] for row in rows], [row["votes"][2][place] for row in rows])
        for place, name in enumerate(("states", "spans", "english"))
    }
    return {**found, "right": kappa([all(row["votes"][1]) for row in rows], [all(row["votes"][2]) for row in rows])}


def families_of(rows: list[dict[str, Any]]) -> list[str]:
    """What a fit on other relations leaves out with each row's: the other direction of SemEval's, the sibling of one of the forty."""
    pairs: dict[str, str] = {}
    for path in (HERE / "relations").glob("*.yaml"):
        pairs |= {one.name: f"{path.stem} {place // 2}" for place, one in enumerate(read_relations_file(path))}
    return [pairs.get(row["relation"], row["task"] + " " + row["relation"].partition("(")[0]) for row in rows]


def signals_of(rows: list[dict[str, Any]], data: Path, kept: Path) -> dict[str, np.ndarray]:
    """Signal -> its value for each row ``[n]``, of a probe the states ``[n, 2 d]`` that it sees; computed where ``kept`` lacks it."""
    known: dict[str, dict[str, list[float]]] = json.loads(kept.read_text()) if kept.exists() else {}
    for task, seeds in sorted({(row["task"], row.get("seeds", "")) for row in rows}):
        own = [row for row in rows if (row["task"], row.get("seeds", "")) == (task, seeds)]
        missing = {kind: [row for row in own if row["id"] not in known.setdefault(kind, {})] for kind in KINDS}
        if not any(missing.values()):
            continue
        judging = Judging(*known_of(task, seeds, data))
        for kind, some in missing.items():
            if not some:
                continue
            known[kind] |= {row["id"]: value.tolist() for row, value in zip(some, values_of(kind, judging, some), strict=True)}
            kept.write_text(json.dumps(known))
            print(task, seeds, kind, len(some), flush=True)
    found: dict[str, np.ndarray] = {}
    for kind, (names, probe) in KINDS.items():
        values = np.array([known[kind][row["id"]] for row in rows])
        found |= {**dict(zip(names, values.T, strict=False)), probe: values[:, len(names) :]}
    return found


def values_of(kind: str, judging: Judging, rows: list[dict[str, Any]]) -> np.ndarray:
    """The signals of one of :data:`KINDS`, less those of the seeds, and behind them the states that its probe sees; float64 ``[n, …]``."""
    examples = [Example(row["text"], tuple(row["head"]), tuple(row["tail"]), row["relation"]) for row in rows]
    known, usual = (judging.relations, judging.seeds), some_of(judging.seeds)
    name, layer = PROBES[KINDS[kind][1]]
    likelihood = Likelihood(name)
    read = sorted(read_after_seeds(likelihood, *known, examples, layer), key=itemgetter(0))
    found = np.array([(terms.mean(), np.sort(terms)[:HARDEST].mean()) for _, terms, _ in read])
    found -= readings(likelihood, *known, usual).mean(axis=0)[:2]
    if kind == "gate":
        features, heard = judging.encoder.spans(examples), np.zeros((len(examples), 3))
        signals = judging.judge(np.zeros(2)).signals(examples, features, heard)
        found = np.column_stack([signals[:, [SIGNALS.index(one) for one in GATE]], found[:, 0]])
    return np.concatenate([found, [states for *_, states in read]], axis=1).round(4)


def fit(own: np.ndarray, right: np.ndarray, names: tuple[str, ...], inside: np.ndarray | None = None) -> dict[str, Any]:
    """Weights of one judge, as they stand in ``weights.json``; ``own`` are its signals ``[n, len(names)]``.  With hidden states ``inside``
    ``[n, 2 d]``, the last name is that of their probe."""
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


def judge_from(
    name: str, signals: dict[str, np.ndarray], right: np.ndarray, families: np.ndarray, known: np.ndarray
) -> tuple[dict[str, Any], np.ndarray]:
    """The weights of a judge, fitted on the rows ``known``, and its log-odds for all ``[n]``, for known ones by fits on others."""
    names = PARTS[name]
    probe = next((one for one in names if one in PROBES), None)
    values = np.column_stack([signals[one] for one in names if one != probe])

    def made_from(some: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
        made = fit(values[some], right[some], names, signals[probe][some] if probe else None)
        heard = {probe: signals[probe] @ np.array(made["probe"]["weights"])} if probe else {}
        return made, log_odds(made, signals | heard)

    made, odds = made_from(rows := np.flatnonzero(known))
    for others, left in GroupKFold(8).split(rows, groups=families[rows]):
        odds[rows[left]] = made_from(rows[others])[1][rows[left]]
    return made, odds


def measure(probability: np.ndarray, right: np.ndarray, groups: list[str], tasks: list[str], gate: np.ndarray) -> dict[str, Any]:
    """AUC, within groups and tasks of 50 or more too; calibration by tenths; and of what the gate lets through."""
    found: dict[str, Any] = {"sentences": len(right), "right": round(float(right.mean()), 3)}
    found["auc"] = round(float(roc_auc_score(right, probability)), 3)
    found["auc_within"] = {}
    for names in (groups, tasks):
        for group in sorted(set(names)):
            own = np.array([name == group for name in names])
            if own.sum() >= 50 and 0 < right[own].sum() < own.sum():
                found["auc_within"][f"{group} ({own.sum()})"] = round(float(roc_auc_score(right[own], probability[own])), 3)
    order = np.argsort(probability)
    found["reported_minus_read_by_tenths"] = [round(float(probability[t].mean() - right[t].mean()), 3) for t in np.array_split(order, 10)]
    for where in ("all", *sorted(set(tasks))):
        some = gate & np.array([where in ("all", task) for task in tasks])
        if some.any():
            read, said = (round(float(values[some].mean()), 3) for values in (right, probability))
            found.setdefault("passing", {})[where] = {"sentences": int(some.sum()), "read": read, "reported": said}
    return found


def judges(
    signals: dict[str, np.ndarray], right: np.ndarray, families: np.ndarray, known: np.ndarray
) -> dict[str, tuple[dict[str, Any], np.ndarray, np.ndarray]]:
    """Name -> weights fitted on the rows ``known``, log-odds as of :func:`judge_from`, and what a gate lets through, bool ``[n]``."""
    found = {name: judge_from(name, signals, right, families, known) for name in ("plain", "fluency", "probed")}
    passed = expit(found["probed"][1]) >= THRESHOLD
    signals = {**signals, "passed": passed.astype(float)}
    found |= {name: judge_from(name, signals, right, families, known) for name in ("audit", "audit_probed")}
    return {name: (made, odds, passed if "audit" in name else expit(odds) >= THRESHOLD) for name, (made, odds) in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--signals", type=Path, required=True)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--out", type=Path, default=HERE.parent / "results" / "reading.json")
    arguments = parser.parse_args()
    twice = read_set()
    rows = [row for row in twice if row["right"] is not None]
    signals = signals_of(rows, arguments.data, arguments.signals)
    right, held = (np.array([row[name] for row in rows]) for name in ("right", "held_out"))
    families = np.array(families_of(rows))
    found: dict[str, Any] = {"machine": machine(), "read": len(rows), "held_out": int(held.sum()), "read_twice": len(twice)}
    found["kappa"] = agreement(twice)
    groups = [f"{row['llm']}, {row['strategy']}" for row in rows]
    tasks = [row["task"].partition(",")[0] for row in rows]
    everything = np.ones(len(rows), bool)
    shipped = judges(signals, right, families, everything)
    for fitted, parts in (
        (judges(signals, right, families, ~held), {"chosen_on": ~held, "held_out": held}),
        (shipped, {"each_by_the_others": everything}),
    ):
        for name, (_, odds, gate) in fitted.items():
            for part, mask in parts.items():
                own_groups, own_tasks = ([named[row] for row in np.flatnonzero(mask)] for named in (groups, tasks))
                found.setdefault(name, {})[part] = measure(expit(odds[mask]), right[mask], own_groups, own_tasks, gate[mask])
    if arguments.write:
        for name in ("plain", "fluency", "probed"):
            shipped[name][0]["signals"].append(ANSWER)
        path = ROOT / "divray" / "scoring" / "weights.json"
        text = json.dumps({name: made for name, (made, *_) in shipped.items()}, indent=1)
        path.write_text(re.sub(r"\[[-\d.e,\s]+\]", lambda numbers: " ".join(numbers[0].split()), text) + "\n")
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
