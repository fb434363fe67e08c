"""The ``align`` stage: DPO on the pairs of the rounds so far gives the policy that samples the next round."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import statistics
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from divray import console
from divray.alignment.arguments import batches
from divray.alignment.pairs import read_pairs
from divray.alignment.training import train
from divray.config import Config
from divray.errors import DivrayError, InputError
from divray.layout import Round
from divray.resources import train_gpus
from divray.run_folder import RunFolder
from divray.stages import Progress

MAX_FAILURES = 2
"""Times that a broken group of workers is started again from its last checkpoint."""

LARGE_MARGIN = 10.0
"""Of the rewards of chosen over rejected, from which a policy has left what its pairs can teach."""


def base_model(config: Config, run: RunFolder, round: int) -> str:
    """Reference of the model from which ``round``'s policy starts: the round before's, else ``models.llm``."""
    before = Round.of(round - 1).policy
    return run.full_uri(before) if round > 1 and run.exists(f"{before}/config.json") else config.models.llm


def run(config: Config, run: RunFolder, round: int = 0, on_progress: Progress | None = None) -> dict[str, Any]:
    """Train the policy of ``round`` on the pairs of all earlier rounds.

    Writes ``round-NN/policy`` (the merged model, for LoRA also ``adapter/``) and
    ``round-NN/alignment.json`` (settings and curve).  Needs a Ray connection.  A worker that dies, or a
    call that was killed and is made again, goes on from the last checkpoint in ``round-NN/train``,
    which is gone at the end.

    Args:
        on_progress: Called about twice a second from a thread of this process when there is news.

    Raises:
        InputError: There is no usable pair, ``round`` has no round before it, or the workers can't share a step.
        DivrayError: Training failed at every try; the message carries its cause.
    """
    if round < 1:
        raise InputError("align", "round", f"round {round} has no earlier pairs", "The first policy is that of round 1.")
    batches(config.alignment.model_dump(), config.cluster.train_workers)
    pairs = read_pairs(run, round)
    gpu = train_gpus(config) > 0
    job = {
        "uri": run.uri,
        "round": round,
        "reference": base_model(config, run, round),
        "alignment": config.alignment.model_dump(mode="json"),
        "seed": config.seed,
        "chat": config.prompts.style == "chat",
        "device": "gpu" if gpu else "cpu",
    }
    digest = hashlib.sha256(json.dumps([job, config.cluster.train_workers, pairs.to_pylist()], sort_keys=True).encode())
    name = f"dpo-{digest.hexdigest()[:16]}"
    storage = Round.of(round).train
    _keep_only(run, storage, name)
    with _followed(on_progress) as progress, _own_interrupts():
        report = _fit(config, run, storage, name, {**job, "name": name, "progress": progress})
    run.delete(storage)
    curve = report["curve"]
    tail = curve[-max(1, len(curve) // 4) :]
    if doubt := _doubt(tail):
        console.log(f"{Round.of(round).record('align')}: {doubt}")
    return {
        "pairs": report["pairs"],
        "too_long": report["too_long"],
        "steps": report["steps"],
        "loss": round_mean(row["loss"] for row in tail),
        "accuracy": round_mean(row["accuracy"] for row in tail),
        "margin": round_mean(row["margin"] for row in tail),
        "seconds_per_step": round_mean([statistics.median(row["seconds"] for row in curve)]),
    }


def _doubt(tail: list[dict[str, float]]) -> str:
    """What the end of the curve says against the policy, if anything."""
    margin, chosen = (statistics.fmean(row[name] for row in tail) for name in ("margin", "chosen"))
    if margin > LARGE_MARGIN:
        return f"a margin of {margin:.1f} says that the policy is far from the model it came from. Lower alignment.learning_rate."
    if chosen < -1:
        return f"the chosen texts became less likely, too (reward {chosen:.1f}). Lower alignment.learning_rate or raise alignment.beta."
    return ""


def round_mean(values: Any) -> float:
    """Mean to four decimals."""
    return float(f"{statistics.fmean(values):.4f}")


def _fit(config: Config, run: RunFolder, storage: str, name: str, job: dict[str, Any]) -> dict[str, Any]:
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    cluster = config.cluster
    gpu = job["device"] == "gpu"
    resources = {"CPU": cluster.cpus_per_worker, **({"GPU": train_gpus(config)} if gpu else {})}
    environment = {} if gpu else {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": str(max(1, int(cluster.cpus_per_worker)))}
    options: dict[str, Any] = {
        "failure_config": FailureConfig(max_failures=MAX_FAILURES),
        "checkpoint_config": CheckpointConfig(num_to_keep=1),
        "worker_runtime_env": {"env_vars": environment},
        "logging_config": LoggingConfig(log_level="INFO" if cluster.show_logs else "ERROR"),
    }
    loop: Callable[[dict[str, Any]], Any] = train
    trainer = TorchTrainer(
        loop,
        train_loop_config=job,
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(num_workers=cluster.train_workers, use_gpu=gpu, resources_per_worker=resources),
        run_config=RunConfig(name=name, storage_path=run.path(storage), storage_filesystem=run.fs, **options),
    )
    try:
        result: Any = trainer.fit()
        report = result.return_value
    except TrainingFailedError as error:
        raise DivrayError(f"DPO training of round {job['round']} failed {MAX_FAILURES + 1} times: {_cause(error)}") from error
    if not report:
        raise DivrayError(f"DPO training of round {job['round']} was stopped. Run it again to go on from its last checkpoint.")
    if "error" in report:
        raise DivrayError(f"DPO training of round {job['round']}: {report['error']}")
    return report


def _cause(error: Exception) -> str:
    failures = getattr(error, "worker_failures", None) or {0: error}
    lines = [line.strip() for line in str(failures[min(failures)]).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _keep_only(run: RunFolder, storage: str, name: str) -> None:
    """Remove checkpoints of other settings, and a record of checkpoints that a kill cut short."""
    for other in {file.removeprefix(f"{storage}/").partition("/")[0] for file in run.files(storage)} - {name}:
        run.delete(f"{storage}/{other}")
    for file in run.files(f"{storage}/{name}", ".json"):
        if file.count("/") == f"{storage}/{name}/".count("/") and not _is_whole(run.read_text(file)):
            run.delete(f"{storage}/{name}")
            return


def _is_whole(record: str) -> bool:
    try:
        json.loads(record)
    except ValueError:
        return False
    return True


@contextmanager
def _own_interrupts() -> Iterator[None]:
    """Give Ctrl-C back as it was: Ray Train puts its own handler in and leaves it there."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGINT, before)


class _Latest:
    """Actor that holds the newest ``(step, steps, loss)``."""

    def __init__(self) -> None:
        self.value: tuple[int, int, float] | None = None

    def set(self, step: int, steps: int, loss: float) -> None:
        self.value = (step, steps, loss)

    def get(self) -> tuple[int, int, float] | None:
        return self.value


@contextmanager
def _followed(on_progress: Progress | None) -> Iterator[Any]:
    """A handle for rank 0 to report to, with a thread that passes the news on."""
    if on_progress is None:
        yield None
        return
    import ray

    actor: Any = ray.remote(num_cpus=0)(_Latest).remote()
    done = threading.Event()

    def follow() -> None:
        seen = None
        while not done.wait(0.5):
            latest = ray.get(actor.get.remote())
            if latest is not None and latest != seen:
                seen = latest
                step, steps, loss = latest
                on_progress(step, steps, f"loss {loss:.3f}")

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield actor
    finally:
        done.set()
        thread.join(timeout=5)
        ray.kill(actor)
