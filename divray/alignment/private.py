"""DPO's uses of what is not public in TRL and DeepSpeed; each function says why it is needed.

``tests/test_architecture.py`` fails once a release makes one unnecessary.
"""

from __future__ import annotations

from typing import Any


def token_trainer() -> Any:
    """``trl.DPOTrainer`` for rows that are token ids already; unnecessary once TRL passes such rows on, as its SFT trainer does."""
    from datasets import Dataset
    from trl import DPOTrainer

    class TokenTrainer(DPOTrainer):
        def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
            return dataset

    return TokenTrainer


def score_completions_alone() -> None:
    """Make TRL score the vocabulary at completion tokens alone on a CPU, too; by itself it does so only where it has Triton.

    This changes only that choice: the kernels check for Triton themselves.
    """
    import trl.trainer.utils

    trl.trainer.utils._use_triton = lambda device: True


def build_no_extension() -> None:
    """Keep DeepSpeed from building its only extension for CPUs, which needs a C++ compiler and serves inference alone; no setting does."""
    import deepspeed

    deepspeed.ops.__compatible_ops__ = {}
