"""What divray does with this machine's GPU, in about ten minutes; without a GPU the same at a small size on the CPU.

    python benchmarks/gpu.py CONFIG [section.key=value ...] [--out FILE]

CONFIG names the LLM, as for ``divray run``; ``examples/gpu`` has some.  Each part is one of the other scripts:

sampling    tokens a second through Ray over those of plain ``AsyncLLM``, and a GPU's beside datatrove's; accepted sentences a minute of an
            engine, and over the naive prompt's
dpo         seconds a DPO step over plain TRL's, tokens a second, and the share of the GPU's bf16 peak (model FLOPs utilisation: 6 FLOPs
            a parameter and token, of which LoRA's policy has 4 and the reference 2; a prompt counts with each of its texts)
embeddings  sentences a second of the encoder
dedup       seconds for near-duplicates among random texts (on the CPU)
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import machine

from divray.alignment.arguments import parameters_of
from divray.config import load_config
from divray.models import local_model
from divray.quickstart import folder as quickstart

HERE = Path(__file__).parent
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12}
"""Dense bf16 FLOPs a second, by NVIDIA's data sheets."""
DATATROVE = {
    "SmolLM2-135M-Instruct": (0.135e9, 28391),
    "gemma-3-270m-it": (0.27e9, 22996),
    "SmolLM2-360M-Instruct": (0.36e9, 17887),
    "Qwen3-0.6B": (0.6e9, 13527),
    "gemma-3-1b-it": (1e9, 14838),
    "Qwen3-1.7B": (1.7e9, 11710),
    "SmolLM2-1.7B-Instruct": (1.7e9, 5255),
    "gemma-3-4b-it": (4e9, 8501),
    "Qwen3-4B": (4e9, 7919),
    "Qwen3-8B": (8e9, 6338),
    "gemma-3-12b-it": (12e9, 2999),
    "Qwen3-14B": (14e9, 4414),
    "gemma-3-27b-it": (27e9, 1724),
    "Qwen3-32B": (32e9, 1987),
}
"""Dense models -> parameters, and output tokens a second of an H100 of 80 GB with vLLM 0.15 at its defaults, from "Optimization Results" in
``examples/inference/benchmark/README.md`` of huggingface/datatrove.  Its answers have up to 1,024 tokens; a record has some 40."""

SMALL = ["sampling.candidates_per_relation=16"]


def part(folder: Path, script: str, *arguments: str) -> dict[str, Any]:
    """The figures of another script and the seconds that it took, or its last words where it failed."""
    out = folder / f"{script}.json"
    command, began = [sys.executable, str(HERE / script), *arguments, "--out", str(out)], time.perf_counter()
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    found = {"failed": done.stderr[-2000:]} if done.returncode else dict(json.loads(out.read_text()))
    return {"part_seconds": round(time.perf_counter() - began), **found}


def published(llm: str, parameters: int) -> str:
    """The model of :data:`DATATROVE` that ``llm`` is, or the one nearest in size."""
    return min(DATATROVE, key=lambda name: (name.casefold() not in llm.casefold(), abs(math.log(DATATROVE[name][0] / parameters))))


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", default=[])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_intermixed_args()
    gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if gpu else ""
    overrides = [*([] if gpu else SMALL), *arguments.overrides, f"engine.device={'gpu' if gpu else 'cpu'}"]
    config = load_config(arguments.config, overrides)
    llm, vllm = config.models.llm, config.engine.vllm
    before = machine()
    requests, pairs, rows = ("2048", "64", "1000000") if gpu else ("48", "8", "20000")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = (quickstart() / "test.jsonl").read_text(encoding="utf-8").splitlines()
        (folder / "sentences.txt").write_text("\n".join(json.loads(line)["text"] for line in lines), encoding="utf-8")
        found = {
            "sampling": part(
                folder, "sampling.py", arguments.config, *overrides, "--figures", "plain,naive", "--requests", requests, "--runs", "1"
            ),
            "dpo": part(folder, "dpo.py", "--model", llm, "--pairs", pairs, "--settings", "1:bf16:0", "1:bf16:2"),
            "embeddings": part(folder, "embeddings.py", f"{folder}/sentences.txt", "--device", "cuda" if gpu else "cpu"),
            "dedup": part(folder, "dedup.py", "--rows", rows, "--runs", "1", "--truth-rows", "0"),
        }
    parameters = parameters_of(local_model(llm))
    for turn in found["sampling"].get("naive", {}).get("turns", []):
        turn["accepted_per_minute"] = {name: round(60 * side["accepted_per_engine_second"], 1) for name, side in turn.items()}
    for one in found["sampling"].get("plain", {}).get("runs", []) if gpu else ():
        gpus = config.engine.pool[1] * vllm.get("tensor_parallel_size", 1) * vllm.get("pipeline_parallel_size", 1)
        name, ours = published(llm, parameters), one["ray_data"]["tokens_per_second"] / gpus
        theirs = DATATROVE[name][1]
        one["datatrove"] = {"model": name, "h100": theirs, "tokens_per_second_a_gpu": round(ours), "ratio": round(ours / theirs, 3)}
    peak = next((PEAKS[word] for word in re.split(r"\W", device) if word in PEAKS), None)
    for row in found["dpo"].get("rows", []):
        row["tokens_per_second"] = round(row["tokens"] / row["step_seconds"], 1)
        row["mfu"] = round(6 * parameters * row["tokens_per_second"] / peak, 3) if peak else None
    note = {} if gpu else {"note": "A run on a CPU at a small size: it shows that every part runs. No figure says anything of a GPU."}
    own = {"device": device or "cpu", **note, "llm": llm, "machine": before, "parameters": parameters}
    result = {"benchmark": "gpu", **own, **found}
    print(json.dumps(result, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    if failed := [name for name, figures in found.items() if "failed" in figures]:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
