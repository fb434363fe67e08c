"""The quick-start task: six relations in three pairs of equal entity types, so that the sentence decides."""

from pathlib import Path


def folder() -> Path:
    """Folder that holds ``quickstart.yaml``, ``relations.yaml`` (10 examples a relation), ``test.jsonl`` and ``negatives.jsonl``.

    A negative has the entities of one of the relations, words that are near it, and states none: its relation is ``""``.
    """
    return Path(__file__).resolve().parent
