"""Pairs as rows of ``schemas.PAIRS``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from divray.schemas import PAIRS

Row = dict[str, Any]


def pair_table(pairs: Iterable[Row]) -> pa.Table:
    """The pairs sorted by ``pair_id``."""
    return pa.Table.from_pylist(sorted(pairs, key=lambda pair: pair["pair_id"]), PAIRS)
