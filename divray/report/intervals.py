"""How long an engine was busy, from the start and the end of each of its requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def union_length(starts: np.ndarray, ends: np.ndarray) -> float:
    """Length of the union of the closed intervals ``[starts[i], ends[i]]``, in their own unit.

    Both arrays are float64 of shape ``(n,)``, in any order; an interval that is not finite or ends
    before it starts counts as nothing.
    """
    import numpy as np

    starts, ends = _sound(starts, ends)[:2]
    if not starts.size:
        return 0.0
    order = np.argsort(starts, kind="stable")
    starts, ends = starts[order], ends[order]
    reach = np.maximum.accumulate(ends)
    uncovered = ends - np.maximum(starts, np.concatenate(([starts[0]], reach[:-1])))
    return float(np.maximum(uncovered, 0.0).sum())


def busy_shares(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Share out the busy time of one engine among its requests.

    At each instant the requests in flight share the time equally, so that the shares of all requests
    sum to :func:`union_length`, and requests of different kinds that ran side by side each get what
    they took.  Returns float64 of shape ``(n,)``; 0 for an interval that counts as nothing.
    """
    import numpy as np

    total = np.zeros(len(starts))
    starts, ends, sound = _sound(starts, ends)
    if not starts.size:
        return total
    times, position = np.unique(np.concatenate((starts, ends)), return_inverse=True)
    opened, closed = position[: starts.size], position[starts.size :]
    change = np.bincount(opened, minlength=times.size) - np.bincount(closed, minlength=times.size)
    active = np.cumsum(change)[:-1]
    slices = np.where(active > 0, np.diff(times) / np.maximum(active, 1), 0.0)
    elapsed = np.concatenate(([0.0], np.cumsum(slices)))
    total[sound] = elapsed[closed] - elapsed[opened]
    return total


def _sound(starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    import numpy as np

    starts, ends = np.asarray(starts, dtype=np.float64), np.asarray(ends, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        sound = np.isfinite(starts) & np.isfinite(ends) & (ends >= starts)
    return starts[sound], ends[sound], sound
