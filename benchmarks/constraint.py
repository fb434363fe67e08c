"""What a decoding constraint costs a token: the records' JSON schema and the pattern of lists of records, by vocabulary.

    python benchmarks/constraint.py [--models embedded:smollm2 embedded:gemma3-270m] [--out FILE]

The engine computes a mask of the allowed tokens for each request between two steps, on the CPU.  The texts are the quick start's
examples as the LLM would have to write them, with vLLM's own backend for them (xgrammar); one thread.  ``tokens_per_second`` is what
the masks alone would allow an engine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import xgrammar
from machine import machine

from divray.config import load_config
from divray.datasets.stage import load_task
from divray.models import local_model
from divray.prompts.record import as_json, completion_of, json_schema, labels, list_pattern
from divray.quickstart import folder as quickstart
from divray.schemas import SENTENCES


def masks(compiled: xgrammar.CompiledGrammar, tokens: list[int], vocabulary: int) -> list[float]:
    """Seconds for the mask of each token of a text that the grammar allows."""
    matcher, bitmask = xgrammar.GrammarMatcher(compiled), xgrammar.allocate_token_bitmask(1, vocabulary)
    seconds = []
    for token in tokens:
        began = time.perf_counter()
        matcher.fill_next_token_bitmask(bitmask)
        seconds.append(time.perf_counter() - began)
        if not matcher.accept_token(token):
            raise RuntimeError("the constraint refuses a seed example")
    return seconds


def costs(reference: str) -> dict[str, Any]:
    from transformers import AutoConfig, AutoTokenizer

    folder = local_model(reference)
    tokenizer, vocabulary = AutoTokenizer.from_pretrained(folder), int(AutoConfig.from_pretrained(folder).vocab_size)
    compiler = xgrammar.GrammarCompiler(xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocabulary), max_threads=1)
    task = load_task(load_config(quickstart() / "quickstart.yaml"))
    found: dict[str, Any] = {"vocabulary": vocabulary}
    for form in ("record as JSON", "list of records as lines"):
        compiling, seconds = [], []
        for relation in task.relations:
            own = [example for example in task.seeds if example.relation == relation.name]
            began = time.perf_counter()
            if form == "record as JSON":
                compiled, texts = compiler.compile_json_schema(json_schema(False)), [as_json(example) for example in own]
            else:
                compiled = compiler.compile_regex(list_pattern(relation, SENTENCES))
                lists = [(own * SENTENCES)[start : start + SENTENCES] for start in range(len(own))]
                head = labels(relation)[0]
                texts = [f"\n{head}".join(completion_of(relation, one, False, False)[:-1] for one in some) for some in lists]
            compiling.append(time.perf_counter() - began)
            for text in texts:
                seconds += masks(compiled, tokenizer(text, add_special_tokens=False).input_ids, vocabulary)
        mean = statistics.fmean(seconds)
        found[form] = {
            "compile_seconds": {"first": round(compiling[0], 3), "median": round(statistics.median(compiling), 4)},
            "mask_ms": {"mean": round(1000 * mean, 4), "99 of 100 below": round(1000 * sorted(seconds)[int(0.99 * len(seconds))], 4)},
            "tokens": len(seconds),
            "tokens_per_second": round(1 / mean),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["embedded:smollm2", "embedded:gemma3-270m"])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    found = {"machine": machine(), **{model: costs(model) for model in arguments.models}}
    print(json.dumps(found, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
