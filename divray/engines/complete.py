"""The pass of request rows through the engines, streamed by Ray Data.

Ray's job checkpoint makes it resumable: a row whose completion lies in the target is never asked again.  An engine that dies
costs the requests that it had, which are asked again; one that dies at every start or on every batch is given up with its own
cause.  When the engines were there stands in ``<target>.engines/``, one JSON file a pass, from which the report tells why one
was idle.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from divray.config import Config
from divray.engines import Answer, Request, Row
from divray.engines.pool import Pool, engines_for, stop
from divray.engines.vllm import sampling_parameters
from divray.errors import EngineError
from divray.run_folder import RunFolder
from divray.schemas import COMPLETIONS, PROMPTS, TUNED
from divray.stages import Progress

if TYPE_CHECKING:
    import ray.data

BLOCKS_IN_FLIGHT = 64
"""Files of request rows that are being answered at a time, at most."""

ALIKE = ("prompt", "pattern", "head", "strategy", "sentences", "policy")
"""Columns that the candidates of one request share."""

READERS = 32


def complete(
    config: Config,
    run: RunFolder,
    source: str,
    target: str,
    model: str,
    *,
    adapter: str = "",
    greedy: bool = False,
    on_progress: Progress | None = None,
    answer: Answer | None = None,
) -> int:
    """Have the LLM complete every request row of table ``source`` into table ``target``.

    Args:
        config: ``sampling``, ``engine`` and ``seed`` count here.
        run: Folder of both tables.
        source: Table of ``schemas.PROMPTS``; each of its files is a block.
        target: Table of ``schemas.COMPLETIONS``; what lies there already is kept and not asked again.
        model: Reference that each engine resolves, or ``endpoint``: the server that ``engine.endpoint`` names.
        adapter: Folder or URI of a LoRA adapter of ``model`` through which rows go whose ``policy`` is ``tuned``.
        greedy: Decode at temperature 0 instead of ``config.sampling``'s.
        on_progress: Told about progress about once a second; rows that were there before don't count.
        answer: A function in the engine's place: recorded completions, or a measurement of everything but the engine.

    Returns:
        How many rows ``target`` holds.

    Raises:
        EngineError: The engine died at every try; the message is its own cause.
    """
    import ray

    total, there = whole_rows(run, source), whole_rows(run, target)
    if there == total:
        return total  # and no engine is started
    pool = engines_for(config, model, bool(adapter), answer)
    watch = _Watch(pool.health, total - there, on_progress, run, f"{target}.engines/{time.time():.3f}.json")
    try:
        with watch:
            written = _stream(config, run, source, target, pool, adapter, greedy)
            watch.backpressure = backpressure_seconds(written)
    except Exception as error:
        state: dict[str, Any] = ray.get(pool.health.state.remote())
        stop()
        if state["cause"] or state["given_up"]:
            words = f"its own words: {state['cause']}" if state["cause"] else "it said nothing (killed, or out of memory?)"
            raise EngineError(f"the LLM engine failed at every try; {words}") from error
        raise
    return whole_rows(run, target)


def whole_rows(run: RunFolder, table: str) -> int:
    """Rows in the whole files of a table; one that a kill or a full disk cut short counts for nothing."""
    import pyarrow.parquet as pq

    def rows(file: str) -> int:
        try:
            return int(pq.read_metadata(run.path(file), filesystem=run.fs).num_rows)
        except pa.ArrowInvalid:
            return 0

    with ThreadPoolExecutor(READERS) as readers:
        return sum(readers.map(rows, run.files(table, ".parquet")))


def _stream(config: Config, run: RunFolder, source: str, target: str, pool: Pool, adapter: str, greedy: bool) -> ray.data.Dataset:
    import ray.data
    from ray.data.checkpoint import CheckpointConfig

    context = ray.data.DataContext.get_current()
    before = context.checkpoint_config
    checkpoint = run.path(f"{target}.checkpoint")
    context.checkpoint_config = CheckpointConfig("candidate_id", checkpoint, delete_checkpoint_on_success=False, override_filesystem=run.fs)
    most = BLOCKS_IN_FLIGHT
    try:
        requests = run.dataset(source, override_num_blocks=len(run.files(source, ".parquet")), num_cpus=0.1)
        completions: ray.data.Dataset = requests.map_batches(
            Ask,
            fn_constructor_args=(config, pool.engines, adapter, greedy),
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=1, max_tasks_in_flight_per_actor=most, max_concurrent_calls_per_actor=most),
            num_cpus=0.1,
        )
        completions.write_parquet(run.path(target), filesystem=run.fs, ray_remote_args={"num_cpus": 0.1})
        return completions
    finally:
        context.checkpoint_config = before


def requests_of(config: Config, rows: list[Row], adapter: str, greedy: bool) -> list[Request]:
    """Rows of one prompt that stand together are one request; greedy ones, of which vLLM takes one at a time, are their own."""

    def alike(row: Row) -> tuple[Any, ...]:
        return tuple(row.get(name) for name in (*ALIKE, *(["candidate_id"] if greedy else [])))

    groups = [list(group) for _, group in groupby(rows, alike)]
    return [Request(own, sampling_parameters(config, own[0], greedy), adapter if own[0].get("policy") == TUNED else "") for own in groups]


class Ask:
    """Request rows in batches to that of the ready engines (handles of :class:`~divray.engines.actor.EngineActor`) which has the most
    room (a function of Ray Data, in an actor)."""

    def __init__(self, config: Config, engines: list[Any], adapter: str, greedy: bool) -> None:
        self.config, self.engines, self.adapter, self.greedy = config, engines, adapter, greedy
        self.slots: dict[int, int] = {}
        self.taken = [0] * len(engines)
        self.lost: dict[int, Exception] = {}
        self.joining: set[asyncio.Task[None]] = set()
        self.changed = asyncio.Event()

    async def __call__(self, block: pa.Table) -> pa.Table:
        """Completions (``schemas.COMPLETIONS``) of request rows (``schemas.PROMPTS``)."""
        asked, size = block.to_pylist(), self.config.engine.batch_size
        answers = await asyncio.gather(*(self._batch(asked[start : start + size]) for start in range(0, len(asked), size)))
        rows = [row for answer in answers for row in answer]
        for field in list(COMPLETIONS)[len(PROMPTS) :]:
            empty = "" if field.type == pa.string() else 0
            block = block.append_column(field, pa.array([row.get(field.name) or empty for row in rows], field.type))
        return block.select(COMPLETIONS.names).cast(COMPLETIONS)

    async def _batch(self, rows: list[Row]) -> list[Row]:
        from ray.exceptions import RayActorError

        requests = requests_of(self.config, rows, self.adapter, self.greedy)
        while True:
            number = await self._free()
            self.taken[number] += len(rows)
            try:
                answer: list[Row] = await self.engines[number].complete.remote(requests)
                return answer
            except RayActorError:  # the engine is gone; its requests are asked again
                if self.slots.pop(number, None) is not None:
                    self._join(number)
            finally:
                self.taken[number] -= len(rows)
                self.changed.set()

    async def _free(self) -> int:
        """The engine with the fewest candidates, once one has room."""
        if not self.slots and not self.joining and not self.lost:
            for number in range(len(self.engines)):
                self._join(number)
        while len(self.lost) < len(self.engines):
            if able := [number for number, slots in self.slots.items() if self.taken[number] < slots]:
                return min(able, key=self.taken.__getitem__)
            self.changed.clear()
            await self.changed.wait()
        raise self.lost[0]

    def _join(self, number: int) -> None:
        """Give this engine batches once it is ready."""
        task = asyncio.get_running_loop().create_task(self._wait(number))
        self.joining.add(task)
        task.add_done_callback(self.joining.discard)

    async def _wait(self, number: int) -> None:
        from ray.exceptions import ActorUnavailableError, RayActorError

        try:
            while number not in self.slots:
                try:
                    self.slots[number] = await self.engines[number].slots.remote()
                except ActorUnavailableError:
                    await asyncio.sleep(1)
        except RayActorError as error:  # given up
            self.lost[number] = error
        self.changed.set()


def backpressure_seconds(written: ray.data.Dataset) -> float:
    """How long Ray Data let the engines' answers wait because what follows them was full, by its own statistics."""
    pending: list[Any] = [written.get_stats_summary()]
    seconds = 0.0
    while pending:
        stats = pending.pop()
        pending += stats.parents
        if f"({Ask.__name__})" in (stats.base_name or ""):
            seconds += float(stats.extra_metrics.get("task_output_backpressure_time") or 0.0)
    return seconds


class _Watch:
    """Tells about progress, and keeps the record of the pass's engines in the run folder."""

    def __init__(self, health: Any, total: int, on_progress: Progress | None, run: RunFolder, record: str) -> None:
        self.health, self.total, self.on_progress = health, total, on_progress
        self.run, self.record = run, record
        self.began_at, self.backpressure = time.time(), 0.0
        self.known: dict[str, Any] = {}
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> None:
        import ray

        self.before = ray.get(self.health.state.remote())["rows"]
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join(timeout=10)
        self._tell()

    def _follow(self) -> None:
        while not self.done.wait(1.0):
            self._tell()

    def _tell(self) -> None:
        import ray

        with contextlib.suppress(ray.exceptions.RayError, OSError):
            state = ray.get(self.health.state.remote(), timeout=10)
            if self.on_progress is not None:
                self.on_progress(state["rows"] - self.before, self.total, "" if state["ready"] else "engine starting")
            # One that was there before counts from when the pass began.
            engines = {
                name: {moment: seconds and max(seconds, self.began_at) for moment, seconds in engine.items()}
                for name, engine in state["engines"].items()
            }
            if engines != self.known or self.done.is_set():
                self.known, ended = engines, time.time() if self.done.is_set() else None
                record = {"began_at": self.began_at, "ended_at": ended, "backpressure_seconds": self.backpressure, "engines": engines}
                self.run.write_json(self.record, record)
