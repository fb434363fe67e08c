"""What a run and an explanation say on the terminal, as rich's tables and texts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from divray.report.account import STEPS
from divray.report.excerpts import Piece, pieces, side_by_side
from divray.report.findings import SEEDS, metric_name, percent, reading, round_name, signed_interval
from divray.texts import visible

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

Row = dict[str, Any]

COLUMNS = {
    "vendi_ngram": "vendi n-gram",
    "vendi_embedding": "vendi embed.",
    "distinct_2": "distinct-2",
    "self_bleu": "self-BLEU",
    "rouge_l": "ROUGE-L",
    "pattern_entropy": "patterns",
    "mean_cosine": "cosine",
}
STYLES = {"head": "bold blue", "tail": "bold yellow", "shared": "green", "differs": "red"}
OUTCOMES = {**dict.fromkeys(("selected", "accepted", "seed"), "bold green"), **dict.fromkeys(("more than K", "pending"), "bold yellow")}
_PROMPT = 1200


def tables(summary: dict[str, Any]) -> Iterator[RenderableType]:
    """What ``divray run`` prints, in order; tables without data are left out."""
    from rich.text import Text

    yield Text()
    yield Text(visible(summary["headline"]), style="bold")
    for line in reading(summary):
        yield Text(visible(line))
    yield Text()
    if "candidates" in summary:
        yield _funnel(summary)
    if summary.get("evaluation"):
        yield _scores(summary["evaluation"])
    if summary.get("diversity"):
        yield _diversity(summary)
    if "generated_tokens" in summary:
        yield _cost(summary)


def _funnel(summary: dict[str, Any]) -> Table:
    steps = [step for step in STEPS if step in summary]
    table = _table("From candidates to the data set", "", *steps)
    rows = {round_name(name): view for name, view in summary["per_round"].items()} if len(summary["per_round"]) > 1 else {}
    for name, view in rows.items():
        table.add_row(name, *(f"{view.get(step, 0):,}" for step in steps))
    table.add_row("all", *(f"{summary[step]:,}" for step in steps), style="bold")
    if "naive" in summary:
        table.add_row("naive prompt", *(_number(summary["naive"].get(step), 0) for step in steps), style="dim")
    lost = [f"{count:,} {_text(reason).replace('_', ' ')}" for step in summary["losses"].values() for reason, count in step.items()]
    if lost:
        table.caption = "lost: " + ", ".join(lost[:8]) + (f", and {len(lost) - 8} more" if len(lost) > 8 else "")
    return table


def _scores(evaluation: dict[str, dict[str, Any]]) -> Table:
    alarms = any(entry.get("false_positives") is not None for entry in evaluation.values())
    metrics = ", ".join(sorted({metric_name(entry) for entry in evaluation.values()}))
    table = _table(
        f"{metrics} on the test set", "trained on", "K", "examples", "mean", "±", "against seeds", *(["false positives"] if alarms else [])
    )
    best = max(evaluation, key=lambda name: evaluation[name]["mean"])
    for name, entry in evaluation.items():
        several = len(entry.get("per_draw") or []) > 1
        spread = f"{100 * (entry.get('std') or 0.0):.1f}" if several else ""
        against = signed_interval(evaluation, name, SEEDS)
        counts = [_number(entry.get(field), 0) for field in ("k", "examples")]
        share = [_number(entry.get("false_positives"), 2)] if alarms else []
        table.add_row(_text(name), *counts, percent(entry), spread, against, *share, style="bold" if name == best else "")
    return table


def _diversity(summary: dict[str, Any]) -> Table:
    table = _table("Diversity of masked sentences", "", *COLUMNS.values(), "correctness")
    sets = {**summary.get("diversity_reference", {}), **summary["diversity"]}
    for name in sorted(sets, key=lambda n: (n != "seeds", n != "test", n == "selected", n)):
        view = summary.get("naive", {}) if name == "naive" else summary["per_round"].get(name, {})
        correctness = summary.get("mean_correctness_selected") if name == "selected" else view.get("mean_correctness")
        values = [*(sets[name].get(score) for score in COLUMNS), correctness]
        table.add_row("human test set" if name == "test" else round_name(name), *(_number(value, 2) for value in values))
    table.caption = (
        "Means over relations. Vendi and pattern entropy grow with the number of sentences; the report compares at equal size. "
        "Correctness is by a second judge that nothing in the loop depends on."
    )
    return table


def _cost(summary: dict[str, Any]) -> Table:
    table = _table("Cost", "", "tokens", "engine-seconds", "tokens/accepted", "engine-s/accepted")
    views = [(_text(name), view) for name, view in summary["per_strategy"].items()]
    views = views if len(views) > 1 else []
    for name, models in summary.get("per_policy", {}).items():
        views += [(f"{round_name(name)}, {policy} model", view) for policy, view in models.items()]
    views += [("all", summary), *([("naive prompt", summary["naive"])] if "naive" in summary else [])]
    for name, view in views:
        fields = (("generated_tokens", 0), ("engine_seconds", 1), ("tokens_per_accepted", 0), ("engine_seconds_per_accepted", 2))
        table.add_row(name, *(_number(view.get(field), digits) for field, digits in fields))
    return table


def _table(title: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", caption_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place == 0 else "right")
    return table


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _text(value: object) -> str:
    """Plain text for a rich table: no markup, no control characters."""
    from rich.markup import escape

    return escape(visible(value))


def explanation(found: Row) -> Iterator[RenderableType]:
    """What ``divray explain`` prints, in order."""
    from rich.text import Text

    head = Text.assemble((visible(found["id"]), "bold"), f"  {visible(found['relation'])}  ")
    yield head + Text(found["outcome"], OUTCOMES.get(found["outcome"], "bold red"))
    yield Text(visible(found["why"]))
    if found["sentence"]:
        yield _titled("sentence")
        yield _styled(pieces(found["sentence"]))
    elif found.get("completion") is not None:
        yield _titled("completion")
        yield Text(visible(found["completion"].strip()) or "(nothing)")
    if found["scores"]:
        yield _titled("scores")
        scores = found["scores"]
        gate = f"judge {scores['correctness']:.3f} ({'passes' if scores['correct'] else 'fails'} the gate, {found['gate']})"
        yield Text(f"{gate} · novelty {scores['novelty']:.3f} · {visible(scores['reason'])}")
    yield from _origin(found["origin"])
    for key, title in (("conflict", "the same sentence under another label"), ("near_test", "test sentence that it comes near")):
        if found[key]:
            yield _titled(title)
            yield Text(f"{visible(found[key]['id'])}  {visible(found[key]['relation'])}", "dim")
            yield _compared(found["sentence"], found[key])
    if found["neighbours"]:
        yield _titled(f"nearest neighbours (near-duplicates from {found['threshold']:g}; shared words in green)")
        for row in found["neighbours"]:
            yield Text(f"{row['similarity']:.2f}  {'kept' if row['kept'] else 'dropped'}  {visible(row['id'])}", "dim")
            yield _compared(found["sentence"], row)
    if found["cluster"] and found["cluster"]["size"] > 1:
        cluster = found["cluster"]
        yield _titled(f"cluster {visible(cluster['id'])}: {cluster['size']:,} samples, {cluster['kept']:,} kept")
        for row in cluster["members"]:
            mark = "→" if row["id"] == found["id"] else " "
            yield Text(f"{mark} {'kept   ' if row['kept'] else 'dropped'}  {visible(row['id'])}  ", "dim") + _styled(pieces(row))
        if cluster["size"] > len(cluster["members"]):
            yield Text(f"  and {cluster['size'] - len(cluster['members']):,} more", "dim")
    if found["pairs"]:
        yield _titled("preference pairs")
        for row in found["pairs"]:
            side, other = ("chosen", row["rejected_id"]) if row["chosen_id"] == found["id"] else ("rejected", row["chosen_id"])
            yield Text(f"{row['round']}  {side}, against {visible(other)} ({visible(row['kind'])})")


def _origin(origin: Row) -> Iterator[RenderableType]:
    from rich.text import Text

    yield _titled("where it came from")
    if origin["round"] is None:
        yield Text(f"{origin['strategy']}; shown as a demonstration in {origin['prompts']:,} prompts")
        return
    facts = [f"round {origin['round']}", f"strategy {origin['strategy']}", f"prompt {origin['prompt_id']}", f"model {origin['model']}"]
    facts += [f"{name} {origin[key]}" for key, name in (("engine", "engine"), ("seed", "seed")) if key in origin]
    if "generated_tokens" in origin:
        facts.append(f"{origin['prompt_tokens']:,} + {origin['generated_tokens']:,} tokens")
    if "seconds" in origin:
        facts.append(f"{origin['seconds']:.1f} s")
    yield Text(visible(" · ".join(facts)))
    if origin.get("error"):
        yield Text(visible(origin["error"]), "red")
    for row in origin["demonstrations"]:
        yield Text(f"  shown: {visible(row['id'])}  ", "dim") + (_styled(pieces(row)) if row.get("text") else Text())
    prompt = visible(origin["prompt"].strip())
    yield Text(prompt if len(prompt) <= _PROMPT else "… " + prompt[-_PROMPT:], "dim")


def _compared(own: Row, other: Row) -> Text:
    """The other sentence, with the words that both have marked."""
    return _styled(side_by_side(own, other)[1], shared=True)


def _styled(parts: list[Piece], shared: bool = False) -> Text:
    from rich.text import Text

    text = Text()
    for part in parts:
        name = next((name for name in ("head", "tail", "differs") if name in part.classes.split()), "shared" if shared else "")
        text.append(part.text, STYLES.get(name, ""))
    return text


def _titled(title: str) -> Text:
    from rich.text import Text

    return Text(f"\n{title}", "bold underline")
