"""Sentences a second of the encoder on one core, beside sentence-transformers, and the error of each way.

    python benchmarks/embeddings.py SENTENCES [--rows 1000] [--rounds 3] [--out benchmarks/results/embeddings.json]

SENTENCES is a text file with one sentence a line, or SemEval-2010 Task 8's TXT.  Needs ``sentence-transformers``
in the environment; without it it is left out and named.  The ways take turns, each round
over the same sentences; the figure is the median.  The error is 1 - the smallest cosine to sentence-transformers'.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from machine import machine

from divray.embeddings import Encoder
from divray.models import local_model

MODEL = "embedded:minilm"


def sentences(path: Path, rows: int) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    numbered = [match[1] for line in lines if (match := re.fullmatch(r'\d+\t"?(.*?)"?\s*', line))]
    found = [re.sub(r"</?e[12]>", "", line) for line in numbered] or [line.strip() for line in lines if line.strip()]
    step = max(1, len(found) // rows)
    return found[::step][:rows]


def peer(device: str) -> Callable[[list[str]], Any]:
    from sentence_transformers import SentenceTransformer, models

    word = models.Transformer(local_model(MODEL), max_seq_length=256)
    model = SentenceTransformer(modules=[word, models.Pooling(word.get_word_embedding_dimension()), models.Normalize()], device=device)
    return lambda texts: model.encode(texts, batch_size=32, show_progress_bar=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sentences", type=Path)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    texts = sentences(arguments.sentences, arguments.rows)
    ways: dict[str, Callable[[list[str]], Any]] = {}
    left_out = []
    if importlib.util.find_spec("sentence_transformers"):
        ways["sentence-transformers"] = peer(arguments.device)
    else:
        left_out.append("sentence-transformers")
    ways["divray"] = Encoder(MODEL, device=arguments.device).encode
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    made: dict[str, np.ndarray] = {name: way(texts) for name, way in ways.items()}  # every shape once
    for _ in range(arguments.rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            way(texts)
            seconds[name].append(time.perf_counter() - started)
    reference = made.get("sentence-transformers", made["divray"])
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    theirs = medians.get("sentence-transformers")
    rows = [
        {
            "way": name,
            "sentences_per_second": round(len(texts) / medians[name], 1),
            "against_sentence_transformers": round(theirs / medians[name], 2) if theirs else None,
            "largest_cosine_error": float(1 - (made[name] * reference).sum(axis=1).min()),
        }
        for name in ways
    ]
    packages = ["torch", "transformers", "sentence-transformers"]
    found = {
        "sentences": len(texts),
        "rounds": arguments.rounds,
        "cores": 1,
        "machine": machine(),
        "versions": {name: version(name) for name in packages if importlib.util.find_spec(name.replace("-", "_"))},
        "left_out": left_out,
        "rows": rows,
    }
    print(json.dumps(found, indent=2))
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
