"""Flower's events, and beside them Redis's record: events can be lost, and are gone when Flower starts."""

import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from flower.events import Events
from prometheus_client import REGISTRY
from tornado.ioloop import PeriodicCallback

from gptjobs import settings
from gptjobs.errors import GptjobsError, RedisUnreachable
from gptjobs.flower.board import Board
from gptjobs.flower.curves import Curves
from gptjobs.flower.metrics import FlowerMetrics
from gptjobs.job import Job
from gptjobs.layout import Layout
from gptjobs.store import Store

SYNC_MS = 5000
LOOKED_UP = ("task-sent", "task-retried", "task-revoked", "task-succeeded", "task-failed")
"""events of which the record has more: the name of a new job, the last numbers of one that ended"""

logger = logging.getLogger(__name__)


class JobEvents(Events):  # type: ignore[misc]  # Flower publishes no types
    """Redis is read in the executor's threads; the jobs change in the I/O loop's only."""

    def __init__(self, *arguments: Any, **values: Any) -> None:
        super().__init__(*arguments, **values)
        where = settings.load()
        self.store, self.layout = Store(where.redis_url), Layout(where.root)
        self.board, self.curves = Board(self.store, self.layout), Curves(self.layout)
        self.metrics = FlowerMetrics(self.store, self.layout, self.board)
        REGISTRY.register(self.metrics)
        self._settled: set[str] = set()
        self._sync_timer = PeriodicCallback(self._sync, SYNC_MS)

    def start(self) -> None:
        super().start()
        self.io_loop.add_callback(self._sync)
        self.io_loop.run_in_executor(None, self.board.look)  # so that who comes first finds what was long to read
        self._sync_timer.start()

    def on_event(self, event: Mapping[str, Any]) -> None:
        """In the thread that listens."""
        super().on_event(event)
        if event["type"] in LOOKED_UP:
            self.io_loop.add_callback(self._look_up, event["uuid"])

    async def _look_up(self, id: str) -> None:
        with suppress(GptjobsError):  # it will be taken with all others
            self.take(await self.io_loop.run_in_executor(None, self.store.get, id))

    async def _sync(self) -> None:
        """Take the records of all jobs but those whose end was taken before; forget jobs that Redis has not."""
        known = set(self.state.tasks)  # before Redis is asked: what comes meanwhile is newer than its answer
        try:
            ids = await self.io_loop.run_in_executor(None, self.store.ids)
            jobs = await self.io_loop.run_in_executor(None, self.store.all, self._settled)
        except RedisUnreachable as error:
            logger.warning("%s", error.message)
            return
        for id in known - ids:
            del self.state.tasks[id]
            self.state.search_engine.remove(id)
            self._settled.discard(id)
        for job in jobs:
            self.take(job)
        self._settled.update(job.spec.id for job in jobs if job.state.is_terminal)

    def take(self, job: Job) -> None:
        """Show what the record says, unless events have told more."""
        task, _ = self.state.get_or_create_task(job.spec.id)
        task.take(job.to_dict(), job.token)
        self.state.search_engine.upsert(task)
