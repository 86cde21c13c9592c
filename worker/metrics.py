"""A worker's metrics for Prometheus, at http://HOST:PORT/metrics (`worker start --metrics`)."""

import logging
import shutil
import threading
from collections.abc import Iterator

from prometheus_client import REGISTRY, start_http_server
from prometheus_client.registry import Collector

import gptjobs
from gptjobs import metrics, settings
from gptjobs.errors import UsageError
from gptjobs.metrics import Samples
from worker.tasks import Station

logger = logging.getLogger(__name__)


def serve(station: Station, address: str) -> int:
    """Answer scrapes in a thread until the process ends; returns the port. Raises UsageError where that cannot be."""
    host, port = settings.metrics_address(address)
    collector = WorkerMetrics(station)
    try:
        server, _ = start_http_server(port, host)
    except OSError as error:
        raise UsageError(
            f"metrics cannot be served on {host}:{port}: {error.strerror or error}",
            hint="a port that is free: --metrics PORT; `ss -ltnp` shows what listens here",
        ) from error
    REGISTRY.register(collector)
    logger.info("metrics are at http://%s:%d/metrics", host, server.server_port)
    return server.server_port


class WorkerMetrics(Collector):
    """Asks nobody, but the file system for its space: a scrape costs training nothing."""

    def __init__(self, station: Station) -> None:
        self._station = station
        self._asks_root = threading.Lock()

    def describe(self) -> Iterator[metrics.Family]:
        return iter(())

    def collect(self) -> Iterator[metrics.Family]:
        station, samples = self._station, Samples()
        worker, slots = station.host.worker, station.host.slots
        samples.add(metrics.WORKER_INFO, 1, worker, gptjobs.__version__, slots[0].partition(":")[0])
        samples.add(metrics.WORKER_SLOTS, len(slots), worker)
        samples.add(metrics.WORKER_BUSY, sum(list(station.jobs.values())), worker)
        samples.add(metrics.WORKER_DRAINING, station.drain.is_set(), worker)
        samples.add(metrics.WORKER_REDIS_UP, station.hears_redis, worker)
        samples.add(metrics.ROOT_FREE, self._root_free(), worker)
        for (metric, label), count in station.meters.counted().items():
            samples.add(metric, count, worker, *([label] if label else []))
        for each in station.meters.readings():
            metrics.add_job(samples, each)
        return iter(samples)

    def _root_free(self) -> int | None:
        """In bytes; None where the root does not answer. A mount that hangs takes one scrape, not all that follow."""
        if not self._asks_root.acquire(blocking=False):
            return None
        try:
            return shutil.disk_usage(self._station.layout.root).free
        except OSError:
            return None
        finally:
            self._asks_root.release()
