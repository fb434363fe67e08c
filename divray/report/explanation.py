"""An explanation (:func:`divray.explain.explain`) as lines for the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from divray.report.sentences import Piece, pieces, side_by_side, visible

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

Row = dict[str, Any]

STYLES = {"head": "bold blue", "tail": "bold yellow", "shared": "green", "differs": "red"}
OUTCOMES = {
    "selected": "bold green",
    "accepted": "bold green",
    "seed": "bold green",
    "more than K": "bold yellow",
    "pending": "bold yellow",
}
_PROMPT = 1200


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
        yield Text(_scores(found))
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


def _scores(found: Row) -> str:
    scores = found["scores"]
    gate = f"judge {scores['correctness']:.3f} ({'passes' if scores['correct'] else 'fails'} the gate, {found['gate']})"
    return f"{gate} · novelty {scores['novelty']:.3f} · {visible(scores['reason'])}"


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
