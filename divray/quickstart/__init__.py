"""The quick-start task: six relations in three pairs of equal entity types, so that the sentence decides."""

from __future__ import annotations

from pathlib import Path


def folder() -> Path:
    """Folder that holds ``quickstart.yaml``, ``relations.yaml`` (5 seeds a relation) and ``test.jsonl``."""
    return Path(__file__).resolve().parent
