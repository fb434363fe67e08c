"""What divray needs of Ray, TRL and DeepSpeed beyond their public names; each place says what would make it unnecessary.

``tests/test_architecture.py`` fails once a release does, or has another one in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def divert_messages(write: Callable[[str], None]) -> None:
    """Have ``write`` take what the raylet tells every driver (retries, dead workers).

    Ray prints it to ``stdout`` whatever ``log_to_driver`` says, and has no setting for it.
    """
    from ray._private import worker

    def divert(data: dict[str, Any], print_file: Any, ignore_prefix: bool = False) -> None:
        write("".join(f"{line}\n" for line in data["lines"]))

    worker.print_worker_logs = divert


def token_trainer() -> Any:
    """``trl.DPOTrainer`` for rows that are token ids already; unnecessary once TRL passes such rows on, as its SFT trainer does."""
    from datasets import Dataset
    from trl import DPOTrainer

    class TokenTrainer(DPOTrainer):
        def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
            return dataset

    return TokenTrainer


def score_completions_alone() -> None:
    """TRL scores the vocabulary at completion tokens alone where it has Triton, else at every token; on a CPU it could, too.

    This is only the choice between the two: the kernels ask for themselves.
    """
    import trl.trainer.utils

    trl.trainer.utils._use_triton = lambda device: True


def build_no_extension() -> None:
    """The only extension that DeepSpeed would build on a CPU, with a C++ compiler, serves inference alone; it has no setting for that."""
    import deepspeed

    deepspeed.ops.__compatible_ops__ = {}
