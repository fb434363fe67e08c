from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from divray.errors import InputError
from divray.textfiles import dump_yaml, json_lines, parse_json, parse_yaml, read_text


def refused(call: Any, *parts: str) -> None:
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 1e-3\nb: [3e-4, 1.5E+2, -2e5]", {"a": 1e-3, "b": [3e-4, 150.0, -2e5]}),
        ("base: &base {a: 1, b: 2}\nmade: {<<: *base, b: 3}", {"base": {"a": 1, "b": 2}, "made": {"a": 1, "b": 3}}),
        ('a: "1e-3"', {"a": "1e-3"}),
        ("[true, False, ~, null, .5, 1., -.inf, 1e3]", [True, False, None, None, 0.5, 1.0, float("-inf"), 1000.0]),
        ("{a: &a {b: [1, 2]}, c: {<<: *a, d: *a}}", {"a": {"b": [1, 2]}, "c": {"b": [1, 2], "d": {"b": [1, 2]}}}),
        ("# nothing", None),
        ("[010, -7, 1_000, 0]", [10, -7, 1000, 0]),
        ('a: "\\U0001F600"', {"a": "\N{GRINNING FACE}"}),
    ],
)
def test_yaml_values(text: str, value: Any) -> None:
    assert parse_yaml(text, "x") == value


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a: 1\nb: {c: 1, d: 2, c: 3}", ("line 2", "key 'c' stands there twice")),
        ("a: 2024-02-31", ("no valid YAML", "day")),
        ("a: 1:30", ("no valid YAML", "1:30", "quote a text")),
        ("{a: " * 3000, ("no valid YAML", "recursion depth")),
        ("a: " + "9" * 5000, ("digits",)),
        ("a: !!python/name:os.system x", ("no valid YAML",)),
        ("a: &a [1, *a]", ("recursive",)),
    ],
)
def test_yaml_that_is_refused(text: str, parts: tuple[str, ...]) -> None:
    refused(lambda: parse_yaml(text, "run.yaml"), "run.yaml", *parts)
    refused(lambda: parse_yaml(text, "command line", "a.b"), "command line: a.b")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('[{"a": "x"}, {"a": "\\ud83d"}]', ("no valid JSON", "surrogates not allowed")),
        ('{"\\udc00": 1}', ("surrogates not allowed",)),
        ("[" * 200_000, ("no valid JSON", "recursion depth")),
        ("9" * 5000, ("digits",)),
        ("{", ("line 1", "no valid JSON")),
    ],
)
def test_json_that_is_refused(text: str, parts: tuple[str, ...]) -> None:
    refused(lambda: parse_json(text, "a.json"), "a.json", *parts)


def test_a_whole_pair_is_no_half() -> None:
    assert parse_json('["\\ud83d\\ude00", "\\\\ud83d"]', "x") == ["\N{GRINNING FACE}", "\\ud83d"]


def test_lines_are_those_of_line_feeds() -> None:
    data = '\ufeff{"a": "x\u2028y\x85"}\r\n\n  \n{"a": 2}'.encode()
    assert list(json_lines(data.split(b"\n"), "a.jsonl")) == [(1, {"a": "x\u2028y\x85"}), (4, {"a": 2})]
    refused(lambda: list(json_lines([b"{}\n", b'\xef\xbb\xbf{"a": 1}'], "a.jsonl")), "line 2", "no valid JSON")
    refused(lambda: list(json_lines([b"{}\n", b'{"a": "\xff"}'], "a.jsonl")), "line 2", "invalid UTF-8")
    refused(lambda: list(json_lines([b"[1]"], "a.jsonl")), "line 1", "no JSON object")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252", "shift-jis"])
def test_other_encodings_are_named(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(("a,b\nc,\xb4" if encoding != "shift-jis" else "a,b\nc,\u6771").encode(encoding))
    refused(lambda: read_text(tmp_path / "a.txt"), "a.txt: line ", "invalid UTF-8", "Save it as UTF-8")


def test_a_path_that_no_file_can_have(tmp_path: Path) -> None:
    refused(lambda: read_text(tmp_path / "a\0b"), "null")
    refused(lambda: read_text(tmp_path / ("x" * 300)), "name too long")
    refused(lambda: read_text(tmp_path), "directory")


def test_what_is_dumped_is_read_back() -> None:
    value = {"no": ["020", "1:30", "true", "1e3", "null", "", "~", "0x1F", "<<", "\u65e5\u672c", 1, 2.5, True, None, 1e-7]}
    assert parse_yaml(dump_yaml(value), "x") == value


@pytest.mark.parametrize(
    ("begins", "kind"), [(b"\x1f\x8b\x08", "gzip"), (b"PK\x03\x04\0", "zip"), (b"PAR1\x15\0", "Parquet"), (b"ARROW1\0", "Arrow")]
)
def test_what_reads_a_packed_file_is_said(tmp_path: Path, begins: bytes, kind: str) -> None:
    file = tmp_path / "test.jsonl"
    file.write_bytes(begins + b"rest")
    refused(lambda: read_text(file), f"{file}: line 1", "invalid UTF-8", kind)
