"""Near-duplicates, found exactly, as a library of its own: it needs nothing of the rest of divray.

Texts become sets of word or character n-grams (:mod:`~divray.dedup.shingle`).  Some pairs of sets are proposed
(:mod:`~divray.dedup.propose`) and compared (:mod:`~divray.dedup.verify`); near pairs make clusters, of which some items stay
:mod:`~divray.dedup.tables`, :mod:`~divray.dedup.files` and :mod:`~divray.dedup.index` do this to tables, files and batches
that come one after the other.
"""

from __future__ import annotations

from divray.dedup.decide import Decisions, Nearest, best_of, components, decide, in_words, nearest_given, nearest_items, ranks
from divray.dedup.files import deduplicate_files
from divray.dedup.index import TextIndex
from divray.dedup.shingle import Shingles, Texts, fold, shingle
from divray.dedup.tables import DedupSettings, near_duplicate_clusters
from divray.dedup.verify import Pairs, near_duplicates

__all__ = [
    "Decisions",
    "DedupSettings",
    "Nearest",
    "Pairs",
    "Shingles",
    "TextIndex",
    "Texts",
    "best_of",
    "components",
    "decide",
    "deduplicate_files",
    "fold",
    "in_words",
    "near_duplicate_clusters",
    "near_duplicates",
    "nearest_given",
    "nearest_items",
    "ranks",
    "shingle",
]
