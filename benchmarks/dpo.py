"""Seconds per DPO step of the align stage beside plain TRL's, and how far their losses are apart.

    python benchmarks/dpo.py [--pairs 24] [--model embedded:smollm2] [--settings workers:precision:zero ...] [--rounds 1]
        [--out FILE]

Pairs are random words: prompts of about 150 tokens, two pairs each, and completions of about 30.  A step is four pairs in all, whatever
the number of workers.  ``plain`` is ``trl.DPOTrainer`` with the same arguments in one process without Ray and DeepSpeed, on the threads
that a worker has.  ``ratio`` is to plain of the same precision, the median over rounds; ``loss`` the largest difference of a
step's loss.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
from machine import machine

from divray.alignment import run as align
from divray.alignment.arguments import dpo_arguments, parameters_of
from divray.alignment.pairs import end_of_turn, prompts_together
from divray.cluster import connect
from divray.config import Config, parse_config
from divray.models import local_model
from divray.run_folder import RunFolder
from divray.schemas import PAIRS

WORDS = ["company", "city", "river", "member", "born", "music", "school", "author", "bridge", "team", "of", "the", "in", "was", "a"]


def make_pairs(count: int) -> pa.Table:
    """Random preference pairs, two a prompt: a run has more."""
    generator = random.Random(0)

    def words(number: int) -> str:
        return " ".join(generator.choices(WORDS, k=number))

    prompts = ["\n".join([*(f"{j}. {words(18)}." for j in range(1, 8)), "8:"]) for _ in range(0, count, 2)]
    texts = [(prompts[place // 2], f" {words(28)}.\n", f" {words(28)}.\n") for place in range(count)]
    names = dict.fromkeys(("relation", "kind", "chosen_id", "rejected_id"), "")
    rows = [{**names, "pair_id": f"{i:05d}", "prompt": p, "chosen": c, "rejected": r} for i, (p, c, r) in enumerate(texts)]
    return pa.Table.from_pylist(rows, PAIRS)


def settings(model: str, workers: int, precision: str, zero: int) -> Config:
    return parse_config(
        {
            "task": {"name": "benchmark", "relations": "none"},
            "models": {"llm": model},
            "prompts": {"style": "chat"},  # so that texts end with a token, as TRL's do
            "alignment": {"precision": precision, "zero_stage": zero, "pairs_per_step": 4},
            "cluster": {"train_workers": workers},
        },
        "benchmark",
    )


def token_count(model: str, pairs: pa.Table) -> int:
    """Tokens of all prompts with each of their texts."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(local_model(model))
    texts = [row["prompt"] + row[side] for row in pairs.to_pylist() for side in ("chosen", "rejected")]
    return sum(map(len, tokenizer(texts)["input_ids"]))


def own(config: Config, pairs: pa.Table) -> dict[str, Any]:
    """The align stage: seconds and loss of each step, and seconds of the whole."""
    connect(config)
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(folder)
        run.write_table("round-00/pairs", pairs)
        started = time.perf_counter()
        align(config, run, 1)
        report = run.read_json("round-01/alignment.json")
    return {
        "tokens": round(token_count(config.models.llm, pairs) / len(report["curve"])),
        "seconds": [row["seconds"] for row in report["curve"]],
        "losses": [row["loss"] for row in report["curve"]],
        "precision": report["precision"],
        "stage": round(time.perf_counter() - started, 1),
    }


def plain(config: Config, pairs: pa.Table) -> dict[str, Any]:
    """TRL alone: seconds and loss of each step."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.begun, self.seconds = 0.0, list[float]()

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.begun = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds.append(time.perf_counter() - self.begun)

    base, chosen = local_model(config.models.llm), config.alignment.model_dump()
    gpu, bf16 = torch.cuda.is_available(), chosen["precision"] == "bf16"
    with tempfile.TemporaryDirectory() as folder:
        arguments = dpo_arguments(
            chosen, workers=1, gpu=gpu, bf16=bf16, parameters=parameters_of(base), pairs=len(pairs), seed=config.seed, output_dir=folder
        )
        del arguments["deepspeed"]
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16 if bf16 else torch.float32)
        rank, clock, tokenizer = chosen["lora_rank"], Clock(), AutoTokenizer.from_pretrained(base)
        tokenizer.eos_token = end_of_turn(tokenizer)  # TRL ends the texts with it
        trainer = DPOTrainer(
            model=model,
            args=DPOConfig(**arguments),
            train_dataset=Dataset.from_dict({name: pairs[name].to_pylist() for name in ("prompt", "chosen", "rejected")}),
            processing_class=tokenizer,
            peft_config=LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"),
            callbacks=[clock],
        )
        trainer.train()
        return {"seconds": clock.seconds, "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--model", default="embedded:smollm2")
    parser.add_argument("--settings", nargs="+", default=["1:fp32:0", "1:fp32:2", "1:bf16:0", "1:bf16:2", "2:bf16:2"])
    parser.add_argument("--rounds", type=int, default=1, help="how often each side trains, in turn")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plain", metavar="PRECISION", help=argparse.SUPPRESS)  # in a process of its own
    arguments = parser.parse_args()
    pairs = make_pairs(arguments.pairs)
    any_setting = settings(arguments.model, 1, "fp32", 0)
    ordered = pairs.take(prompts_together(pairs["prompt"].to_pylist(), any_setting.seed, any_setting.alignment.pairs_per_step))
    if arguments.plain:
        print(json.dumps(plain(settings(arguments.model, 1, arguments.plain, 0), ordered)))
        return
    before = machine()
    sides: dict[tuple[str, int], dict[str, Any]] = {}
    rows: list[dict[str, Any]] = []
    for setting in arguments.settings:
        workers, asked, zero = setting.split(":")
        both: list[tuple[dict[str, Any], dict[str, Any]]] = []
        for number in range(arguments.rounds):
            made = own(settings(arguments.model, int(workers), asked, int(zero)), pairs)
            precision = made["precision"]  # fp32 on a machine that is slow in bf16
            if (precision, number) not in sides:
                command = [sys.executable, __file__, "--pairs", str(arguments.pairs), "--model", arguments.model, "--plain", precision]
                threads = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0")}
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **threads})
                sides[precision, number] = json.loads(done.stdout.splitlines()[-1])
            both.append((made, sides[precision, number]))
        ours, theirs = ([statistics.median(one["seconds"][1:]) for one in side] for side in zip(*both, strict=True))
        ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
        losses = [(one, other) for mine, plainly in both for one, other in zip(mine["losses"], plainly["losses"], strict=True)]
        row: dict[str, Any] = {"workers": int(workers), "precision": precision, "zero": int(zero)}
        row |= {"step_seconds": round(statistics.median(ours), 3), "plain": round(statistics.median(theirs), 3)}
        row |= {"ratio": round(statistics.median(ratios), 3), "ratios": [round(ratio, 3) for ratio in ratios]}
        row["loss"] = round(max(abs(one - other) for one, other in losses), 6)
        rows.append({**row, "tokens": made["tokens"], "stage": made["stage"]})
        print(json.dumps(rows[-1]), flush=True)
    if arguments.out:
        found = {"benchmark": "dpo", "machine": before, "model": arguments.model, "pairs": arguments.pairs, "rows": rows}
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
