"""What a pass says on Ray's Prometheus endpoint while it runs."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

from begun_runs import begun
from conftest import FASTER, missing_metrics

from divray.config import load_config
from divray.quickstart import folder
from divray.sampling import run as sample

SMALL = [
    *FASTER,
    "sampling.candidates_per_relation=8",
    "sampling.naive_candidates_per_relation=2",
    "engine.batch_size=8",
]


def test_engines_tell_prometheus_by_relation(ray_two_cpus: None, uri: str) -> None:
    config = load_config(folder() / "quickstart.yaml", SMALL)
    run = begun(config, uri)
    seen = Path(uri, "seen")

    def held(row: dict[str, Any]) -> dict[str, Any]:
        """The last request waits, so that the engine is there to be asked."""
        Path(uri, f"engine-{os.getpid()}").touch()
        last = row["candidate_id"].endswith("contained-in-naive-000001")
        while last and not seen.exists():
            time.sleep(0.1)
        record = " Ada Varn\nTail (thing): Hask\nSentence: Once Ada Varn met Hask."
        return {"completion": record, "generated_tokens": 7, "prompt_tokens": 40, "finish_reason": "stop"}

    passing = threading.Thread(target=sample, args=(config, run, 0), kwargs={"answer": held})
    passing.start()
    while not (there := list(Path(uri).glob("engine-*"))):
        time.sleep(0.1)
    own = f':{there[0].name.partition("-")[2]}"'  # other tests' engines have told, too
    try:
        missing = missing_metrics(
            [
                (own, "ray_divray_tokens", 'relation="born_in"', 'kind="generated"'),
                (own, "ray_divray_requests", 'outcome="ok"'),
            ]
        )
    finally:
        seen.touch()
        passing.join()
    assert missing == []
