"""The dataset card: Markdown with a YAML header.  The figures come from the run, the text from ``card.md.j2``."""

from html import escape
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from divray.config import Config
from divray.dedup.storage import public_name
from divray.relations import Relation
from divray.review import as_sentence
from divray.textfiles import dump_yaml


def dataset_card(
    config: Config, relations: list[Relation], dataset: pa.Table, counts: dict[str, Any], review: dict[str, Any] | None
) -> str:
    """The card's text, from all accepted samples, the counts of the ``select`` stage and :func:`divray.review.review_figures`."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("divray", "selection"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    k = config.selection.k
    return environment.get_template("card.md.j2").render(
        config=config,
        k=k,
        pretty_name=dump_yaml({"pretty_name": f"{config.task.name}: generated relation extraction samples"}),
        llm=public_name(config.models.llm),
        encoder=public_name(config.models.encoder),
        samples=dataset.num_rows,
        rounds=sorted(set(dataset["round"].to_pylist())),
        strategies=sorted(set(dataset["strategy"].to_pylist())),
        read=as_sentence(review) if review else "",
        rows=[_row(relation, dataset, k, review or {"relations": {}}) for relation in relations],
        short={_cell(name): _cell(reason) for name, reason in counts["reasons"].items()},
    )


def _row(relation: Relation, dataset: pa.Table, k: int, review: dict[str, Any]) -> list[str | int]:
    """Cells of a relation's line in the card's table."""
    accepted = dataset.filter(pc.equal(dataset["relation"], relation.name))
    rows = accepted.filter(pc.less_equal(accepted["rank"], k))
    audit, novelty = ("–" if (mean := pc.mean(rows[name]).as_py()) is None else f"{mean:.2f}" for name in ("audit", "novelty"))
    read = review["relations"].get(relation.name)
    right = f"{read['right']} of {read['number']}" if read else "–"
    return [_cell(relation.name), accepted.num_rows, rows.num_rows, k, audit, right, novelty, _cell(relation.description)]


def _cell(text: str) -> str:
    return " ".join(escape(text, quote=False).replace("|", "\\|").split())
