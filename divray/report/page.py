"""``report.html``: one page that loads nothing, with every generated character escaped."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from divray.config import Config, dump_config
from divray.report import figures
from divray.report.sentences import pieces, side_by_side, visible

if TYPE_CHECKING:
    import jinja2

_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")
_SECRET_KEYS = re.compile(r"(?i)((?:secret|token|password|api_?key|access_?key)[\w-]*\s*[:=]\s*)[^\s&]+")
_LONGEST = 400


def render(config: Config, summary: dict[str, Any], excerpts: dict[str, Any]) -> str:
    """The report as HTML text; a section without data is left out.

    Args:
        config: The resolved settings, shown at the end with credentials taken out.
        summary: What :func:`divray.report.summary.summarise` returns.
        excerpts: What :func:`divray.report.excerpts.excerpts` returns.
    """
    template = _environment().get_template("page.html.j2")
    duplicates = [{**row, "sides": side_by_side(row, row["neighbour"])} for row in excerpts["near_duplicates"]]
    evaluation = summary.get("evaluation") or {}
    return template.render(
        s=summary,
        steps=figures.STEP_NAMES,
        funnel=figures.funnel(summary),
        relations=figures.relation_rows(summary),
        scores=figures.scores(evaluation) if evaluation else None,
        best=figures.main_score(evaluation) if evaluation else None,
        diversity=_diversity_rows(summary),
        ngram=figures.diversity_chart(summary, "vendi_ngram"),
        embedding=figures.diversity_chart(summary, "vendi_embedding"),
        histogram=figures.correctness_histogram(excerpts["histogram"]),
        duplicates=duplicates,
        clusters=excerpts["clusters"],
        conflicts=[{**row, "sides": side_by_side(row, row["other"])} for row in excerpts["conflicts"]],
        similarities=excerpts["similarities"],
        similarity=figures.similarity_histogram(excerpts["similarities"]),
        threshold=config.diversity.threshold,
        conflicts_drop=config.diversity.conflicts == "drop",
        samples=excerpts["samples"],
        rejections=figures.bars(summary.get("rejections", {}), "c4"),
        rejected=excerpts["rejections"],
        pairs=excerpts["pairs"],
        curves=figures.training_curves(summary.get("alignment", {})),
        by_relation=figures.relation_scores(evaluation),
        trials=_trials(summary.get("search")),
        seconds=figures.bars(summary.get("seconds", {}), "c0"),
        config=without_credentials(dump_config(config)),
    )


def without_credentials(text: str) -> str:
    """``text`` with the user part of URIs, and what follows a key such as ``secret=``, taken out."""
    return _SECRET_KEYS.sub(r"\1***", _CREDENTIALS.sub("***@", text))


def _environment() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("divray", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    environment.filters.update(
        count=lambda value: f"{value:,.0f}",
        fixed=lambda value, digits=2: "–" if value is None else f"{value:,.{digits}f}".replace("-", "−"),
        percent=lambda value: "–" if value is None else f"{100 * value:.0f} %" if value >= 0.1 else f"{100 * value:.1f} %",
        duration=duration,
        words=lambda text: str(text).replace("_", " "),
        pieces=pieces,
        clip=lambda text: text if len(text) <= _LONGEST else text[:_LONGEST] + "…",
        round_name=figures.round_name,
        round_colour=figures.round_colour,
    )
    return environment


def duration(seconds: float) -> str:
    """``8.2 s``, ``3 min 20 s`` or ``2 h 05 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _diversity_rows(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Name, scores, scores at equal size and mean correctness of every set that has been scored."""
    whole = {**summary.get("diversity_reference", {}), **summary.get("diversity", {})}
    level = summary.get("diversity_at_equal_size", {}).get("mean", {})
    order = ["seeds", "test", "naive", *sorted(summary.get("diversity", {})), "selected"]
    correctness = {name: view.get("mean_correctness") for name, view in summary.get("per_round", {}).items()}
    correctness["selected"] = summary.get("mean_correctness_selected")
    correctness["naive"] = summary.get("naive", {}).get("mean_correctness")
    return [
        {
            "name": "human test set" if name == "test" else figures.round_name(name),
            "scores": whole[name],
            "level": level.get(name),
            "correctness": correctness.get(name),
        }
        for name in order
        if name in whole
    ]


def _trials(search: Any) -> dict[str, Any] | None:
    """Columns and rows of the hyperparameter search, whatever the trials report."""
    trials = search.get("trials") if isinstance(search, dict) else search
    if not isinstance(trials, list) or not trials or not all(isinstance(trial, dict) for trial in trials):
        return None
    flat = [_flat(trial) for trial in trials]
    columns = list(dict.fromkeys(name for trial in flat for name in trial))
    return {"columns": columns, "rows": [[_cell(trial.get(name)) for name in columns] for trial in flat]}


def _flat(trial: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in trial.items():
        found |= _flat(value) if isinstance(value, dict) else {} if isinstance(value, list) else {name: value}
    return found


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "–" if value is None else str(value)
