"""Sends messages for a worker, each to each address in a thread of its own: none waits for another, no job for any.

What comes of it is a line of the worker's log, and of the job's, with the address masked. A message is sent at most
once, as far as can be told: it is tried again where it was not taken, not where nobody answered.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from gptjobs import notify
from gptjobs.job import JobSpec
from gptjobs.layout import Layout
from gptjobs.notify import Message
from worker import joblog

PAUSES_S = (5.0, 30.0)
"""before each further try"""
AT_ONCE = 4
"""children, however many messages there are"""
CLOSE_LIMIT_S = 15.0
"""for what is being sent when the worker ends"""

logger = logging.getLogger(__name__)


class Messenger:
    """`everywhere` are addresses that are told of every job."""

    def __init__(self, everywhere: Sequence[str] = ()) -> None:
        self._everywhere = tuple(everywhere)
        self._closing = threading.Event()
        self._children = threading.Semaphore(AT_ONCE)
        self._threads: set[threading.Thread] = set()
        self._starting = threading.Lock()

    def all_of(self, addresses: Sequence[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*addresses, *self._everywhere)))

    def tell(self, addresses: Sequence[str], make: Callable[[], Message], about: str, log: "Log | None" = None) -> None:
        """Send what `make` makes, in a thread: it may read much. `about` names the job or the sweep in the log."""
        urls = self.all_of(addresses)
        if urls:
            self._start(about, partial(self._tell_all, urls, make, about, log))

    def verify(self, addresses: Sequence[str], about: str, log: "Log | None" = None) -> None:
        """Say early which of a job's own addresses cannot be used."""
        for url in addresses:
            self._start(about, partial(self._send, url, None, about, log))

    def close(self) -> None:
        """Wait a little for what is being sent; nothing is tried again."""
        self._closing.set()
        until = time.monotonic() + CLOSE_LIMIT_S
        while left := self._left():
            left[0].join(max(0.0, until - time.monotonic()))
            if left[0].is_alive():
                logger.warning("the worker ends, and %d messages may not have been sent", len(left))
                return
            self._threads.discard(left[0])

    def _left(self) -> list[threading.Thread]:
        with self._starting:
            return list(self._threads)

    def _start(self, about: str, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                work()
            except Exception:  # the edge of a thread: a job does not end by what is told of it, nor a worker
                logger.exception("%s: a message was not sent", about)
            finally:
                with self._starting:
                    self._threads.discard(threading.current_thread())

        thread = threading.Thread(target=run, name="message", daemon=True)
        with self._starting:  # what has not begun cannot be waited for
            try:
                thread.start()
            except RuntimeError as error:  # no more threads
                logger.warning("%s: a message was not sent: %s", about, error)
            else:
                self._threads.add(thread)

    def _tell_all(self, urls: Sequence[str], make: Callable[[], Message], about: str, log: "Log | None") -> None:
        message = make()
        for url in urls:
            self._start(about, partial(self._send, url, message, about, log))

    def _send(self, url: str, message: Message | None, about: str, log: "Log | None") -> None:
        for pause in (*PAUSES_S, None):
            with self._children:
                code = notify.attempt(url, message)
            if code != notify.REFUSED or pause is None or self._closing.wait(pause):
                break
        if code == 0:
            return
        what = f"'{message.title}' was not told" if message else "nothing can be told"
        words = f"{what} to {notify.masked(url)}: {notify.in_words(code)}"
        logger.warning("%s: %s", about, words)
        if log is not None:
            log(words)


Log = Callable[[str], None]
"""Adds a line to a job's log."""


def log_of(layout: Layout, spec: JobSpec) -> Log:
    return lambda words: joblog.add(layout, spec.id, f"warning: {words}")
