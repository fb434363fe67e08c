"""Near-duplicates, embeddings and diversity scores, usable on any texts without the rest of the loop."""

from __future__ import annotations

from divray.diversity.cells import ApproximatePairs, approximate_semantic_pairs
from divray.diversity.clusters import Decisions, decide
from divray.diversity.columns import DedupSettings
from divray.diversity.conflicts import label_conflicts
from divray.diversity.distinct import collapse
from divray.diversity.embeddings import Encoder
from divray.diversity.files import deduplicate_files
from divray.diversity.index import TextIndex
from divray.diversity.leaks import near_reference
from divray.diversity.neighbours import Pairs, near_duplicate_flags, near_duplicates, nearest_neighbours
from divray.diversity.overlap import max_rouge_l, self_bleu
from divray.diversity.scores import diversity_of, vendi_score
from divray.diversity.semantic import novelty, semantic_pairs
from divray.diversity.shingles import Shingles, shingle
from divray.diversity.stage import deduplicate, fixed_items
from divray.diversity.tables import near_duplicate_clusters

__all__ = [
    "ApproximatePairs",
    "Decisions",
    "DedupSettings",
    "Encoder",
    "Pairs",
    "Shingles",
    "TextIndex",
    "approximate_semantic_pairs",
    "collapse",
    "decide",
    "deduplicate",
    "deduplicate_files",
    "diversity_of",
    "fixed_items",
    "label_conflicts",
    "max_rouge_l",
    "near_duplicate_clusters",
    "near_duplicate_flags",
    "near_duplicates",
    "near_reference",
    "nearest_neighbours",
    "novelty",
    "self_bleu",
    "semantic_pairs",
    "shingle",
    "vendi_score",
]
