"""divray: diverse and correct training data for relation extraction, from a list of relations.

``load_config`` reads settings, ``plan`` says what would run, ``run`` runs or resumes everything::

    config = divray.load_config("run.yaml", ["selection.k=8"])
    summary = divray.run(config, "runs/mine")

Settings and pipeline are found by name: every process imports this package, and few run the loop.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from divray.errors import DivrayError, EngineError, InputError, ResourceError

if TYPE_CHECKING:
    from divray.config import Config, load_config

__all__ = ["Config", "DivrayError", "EngineError", "InputError", "ResourceError", "load_config", "plan", "run"]


def __getattr__(name: str) -> Any:
    if name not in ("Config", "load_config"):
        raise AttributeError(f"module 'divray' has no attribute {name!r}")
    return getattr(importlib.import_module("divray.config"), name)


def plan(config: Config) -> str:
    """What :func:`run` would do, with every setting; loads no model.

    Raises:
        InputError: Settings, data or models are wrong.
    """
    return str(importlib.import_module("divray.pipeline").describe(config))


def run(config: Config, uri: str) -> dict[str, Any]:
    """Run every stage that is not done yet in the run folder ``uri``; returns the summary.

    Raises:
        DivrayError: Bad input, too few resources, an engine that gave up, or a stage that failed.
    """
    return dict(importlib.import_module("divray.pipeline").run_all(config, uri))
