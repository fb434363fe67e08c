"""What the raylet tells every driver (retries, dead workers): Ray prints it to ``stdout`` whatever ``log_to_driver`` says.

It has no setting for it, so that one private function of Ray is replaced.  ``tests/test_architecture.py`` fails once Ray has
another one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def divert_messages(write: Callable[[str], None]) -> None:
    """Have ``write`` take the lines in the place of ``stdout``."""
    from ray._private import worker

    def divert(data: dict[str, Any], print_file: Any, ignore_prefix: bool = False) -> None:
        write("".join(f"{line}\n" for line in data["lines"]))

    worker.print_worker_logs = divert
