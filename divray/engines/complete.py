"""The pass of request rows through the engines, streamed by Ray Data.

A row is not sent again if an intact file of the target has its completion.  If an engine dies, its requests are sent again.  A request
that ends engines is found and gets an ``error``.  If engines die at every start, the pass fails with their cause.
``<target>.engines/`` has one file for each pass, with the times at which engines started.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from divray.config import Config
from divray.engines import Answer, Request, Row
from divray.engines.pool import engines_for, stop
from divray.engines.vllm import sampling_parameters
from divray.errors import EngineError
from divray.run_folder import RunFolder
from divray.schemas import COMPLETIONS, PROMPTS
from divray.stages import Progress

BLOCKS_IN_FLIGHT = 64
"""Maximum number of files of request rows in progress at a time, for each engine: the first ones have few rows."""

ALIKE = ("prompt", "pattern", "head", "strategy", "sentences")
"""Columns that the candidates of one request share."""

SUSPECT = 2
"""Deaths of its engine that make a batch a suspect; one may be the machine's fault."""

LEAST_BATCH, BATCHES = 16, 16
"""Fewest candidates in a batch; batches that make up what an engine takes at a time.  A batch comes back as a whole."""


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
) -> None:
    """Have the LLM complete every request row of table ``source`` into table ``target``.

    Args:
        source: Table of ``schemas.PROMPTS``; each of its files is a block.
        target: Table of ``schemas.COMPLETIONS``; what lies there already is kept and not asked again.
        model: Reference that each engine resolves, or ``endpoint``: the server that ``engine.endpoint`` names.
        adapter: Folder or URI of the LoRA adapter of ``model`` to use; ``""``: the model alone.
        greedy: Decode at temperature 0 instead of ``config.sampling``'s.
        on_progress: Called about once a second with the progress; rows that were there before don't count.
        answer: A function in the engine's place, to replay completions or to measure everything but the engine.

    Raises:
        EngineError: The engine died at every start, or no retry can help; the message has the engine's cause.  Or completions were lost.
    """
    import ray
    import ray.data

    total, done = run.read_table(source, ["candidate_id"]).num_rows, answered(run, target)
    if len(done) == total:
        return  # and no engine is started
    pool = engines_for(config, model, answer)
    most = BLOCKS_IN_FLIGHT * len(pool.engines)
    requests = run.dataset(source, override_num_blocks=len(run.files(source, ".parquet")), num_cpus=0.1)
    completions = requests.map_batches(
        Ask,
        fn_constructor_args=(config, pool.engines, adapter, greedy, done),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=1, max_tasks_in_flight_per_actor=most, max_concurrent_calls_per_actor=most),
        num_cpus=0.1,
    )
    try:
        with _watched(pool.health, total - len(done), on_progress, run, f"{target}.engines/{time.time():.3f}.json"):
            run.write_dataset(target, completions, ray_remote_args={"num_cpus": 0.1})
    except Exception as error:
        state: dict[str, Any] = ray.get(pool.health.state.remote())
        stop()
        if state["cause"] or state["given_up"]:
            words = f"its own words: {state['cause']}" if state["cause"] else "it said nothing (killed, or out of memory?)"
            raise EngineError(f"the LLM engine failed; {words}") from error
        raise
    if (lost := total - sum(batch.num_rows for batch in run.scan(target, ["candidate_id"]))) > 0:
        raise EngineError(f"{lost} of {total} completions are missing in {target}; the same command asks for them again")


def answered(run: RunFolder, target: str) -> pa.ChunkedArray:
    """The ids in a table of completions; deletes files that a kill or a full disk cut short, so that their rows are sent again."""

    def drop_if_cut(file: str) -> None:
        try:
            pq.read_metadata(run.path(file), filesystem=run.fs)
        except pa.ArrowInvalid:
            run.delete(file)

    run.each(target, drop_if_cut)
    return pa.chunked_array([batch["candidate_id"] for batch in run.scan(target, ["candidate_id"])], pa.string())


def requests_of(config: Config, rows: list[Row], adapter: str, greedy: bool) -> list[Request]:
    """Adjacent rows of one prompt form one request.  A greedy row is a request alone: vLLM takes only one per request."""
    alike = (*ALIKE, "candidate_id") if greedy else ALIKE
    groups = [list(group) for _, group in groupby(rows, lambda row: [row.get(name) for name in alike])]
    return [Request(own, sampling_parameters(config, own[0], greedy), adapter) for own in groups]


class Ask:
    """A function for Ray Data, in an actor: sends each batch of request rows to the ready engine with the fewest candidates.  Leaves out
    rows whose ids are ``done``.  ``engines`` are handles of :class:`~divray.engines.actor.EngineActor`."""

    def __init__(self, config: Config, engines: list[Any], adapter: str, greedy: bool, done: pa.ChunkedArray) -> None:
        self.config, self.engines, self.adapter, self.greedy, self.done = config, engines, adapter, greedy, done
        self.slots: dict[int, int] = {}
        self.taken = [0] * len(engines)
        self.lost: dict[int, Exception] = {}
        self.joining: dict[int, asyncio.Task[None]] = {}
        self.changed, self.door, self.searching = asyncio.Event(), asyncio.Lock(), asyncio.Lock()

    async def __call__(self, block: pa.Table) -> pa.Table:
        """Completions (``schemas.COMPLETIONS``) of request rows (``schemas.PROMPTS``)."""
        block = block.filter(pc.invert(pc.is_in(block["candidate_id"], self.done)))
        size = self.config.engine.batch_size or max(LEAST_BATCH, self.slots[await self._free()] // BATCHES)
        answers = await asyncio.gather(*(self._batch(block.slice(start, size)) for start in range(0, len(block), size)))
        rows = [row for answer in answers for row in answer]
        for field in list(COMPLETIONS)[len(PROMPTS) :]:
            empty = "" if field.type == pa.string() else 0
            block = block.append_column(field, pa.array([row.get(field.name) or empty for row in rows], field.type))
        return block.select(COMPLETIONS.names).cast(COMPLETIONS)

    async def _batch(self, rows: pa.Table) -> list[Row]:
        """The answers to ``rows``.  If their engine dies :data:`SUSPECT` times, what ends it is searched among them."""
        for _ in range(SUSPECT):
            if (answer := await self._sent(rows)) is not None:
                return answer
        async with self.searching:  # one at a time, so that each ends after a few deaths
            return await self._search(rows)

    async def _search(self, rows: pa.Table) -> list[Row]:
        """Send ``rows`` to an engine that has nothing else; if it dies, each half of them.  A request that is left alone gets an error."""
        if (answer := await self._sent(rows, alone=True)) is not None:
            return answer
        sizes = [len(request.rows) for request in requests_of(self.config, rows.to_pylist(), self.adapter, self.greedy)]
        if len(sizes) == 1:
            return [{"error": "EngineDied: engines die of this request, also where they have no other"}] * len(rows)
        half = sum(sizes[: len(sizes) // 2])
        return [*await self._search(rows.slice(0, half)), *await self._search(rows.slice(half))]

    async def _sent(self, rows: pa.Table, alone: bool = False) -> list[Row] | None:
        """What an engine answers; ``None`` if it died.  ``alone``: it has no other rows meanwhile."""
        from ray.exceptions import RayActorError

        async with self.door:  # first come, first served, and one waits for room, not all
            number = await self._free(1 if alone else None)
            size = max(len(rows), self.slots[number]) if alone else len(rows)
            self.taken[number] += size
        try:
            asked = requests_of(self.config, rows.to_pylist(), self.adapter, self.greedy)
            return list(await self.engines[number].complete.remote(asked))
        except RayActorError:
            self.slots.pop(number, None)
            return None
        finally:
            self.taken[number] -= size
            self.changed.set()

    async def _free(self, most: int | None = None) -> int:
        """Wait until an engine has room, or fewer than ``most`` candidates; return the number of the one with the fewest."""
        while len(self.lost) < len(self.engines):
            for number in range(len(self.engines)):
                if not any(number in known for known in (self.slots, self.joining, self.lost)):
                    self.joining[number] = asyncio.create_task(self._join(number))
            if able := [number for number, slots in self.slots.items() if self.taken[number] < (most or slots)]:
                return min(able, key=self.taken.__getitem__)
            self.changed.clear()
            await self.changed.wait()
        raise self.lost[0]

    async def _join(self, number: int) -> None:
        """Give this engine batches once it is ready."""
        try:
            self.slots[number] = await self.engines[number].slots.options(max_task_retries=-1).remote()
        except Exception as error:  # given up
            self.lost[number] = error
        del self.joining[number]
        self.changed.set()


@contextlib.contextmanager
def _watched(health: Any, total: int, on_progress: Progress | None, run: RunFolder, name: str) -> Iterator[None]:
    """While the block runs, report progress and keep the record ``name`` of the pass's engines up to date."""
    import ray

    record: dict[str, Any] = {"began_at": time.time(), "ended_at": None, "engines": {}}
    before: int = ray.get(health.state.remote())["rows"]
    done = threading.Event()

    def follow() -> None:
        over = False
        while not over:
            over = done.wait(1.0)
            with contextlib.suppress(ray.exceptions.RayError, OSError):
                state = ray.get(health.state.remote(), timeout=10)
                if on_progress is not None:
                    on_progress(state["rows"] - before, total, "" if state["ready"] else "engine starting")
                # An engine that was there before the pass counts from the pass's start.
                engines = {
                    engine: {moment: seconds and max(seconds, record["began_at"]) for moment, seconds in times.items()}
                    for engine, times in state["engines"].items()
                }
                if engines != record["engines"] or over:
                    record.update(engines=engines, ended_at=time.time() if over else None)
                    run.write_json(name, record)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=20)
