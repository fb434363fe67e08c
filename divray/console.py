"""What a run says on the terminal: progress and short lines on stderr, the result on stdout."""

from __future__ import annotations

import functools
import io
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from divray.errors import DivrayError

if TYPE_CHECKING:
    from rich.console import Console

SPARSE_SECONDS = 15.0
"""Least time between two progress lines where stderr is no terminal."""

_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")
_STARTED = time.monotonic()


def configure() -> None:
    """Get both streams ready for a terminal of any encoding."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # escape what the terminal's encoding lacks instead of failing
            stream.reconfigure(errors="backslashreplace")


def log(line: str) -> None:
    """One short line with the time since the program began."""
    from rich.text import Text

    _console(stderr=True).print(Text.assemble((f"{clock(time.monotonic() - _STARTED):>8}  ", "dim"), printable(line)), soft_wrap=True)


@contextmanager
def stage_progress(label: str, unit: str = "rows") -> Iterator[Callable[..., None]]:
    """Show a stage's progress while the block runs: a bar on a terminal, elsewhere a plain line at most every 15 s.

    Yields:
        ``update(done, total=None, note="")``, with ``done`` counted from 0 in ``unit``; may be called from any thread.
    """
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console, started = _console(stderr=True), time.monotonic()
    said = started
    columns = TextColumn("{task.description}"), BarColumn(bar_width=28), TextColumn("{task.fields[text]}", style="cyan")
    bar = Progress(*columns, TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal)
    task = bar.add_task(escape(label), total=None, text="")

    def update(done: int, total: int | None = None, note: str = "") -> None:
        nonlocal said
        now = time.monotonic()
        facts = [f"{done / max(now - started, 1e-9):,.1f}/s", printable(note)]
        if total and done:
            facts.insert(1, f"{clock((total - done) * (now - started) / done)} left")
        text = f"{done:,}{f' of {total:,}' if total else ''} {unit} ({', '.join(filter(None, facts))})"
        bar.update(task, completed=done, total=total, text=escape(text))
        if bar.disable and now - said >= SPARSE_SECONDS:
            said = now
            log(f"{label}: {text}")

    with bar:
        yield update


def print_error(error: BaseException, raised: BaseException | None = None) -> None:
    """Print one line: the message of a :class:`DivrayError`; for any other error its type, too, below the traceback of ``raised`` (default:
    of the error), which may hold that of a worker."""
    from rich.text import Text

    message = printable(str(error))
    if not isinstance(error, DivrayError):
        print(visible("".join(traceback.format_exception(raised or error))), file=sys.stderr)
        message = ": ".join(filter(None, (type(error).__name__, message)))
    _console(stderr=True).print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)


def show(items: Iterable[Any]) -> None:
    """The result of a command, as rich's tables and texts, on stdout."""
    for item in items:
        _console().print(item)


def ask(text: str) -> str:
    """Show ``text`` on stdout and return the next line of stdin in lower case, or ``q`` if stdin has ended."""
    console = _console()
    console.rule()
    console.print("\n".join(printable(line) for line in text.split("\n")), markup=False, end="")
    line = sys.stdin.readline()
    return line.strip().lower() if line else "q"


def clock(seconds: float) -> str:
    """``8.2 s``, ``3:20`` (minutes) or ``2:05:00`` (hours)."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def visible(text: object) -> str:
    """``text`` with control, direction and zero-width characters replaced by ``\N{REPLACEMENT CHARACTER}``, so that none disguises it."""
    return _INVISIBLE.sub("\N{REPLACEMENT CHARACTER}", str(text))


def printable(text: str) -> str:
    """``text`` on one line, and :func:`visible`, so that generated text can't steer the terminal."""
    return visible(" ".join(text.splitlines()))


@functools.cache
def _console(stderr: bool = False) -> Console:
    """Rich's console for stdout or stderr.  At each print, the console looks the stream up, so that a replaced stream works."""
    from rich.console import Console

    return Console(stderr=stderr, width=None if stderr or sys.stdout.isatty() else 110, highlight=False)
