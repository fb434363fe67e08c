"""divray: diverse and correct training data for relation extraction, from a list of relations.

``load_config`` reads settings, ``plan`` says what would run, ``run`` runs or resumes everything::

    config = divray.load_config("run.yaml", ["selection.k=8"])
    summary = divray.run(config, "runs/mine")

Settings and pipeline load on first use: every process imports this package, and few run the loop.
"""

from __future__ import annotations

import pkgutil
from typing import TYPE_CHECKING, Any

from divray.errors import DivrayError, EngineError, InputError, ResourceError

if TYPE_CHECKING:
    from divray.config import Config, load_config
    from divray.pipeline import describe as plan
    from divray.pipeline import run_all as run

__all__ = ["Config", "DivrayError", "EngineError", "InputError", "ResourceError", "load_config", "plan", "run"]

_PLACES = {"Config": "config:Config", "load_config": "config:load_config", "plan": "pipeline:describe", "run": "pipeline:run_all"}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'divray' has no attribute {name!r}")
    return pkgutil.resolve_name(f"divray.{_PLACES[name]}")
