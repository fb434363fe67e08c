"""What divray does with this machine's GPU, in about ten minutes; without a GPU the same at a small size on the CPU.

    python benchmarks/gpu.py CONFIG [section.key=value ...] [--out FILE]

CONFIG names the LLM, as for ``divray run``; ``examples/gpu`` has some.  Each part is one of the other scripts:

sampling    tokens a second through Ray over those of plain ``AsyncLLM``, and accepted sentences a second over the naive prompt's
dpo         seconds a DPO step over plain TRL's, tokens a second, and the share of the GPU's bf16 peak (model FLOPs utilisation: 8 FLOPs
            a parameter and token, of which the policy has 6 and the reference 2)
embeddings  sentences a second of the encoder
dedup       seconds for near-duplicates among random texts (on the CPU)
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
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


def part(folder: Path, script: str, *arguments: str) -> dict[str, Any]:
    """The figures of another script, or its last words where it failed."""
    out = folder / f"{script}.json"
    command = [sys.executable, str(HERE / script), *arguments, "--out", str(out)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    return {"failed": done.stderr[-1000:]} if done.returncode else dict(json.loads(out.read_text()))


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", default=[])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_intermixed_args()
    gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if gpu else ""
    llm = load_config(arguments.config, arguments.overrides).models.llm
    requests, pairs, rows = ("2048", "64", "1000000") if gpu else ("48", "8", "20000")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = (quickstart() / "test.jsonl").read_text(encoding="utf-8").splitlines()
        (folder / "sentences.txt").write_text("\n".join(json.loads(line)["text"] for line in lines), encoding="utf-8")
        run = [arguments.config, *arguments.overrides, f"engine.device={'gpu' if gpu else 'cpu'}"]
        found = {
            "sampling": part(folder, "sampling.py", *run, "--figures", "plain,naive", "--requests", requests, "--runs", "1"),
            "dpo": part(folder, "dpo.py", "--model", llm, "--pairs", pairs, "--settings", "1:bf16:0", "1:bf16:2"),
            "embeddings": part(folder, "embeddings.py", f"{folder}/sentences.txt", "--device", "cuda" if gpu else "cpu"),
            "dedup": part(folder, "dedup.py", "--rows", rows, "--runs", "1", "--truth-rows", "0"),
        }
    parameters = parameters_of(local_model(llm))
    peak = next((flops for model, flops in PEAKS.items() if model in device), None)
    for row in found["dpo"].get("rows", []):
        row["tokens_per_second"] = round(row["tokens"] / row["step_seconds"], 1)
        row["mfu"] = round(8 * parameters * row["tokens_per_second"] / peak, 3) if peak else None
    result = {"benchmark": "gpu", "device": device or "none", "machine": machine(), "parameters": parameters, **found}
    print(json.dumps(result, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
