from __future__ import annotations

import io
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayTaskError

from divray import commands, console
from divray.cli import main
from divray.errors import InputError, own_error
from divray.quickstart import folder
from divray.report.findings import findings, tables


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Consoles that know nothing of the streams of other tests."""
    console._console.cache_clear()
    yield
    console._console.cache_clear()


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_log_goes_to_stderr_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    console.log("sampling\nround [bold]0[/bold] \x1b[31mred " + "x" * 300)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "sampling round [bold]0[/bold] \N{REPLACEMENT CHARACTER}[31mred" in err


def test_an_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_error(InputError("run.yaml", "selection.k", "is 0", "Give a positive number."))
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: run.yaml: selection.k: is 0. Give a positive number.\n"


def test_other_errors_name_their_kind_below_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    for error, said in ((KeyError("name"), "KeyError: 'name'"), (ValueError("\x1b[2J"), "ValueError: \N{REPLACEMENT CHARACTER}[2J")):
        try:
            raise error
        except Exception as raised:
            console.print_error(raised)
        lines = capsys.readouterr().err.splitlines()
        assert lines[0].startswith("Traceback") and lines[-1] == f"error: {said}" and "\x1b" not in "".join(lines)
    console.print_error(RuntimeError())
    assert capsys.readouterr().err.endswith("error: RuntimeError\n")


def test_a_worker_s_traceback_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    error = RayTaskError("f", "Traceback: the worker's line", ValueError("x")).as_instanceof_cause()
    console.print_error(own_error(error), error)
    said = capsys.readouterr().err
    assert "the worker's line" in said and said.endswith("error: ValueError: x\n")


@pytest.mark.parametrize("encoding", ["ascii", "iso-8859-1", "utf-8"])
def test_a_terminal_of_any_encoding_gets_the_message(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {name: io.TextIOWrapper(io.BytesIO(), encoding=encoding) for name in ("stdout", "stderr")}
    for name, file in files.items():
        monkeypatch.setattr(sys, name, file)
    console.configure()
    console.print_error(InputError("mieszka_w_mieście.yaml", "关系", "half of \udce9", "Mend it."))
    console.show(["Łódź 東京"])
    said = {name: file.buffer.getvalue() for name, file in files.items() if file.flush() is None}  # type: ignore[attr-defined]
    for text in ("mieszka_w_mieście.yaml", "关系", "\udce9"):
        assert text.encode(encoding, "backslashreplace") in said["stderr"]
    assert said["stdout"].rstrip() == "Łódź 東京".encode(encoding, "backslashreplace")


def test_progress_without_terminal_is_sparse(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.stage_progress("sample", unit="candidates") as update:
        for done in range(1, 101):
            now[0] = float(done)
            update(done, 100, note="2 engines")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 100 // 15
    assert "sample: 15 of 100 candidates (1.0/s, 1:25 left, 2 engines)" in lines[0]


def test_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = _Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(sys, "stderr", terminal)
    with console.stage_progress("score") as update:
        worker = threading.Thread(target=update, args=(1, 8), kwargs={"note": "[red]note"})
        worker.start()
        worker.join()
        console.log("beside the bar")
        time.sleep(0.3)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert "1 of 8 rows" in shown and "[red]note" in shown and "beside the bar\n" in shown


def test_clock() -> None:
    assert [console.clock(value) for value in (8.24, 200, 7500)] == ["8.2 s", "3:20", "2:05:00"]


def _summary() -> dict[str, Any]:
    trained = {"metric": "macro", "mean": 0.58, "std": 0.011, "per_draw": [0.57, 0.59], "k": 5}
    view = {"candidates": 1200, "valid": 900, "unique": 700, "correct": 420, "selected": 80, "generated_tokens": 36000}
    return {
        "headline": "Seeds + generated: 61.2 [b]micro-F1",
        "review": {"readers": 2, "number": 50, "share": 0.84, "low": 0.714, "high": 0.917},
        **view,
        "engine_seconds": 100.0,
        "tokens_per_accepted": 85.7,
        "engine_seconds_per_accepted": 0.238,
        "naive": {"candidates": 64, "valid": 3, "tokens_per_accepted": 1434.0},
        "evaluation": {"seeds": trained, "seeds+generated": {**trained, "mean": 0.612}, "a tool's\x1b[2J": {**trained, "mean": 0.4}},
    }


def test_summary_goes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    summary = _summary()
    console.show(tables({**summary, "findings": findings(summary)}))
    out, err = capsys.readouterr()
    assert err == ""
    for text in (
        "2 people read 50 of the selected samples: 84 % right [71, 92].",
        "An accepted sample cost 86 generated tokens and 0.24 engine-seconds; with the naive prompt 1,434 tokens.",
        "61.2 [b]micro-F1",
        "1,200 candidates, 900 valid, 700 unique, 420 correct, 80 selected.",
        "macro-F1",
        "58.0",
        "1.1",
    ):
        assert text in out, text
    assert "\x1b[2J" not in out


def test_a_path_that_cannot_be_used_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / "in.jsonl"))

    monkeypatch.setattr("divray.commands.plan", refused)
    assert main(["plan", "x.yaml"]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/in.jsonl: Permission denied. Check the path, and who may read and write there.\n"


@pytest.mark.parametrize("arguments", [["preview", "x.yaml", "-n", "0"], ["review", "run", "--number", "-1"]])
def test_a_count_begins_at_one(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "no whole number from 1 on" in capsys.readouterr().err


def test_what_an_llm_wrote_does_not_steer_the_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(commands, "preview", lambda config, count, folder: iter(["\x1b[2Jborn in Rome"]))
    main(["preview", str(folder() / "quickstart.yaml")])
    assert capsys.readouterr().out == "\N{REPLACEMENT CHARACTER}[2Jborn in Rome\n"
