"""Readers of a user's text, JSON, JSONL and YAML files, all in UTF-8, with or without a byte order mark."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from divray.errors import InputError

_PLAIN = "Save it as UTF-8; unpack a gzip or zip file; `task.format: huggingface` reads Parquet and Arrow."


def read_bytes(path: Path) -> bytes:
    """The whole file; raises :class:`InputError` if it can't be read or is blank."""
    where = str(path)
    try:
        data = path.expanduser().read_bytes()
    except (OSError, RuntimeError, ValueError) as error:  # no such home folder; a null character
        reason = "no such file" if isinstance(error, FileNotFoundError) else getattr(error, "strerror", None) or str(error)
        raise InputError(where, "", reason, "Check the path; a task's data files count from task.data.") from None
    if not data.strip():
        raise InputError(where, "", "the file is empty", "Fetch it again, or give another file.")
    return data


def read_text(path: Path) -> str:
    """The whole file as text, without a byte order mark; :class:`InputError` as of :func:`read_bytes`, or where it is not UTF-8."""
    return decoded(read_bytes(path), str(path), 1)


def decoded(data: bytes, where: str, line: int) -> str:
    """``data``, which begins at ``line`` of the file ``where``, as text; :class:`InputError` where it is not UTF-8."""
    try:
        if (null := data.find(b"\0")) >= 0:
            raise UnicodeDecodeError("utf-8", data, null, null + 1, "null character")  # as in UTF-16 with ASCII letters
        return data.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        raise InputError(where, f"line {line}", f"invalid UTF-8 (byte {error.start})", _PLAIN) from None


def parse_json(text: str, where: str, line: int = 0) -> Any:
    """``text`` as JSON.  ``line`` is its line number in the file, or 0 if ``text`` is the whole file.

    Raises:
        InputError: It is not JSON, or a string holds half a surrogate pair.
    """
    try:
        return _whole(json.loads(text), text)
    except (ValueError, RecursionError) as error:  # ValueError: also of half a surrogate pair, and of a number with thousands of digits
        problem, number = getattr(error, "msg", str(error)), line or getattr(error, "lineno", 0)
        mend = "Fix the file; if it is cut short, fetch it again."
        raise InputError(where, f"line {number}" if number else "", f"no valid JSON ({problem})", mend) from None


def _whole(value: Any, text: str) -> Any:
    """``value``, read from ``text``; ValueError where it holds half a surrogate pair, which no UTF-8 file can hold."""
    if "\\u" in text.casefold():
        json.dumps(value, ensure_ascii=False, default=str).encode()
    return value


def read_json(path: Path) -> Any:
    return parse_json(read_text(path), str(path))


def json_lines(lines: Iterable[bytes], where: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """``(number, object)`` of each line of the file ``where`` that is not blank; numbers count from 1.

    Only line feeds may end a line, since JSON strings may hold the other separators.

    Raises:
        InputError: A line is no JSON object; see :func:`parse_json`.
    """
    for number, line in enumerate(lines, start=1):
        if text := decoded(line, where, number).strip():
            row = parse_json(text, where, number)
            if not isinstance(row, dict):
                raise InputError(where, f"line {number}", "no JSON object", "JSONL has one object {...} a line.")
            yield number, row


class _Loader(yaml.SafeLoader):
    """The safe loader, which also reads ``1e-3`` as a number and refuses a key given twice."""


class _Dumper(yaml.SafeDumper):
    """Writes what :class:`_Loader` reads, and a repeated value in full each time, not as an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$")
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.0123456789"))


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: list[Any] = []
    for key, _ in node.value:
        if key.value in seen:
            raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} stands there twice", key.start_mark)
        seen.append(key.value)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))  # YAML 1.1 alone takes 010 for 8, 1:30 for 90
_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def parse_yaml(text: str, where: str, field: str = "") -> Any:
    """``text`` as plain YAML values.  An error names ``field`` if given, else the line.

    Raises:
        InputError: It is no YAML, has a key twice, or a string holds half a surrogate pair.
    """
    try:
        return _whole(yaml.load(text, _Loader), text)
    except (yaml.YAMLError, ValueError, LookupError, TypeError, RecursionError) as error:  # ValueError: also an impossible date
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        place = field or (f"line {mark.line + 1}" if mark else "")
        mend = 'Fix it; quote a text that starts with a special character or reads as another type: "[…".'
        raise InputError(where, place, f"no valid YAML ({problem})", mend) from None


def dump_yaml(value: Any) -> str:
    """Plain values as YAML that :func:`parse_yaml` reads back as they are."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**9)


def read_yaml(path: Path) -> Any:
    return parse_yaml(read_text(path), str(path))
