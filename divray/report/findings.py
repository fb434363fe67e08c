"""What a run shows, in sentences that hold whichever way it went."""

from __future__ import annotations

from typing import Any

from divray.review import as_sentence

Evaluation = dict[str, dict[str, Any]]

SEEDS, BOTH, NAIVE, LLM = "seeds", "seeds+generated", "naive", "llm"
"""Training sets of the evaluation, and the LLM itself; the samples of one round alone are named like its folder."""


def headline(summary: dict[str, Any]) -> str:
    """The run's main result in one sentence, computed from the summary."""
    evaluation = summary.get("evaluation", {})
    if SEEDS in evaluation and BOTH in evaluation:
        sentence = f"Seeds + generated: {_score(evaluation, BOTH)} against {percent(evaluation[SEEDS])} with the seeds alone"
        return f"{sentence} ({_verdict(evaluation, BOTH, SEEDS)})."
    if evaluation:
        best = max(evaluation, key=lambda name: evaluation[name]["mean"])
        return f"Best of {len(evaluation)} training sets: {best}, {_score(evaluation, best)}."
    if "correct" in summary:
        return f"{summary['candidates']:,} candidates gave {summary['correct']:,} unique and correct samples; nothing is evaluated yet."
    return f"{summary.get('candidates', 0):,} candidates asked for; nothing has been scored yet."


def findings(summary: dict[str, Any]) -> list[str]:
    """Further results worth a line: training sets against each other, diversity, cost."""
    evaluation = summary.get("evaluation", {})
    rounds = sorted(name for name in evaluation if name.startswith("round-"))
    lines = []
    if NAIVE in evaluation and rounds:
        last = rounds[-1]
        text = (
            f"Generated alone: {_score(evaluation, last)} ({round_name(last)}) against {percent(evaluation[NAIVE])} from the naive prompt"
        )
        lines.append(f"{text} ({_verdict(evaluation, last, NAIVE)}).")
    if len(rounds) > 1:
        first, last = rounds[0], rounds[-1]
        text = f"After preference tuning: {_score(evaluation, last)} against {percent(evaluation[first])} before it"
        lines.append(f"{text} ({_verdict(evaluation, last, first)}).")
    reference = BOTH if BOTH in evaluation else rounds[-1] if rounds else ""
    if LLM in evaluation and reference:
        text = f"The LLM doing the task itself reaches {_score(evaluation, LLM)}; the small model trained on {reference}"
        lines.append(f"{text} {percent(evaluation[reference])}.")
    return (
        reading(summary)
        + [f"{name} has fewer samples than asked for: {reason}." for name, reason in summary.get("shortfall", {}).items()]
        + lines
        + _likeness_finding(summary.get("likeness", {}))
        + _diversity_finding(summary)
        + _cost_finding(summary)
        + _quota_findings(summary)
        + _engine_finding(summary)
    )


def reading(summary: dict[str, Any]) -> list[str]:
    """What people and the second judge say of the selected samples."""
    lines = []
    if read := summary.get("review"):
        lines.append(as_sentence(read))
    if (audited := summary.get("mean_correctness_selected")) is not None:
        lines.append(f"By a second judge, on which nothing in the loop depends, {audited:.0%} of the selected samples are right.")
    return lines


def metric_name(entry: dict[str, Any]) -> str:
    """``micro-F1`` for the metric ``micro``, and so on."""
    metric = str(entry.get("metric", "F1"))
    return {"micro": "micro-F1", "macro": "macro-F1", "semeval": "official macro-F1"}.get(metric, metric)


def round_name(name: str) -> str:
    """``round 0`` for ``round-00``; other names as they stand."""
    return f"round {int(name[6:])}" if name.startswith("round-") and name[6:].isdigit() else name


def percent(entry: dict[str, Any]) -> str:
    """The mean score of a training set in per cent."""
    return f"{100 * entry['mean']:.1f}"


def _score(evaluation: Evaluation, which: str) -> str:
    return f"{percent(evaluation[which])} {metric_name(evaluation[which])}"


def signed_interval(evaluation: Evaluation, new: str, old: str) -> str:
    """The paired difference with its 95 % interval; ``""`` where the two were not compared."""
    found = evaluation[new].get("differences", {}).get(old)
    if not found:
        return ""
    mean, low, high = (f"{100 * found[name]:+.1f}".replace("-", "−") for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def _verdict(evaluation: Evaluation, new: str, old: str) -> str:
    found = evaluation[new].get("differences", {}).get(old)
    if not found:
        return "not compared"
    verdict = "better" if found["low"] > 0 else "worse" if found["high"] < 0 else "not established"
    return f"{signed_interval(evaluation, new, old)}, {verdict}"


def _likeness_finding(likeness: dict[str, float]) -> list[str]:
    told = ", ".join(f"{round_name(name)} {value:.2f}" for name, value in likeness.items())
    return [f"Told from human sentences by a fresh classifier (AUC, 0.50: not at all): {told}."] if told else []


def _diversity_finding(summary: dict[str, Any]) -> list[str]:
    means = summary.get("diversity_at_equal_size", {}).get("mean", {})
    rounds = sorted(name for name in means if name.startswith("round-"))
    if not rounds or "seeds" not in means or means["seeds"]["vendi_ngram"] is None:
        return []
    sizes = sorted(set(summary["diversity_at_equal_size"]["size"].values()))
    size = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    shown = ", ".join(f"{means[name]['vendi_ngram']:.2f} in {round_name(name)}" for name in rounds)
    text = f"Vendi score of {size} masked sentences (n-grams): {means['seeds']['vendi_ngram']:.2f} for the seeds, {shown}"
    correctness = [summary.get("per_round", {}).get(name, {}).get("mean_correctness") for name in rounds]
    if all(value is not None for value in correctness):
        text += "; mean correctness by the second judge " + " → ".join(f"{value:.2f}" for value in correctness)
    return [text + "."]


def _cost_finding(summary: dict[str, Any]) -> list[str]:
    cost, naive = summary.get("tokens_per_accepted"), summary.get("naive", {}).get("tokens_per_accepted")
    if cost is None:
        return []
    text = f"An accepted sample cost {cost:,.0f} generated tokens"
    if "engine_seconds_per_accepted" in summary:
        text += f" and {summary['engine_seconds_per_accepted']:,.2f} engine-seconds"
    return [text + (f"; with the naive prompt {naive:,.0f} tokens." if naive else ".")]


def _quota_findings(summary: dict[str, Any]) -> list[str]:
    lines = []
    for name, quota in summary.get("quota", {}).items():
        short = [relation for relation, entry in quota["relations"].items() if entry["missing"]]
        reached = "every relation reached it" if not short else f"{quota['missing']:,} samples are missing in {', '.join(short)}"
        ended = "" if quota["ended_by"] == "quota" else f" (ended by the cap on {quota['ended_by']})"
        saved = f"{quota['tokens_saved']:,} tokens saved against {quota['fixed_candidates_per_relation']:,} candidates for each relation"
        lines.append(f"Quota of {quota['quota']} in {round_name(name)}: {reached}{ended}; {saved}.")
    return lines


def _engine_finding(summary: dict[str, Any]) -> list[str]:
    time = summary.get("engine_time")
    if not time:
        return []
    idle = ", ".join(f"{seconds:,.0f} s {cause.replace('_', ' ')}" for cause, seconds in time["idle_seconds"].items() if seconds >= 0.5)
    text = f"Engines were busy {100 * time['busy_share']:.0f} % of their time" + (f" (idle: {idle})" if idle else "")
    return [text + (f"; {summary['money']['total']:,.4g} spent at the given prices." if "money" in summary else ".")]
