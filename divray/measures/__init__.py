"""How diverse a set of sentences is, on any texts and embeddings, without the rest of the loop."""

from __future__ import annotations

from divray.measures.diversity import diversity_of, semantic_pairs, vendi_score
from divray.measures.overlap import max_rouge_l, self_bleu

__all__ = ["diversity_of", "max_rouge_l", "self_bleu", "semantic_pairs", "vendi_score"]
