"""What a run says on the terminal: progress and short lines on stderr, the result on stdout."""

from __future__ import annotations

import io
import json
import re
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from divray.errors import DivrayError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

Update = Callable[..., None]
"""``update(done, total=None, note="")``: how far a stage is; may be called from any thread."""

SPARSE_SECONDS = 15.0
"""Least time between two progress lines where stderr is no terminal."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass
class _State:
    quiet: bool = False
    started: float = field(default_factory=time.monotonic)
    live: Progress | None = None
    stderr: Console | None = None
    lock: threading.RLock = field(default_factory=threading.RLock)


_state = _State()


def configure(quiet: bool = False) -> None:
    """Start the clock of :func:`log` anew, for a terminal of any encoding; ``quiet`` leaves only errors and the summary."""
    _state.quiet, _state.started, _state.stderr = quiet, time.monotonic(), None
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a character that the terminal's encoding lacks is no reason to end
            stream.reconfigure(errors="backslashreplace")


def log(line: str) -> None:
    """One short line with the time since the start."""
    if not _state.quiet:
        from rich.text import Text

        _console().print(Text.assemble((f"{clock(time.monotonic() - _state.started):>8}  ", "dim"), printable(line)), soft_wrap=True)


@contextmanager
def stage_progress(label: str, total: int | None = None, unit: str = "rows") -> Iterator[Update]:
    """Show how far a stage is while the block runs.

    On a terminal a bar with rate and remaining time; elsewhere a plain line at most every 15 s.  A
    closing line says what was done in what time, unless the block raises or nothing was ever reported.
    Blocks may be nested.

    Yields:
        ``update(done, total=None, note="")``, with ``done`` counted from 0 in ``unit``.
    """
    if _state.quiet:
        yield lambda done, total=None, note="": None
        return
    started = time.monotonic()
    seen: dict[str, Any] = {"done": 0, "total": total, "note": ""}
    show, close = (_bar if _console().is_terminal else _sparse)(label, total, unit, started)

    def update(done: int, total: int | None = None, note: str = "") -> None:
        with _state.lock:
            seen.update(done=done, total=total if total is not None else seen["total"], note=note)
            show(seen["done"], seen["total"], note)

    try:
        yield update
    finally:
        close()
    if seen["done"]:
        seconds = time.monotonic() - started
        note = f", {seen['note']}" if seen["note"] else ""
        log(f"{label}: {seen['done']:,} {unit} in {clock(seconds)} ({_rate(seen['done'], seconds)}/s{note})")


def print_error(error: BaseException) -> None:
    """One line for an error that divray raises on purpose; its kind before the message for any other."""
    from rich.text import Text

    message = printable(str(error)) or type(error).__name__
    if not isinstance(error, DivrayError):
        message = f"{type(error).__name__}: {message}" if message != type(error).__name__ else message
        message = f"{message} (traceback: {_save_traceback(error)})"
    _console().print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)


def _save_traceback(error: BaseException) -> str:
    with tempfile.NamedTemporaryFile(prefix="divray-", suffix=".log", delete=False) as log:
        log.write("".join(traceback.format_exception(error)).encode(errors="backslashreplace"))
    return log.name


def show(items: Iterable[Any]) -> None:
    """The result of a command, as rich's tables and texts, on stdout."""
    console = _stdout()
    for item in items:
        console.print(item)


def show_json(value: Any) -> None:
    """The result of a command as JSON, on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii="utf" not in sys.stdout.encoding.lower()))


def ask_key(text: str) -> str:
    """Show ``text`` on stdout and wait for a key; without a terminal for a line. ``q`` at the end of the input."""
    console = _stdout()
    console.rule()
    console.print("\n".join(printable(line) for line in text.split("\n")), markup=False, end="")
    if not sys.stdin.isatty():
        key = sys.stdin.readline()
    else:
        import termios
        import tty

        before = termios.tcgetattr(sys.stdin)
        try:
            tty.setcbreak(sys.stdin, termios.TCSADRAIN)
            key = sys.stdin.read(1)
        finally:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
    console.print()
    return key.strip().lower() if key else "q"


def _stdout() -> Console:
    from rich.console import Console

    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 110, highlight=False)


def clock(seconds: float) -> str:
    """``8.2 s``, ``3:20`` (minutes) or ``2:05:00`` (hours)."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def printable(text: str) -> str:
    """``text`` on one line and without control characters, so that generated text can't steer the terminal."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", " ".join(text.splitlines()))


def _console() -> Console:
    from rich.console import Console

    if _state.live is not None:
        return _state.live.console
    if _state.stderr is None or _state.stderr.file is not sys.stderr:
        _state.stderr = Console(file=sys.stderr, highlight=False, width=None if sys.stderr.isatty() else 200)
    return _state.stderr


def _rate(done: float, seconds: float) -> str:
    rate = done / max(seconds, 1e-9)
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"


Show = tuple[Callable[[int, int | None, str], None], Callable[[], None]]


def _sparse(label: str, total: int | None, unit: str, started: float) -> Show:
    last = started

    def show(done: int, total: int | None, note: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < SPARSE_SECONDS:
            return
        last = now
        seconds = now - started
        left = f", {clock((total - done) * seconds / done)} left" if total and done else ""
        part = f"{done:,} of {total:,} {unit}" if total else f"{done:,} {unit}"
        log(f"{label}: {part} ({_rate(done, seconds)}/s{left}{', ' + note if note else ''})")

    return show, lambda: None


def _bar(label: str, total: int | None, unit: str, started: float) -> Show:
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    with _state.lock:
        own = _state.live is None
        if own:
            columns = [
                TextColumn("{task.description}"),
                BarColumn(bar_width=28),
                TextColumn("{task.fields[part]}", style="cyan"),
                TextColumn("{task.fields[note]}", style="dim"),
            ]
            _state.live = Progress(*columns, TimeElapsedColumn(), console=_console(), transient=True)
            _state.live.start()
        live = _state.live
    assert live is not None
    task = live.add_task(escape(label), total=total, part="", note="")

    def show(done: int, total: int | None, note: str) -> None:
        seconds = time.monotonic() - started
        left = f" · {clock((total - done) * seconds / done)} left" if total and done else ""
        part = f"{done:,}/{total:,} {unit}" if total else f"{done:,} {unit}"
        shown = f"{part} · {_rate(done, seconds)}/s{left}"
        live.update(task, completed=done, total=total, part=shown, note=escape(printable(note)))

    def close() -> None:
        with _state.lock:
            live.remove_task(task)
            if own:
                live.stop()
                _state.live = None

    return show, close
