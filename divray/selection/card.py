"""The dataset card: Markdown with a YAML header, made from the run's own figures."""

from __future__ import annotations

from html import escape
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from divray.config import Config
from divray.dedup.storage import public_name
from divray.relations import Relation
from divray.review import as_sentence
from divray.schemas import DATASET


def dataset_card(
    config: Config, relations: list[Relation], dataset: pa.Table, counts: dict[str, Any], review: dict[str, Any] | None
) -> str:
    """The card's text, from all accepted samples, the counts of the ``select`` stage and :func:`divray.review.review_figures`."""
    header = {
        "pretty_name": f"{config.task.name}: generated relation extraction samples",
        "task_categories": ["text-classification", "token-classification"],
        "task_ids": ["relation-extraction"],
        "tags": ["relation-extraction", "synthetic", "divray"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
    }
    rounds, strategies = (", ".join(map(str, sorted(set(dataset[name].to_pylist())))) or "none" for name in ("round", "strategy"))
    short = [f"- {_cell(name)}: {_cell(reason)}" for name, reason in counts["reasons"].items()]
    lines = [
        "---",
        yaml.safe_dump(header, sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        "",
        f"# {config.task.name}: generated samples for relation extraction",
        "",
        f"{dataset.num_rows} sentences for {len(relations)} relations. Each should state one relation from a head to a tail entity, "
        "both given as character spans. A language model wrote them, under the rules below. "
        f"Rows are ordered by `rank`: those up to rank {config.selection.k} are the selected samples.",
        "",
        f"{as_sentence(review)} The interval is Wilson's at 95 %." if review else "No person has read them.",
        "",
        "## How it was made",
        "",
        f"- Language model: `{public_name(config.models.llm)}`; encoder for scores: `{public_name(config.models.encoder)}`.",
        f"- Seeds: {config.task.seeds_per_relation} human examples a relation; each prompt shows the model some or all of them.",
        f"- Samples come from round(s) {rounds}, by strategy {strategies}. "
        "Between rounds, DPO tunes the model on pairs made from its own samples or from the seeds.",
        f"- Dropped: near-duplicates ({config.diversity.shingle_kind} {config.diversity.shingle_size}-grams, "
        f"Jaccard {config.diversity.threshold:g} or more; {min(config.diversity.threshold, config.diversity.seed_threshold):g} to a seed), "
        f"and samples with a judge's score below the gate ({config.correctness.threshold}).",
        f"- A greedy search chose the first {config.selection.k} of each relation from the rest, for correctness and diversity together "
        f"(log-determinant, diversity weight {config.selection.diversity_weight:g}). Seed of the run: {config.seed}.",
        "",
        "## Samples per relation",
        "",
        "| relation | accepted | selected | wanted | correctness, mean | right of those read | novelty, mean | meaning |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
        *(_relation_line(relation, dataset, config.selection.k, review or {"relations": {}}) for relation in relations),
        "",
        "Means are over the selected samples. The mean correctness is of `audit`, from a second judge that the loop does not use.",
        "",
        *([f"Fewer than {config.selection.k} samples passed for:", "", *short, ""] if short else []),
        "## Columns",
        "",
        "| column | type | what |",
        "|---|---|---|",
        *(f"| `{field.name}` | {field.type} | {_COLUMNS[field.name]} |" for field in DATASET),
        "",
        "## Limits",
        "",
        "- The sentences are made up: facts in them may be false, and names and facts may by chance be those of real people.",
        "- Some samples do not state their relation: the gate is only an estimate.",
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
    "rank": "place among the samples of its relation, from 1; the first K are the selected ones",
    "round": "sampling round that it comes from",
    "strategy": "prompt strategy that it comes from",
    "policy": "who wrote it: `base`, the model before tuning, or `tuned`",
    "correctness": "the gate's probability that the sentence is right",
    "audit": "the same by a second judge; null for samples after the first K",
    "novelty": "1 - cosine to the most similar other unique sample of its relation and round, entities and numbers masked",
}


def _relation_line(relation: Relation, dataset: pa.Table, k: int, review: dict[str, Any]) -> str:
    accepted = dataset.filter(pc.equal(dataset["relation"], relation.name))
    rows = accepted.filter(pc.less_equal(accepted["rank"], k))
    audit, novelty = ("–" if (mean := pc.mean(rows[name]).as_py()) is None else f"{mean:.2f}" for name in ("audit", "novelty"))
    read = review["relations"].get(relation.name)
    right = f"{read['right']} of {read['number']}" if read else "–"
    counted = f"{accepted.num_rows} | {rows.num_rows} | {k}"
    return f"| {_cell(relation.name)} | {counted} | {audit} | {right} | {novelty} | {_cell(relation.description)} |"


def _cell(text: str) -> str:
    return " ".join(escape(text, quote=False).replace("|", "\\|").split())
