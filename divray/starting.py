"""What can be wrong with this machine's folders when Ray starts on it, in one line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from divray.errors import ResourceError


@contextmanager
def starting_ray() -> Iterator[None]:
    """Around ``ray.init``.

    Raises:
        ResourceError: Ray can't write where ``HOME`` or ``RAY_TMPDIR`` says; the message names the variable.
    """
    try:
        yield
    except OSError as error:
        place = str(error.filename or "")
        if "AF_UNIX" in str(error):
            problem = f"RAY_TMPDIR is too long a path for Ray's sockets: {os.environ.get('RAY_TMPDIR', '/tmp')}"
            raise ResourceError(f"{problem}. Set it to a short one.") from error
        name = "HOME" if place and Path(place).is_relative_to(Path("~").expanduser()) else "RAY_TMPDIR"
        raise ResourceError(f"{name}: {place or 'Ray'}: {error.strerror or error}. Set it to a folder that can be written.") from error
