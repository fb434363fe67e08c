"""The arguments of TRL and DeepSpeed, computed from the settings, the model's size, the device and the numbers of pairs and workers."""

from __future__ import annotations

import math
from typing import Any

from divray.errors import InputError

CHECKPOINTS = {"lora": 4, "full": 2}
"""Checkpoints of one training, at most.  Full training has fewer, since each holds the whole optimizer state."""

LORA_RATE = 5e-5
"""Measured with a model of 270 M parameters and 66 pairs: readers found 0.68 of the valid sentences right before DPO, 0.66 after DPO at
5e-5, and 0.48 at 2e-4.  TRL's own example uses 5e-6 for LoRA on 0.5 B with thousands of pairs; a run of divray has tens to hundreds."""

FULL = 0.01
"""Full training uses this share of LoRA's rate: 5e-7, as Zephyr does at 7 B (arXiv 2310.16944)."""

CHECKPOINTED = 3e9
"""With more parameters than this, the backward pass recomputes the activations (gradient checkpointing)."""


def batches(settings: dict[str, Any], workers: int) -> tuple[int, int]:
    """``(pairs that a worker computes at once, how often it does so in a step)``.  A step always has ``pairs_per_step``.

    Raises:
        InputError: The workers can't share a step evenly.
    """
    share, left = divmod(settings["pairs_per_step"], workers)
    if left or not share:
        near = workers * max(1, round(settings["pairs_per_step"] / workers))
        problem = f"{settings['pairs_per_step']} pairs a step can't be shared by cluster.train_workers={workers}"
        raise InputError("config", "alignment.pairs_per_step", problem, f"Give e.g. {near}, or another number of workers.")
    at_once = max(size for size in range(1, min(settings["batch_size"], share) + 1) if share % size == 0)
    return at_once, share // at_once


def dpo_arguments(
    settings: dict[str, Any], *, workers: int, gpu: bool, bf16: bool, parameters: int, pairs: int, seed: int, output_dir: str
) -> dict[str, Any]:
    """The arguments of ``trl.DPOConfig`` for a model of ``parameters`` parameters and a training set of ``pairs`` pairs.

    ``settings`` is the ``alignment`` section; ``seed`` is the trainer's."""
    at_once, times = batches(settings, workers)
    steps = math.ceil(settings["epochs"] * math.ceil(pairs / settings["pairs_per_step"]))
    checkpointing = settings["gradient_checkpointing"]
    zero: dict[str, Any] = {"stage": settings["zero_stage"], "stage3_gather_16bit_weights_on_model_save": True}
    if settings["zero_stage"] in (1, 2):
        zero |= {"reduce_bucket_size": 50_000_000, "allgather_bucket_size": 50_000_000}
    return {
        "output_dir": output_dir,
        "beta": settings["beta"],
        "ld_alpha": 0.0,  # weight of the tokens by which one text is longer (LD-DPO, arXiv 2409.06411); 1 would be plain DPO
        "loss_type": ["sigmoid", "sft"] if settings["sft_weight"] else ["sigmoid"],
        "loss_weights": [1.0, settings["sft_weight"]] if settings["sft_weight"] else None,
        "learning_rate": settings["learning_rate"] or LORA_RATE * (1 if settings["method"] == "lora" else FULL),
        "warmup_steps": 0.1,  # share of the steps in which the rate rises
        "num_train_epochs": settings["epochs"],
        "per_device_train_batch_size": at_once,
        "gradient_accumulation_steps": times,
        "max_length": settings["max_length"],
        "gradient_checkpointing": parameters > CHECKPOINTED if checkpointing is None else checkpointing,
        "seed": seed,
        "train_sampling_strategy": "sequential",  # the pairs are already shuffled (prompts_together)
        "bf16": bf16,
        "use_cpu": not gpu,
        "deepspeed": {  # "auto": the value of the arguments above
            "zero_optimization": zero,
            "bf16": {"enabled": "auto"},
            "train_batch_size": "auto",
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto",
        },
        "save_steps": max(1, math.ceil(steps / CHECKPOINTS[settings["method"]])),
        "logging_steps": 1,
        "disable_tqdm": True,
    }


def parameters_of(model: str) -> int:
    """Parameters of the causal LLM in a folder or under a hub id, from its configuration alone."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return int(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model)).num_parameters())
