"""Does the LLM's own likelihood tell right samples from wrong ones, on real labelled sentences?

    python benchmarks/llm_likelihood.py --data DATA/semeval2010_task8 [--model embedded:smollm2] --out FILE

The noisy question of `correctness.py` (24 samples a relation, 35 % of them right, K = 8 seed examples a relation)
put to two likelihoods under the LLM:

*label*: log p(label | demonstrations of all labels, sentence) less the same with an empty sentence (PMI).
*sentence*: log p(sentence | demonstrations of its relation) less log p(sentence | demonstrations of all
relations): the noisy channel (Min et al. 2022, arXiv 2108.04106).

AUC over all wrong samples and by their kind; beside them the default judge on the same draw, alone and with
each likelihood's rank averaged in.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from pathlib import Path

import correctness
import numpy as np
import torch
from correctness import Draw, Views, draw, project_judge, semeval_tasks
from machine import machine
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from divray.models import local_model
from divray.pipeline import versions
from divray.relations import Example, render_marked

BATCH = 32


class Likelihood:
    """Log-probabilities of continuations after a prefix that is computed once."""

    def __init__(self, reference: str) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = local_model(reference)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()

    @torch.inference_mode()
    def of(self, prefix: str, texts: list[str], starts: list[int]) -> np.ndarray:
        """Sum of log-probabilities of each text from its character ``start`` on, after ``prefix``."""
        before = self.tokenizer(prefix, return_tensors="pt").input_ids
        computed = self.model(before, use_cache=True)
        rows = []
        for text, start in zip(texts, starts, strict=True):
            given = self.tokenizer(text[:start], add_special_tokens=False).input_ids if start else []
            rows.append((given, self.tokenizer(text[start:], add_special_tokens=False).input_ids))
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i][0]) - len(rows[i][1]))
        out = np.empty(len(rows))
        for at in range(0, len(order), BATCH):
            some = order[at : at + BATCH]
            cache = copy.deepcopy(computed.past_key_values)  # it grows in place
            cache.batch_repeat_interleave(len(some))
            ids = [rows[i][0] + rows[i][1] for i in some]
            width = max(map(len, ids))
            padded = torch.tensor([[*row, *[0] * (width - len(row))] for row in ids])
            mask = torch.tensor([[1] * (before.shape[1] + len(row)) + [0] * (width - len(row)) for row in ids])
            logits = self.model(padded, attention_mask=mask, past_key_values=cache).logits
            first = computed.logits[:, -1:].expand(len(some), -1, -1)
            scores = torch.cat([first, logits[:, :-1]], dim=1).float().log_softmax(-1)
            for place, i in enumerate(some):
                given, said = len(rows[i][0]), len(rows[i][0]) + len(rows[i][1])
                taken = scores[place, given:said].gather(1, padded[place, given:said, None])
                out[i] = float(taken.sum())
        return out


def answered(example: Example, label: str | None = None) -> str:
    return f"Sentence: {render_marked(example)}\nRelation: {label or example.relation}\n\n"


def label_likelihood(llm: Likelihood, drawn: Draw) -> np.ndarray:
    first = {e.relation: e for e in reversed(drawn.seeds)}
    prefix = "".join(answered(example) for _, example in sorted(first.items()))
    pairs = list(zip(drawn.samples, drawn.intended, strict=True))
    questions = [f"Sentence: {render_marked(example)}\nRelation:" for example, _ in pairs]
    values = llm.of(prefix, [f"{q} {label}\n" for q, (_, label) in zip(questions, pairs, strict=True)], [len(q) for q in questions])
    empty = "Sentence:\nRelation:"
    names = sorted(first)
    prior = dict(zip(names, llm.of(prefix, [f"{empty} {name}\n" for name in names], [len(empty)] * len(names)), strict=True))
    return values - np.array([prior[label] for _, label in pairs])


def sentence_likelihood(llm: Likelihood, drawn: Draw) -> np.ndarray:
    texts = [f" {render_marked(example)}\n" for example in drawn.samples]
    mixed = "".join(f"-{' ' + render_marked(example)}\n" for example in drawn.seeds[:: max(1, len(drawn.seeds) // 16)]) + "-"
    general = llm.of(mixed, texts, [0] * len(texts))
    own = np.empty(len(texts))
    for name in sorted(set(drawn.intended)):
        rows = [i for i, intended in enumerate(drawn.intended) if intended == name]
        prefix = "".join(f"-{' ' + render_marked(seed)}\n" for seed in drawn.seeds if seed.relation == name) + "-"
        own[rows] = llm.of(prefix, [texts[i] for i in rows], [0] * len(rows))
    return own - general


def aucs(drawn: Draw, scores: np.ndarray) -> dict[str, float]:
    """Mean over relations, as in `correctness.py`."""
    found = {}
    intended = np.array(drawn.intended)
    for kind in ("all", "other", "none", "reversed"):
        values = []
        for name in sorted(set(drawn.intended)):
            mine = (intended == name) & (np.isin(drawn.kind, ["right", kind]) if kind != "all" else True)
            right = drawn.kind[mine] == "right"
            if 0 < right.sum() < len(right):
                values.append(roc_auc_score(right, scores[mine]))
        found[kind] = round(float(np.mean(values)), 3)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="embedded:smollm2")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--samples", type=int, default=24, help="a relation")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    correctness.SAMPLES = arguments.samples
    llm, views, task = Likelihood(arguments.model), Views(), semeval_tasks(arguments.data)[0]
    found: dict[str, list[dict[str, float]]] = {}
    for seed in arguments.seeds:
        drawn = draw(task, seed, 0.35)
        judge = project_judge(["seeds", "out_of_fold"])(drawn, views)
        scores = {"default judge": judge, "label": label_likelihood(llm, drawn), "sentence": sentence_likelihood(llm, drawn)}
        for name in ("label", "sentence"):
            scores[f"default judge + {name}"] = rankdata(judge) + 0.25 * rankdata(scores[name])
        for name, values in scores.items():
            found.setdefault(name, []).append(aucs(drawn, values))
            print(seed, name, found[name][-1], flush=True)
    result = {
        "benchmark": "llm_likelihood",
        "command": " ".join(["python", "benchmarks/llm_likelihood.py", *sys.argv[1:]]),
        "machine": machine(),
        "versions": versions(),
        "task": f"{task.name}, noisy, 0.35 right",
        "seeds": arguments.seeds,
        "samples_per_relation": arguments.samples,
        "auc": {name: {kind: round(float(np.mean([v[kind] for v in values])), 3) for kind in values[0]} for name, values in found.items()},
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
