"""The ``align`` stage: DPO on the pairs of the rounds so far gives the policy that samples the next round."""

from __future__ import annotations

import hashlib
import json
import signal
import statistics
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from divray import console
from divray.alignment.arguments import batches
from divray.alignment.pairs import read_pairs, tokenize_pairs
from divray.alignment.training import train
from divray.config import Config
from divray.errors import DivrayError, InputError
from divray.layout import Round
from divray.models import local_model, small_files
from divray.resources import train_gpus
from divray.run_folder import RunFolder
from divray.stages import Progress

MAX_FAILURES = 2
"""How often Ray Train restarts a failed group of workers from its last checkpoint."""

LARGE_MARGIN = 10.0
"""Reward margin of chosen over rejected, above which a policy has left what its pairs can teach."""


def base_model(llm: str, run: RunFolder, round: int) -> str:
    """Reference of the model from which ``round``'s policy starts: the policy of the round before, else ``llm``."""
    before = Round.of(round - 1).policy
    return run.full_uri(before) if round > 1 and run.exists(f"{before}/config.json") else llm


def run(config: Config, run: RunFolder, round: int = 0, on_progress: Progress | None = None) -> dict[str, Any]:
    """Train the policy of ``round`` on the pairs of all earlier rounds.

    Writes ``round-NN/policy`` (the merged model, for LoRA also ``adapter/``) and
    ``round-NN/alignment.json`` (curve, and how many pairs, steps and workers).  Needs a Ray connection.  After a worker
    dies, or in a new call after a kill, training goes on from the last checkpoint in ``round-NN/train``.
    That folder is deleted at the end.

    Args:
        on_progress: Called after each step from a thread of this process.

    Raises:
        InputError: There is no usable pair, or none that fits in ``alignment.max_length``; or the workers can't share a step.
        DivrayError: Training failed at every try; the message carries its cause.
    """
    from transformers import AutoTokenizer

    batches(config.alignment.model_dump(), config.cluster.train_workers)
    pairs, reference, chat = read_pairs(run, round), base_model(config.models.llm, run, round), config.prompts.style == "chat"
    tokenizer = AutoTokenizer.from_pretrained(small_files(reference, "models.llm") or local_model(reference))
    most = config.alignment.max_length
    if tokenize_pairs(pairs, tokenizer, most, chat)[1] == pairs.num_rows:  # before any worker starts
        raise InputError("config", "alignment.max_length", f"no pair fits in {most} tokens", "Raise it.")
    job = {
        "uri": run.uri,
        "round": round,
        "reference": reference,
        "alignment": config.alignment.model_dump(mode="json"),
        "seed": config.seed,
        "chat": chat,
        "device": "gpu" if train_gpus(config) > 0 else "cpu",
    }
    digest = hashlib.sha256(json.dumps([job, config.cluster.train_workers, pairs.to_pylist()], sort_keys=True).encode())
    name = f"dpo-{digest.hexdigest()[:16]}"
    storage = Round.of(round).train
    _drop_torn(run, f"{storage}/{name}")
    with _followed(on_progress) as progress:
        report = _fit(config, run, storage, name, {**job, "name": name, "progress": progress})
    run.delete(storage)
    curve = report["curve"]
    tail = curve[-max(1, len(curve) // 4) :]
    ends = {name: statistics.fmean(row[name] for row in tail) for name in ("loss", "accuracy", "margin", "chosen")}
    if ends["margin"] > LARGE_MARGIN or ends["chosen"] < -1:
        what = f"margin {ends['margin']:.1f}, reward of the chosen texts {ends['chosen']:.1f}"
        fix = "Lower alignment.learning_rate or raise alignment.beta."
        console.log(f"the policy of {Round.of(round).name} is far from its base model ({what}). {fix}")
    return {
        **{name: report[name] for name in ("pairs", "too_long", "steps")},
        **{name: float(f"{ends[name]:.4f}") for name in ("loss", "accuracy", "margin")},
        "seconds_per_step": float(f"{statistics.median(row['seconds'] for row in curve):.4f}"),
    }


def _fit(config: Config, run: RunFolder, storage: str, name: str, job: dict[str, Any]) -> dict[str, Any]:
    from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    cluster = config.cluster
    gpu = job["device"] == "gpu"
    resources = {"CPU": cluster.cpus_per_worker, **({"GPU": train_gpus(config)} if gpu else {})}
    environment = {} if gpu else {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": str(max(1, int(cluster.cpus_per_worker)))}
    trainer = TorchTrainer(
        train,  # type: ignore[arg-type]  # what it returns comes back with the result
        train_loop_config=job,
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=cluster.train_workers, use_gpu=gpu, resources_per_worker=resources),
        run_config=RunConfig(  # type: ignore[call-arg]  # the types are those of Ray Train's first version
            name=name,
            storage_path=run.path(storage),
            storage_filesystem=run.fs,
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            worker_runtime_env={"env_vars": environment},
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        result: Any = trainer.fit()
        report = result.return_value
    except TrainingFailedError as error:
        raise DivrayError(f"DPO training of round {job['round']} failed {MAX_FAILURES + 1} times: {_cause(error)}") from error
    finally:
        if signal.getsignal(signal.SIGINT) is not interrupt:  # Ray Train leaves its own handler behind
            signal.signal(signal.SIGINT, interrupt)
    if not report:
        raise DivrayError(f"DPO training of round {job['round']} was stopped. Run it again to go on from its last checkpoint.")
    if "error" in report:
        raise DivrayError(f"DPO training of round {job['round']}: {report['error']}")
    return report


def _cause(error: Exception) -> str:
    failures = getattr(error, "worker_failures", None) or {0: error}
    lines = [line.strip() for line in str(failures[min(failures)]).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _drop_torn(run: RunFolder, folder: str) -> None:
    """Remove checkpoints whose record a kill cut short."""
    record = f"{folder}/checkpoint_manager_snapshot.json"
    try:
        if run.exists(record):
            run.read_json(record)
    except InputError:
        run.delete(folder)


@contextmanager
def _followed(on_progress: Progress | None) -> Iterator[Any]:
    """A queue for the progress of rank 0, on the driver's machine since others may be lost; a thread passes it to ``on_progress``."""
    import ray
    from ray.util.queue import Queue

    queue: Any = Queue(actor_options={"num_cpus": 0, "label_selector": {"ray.io/node-id": ray.get_runtime_context().get_node_id()}})

    def follow() -> None:
        while news := queue.get():
            if on_progress:
                on_progress(*news)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield queue
    finally:
        queue.actor.put_nowait.remote(None)
        thread.join(timeout=5)
        queue.shutdown(force=True)
