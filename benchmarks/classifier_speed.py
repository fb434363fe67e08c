"""The RE model's speed: predictions a second over a plain loop, and the hyperparameter search with two trials at once over one.

    python benchmarks/classifier_speed.py [--trials 4] [--out FILE]

On the quick start, whose test sentences are predicted as a batch and one at a time.  The searches have the same trials and no early stop.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import machine

HERE = Path(__file__).parent


def seconds(function: Any, *arguments: Any) -> float:
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "classifier_speed.json")
    arguments = parser.parse_args()
    import ray
    from ray.tune.schedulers import FIFOScheduler

    from divray.config import load_config
    from divray.datasets import stage
    from divray.extraction import search
    from divray.extraction.sets import usual
    from divray.extraction.training import train
    from divray.run_folder import RunFolder

    found: dict[str, Any] = {"machine": machine()}
    config = load_config(HERE.parent / "divray/quickstart/quickstart.yaml", [f"extraction.trials={arguments.trials}"])
    task = stage.load_task(config)
    model = train(task.seeds, task.relations, config.models.encoder, usual(config), config.seed)
    model.predict(task.test[:8])
    batch, loop = seconds(model.predict, task.test), seconds(lambda: [model.predict([one]) for one in task.test])
    found["predict"] = {"sentences": len(task.test), "seconds": round(batch, 2), "loop": round(loop, 2), "ratio": round(loop / batch, 2)}

    ray.init(num_cpus=2, logging_level=logging.ERROR)
    search.ASHAScheduler = lambda **_: FIFOScheduler()  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(folder)
        stage.run(config, run)
        took: dict[int, float] = {}
        search.run(config, run)  # so that neither of the two finds cold files
        for search.AT_ONCE in (2, 1):
            took[search.AT_ONCE] = seconds(search.run, config, run)
    found["search"] = {
        "trials": arguments.trials,
        "seconds": round(took[2], 1),
        "one": round(took[1], 1),
        "ratio": round(took[1] / took[2], 2),
    }
    print(json.dumps(found))
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
