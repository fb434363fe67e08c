"""What a decoding constraint costs a token: the records' JSON schema and the pattern of lists of records, by vocabulary.

    python benchmarks/constraint.py [--models embedded:smollm2 tekken_240911 embedded:gemma3-270m] [--out FILE]

The engine computes a mask of the allowed tokens for each request between two steps, on the CPU.  The texts are the quick start's
examples as the LLM would have to write them, with vLLM's own backend for them (xgrammar); one thread.  ``tokens_per_second`` is what
the masks alone would allow an engine.  ``tekken_…`` is a Mistral vocabulary of 131,072 tokens, in ``mistral_common``, which vLLM needs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import xgrammar
from machine import machine
from mistral_common.tokens.tokenizers.tekken import Tekkenizer

from divray.config import load_config
from divray.datasets.stage import load_task
from divray.models import local_model
from divray.prompts.record import as_json, completion_of, json_schema, labels, list_pattern
from divray.quickstart import folder as quickstart
from divray.schemas import SENTENCES


def masks(compiled: xgrammar.CompiledGrammar, tokens: list[int], vocabulary: int) -> list[float]:
    """Seconds of CPU time, since others may use the core, for the mask of each token of a text that the grammar allows."""
    matcher, bitmask = xgrammar.GrammarMatcher(compiled), xgrammar.allocate_token_bitmask(1, vocabulary)
    seconds = []
    for token in tokens:
        began = time.thread_time()
        matcher.fill_next_token_bitmask(bitmask)
        seconds.append(time.thread_time() - began)
        if not matcher.accept_token(token):
            raise RuntimeError("the constraint refuses a seed example")
    return seconds


def vocabulary_of(reference: str) -> tuple[xgrammar.TokenizerInfo, Callable[[str], list[int]]]:
    """A model's vocabulary, and the function that gives the tokens of a text."""
    from transformers import AutoConfig, AutoTokenizer

    if reference.startswith("tekken"):
        with as_file(files("mistral_common") / "data" / f"{reference}.json") as file:
            tekken = Tekkenizer.from_file(file)
        pieces = [tekken.id_to_byte_piece(number) for number in range(tekken.n_words)]
        raw = xgrammar.TokenizerInfo(pieces, xgrammar.VocabType.RAW, stop_token_ids=[tekken.eos_id])
        return raw, partial(tekken.encode, bos=False, eos=False)
    folder = local_model(reference)
    tokenizer, size = AutoTokenizer.from_pretrained(folder), int(AutoConfig.from_pretrained(folder).vocab_size)
    return xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=size), partial(tokenizer.encode, add_special_tokens=False)


def costs(reference: str) -> dict[str, Any]:
    info, tokens_of = vocabulary_of(reference)
    compiler, vocabulary = xgrammar.GrammarCompiler(info, max_threads=1), info.vocab_size
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
                seconds += masks(compiled, tokens_of(text), vocabulary)
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
    parser.add_argument("--models", nargs="+", default=["embedded:smollm2", "tekken_240911", "embedded:gemma3-270m"])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    found = {"machine": machine(), **{model: costs(model) for model in arguments.models}}
    print(json.dumps(found, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
