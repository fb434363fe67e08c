"""A run's results: sentences that fit every outcome, and what ``divray run`` prints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from divray.console import visible
from divray.report.account import STEPS
from divray.review import as_sentence

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

Summary = dict[str, Any]
Evaluation = dict[str, dict[str, Any]]

SEEDS, BOTH, NAIVE, LLM = "seeds", "seeds+generated", "naive", "llm"
"""Names of the evaluation's training sets and of the LLM itself; a set of one round's samples has the name of the round's folder."""

METRICS = {"micro": "micro-F1", "macro": "macro-F1", "semeval": "official macro-F1"}
"""``task.metric`` -> what it is called."""

DIFFERENCES = ("differences", "own_differences")
"""Differences of two training sets' scores: in all draws of the human examples, and in the draw that the LLM saw."""

LEAST_DRAWS = 5
"""With fewer draws of the human examples their spread is unknown, and the interval too narrow for a verdict."""

SHORT = 3


def headline(summary: Summary) -> str:
    """The run's main result in one sentence."""
    if evaluation := summary.get("evaluation"):
        return _against(evaluation, BOTH, SEEDS, "Seeds + generated", "with the seeds alone")
    gave = f" gave {summary['correct']:,} unique and correct samples" if "correct" in summary else ""
    return f"{summary.get('candidates', 0):,} candidates{gave}; nothing is evaluated yet."


def findings(summary: Summary) -> list[str]:
    """Further results worth a line: training sets against each other, diversity, cost."""
    return [
        *_of_correctness(summary),
        *shortfalls(summary.get("shortfall", {})),
        *_of_training_sets(summary.get("evaluation", {})),
        *_of_diversity(summary),
        *_of_cost(summary),
    ]


def shortfalls(reasons: Mapping[str, str]) -> list[str]:
    """Which relations have too few samples, and why.  Of more than ``SHORT + 1``, explain the first and name the rest; the card has all."""
    told = [f"{name} has fewer samples than asked for: {reason}." for name, reason in reasons.items()]
    more = f"So have {len(told) - SHORT} further relations: {', '.join(list(reasons)[SHORT:])}."
    return told if len(told) <= SHORT + 1 else [*told[:SHORT], more]


def _of_correctness(summary: Summary) -> Iterator[str]:
    """How many selected samples are right, by people and by the second judge."""
    if read := summary.get("review"):
        yield as_sentence(read)
    if (audited := summary.get("mean_correctness_selected")) is not None:
        yield f"A second judge (another LLM's reading, and the gate's score) finds {audited:.0%} of the selected samples right."


def _of_training_sets(evaluation: Evaluation) -> Iterator[str]:
    rounds = _rounds(evaluation)
    if NAIVE in evaluation and rounds:
        note = f" ({round_name(rounds[-1])}{_samples(evaluation[rounds[-1]])})"
        yield _against(evaluation, rounds[-1], NAIVE, "Generated alone", f"from the naive prompt{_samples(evaluation[NAIVE])}", note)
    if len(rounds) > 1:
        last, first = (_samples(evaluation[name]) for name in (rounds[-1], rounds[0]))
        yield _against(evaluation, rounds[-1], rounds[0], "After preference tuning", f"before it{first}", f" in this run{last}")
    if LLM in evaluation:
        asked, all_ = (evaluation[name].get("test") for name in (LLM, BOTH))
        on = "" if asked == all_ else f" on {asked} of the {all_} test sentences"
        reached = f"The LLM doing the task itself reaches {_score(evaluation[LLM])}{on}"
        yield f"{reached}; the small model trained on {BOTH} {score(evaluation[BOTH]['mean'])}{' on all' if on else ''}."


def _of_diversity(summary: Summary) -> Iterator[str]:
    if told := ", ".join(f"{round_name(name)} {value:.2f}" for name, value in summary.get("likeness", {}).items()):
        yield f"How well a fresh classifier tells samples from human sentences (AUC, 0.50: not at all): {told}."
    level = summary.get("diversity_at_equal_size", {"mean": {}})
    scores = {name: f"{values['vendi_ngram']:.2f}" for name, values in level["mean"].items()}
    if rounds := _rounds(scores):
        least, most = min(level["size"].values()), max(level["size"].values())
        size = f"{least}" if least == most else f"{least} to {most}"
        shown = ", ".join(f"{scores[name]} in {round_name(name)}" for name in rounds)
        yield f"Vendi score of {size} masked sentences (n-grams): {scores[SEEDS]} for the seeds, {shown}."


def _of_cost(summary: Summary) -> Iterator[str]:
    if (cost := summary.get("tokens_per_accepted")) is not None:
        text = f"An accepted sample cost {cost:,.0f} generated tokens and {summary['engine_seconds_per_accepted']:,.2f} engine-seconds"
        naive = summary.get("naive", {}).get("tokens_per_accepted")
        yield text + (f"; with the naive prompt {naive:,.0f} tokens." if naive else ".")
    for name, quota in summary.get("quota", {}).items():
        missing = f"{quota['missing']:,} samples are missing" if quota["missing"] else "every relation reached it"
        yield f"Quota of {quota['quota']} in {round_name(name)}: {missing}."
    if time := summary.get("engine_time"):
        idle = ", ".join(f"{seconds:,.0f} s {cause.replace('_', ' ')}" for cause, seconds in time["idle_seconds"].items() if seconds >= 0.5)
        yield f"Engines were busy {100 * time['busy_share']:.0f} % of their time{f' (idle: {idle})' if idle else ''}."


def round_name(name: str) -> str:
    """``round 0`` for ``round-00``; other names as they stand."""
    return f"round {int(name[6:])}" if name.startswith("round-") and name[6:].isdigit() else name


def fixed(value: float | None, digits: int = 2) -> str:
    """A number with ``digits`` decimals; ``–`` for ``None``."""
    return "–" if value is None else f"{value:,.{digits}f}".replace("-", "−")


def score(value: float | None) -> str:
    """A score in [0, 1] in per cent."""
    return fixed(None if value is None else 100 * value, 1)


def percent(value: float) -> str:
    """A share in per cent; a small one with a decimal."""
    return f"{100 * value:.0f} %" if value >= 0.1 else f"{100 * value:.1f} %"


def signed_interval(evaluation: Evaluation, new: str, old: str, of: str = "differences") -> str:
    """The paired difference with its 95 % interval; ``""`` where the two were not compared."""
    found = evaluation[new].get(of, {}).get(old)
    if not found:
        return ""
    mean, low, high = (f"{100 * found[name]:+.1f}".replace("-", "−") for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def _against(evaluation: Evaluation, new: str, old: str, what: str, how: str, note: str = "") -> str:
    verdict = "not compared"
    if found := [one for kind in DIFFERENCES if (one := evaluation[new].get(kind, {}).get(old))]:
        better, worse = all(one["low"] > 0 for one in found), all(one["high"] < 0 for one in found)
        draws = max(len(evaluation[name]["per_draw"]) for name in (new, old))
        few = f"not established by {'one draw' if draws == 1 else f'{draws} draws'}" if draws < LEAST_DRAWS else ""
        shown = [signed_interval(evaluation, new, old, kind) for kind in DIFFERENCES]
        own = f"; on the examples that the LLM saw {shown[1]};" if shown[1] else ","
        verdict = f"{shown[0]}{own} {few or ('better' if better else 'worse' if worse else 'not established')}"
    return f"{what}: {_score(evaluation[new])}{note} against {score(evaluation[old]['mean'])} {how} ({verdict})."


def _samples(entry: dict[str, Any]) -> str:
    return f", {entry['examples']:,} samples" if entry.get("examples") else ""


def _score(entry: dict[str, Any]) -> str:
    return f"{score(entry['mean'])} {METRICS[entry['metric']]}"


def _rounds(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if name.startswith("round-"))


def tables(summary: Summary) -> Iterator[RenderableType]:
    """What ``divray run`` prints, in order."""
    from rich.text import Text

    yield Text(f"\n{visible(summary['headline'])}", style="bold")
    yield Text("".join(f"- {visible(line)}\n" for line in summary["findings"]))
    yield Text(", ".join(f"{summary[step]:,} {step}" for step in STEPS if step in summary) + ".\n")
    yield _scores(summary["evaluation"])


def _scores(evaluation: Evaluation) -> Table:
    """The score of each training set and of each file of answers, which the user has named."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    title = f"{METRICS[evaluation[BOTH]['metric']]} on the test set"
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("trained on")
    for column in ("K", "examples", "mean", "±", "against seeds", "in the LLM's draw"):
        table.add_column(column, justify="right")
    for name, entry in evaluation.items():
        spread = score(entry["std"]) if len(entry["per_draw"]) > 1 else ""
        cells = [fixed(entry.get("k"), 0), fixed(entry.get("examples"), 0), score(entry["mean"]), spread]
        cells += [signed_interval(evaluation, name, SEEDS, kind) for kind in DIFFERENCES]
        table.add_row(escape(visible(name)), *cells, style="bold" if name == BOTH else "")
    return table
