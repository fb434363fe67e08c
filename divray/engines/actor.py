"""The Ray actor that holds one engine, and the one to which all engines of a pool report their state."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from divray.engines import Engine, EngineDied, Request, Row
from divray.relations import metric_tag

MAX_STARTS, MAX_DEATHS = 3, 12
"""Starts in a row after which no engine was ready, and after which no batch was finished, that a pool of one engine may have; each further
engine allows one more.  A request that ends engines takes some deaths to find."""


class EngineHealth:
    """The state that the engines of one pool, at most ``pool``, report (a Ray actor)."""

    def __init__(self, pool: int = 1) -> None:
        self.max_starts, self.max_deaths = MAX_STARTS + pool - 1, MAX_DEATHS + pool - 1
        self.never_ready = self.in_vain = 0
        self.rows = 0
        self.cause = ""
        self.engines: dict[str, dict[str, float | None]] = {}

    def started(self, engine: str) -> bool:
        """Record that an engine is about to start; return whether it may."""
        self.never_ready += 1
        self.in_vain += 1
        self.engines[engine] = {"created_at": time.time(), "ready_at": None}
        return not self.given_up()

    def is_ready(self, engine: str) -> None:
        """Record that an engine has started; unless given up, clear the cause of an earlier failure."""
        self.engines[engine]["ready_at"] = time.time()
        if not self.given_up():
            self.never_ready, self.cause = 0, ""

    def finished(self, rows: int) -> None:
        self.never_ready = self.in_vain = 0
        self.rows += rows

    def failed(self, cause: str) -> None:
        self.cause = cause

    def given_up(self) -> bool:
        return self.never_ready > self.max_starts or self.in_vain > self.max_deaths

    def state(self) -> dict[str, Any]:
        ready = sum(engine["ready_at"] is not None for engine in self.engines.values())
        return {"ready": ready, "rows": self.rows, "cause": self.cause, "given_up": self.given_up(), "engines": self.engines}


class EngineActor:
    """Holds the engine that ``make`` makes (a Ray actor).  If the engine dies, the process ends, so that Ray starts another.

    It reports to ``health``, the :class:`EngineHealth` of its pool, and through Ray's metrics to Prometheus.

    Raises:
        RuntimeError: The engine is given up.
    """

    def __init__(self, make: Callable[[], Engine], health: Any) -> None:
        import ray
        from ray.util import metrics

        self.health = health
        self.name: str = f"{ray.util.get_node_ip_address()}:{os.getpid()}"
        if not ray.get(health.started.remote(self.name)):
            raise RuntimeError("the engine died at every try")
        tags, kinds = ("engine", "relation"), "Tokens by kind: prompt, cached (of the prompt), generated."
        self.answered: Any = metrics.Counter("divray_requests", "Requests that came back.", (*tags, "outcome"))
        self.tokens: Any = metrics.Counter("divray_tokens", kinds, (*tags, "kind"))
        for metric in (self.answered, self.tokens):
            metric.set_default_tags({"engine": self.name})
        try:
            self.engine = make()
        except Exception as error:
            ray.get(health.failed.remote(str(error) or type(error).__name__))
            os._exit(1)
        health.is_ready.remote(self.name)

    async def slots(self) -> int:
        """Candidates that the engine takes at a time; returns once the engine is ready."""
        return self.engine.slots

    async def complete(self, requests: list[Request]) -> list[Row]:
        """The completions of all candidates of ``requests``, with their times and the engine's name.

        Raises:
            Exception: Every other request would fail, too.
        """
        asked = [row["relation"] for request in requests for row in request.rows]
        answers = await asyncio.gather(*map(self._complete, requests))
        rows = [row for answer in answers for row in answer]
        self.health.finished.remote(len(rows))
        self._count(asked, rows)
        return rows

    def _count(self, asked: list[str], rows: list[Row]) -> None:
        """Report a batch to Prometheus: once for each relation and kind, since a report takes longer than a row's own work."""
        outcomes = Counter((relation, "error" if row.get("error") else "ok") for relation, row in zip(asked, rows, strict=True))
        for (relation, outcome), count in outcomes.items():
            self.answered.inc(count, {"relation": metric_tag(relation), "outcome": outcome})
        tokens: Counter[tuple[str, str]] = Counter()
        for relation, row in zip(asked, rows, strict=True):
            tokens.update({(relation, kind): row.get(f"{kind}_tokens") or 0 for kind in ("prompt", "cached", "generated")})
        for (relation, kind), count in (+tokens).items():  # no zeros
            self.tokens.inc(count, {"relation": metric_tag(relation), "kind": kind})

    async def _complete(self, request: Request) -> list[Row]:
        started_at = time.time()
        try:
            answer = await self.engine.complete(request)
        except Exception as error:
            died = isinstance(error, EngineDied)
            await self.health.failed.remote(str(error) if died else f"{type(error).__name__}: {error}")
            if died:
                os._exit(1)
            raise
        times = {"started_at": started_at, "finished_at": time.time(), "engine": self.name}
        return [{**times, **row} for row in answer]

    async def close(self) -> None:
        self.engine.close()
