"""`python -m worker`: one Celery process a host, a thread a slot.

A first SIGTERM drains: running jobs checkpoint and go back to the queue. A second one does not wait for that.
"""

import argparse
import itertools
import logging
import os
import signal
import socket
import sys
import threading
import time
import warnings
from types import FrameType

from celery import signals
from celery.platforms import SecurityWarning

from gptjobs import broker, notify, settings, storage, trackers
from gptjobs.errors import GptjobsError
from gptjobs.layout import Layout
from gptjobs.leases import LeaseStore, Unreachable
from worker import metrics
from worker.child import SECOND_REQUEST
from worker.host import this_host
from worker.messenger import Messenger
from worker.rescue import Rescue
from worker.tasks import Station, register

AT_ONCE_S = 5.0
"""for a worker that was told to stop at once, before it ends without telling Redis"""
REDIS_PAUSE_S = 5.0
LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m worker")
    parser.add_argument("--name", default="worker")
    parser.add_argument("--device", help="cuda, mps or cpu; the best one here unless given")
    parser.add_argument("--slots", type=int, help="jobs at once on each device")
    parser.add_argument("--track", action="append", default=[], choices=trackers.EXTRAS)
    parser.add_argument("--metrics", metavar="[HOST:]PORT", help="where Prometheus may ask; nowhere unless given")
    parser.add_argument("--leash", action="store_true", help="drain when standard input ends")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, stream=sys.stderr)
    warnings.simplefilter("ignore", SecurityWarning)  # that it runs as root: in a container it may
    for chatty in ("celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger("celery.worker.request").addFilter(without_traceback)

    where = settings.load()
    layout = Layout(where.root)
    try:
        trackers.check(arguments.track)
        store = LeaseStore(where.redis_url)
        host = this_host(_free_name(arguments.name, store), arguments.device, arguments.slots)
        everywhere = notify.check(settings.notify_urls(), settings.NOTIFY_VARIABLE)
        if everywhere:
            notify.require()
        layout = _open_root(layout, store)
        station = Station(
            host=host,
            layout=layout,
            store=store,
            app=broker.connect(where.redis_url),
            messenger=Messenger(everywhere),
            trackers=list(dict.fromkeys(arguments.track)),
        )
        if arguments.metrics:
            metrics.serve(station, arguments.metrics)
    except GptjobsError as error:
        print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr)
        return error.exit_code
    if host.slots[0] == "cpu":
        settings.share_cores(len(host.slots))
    register(station)
    station.messenger.verify(everywhere, settings.NOTIFY_VARIABLE)

    def stop_at_once(*signalled: object) -> None:
        """Trainers are killed; their jobs go back to the queue as of their last checkpoints. Redis may be away."""
        station.drain.at_once.set()
        limit = threading.Timer(AT_ONCE_S, os._exit, (SECOND_REQUEST,))
        limit.daemon = True
        limit.start()

    @signals.worker_shutting_down.connect(weak=False)  # type: ignore[untyped-decorator]
    def drain(**event: object) -> None:
        if station.drain.is_set() or station.drain.at_once.is_set():
            stop_at_once()
        station.drain.set()
        signal.signal(signal.SIGTERM, stop_at_once)

    @signals.worker_ready.connect(weak=False)  # type: ignore[untyped-decorator]
    def take_ctrl_c(**event: object) -> None:
        signal.signal(signal.SIGINT, _drain_at_ctrl_c)
        signal.signal(signal.SIGHUP, hang_up)  # Celery would start itself anew

    fell = threading.Event()

    def drain_after_a_fault(fault: threading.ExceptHookArgs) -> None:
        """A worker without one of its threads is not to be trusted: say why, and put its jobs back."""
        logging.error("a thread failed; the worker stops", exc_info=fault.exc_value)
        fell.set()
        os.kill(os.getpid(), signal.SIGTERM)

    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # by nohup
    hang_up = signal.SIG_IGN if ignored else _drain_at_ctrl_c
    threading.excepthook = drain_after_a_fault
    if arguments.leash:
        _drain_when_input_ends()
    rescue = Rescue(station)
    rescue.start()
    logging.info(
        "%s offers %s on the queues %s; root %s",
        host.worker, ", ".join(host.slots), ", ".join(host.queues), layout.root,
    )  # fmt: skip
    celery_worker = station.app.Worker(
        hostname=host.worker,
        pool="threads",
        concurrency=len(host.slots),
        queues=host.queues,
        loglevel="INFO",
        task_events=True,
        without_mingle=True,
        without_gossip=True,
        quiet=True,
    )
    celery_worker.start()
    rescue.stop()
    station.messenger.close()
    return int(celery_worker.exitcode or fell.is_set())  # who keeps it up starts one that fell again


def without_traceback(said: logging.LogRecord) -> bool:
    """A connection that is lost just before a doorbell is acknowledged is told shortly: it rings again, harmlessly."""
    if str(said.msg).startswith("Couldn't ack"):
        said.exc_info, said.levelno, said.levelname = None, logging.WARNING, "WARNING"
    return True


def _open_root(layout: Layout, store: LeaseStore) -> Layout:
    """The root that Redis's jobs have their files in; the first worker makes its own that one. Raises Refused where
    this folder is another."""
    while True:
        try:
            storage.expect(layout, store.root())
            layout.make()
            here = storage.identified(layout)
            storage.expect(here, store.root(here.id))
            return here
        except Unreachable as error:
            logging.warning("Redis does not answer (%s); waiting for it", error)
            time.sleep(REDIS_PAUSE_S)


def _drain_when_input_ends() -> None:
    def watch() -> None:
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="leash", daemon=True).start()


def _free_name(name: str, store: LeaseStore) -> str:
    """`name`, or `name-2` and so on where workers of this host have it."""
    try:
        taken = {each.name for each in store.workers()}
    except Unreachable:
        return name
    host = socket.gethostname()
    names = (name if number == 1 else f"{name}-{number}" for number in itertools.count(1))
    return next(each for each in names if f"{each}@{host}" not in taken)


def _drain_at_ctrl_c(number: int, frame: FrameType | None) -> None:
    """As SIGTERM: a first one drains, a second one is immediate."""
    logging.info("stopping: running jobs write a checkpoint and go back to the queue; again stops at once")
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
