"""What DPO needs of TRL and DeepSpeed beyond their public names; each place says what would make it unnecessary.

``tests/test_architecture.py`` fails once a release does.
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
    """TRL scores the vocabulary at completion tokens alone where it has Triton, else at every token; on a CPU it could, too.

    This is only the choice between the two: the kernels ask for themselves.
    """
    import trl.trainer.utils

    trl.trainer.utils._use_triton = lambda device: True


def build_no_extension() -> None:
    """The only extension that DeepSpeed would build on a CPU, with a C++ compiler, serves inference alone; it has no setting for that."""
    import deepspeed

    deepspeed.ops.__compatible_ops__ = {}
