"""How long an engine was busy, from the start and the end of each of its requests."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def busy_shares(starts: npt.NDArray[Any], ends: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Share out the busy time of one engine among its requests ``[starts[i], ends[i]]``, in their own unit.

    At each instant the requests in flight share the time equally, so that the shares sum to the length of the intervals'
    union.  Both arrays are of shape ``(n,)``, in any order.  Returns float64 of shape ``(n,)``; 0 for an interval that is not
    finite or ends before it starts.
    """
    starts, ends = np.asarray(starts, dtype=np.float64), np.asarray(ends, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        sound = np.isfinite(starts) & np.isfinite(ends) & (ends >= starts)
    total = np.zeros(len(starts))
    times, position = np.unique(np.concatenate((starts[sound], ends[sound])), return_inverse=True)
    opened, closed = np.split(position, 2)
    change = np.bincount(opened, minlength=times.size) - np.bincount(closed, minlength=times.size)
    active = np.cumsum(change)[:-1]
    slices = np.where(active > 0, np.diff(times) / np.maximum(active, 1), 0.0)
    elapsed = np.concatenate(([0.0], np.cumsum(slices)))
    total[sound] = elapsed[closed] - elapsed[opened]
    return total
