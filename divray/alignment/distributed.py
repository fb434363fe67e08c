"""What the workers of one training group need of each other, of DeepSpeed and of Ray Train."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any


def reporter(progress: Any) -> Any:
    """Callback that times steps, tells the driver of them, and hands each checkpoint to Ray Train."""
    import ray.train
    import torch.distributed as dist
    from transformers import TrainerCallback

    class Reporter(TrainerCallback):
        begun, seconds = 0.0, 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.begun = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.seconds = time.perf_counter() - self.begun

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
            if logs and "loss" in logs:
                state.log_history[-1]["seconds"] = self.seconds
                if progress is not None and state.is_world_process_zero:
                    progress.set.remote(state.global_step, state.max_steps, float(logs["loss"]))

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            # Every rank writes its own shard and generator state into its machine's folder.
            dist.barrier()
            leads = ray.train.get_context().get_local_rank() == 0
            at = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            checkpoint = ray.train.Checkpoint.from_directory(str(at)) if leads else None
            ray.train.report({"step": state.global_step}, checkpoint=checkpoint)
            for older in Path(args.output_dir).glob("checkpoint-*") if leads else ():  # the trainer's own limit counts on one machine alone
                if older != at:
                    shutil.rmtree(older, ignore_errors=True)

    return Reporter()


def shared_folder(context: Any, name: str) -> Path:
    """A new folder that all workers of one machine agree on; what a killed try of ``name`` left there is removed."""
    import torch.distributed as dist

    machine, mine = context.get_node_rank(), None
    if context.get_local_rank() == 0:
        for left in Path(tempfile.gettempdir()).glob(f"divray-{name}-*"):
            shutil.rmtree(left, ignore_errors=True)
        mine = tempfile.mkdtemp(prefix=f"divray-{name}-")
    offers: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(offers, (machine, mine))
    return Path(next(path for node, path in offers if node == machine and path))


def every_worker(mine: bool) -> bool:
    import torch.distributed as dist

    answers: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(answers, mine)
    return all(answers)
