"""What one Ray Train worker does: DPO (arXiv 2305.18290) with TRL under DeepSpeed ZeRO."""

from __future__ import annotations

import gc
import json
import math
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from divray.alignment.arguments import dpo_arguments, parameters_of
from divray.alignment.pairs import prompts_together, read_pairs, tokenize_pairs
from divray.alignment.policy import publish_policy
from divray.alignment.private import build_no_extension, score_completions_alone, token_trainer
from divray.alignment.shared_prompt import can_share, share_prompts
from divray.dedup.storage import public_name
from divray.layout import Round
from divray.models import cache_folder, local_model
from divray.resources import cpu_precision
from divray.run_folder import RunFolder

CURVE = {
    "loss": "loss",
    "accuracy": "rewards/accuracies",
    "margin": "rewards/margins",
    "chosen": "rewards/chosen",
    "learning_rate": "learning_rate",
    "seconds": "seconds",
}
"""Columns of the curve in ``alignment.json`` -> keys in TRL's log; :func:`_reporter` adds ``seconds``."""


def train(job: dict[str, Any]) -> dict[str, Any]:
    """Train loop of one worker; rank 0 publishes the policy and returns what goes into ``alignment.json``.

    Args:
        job: ``name``, ``uri``, ``round``, ``reference`` (base model), ``alignment`` (the settings), ``seed``,
            ``chat`` (whether texts are JSON), ``device`` (``"cpu"`` or ``"gpu"``) and ``progress`` (a queue).

    Returns:
        The report on rank 0, ``{}`` elsewhere; or ``{"error": text}`` where a retry would fail the same way.
    """
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(cache_folder() / "torch_extensions"))
    import deepspeed
    import ray.train
    import torch.distributed as dist

    if job["device"] == "cpu":
        build_no_extension()
    deepspeed.init_distributed(dist_backend="gloo" if job["device"] == "cpu" else "nccl", auto_mpi_discovery=False)

    settings, run = job["alignment"], RunFolder(job["uri"])
    context = ray.train.get_context()
    base = local_model(job["reference"])
    folder = _shared_folder(context, job["name"])
    try:
        trainer, counts = _trainer(job, run, base, folder)
        checkpoint, resumed_from = ray.train.get_checkpoint(), 0
        if checkpoint is None:
            trainer.train()
        else:
            with checkpoint.as_directory() as at:
                resumed_from = json.loads(Path(at, "trainer_state.json").read_text())["global_step"]
                trainer.train(resume_from_checkpoint=at)
        trainer.save_model(str(folder / "trained"))
        dist.barrier()
        steps = [entry for entry in trainer.state.log_history if "loss" in entry]
        if not all(math.isfinite(entry["loss"]) for entry in steps):
            return {"error": "the loss became infinite or NaN. Lower alignment.learning_rate."}
        state, bf16 = trainer.state, trainer.args.bf16
        trainer.accelerator.free_memory()
        del trainer  # publish_policy loads the model a second time
        gc.collect()
        if context.get_world_rank() != 0:
            return {}
        written = Round.of(job["round"])
        publish_policy(run, written.policy, base, public_name(job["reference"]), folder / "trained", settings["method"] == "lora")
        report = {
            **counts,
            "steps": state.max_steps,
            "resumed_from": resumed_from,
            "workers": context.get_world_size(),
            "precision": "bf16" if bf16 else "fp32",
            "curve": [
                {"step": entry["step"], **{column: round(float(entry.get(key, 0.0)), 6) for column, key in CURVE.items()}}
                for entry in steps
            ],
        }
        run.write_json(written.alignment, report)
        return report
    finally:
        if context.get_local_rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)


def _trainer(job: dict[str, Any], run: RunFolder, base: str, folder: Path) -> tuple[Any, dict[str, int]]:
    """The trainer, and how many pairs it has and leaves out."""
    import torch
    import torch.distributed as dist
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig

    settings, cpu = job["alignment"], job["device"] == "cpu"
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows, left_out = tokenize_pairs(read_pairs(run, job["round"]), tokenizer, settings["max_length"], job["chat"])
    dataset = Dataset.from_dict(rows).select(prompts_together([*map(tuple, rows["prompt_ids"])], job["seed"], settings["pairs_per_step"]))
    fast = cpu_precision() == "bf16" if cpu else torch.cuda.is_bf16_supported(including_emulation=False)
    all_fast: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(all_fast, fast)
    bf16 = settings["precision"] == "bf16" and all(all_fast)
    arguments = dpo_arguments(
        settings,
        workers=dist.get_world_size(),
        gpu=not cpu,
        bf16=bf16,
        parameters=parameters_of(base),
        pairs=len(dataset),
        seed=job["seed"],
        output_dir=str(folder / "checkpoints"),
    )
    args = DPOConfig(**arguments)
    # Load the model after DPOConfig, which tells transformers to shard the weights under ZeRO-3.
    placed: dict[str, Any] = {"attn_implementation": "eager" if cpu else "sdpa"}  # eager is a tenth faster on a CPU's short rows
    if not cpu and settings["zero_stage"] < 3:
        placed["device_map"] = {"": torch.cuda.current_device()}  # else every worker holds the whole model in host memory first
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16 if bf16 else torch.float32, **placed)
    shared = can_share(model, settings["max_length"])
    if shared:
        share_prompts(model)
    if cpu:
        score_completions_alone()
    lora = LoraConfig(r=settings["lora_rank"], lora_alpha=2 * settings["lora_rank"], target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = token_trainer()(
        model=model,
        args=args,
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=lora if settings["method"] == "lora" else None,
        callbacks=[_reporter(job["progress"])],
    )
    if shared and trainer.ref_model is not None:
        share_prompts(trainer.accelerator.unwrap_model(trainer.ref_model))
    return trainer, {"pairs": len(rows["prompt_ids"]), "too_long": left_out}


def _shared_folder(context: Any, name: str) -> Path:
    """Make a folder that all workers of this machine share; remove what a killed try of ``name`` left on the machine."""
    import torch.distributed as dist

    machine, mine = context.get_node_rank(), None
    if context.get_local_rank() == 0:
        for left in Path(tempfile.gettempdir()).glob(f"divray-{name}-*"):
            shutil.rmtree(left, ignore_errors=True)
        mine = tempfile.mkdtemp(prefix=f"divray-{name}-")
    offers: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(offers, (machine, mine))
    return Path(next(path for node, path in offers if node == machine and path))


def _reporter(progress: Any) -> Any:
    """Callback that times steps, reports them to the driver, and hands each checkpoint to Ray Train."""
    import ray.train
    import torch.distributed as dist
    from transformers import TrainerCallback

    class Reporter(TrainerCallback):
        begun = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.begun = time.perf_counter()

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
            if logs and "loss" in logs:
                state.log_history[-1]["seconds"] = time.perf_counter() - self.begun
                if state.is_world_process_zero:
                    progress.actor.put_nowait.remote((state.global_step, state.max_steps, f"loss {logs['loss']:.3f}"))

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            # Wait until every rank has written its shard and random state into its machine's folder.
            dist.barrier()
            leads = ray.train.get_context().get_local_rank() == 0
            at = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            checkpoint = ray.train.Checkpoint.from_directory(str(at)) if leads else None
            ray.train.report({"step": state.global_step}, checkpoint=checkpoint)
            for older in Path(args.output_dir).glob("checkpoint-*") if leads else ():  # save_total_limit deletes on one machine only
                if older != at:
                    shutil.rmtree(older, ignore_errors=True)

    return Reporter()
