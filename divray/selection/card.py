"""The dataset card: Markdown with a YAML header, made from the run's own figures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from divray.config import Config
from divray.relations import Relation
from divray.schemas import DATASET


def dataset_card(config: Config, relations: list[Relation], dataset: pa.Table, counts: dict[str, Any]) -> str:
    """The card's text.

    Args:
        config: The run's settings.
        relations: In the order of the table on the card.
        dataset: The selected samples (``schemas.DATASET``).
        counts: The counts of the ``select`` stage.
    """
    header = {
        "pretty_name": f"{config.task.name}: generated relation extraction samples",
        "language": ["en"],
        "task_categories": ["text-classification", "token-classification"],
        "task_ids": ["relation-extraction"],
        "size_categories": [_size(dataset.num_rows)],
        "tags": ["relation-extraction", "synthetic", "divray"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "*.parquet"}]}],
    }
    rounds = sorted(set(dataset["round"].to_pylist()))
    strategies = sorted(set(dataset["strategy"].to_pylist()))
    lines = [
        "---",
        yaml.safe_dump(header, sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        f"# {config.task.name}: generated samples for relation extraction",
        "",
        f"{dataset.num_rows} sentences for {len(relations)} relations. Each states one relation from a head to a tail entity, "
        "both given as character spans. No person wrote or checked them: a language model did, under the rules below.",
        "",
        "## How it was made",
        "",
        f"- Language model: `{config.models.llm}`; encoder for scores: `{config.models.encoder}`.",
        f"- Seeds: {config.task.seeds_per_relation} human examples a relation, shown to the model in part.",
        f"- Samples come from round(s) {', '.join(map(str, rounds)) or 'none'}, by strategy {', '.join(strategies) or 'none'}. "
        "After each round the model is tuned by DPO on pairs made from its own samples or from the seeds.",
        f"- Near-duplicates were dropped ({config.diversity.shingle_kind} {config.diversity.shingle_size}-grams"
        f"{' without punctuation' if config.diversity.strip_punctuation else ''}, "
        f"Jaccard {config.diversity.threshold:g} or more), and samples with a correctness score below {config.correctness.threshold:g}.",
        f"- Of what was left, {config.selection.k} a relation were chosen greedily for correctness and diversity together "
        f"(log-determinant, diversity weight {config.selection.diversity_weight:g}). Seed of the run: {config.seed}.",
        "",
        "## Samples per relation",
        "",
        "| relation | samples | wanted | correctness, mean | novelty, mean | objective | meaning |",
        "|---|---:|---:|---:|---:|---:|---|",
        *(_relation_line(relation, dataset, config.selection.k, counts) for relation in relations),
        "",
        *_shortfall_lines(counts, config.selection.k),
        "## Columns",
        "",
        "| column | type | what |",
        "|---|---|---|",
        *(f"| `{field.name}` | {field.type} | {_COLUMNS[field.name]} |" for field in DATASET),
        "",
        "## Limits",
        "",
        "- The sentences are made up: names and facts in them may be false, and may by chance be those of real people.",
        "- Correctness is the estimate of a classifier made from the seed examples, not a human judgement; some samples do not "
        "state their relation.",
        "- What the language model prefers (topics, names, phrasing) shows in the samples.",
        "",
        "## Licence",
        "",
        "None is stated here. The terms of the language model and of the seed examples decide what may be done with the samples.",
        "",
    ]
    return "\n".join(lines)


_COLUMNS = {
    "sample_id": "id of the candidate, the same in every table of the run",
    "relation": "the relation that holds from head to tail",
    "text": "one sentence",
    "head_start": "first character of the head in `text`",
    "head_end": "character after the head",
    "tail_start": "first character of the tail",
    "tail_end": "character after the tail",
    "head_type": "type of the head, or empty",
    "tail_type": "type of the tail, or empty",
    "round": "sampling round that it comes from",
    "strategy": "prompt strategy that it comes from",
    "policy": "who wrote it: `base`, the model before tuning, or `tuned`",
    "correctness": "estimated probability that the sentence states its relation in its direction",
    "novelty": "1 - cosine to the most similar other unique sample of its relation and round, entities masked",
}


def _relation_line(relation: Relation, dataset: pa.Table, k: int, counts: dict[str, Any]) -> str:
    rows = [row for row in dataset.select(["relation", "correctness", "novelty"]).to_pylist() if row["relation"] == relation.name]
    means = [f"{np.mean([row[name] for row in rows]):.2f}" if rows else "–" for name in ("correctness", "novelty")]
    value = f"{counts['objective'][relation.name]:.3f}" if rows else "–"
    return f"| {_cell(relation.name)} | {len(rows)} | {k} | {means[0]} | {means[1]} | {value} | {_cell(relation.description)} |"


def _shortfall_lines(counts: dict[str, Any], k: int) -> list[str]:
    if not counts["shortfall"]:
        return []
    short = ", ".join(f"{_cell(name)} ({missing} missing)" for name, missing in counts["shortfall"].items())
    return [f"Fewer than {k} unique and correct samples were there for: {short}.", ""]


def _cell(text: str) -> str:
    safe = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return " ".join(safe.replace("|", "\\|").split())


def _size(rows: int) -> str:
    for limit, name in ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")):
        if rows < limit:
            return name
    return "n>1M"
