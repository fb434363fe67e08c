"""The stage that writes the figures of a run, and the page that shows them.

It reads the run folder alone, so it can summarize a finished, a half-finished or a copied run at any time, with the same result.
The page loads nothing, and every generated character on it is escaped.
"""

import json
from typing import Any

from divray.config import Config
from divray.console import clock, visible
from divray.dedup.storage import public_name
from divray.layout import EVALUATION, RELATIONS, REPORT, SUMMARY, VERSIONS, Round
from divray.report import findings as say
from divray.report.account import GATE, STEPS, Account, account, engine_time, rounds_of
from divray.report.charts import charts_of
from divray.report.excerpts import excerpts, pieces, side_by_side
from divray.report.spread import diversity, likeness
from divray.review import review_figures
from divray.run_folder import RunFolder
from divray.scan import tally
from divray.stages import Progress


def run(config: Config, run: RunFolder, round: int = 0, on_progress: Progress | None = None) -> dict[str, Any]:
    """Write ``summary.json`` and ``report.html``; ``round`` does not matter."""
    summary = summarise(config, run)
    run.write_json(SUMMARY, summary)
    run.write_text(REPORT, render(config, summary, excerpts(config, run)))
    return {key: summary[key] for key in STEPS if key in summary}


def summarise(config: Config, run: RunFolder) -> dict[str, Any]:
    """Everything that ``summary.json`` holds; keys of stages that have not run yet are left out.

    The naive baseline's candidates stand under ``naive`` and nowhere else.  An accepted sample is unique and correct.  Engine-seconds are
    the time in which an engine had requests in flight, divided equally among these requests.
    """
    book, rounds = account(config, run), rounds_of(config, run)
    records = [run.read_json(name) for name in run.files("stages", ".json") if not name.endswith("/report.json")]
    records.sort(key=lambda record: (record["finished_at"], record["stage"]))
    relations = [relation["name"] for relation in _json(run, RELATIONS) or []]
    found: dict[str, Any] = {
        "task": config.task.name,
        "models": {"llm": public_name(config.models.llm), "encoder": public_name(config.models.encoder)},
        "seed": config.seed,
        "rounds": len(rounds),
        "finished_at": records[-1]["finished_at"] if records else None,
        **book.view(book.of()),
    }
    if "valid" in book.fields:
        found["rejections"] = book.reasons("rejected", book.of())
    found["losses"] = _losses(book, found)
    of_relation, none = book.views(lambda cell: cell.relation), book.view([])
    found["per_relation"] = {name: of_relation.get(name, none) for name in relations}
    found["per_round"] = book.views(lambda cell: Round.of(cell.round).name)
    found["per_strategy"] = book.views(lambda cell: cell.strategy)
    found |= diversity(run, relations)
    if naive := book.of(naive=True):
        found["naive"] = {**book.view(naive), "rejections": book.reasons("rejected", naive)}
    kinds = {own.name: {kind: int(count) for (kind,), (count,) in sorted(tally(run, own.pairs, ["kind"]).items())} for own in rounds}
    optional = {
        "pairs": {name: counts for name, counts in kinds.items() if counts},
        "review": review_figures(run),
        "likeness": likeness(run),
        "engine_time": engine_time(config, run),
        "quota": {own.name: quota for own in rounds if (quota := _json(run, own.quota))},
        "shortfall": next((reasons for record in reversed(records) if (reasons := record["counts"].get("reasons"))), None),
        "evaluation": _json(run, EVALUATION),
        "search": _json(run, "search.json"),
        "alignment": {own.name: log for own in map(Round.of, range(config.rounds)) if (log := _json(run, own.alignment))},
    }
    found |= {key: value for key, value in optional.items() if value}
    found["seconds"] = {record["stage"]: record["seconds"] for record in records}
    found["versions"] = _json(run, VERSIONS) or {}
    return {"headline": say.headline(found), "findings": say.findings(found), **found}


def _json(run: RunFolder, name: str) -> Any:
    """A file's value, or ``None`` without that file; numbers in it that are not finite become ``None``, too."""
    return json.loads(json.dumps(run.read_json(name)), parse_constant=lambda constant: None) if run.exists(name) else None


def _losses(book: Account, view: dict[str, Any]) -> dict[str, dict[str, int]]:
    """What was lost on the way to each step (step -> reason -> count), without naive candidates."""
    lost: dict[str, dict[str, int]] = {}
    if "valid" in view:
        pending = view["candidates"] - view["valid"] - sum(view["rejections"].values())
        lost["valid"] = view["rejections"] | ({"not sampled yet": pending} if pending else {})
    if "correct" in view:
        reasons = book.reasons("lost", book.of())
        failed = reasons.pop(GATE, 0)
        lost |= {"unique": reasons, "correct": {GATE: failed} if failed else {}}
    if "selected" in view and view.get("correct", 0) > view["selected"]:
        lost["selected"] = {"more than K asked for": view["correct"] - view["selected"]}
    return lost


def render(config: Config, summary: say.Summary, excerpts: dict[str, Any]) -> str:
    """The report as HTML text; a section without data is left out."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("divray", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    filters = (say.fixed, say.score, say.percent, say.signed_interval, say.round_name, pieces, side_by_side, clock)
    environment.filters |= {function.__name__: function for function in filters}
    evaluation: say.Evaluation = summary.get("evaluation", {})
    return environment.get_template("page.html.j2").render(
        s=summary,
        steps=[step for step in STEPS if step in summary],
        evaluation=evaluation,
        metric=say.METRICS[evaluation[say.BOTH]["metric"]] if evaluation else "",
        excerpts=excerpts,
        charts=charts_of(summary, excerpts),
    )
