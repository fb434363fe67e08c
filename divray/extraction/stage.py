"""The ``train`` stage: the RE model on seeds and selected samples, into ``model/``."""

from __future__ import annotations

import tempfile
from typing import Any

from divray.config import Config
from divray.extraction.inputs import SEEDS, SELECTED, examples_of, labels_of, tuned, weights_of
from divray.resources import worker
from divray.runs import RunFolder


def run(config: Config, run: RunFolder, round: int = 0) -> dict[str, Any]:
    """Train on ``data/seeds`` and ``comparison/selected`` with the searched hyperparameters; save to ``model/``.

    Returns:
        Counts: ``examples``, ``labels``, ``parameters``.
    """
    import ray

    counts: dict[str, Any] = ray.get(worker(config, gpus=True)(_train).remote(config, run.uri))
    return counts


def _train(config: Config, uri: str) -> dict[str, Any]:
    from divray.extraction.training import train

    run = RunFolder(uri)
    seeds, labels, settings = examples_of(run, [SEEDS]), labels_of(run), tuned(config, run)
    examples = [*seeds, *examples_of(run, [SELECTED])]
    weights = weights_of([SEEDS, SELECTED], seeds, len(examples), settings)
    model = train(examples, labels, config.models.encoder, settings, config.seed, weights)
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        run.upload(folder, "model")
    return {"examples": len(examples), "labels": len(labels), "parameters": model.num_parameters()}
