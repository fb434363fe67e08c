"""Where the engines' time went: busy, or idle and why; and what it cost, if the user names a price."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from divray.report.account import rounds_of
from divray.report.intervals import union_length
from divray.report.scan import batches

if TYPE_CHECKING:
    import numpy as np

    from divray.config import Config
    from divray.run_folder import RunFolder

CAUSES = ("start_up", "waiting_for_input", "back_pressure", "tail")
"""Of an idle engine: it loads the model; nothing has come for it to do; what follows it is full; the last
requests are done and the pass is not over."""

Intervals = dict[str, tuple["np.ndarray", "np.ndarray"]]


def engine_time(config: Config, run: RunFolder) -> dict[str, Any]:
    """Seconds of all engines of all passes; ``{}`` where no pass has left its record.

    Returns:
        ``busy_seconds``, ``idle_seconds`` (cause -> seconds), ``busy_share`` in [0, 1], ``engines`` and
        ``per_round`` with the same fields for each round.
    """
    rounds = {}
    for number in rounds_of(config, run):
        table = f"round-{number:02d}/completions"
        records = [run.read_json(name) for name in run.files(f"{table}.engines", ".json")]
        if records:
            intervals = requests(run, table)
            rounds[f"round-{number:02d}"] = _total([_pass(record, intervals) for record in records])
    if not rounds:
        return {}
    return {**_total(list(rounds.values())), "per_round": rounds}


def requests(run: RunFolder, table: str) -> Intervals:
    """Engine -> start and end of each of its requests, Unix seconds."""
    import numpy as np

    parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)
    for batch in batches(run, table, ["engine", "started_at", "finished_at"]):
        names = np.asarray([name or "" for name in batch["engine"].to_pylist()], dtype=object)
        starts, ends = (batch[name].to_numpy(zero_copy_only=False) for name in ("started_at", "finished_at"))
        for name in set(names) - {""}:
            parts[name].append((starts[names == name], ends[names == name]))
    return {name: (np.concatenate([p[0] for p in own]), np.concatenate([p[1] for p in own])) for name, own in parts.items()}


def _pass(record: dict[str, Any], intervals: Intervals) -> dict[str, Any]:
    """The time of one pass's engines, from when their processes began until the pass was over."""
    import numpy as np

    engines: dict[str, dict[str, Any]] = record["engines"]
    idle, busy = dict.fromkeys(CAUSES, 0.0), 0.0
    for name, engine in engines.items():
        created, ready = engine["created_at"], engine["ready_at"]
        starts, ends = intervals.get(name, (np.empty(0), np.empty(0)))
        own = (starts >= created) & (ends <= (record["ended_at"] or np.inf))
        starts, ends = starts[own], ends[own]
        last = float(ends.max(initial=ready or created))
        # One that was replaced, or whose driver was killed, has left no word of its end.
        replaced = [other["created_at"] for other in engines.values() if other is not engine and other["created_at"] >= last]
        over = min(replaced) if replaced else record["ended_at"] or last
        if ready is None:
            idle["start_up"] += over - created
            continue
        worked = union_length(starts, ends)
        waiting = max(0.0, last - ready - worked)
        held = min(waiting, record["backpressure_seconds"] / len(engines))
        busy += worked
        idle["start_up"] += ready - created
        idle["back_pressure"] += held
        idle["waiting_for_input"] += waiting - held
        idle["tail"] += max(0.0, over - last)
    return {"busy_seconds": busy, "idle_seconds": idle, "engines": len(engines)}


def _total(parts: list[dict[str, Any]]) -> dict[str, Any]:
    busy = sum(part["busy_seconds"] for part in parts)
    idle = {cause: round(sum(part["idle_seconds"][cause] for part in parts), 3) for cause in CAUSES}
    whole = busy + sum(idle.values())
    return {
        "busy_seconds": round(busy, 3),
        "idle_seconds": idle,
        "busy_share": round(busy / whole, 4) if whole else 0.0,
        "engines": sum(part["engines"] for part in parts),
    }


def money(config: Config, summary: dict[str, Any]) -> dict[str, float]:
    """What sampling cost at the user's prices, and one accepted sample; ``{}`` without prices.

    Engine-hours count busy and idle time; tokens are those of prompts and completions, the naive
    baseline's included in both.
    """
    found: dict[str, float] = {}
    time = summary.get("engine_time")
    if config.engine.price_per_hour is not None and time:
        hours = (time["busy_seconds"] + sum(time["idle_seconds"].values())) / 3600
        found["engine_hours"] = round(hours * config.engine.price_per_hour, 6)
    if config.engine.price_per_million_tokens is not None and "generated_tokens" in summary:
        views = [summary, summary.get("naive", {})]
        tokens = sum(view.get("generated_tokens", 0) + view.get("prompt_tokens", 0) for view in views)
        found["tokens"] = round(tokens * config.engine.price_per_million_tokens / 1e6, 6)
    if found:
        found["total"] = round(sum(found.values()), 6)
        if summary.get("correct"):
            found["per_accepted"] = round(found["total"] / summary["correct"], 6)
    return found
