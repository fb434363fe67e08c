"""Keep the result of a finished run of the whole loop: its tables with machine, versions, seeds and command, no sentences.

divray run CONFIG --out RUN [section.key=value ...]
python benchmarks/loop.py RUN --command "divray run CONFIG --out RUN ..." --out benchmarks/results/NAME.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from machine import machine

from divray.config import read_config
from divray.run_folder import RunFolder

KEPT = (
    "headline", "findings", "candidates", "valid", "unique", "correct", "selected", "rejections", "losses", "mean_correctness",
    "per_round", "per_strategy", "naive", "pairs", "generated_tokens", "engine_seconds", "tokens_per_accepted",
    "engine_seconds_per_accepted", "diversity", "diversity_reference", "diversity_at_equal_size", "search", "seconds",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--command", required=True, help="what the run was made with")
    parser.add_argument("--note", default="", help="what else the machine did, and the like")
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    run = RunFolder(arguments.run)
    summary, config = run.read_json("summary.json"), read_config(run)
    result: dict[str, Any] = {
        "benchmark": "loop",
        "command": arguments.command,
        "machine": {**machine(), "note": arguments.note},
        "versions": summary["versions"],
        "seed": config.seed,
        "draws": config.evaluation.draws,
        "evaluation": {name: _brief(values) for name, values in summary["evaluation"].items()},
        **{name: summary[name] for name in KEPT if name in summary},
        "seconds_in_all": round(sum(summary["seconds"].values()), 1),
    }
    Path(arguments.out).write_text(json.dumps(result, indent=1) + "\n")
    print(f"{arguments.out}: {result['headline']}")


def _brief(values: dict[str, Any]) -> dict[str, Any]:
    kept = ("metric", "mean", "std", "per_draw", "draws", "differences", "k", "examples", "settings", "f1_per_relation")
    return {name: _rounded(values[name]) for name in kept if name in values}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
