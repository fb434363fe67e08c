"""Near-duplicates, embeddings and diversity scores, usable on any texts without the rest of the loop."""

from __future__ import annotations

from divray.diversity.clusters import Decisions, decide
from divray.diversity.distinct import collapse
from divray.diversity.embeddings import Encoder
from divray.diversity.neighbours import Pairs, near_duplicates, nearest_neighbours
from divray.diversity.scores import diversity_of, vendi_score
from divray.diversity.shingles import Shingles, shingle
from divray.diversity.stage import deduplicate, fixed_items, novelty

__all__ = [
    "Decisions",
    "Encoder",
    "Pairs",
    "Shingles",
    "collapse",
    "decide",
    "deduplicate",
    "diversity_of",
    "fixed_items",
    "near_duplicates",
    "nearest_neighbours",
    "novelty",
    "shingle",
    "vendi_score",
]
