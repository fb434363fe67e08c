"""How far the engine repeats itself under a seed: the same requests again, in the same and in other company.

    python benchmarks/repeatability.py CONFIG [section.key=value ...] --requests 96 --out benchmarks/results/repeatability.json

Three passes over the same request rows: twice as configured, and once with four candidates at a
time.  Each candidate has its own seed, so what differs comes from the arithmetic, whose last bits change
with the requests that share a step.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from itertools import takewhile
from pathlib import Path
from typing import Any

from machine import machine
from sampling_sides import write_requests

from divray.cluster import connect
from divray.config import Config, load_config, override_config
from divray.engines.complete import complete
from divray.engines.vllm import engine_arguments
from divray.pipeline import versions
from divray.run_folder import RunFolder

OTHER_COMPANY = ["engine.vllm={max_num_seqs: 4}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", default=[])
    parser.add_argument("--requests", type=int, default=96)
    parser.add_argument("--out")
    arguments = parser.parse_args()
    config = load_config(arguments.config, arguments.overrides)
    connect(config)
    with tempfile.TemporaryDirectory() as folder:
        write_requests(config, folder, arguments.requests)
        passes = {
            "again": (completions(config, folder, "first"), completions(config, folder, "second")),
            "other_batches": (
                completions(config, folder, "first"),
                completions(override_config(config, OTHER_COMPANY), folder, "small"),
            ),
        }
    result = {
        "benchmark": "repeatability",
        "command": " ".join(["python", "benchmarks/repeatability.py", *sys.argv[1:]]),
        "machine": machine(),
        "versions": versions(),
        "engine_arguments": engine_arguments(config, gpu=config.engine.device == "gpu"),
        "requests": arguments.requests,
        **{name: agreement(*pair) for name, pair in passes.items()},
    }
    print(json.dumps({name: result[name] for name in passes}, indent=2))
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(result, indent=2) + "\n")


def completions(config: Config, folder: str, target: str) -> dict[str, str]:
    """Candidate -> completion; a pass that lies there already is not made again."""
    run = RunFolder(folder)
    complete(config, run, "prompts", target, config.models.llm)
    table = run.read_table(target, ["candidate_id", "completion"])
    return dict(zip(table["candidate_id"].to_pylist(), table["completion"].to_pylist(), strict=True))


def agreement(one: dict[str, str], other: dict[str, str]) -> dict[str, Any]:
    """Share of candidates with the same text, and the share of the text before the first difference of the others."""
    different = [name for name in one if one[name] != other[name]]
    shared = [
        len(list(takewhile(lambda pair: pair[0] == pair[1], zip(one[n], other[n], strict=False)))) / max(1, len(one[n])) for n in different
    ]
    mean = round(sum(shared) / len(shared), 4) if shared else None
    return {"same_text": round(1 - len(different) / len(one), 4), "shared_beginning_of_others": mean}


if __name__ == "__main__":
    main()
