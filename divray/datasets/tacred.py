"""TACRED (Zhang et al. 2017) and its relabelled forms.

One JSON array of objects ``id, token, subj_start, subj_end, obj_start, obj_end, subj_type, obj_type,
relation`` with inclusive ends; the head is the subject, the tail the object.  Two kinds of patch, told
apart by their form:

* Re-TACRED (Stoica et al. 2021): ``{id: label}``, the whole split relabelled.  An example whose id no such
  patch has is dropped and counted (``not_in_patch``), as Re-TACRED itself does.
* TACREV (Alt et al. 2020): ``[{"id": …, "relation": …}, …]``, the corrected labels only.  All others stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from divray.datasets.detokenize import detokenize
from divray.datasets.source import Source, entity_span, read_json
from divray.errors import InputError
from divray.relations import Example, Span


def read_tacred(source: Source, patches: Sequence[Path] = ()) -> Iterator[Example]:
    """Yield the examples in the order of the file, with the patches' labels.

    Raises:
        InputError: A field is missing or of the wrong kind, a position lies outside, or no id is patched.
    """
    rows = read_json(source.path)
    if not isinstance(rows, list):
        raise source.error("", "no JSON array", "Give a TACRED JSON file: one array of objects.")
    whole, corrected = _patches(patches)
    kept = 0
    for number, row in enumerate(rows, start=1):
        place = f"row {number}"
        if not isinstance(row, dict):
            raise source.error(place, "no JSON object", "Every row is an object with `token`, `subj_start`, …")
        identity = source.identity(place, row.get("id"), str(number))
        if whole is not None and identity not in whole:
            source.skip("not_in_patch")
            continue
        kept += 1
        label = corrected.get(identity) or (whole or {}).get(identity) or row.get("relation")
        label = source.label(place, label)
        tokens = row.get("token")
        if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
            raise source.error(f"{place}, token", "no list of tokens", "Give the sentence as a list of strings.")
        subject, object_ = (_positions(source, place, row, name, len(tokens)) for name in ("subj", "obj"))
        if subject[0] <= object_[1] and object_[0] <= subject[1]:
            source.skip("overlapping_entities")
            continue
        text, spans = detokenize(tokens)
        head, tail = entity_span(spans, *subject), entity_span(spans, *object_)
        if head is None or tail is None:
            source.skip("blank_entity")
            continue
        types = [source.string(place, name, row.get(name), required=False) for name in ("subj_type", "obj_type")]
        yield source.checked(place, Example(text, head, tail, label, types[0], types[1], identity))
    if rows and not kept:
        names = ", ".join(str(path) for path in patches)
        raise source.error("id", f"no patch holds an id of this file ({names})", "Give the patch of this split too.")


def _positions(source: Source, place: str, row: dict[str, Any], name: str, count: int) -> Span:
    ends = []
    for key in (f"{name}_start", f"{name}_end"):
        value = row.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < count:
            problem = "missing" if value is None else f"{value!r} is no position among {count} tokens"
            raise source.error(f"{place}, {key}", problem, "Positions count from 0; ends are inclusive.")
        ends.append(value)
    if ends[0] > ends[1]:
        raise source.error(f"{place}, {name}_end", "lies before the start", "Ends are inclusive and not before the start.")
    return ends[0], ends[1]


def _patches(paths: Sequence[Path]) -> tuple[dict[str, str] | None, dict[str, str]]:
    """``(labels of whole splits or None, corrected labels)``."""
    whole: dict[str, str] | None = None
    corrected: dict[str, str] = {}
    for path in paths:
        patch = read_json(path)
        if isinstance(patch, dict):
            whole = (whole or {}) | _checked_patch(path, patch.items())
        elif isinstance(patch, list) and all(isinstance(row, dict) for row in patch):
            corrected |= _checked_patch(path, [(row.get("id"), row.get("relation")) for row in patch])
        else:
            raise InputError(str(path), "", "no patch", "Give {id: label} (Re-TACRED) or [{id, relation}, …] (TACREV).")
    return whole, corrected


def _checked_patch(path: Path, pairs: Any) -> dict[str, str]:
    labels = {}
    for number, (identity, label) in enumerate(pairs, start=1):
        if not isinstance(identity, str) or not isinstance(label, str) or not label:
            raise InputError(str(path), f"entry {number}", f"{identity!r}: {label!r} is no id and label", "Both are strings.")
        labels[identity] = label
    return labels
