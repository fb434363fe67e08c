"""The ``train`` stage: the RE model on seeds and selected samples, into ``model/``."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from divray.config import Config
from divray.datasets.stage import read_relations
from divray.extraction.card import model_card
from divray.extraction.inputs import SELECTED, draws_of, set_of, tuned
from divray.extraction.training import train
from divray.resources import worker
from divray.run_folder import SEEDS, RunFolder
from divray.stages import Progress


def run(config: Config, run: RunFolder, round: int = 0, on_progress: Progress | None = None) -> dict[str, Any]:
    """Train on ``data/seeds`` and ``comparison/selected`` with the searched hyperparameters; save to ``model/``.

    Returns:
        Counts: ``examples``, ``labels``, ``parameters``.
    """
    import ray

    counts: dict[str, Any] = ray.get(worker(config, gpus=True)(_train).remote(config, run.uri))
    return counts


def _train(config: Config, uri: str) -> dict[str, Any]:
    run = RunFolder(uri)
    own, relations, settings = draws_of(run)[0], read_relations(run), tuned(config, run)
    examples, weights = set_of(run, [SEEDS, SELECTED], own, settings)
    model = train(examples, relations, config.models.encoder, settings, config.seed, weights)
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        Path(folder, "README.md").write_text(model_card(config, settings, model, relations, own[SEEDS], len(examples)), encoding="utf-8")
        run.upload(folder, "model")
    return {"examples": len(examples), "labels": len(relations), "parameters": model.num_parameters()}
