"""What of a job and a sweep is news, and to whom: its end, a spike, a plateau, a pause that somebody must end.

A job that a user cancels or pauses is none: who did it knows. Neither is one that goes back to the queue, nor a trial,
whose sweep tells at its end.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial

from gptjobs.job import Cause, JobSpec, JobState, Outcome
from gptjobs.layout import Layout
from gptjobs.notify import Message
from gptjobs.progress import FALL, PLATEAU, SPIKE, Alert, Line, Progress
from gptjobs.sweep import Sweep
from worker import messages
from worker.messenger import Messenger, log_of

SPIKES_APART_S = 600.0
"""A loss that rises again and again is told so often at most."""


class News:
    """Of one attempt of a job. `addresses` came with the job; the messenger may have more."""

    def __init__(self, messenger: Messenger, layout: Layout, spec: JobSpec, addresses: Sequence[str] = ()) -> None:
        self.addresses = tuple(addresses)
        self._messenger, self._layout, self._spec = messenger, layout, spec
        self._spike: Alert | None = None
        """that was seen, and whose end is not yet known"""
        self._spike_told_at: float | None = None

    def verify(self) -> None:
        """Once the job has a log: say in it which addresses cannot be used."""
        self._messenger.verify(self.addresses, self._about, log_of(self._layout, self._spec))

    def note(self, line: Line) -> None:
        """Take a line of the trainer. A spike is told where the job trains on through it; where it ends the attempt,
        its end is told."""
        if isinstance(line, Alert) and line.name in (SPIKE, FALL):
            self._spike = line
        elif isinstance(line, Progress) and self._spike is not None and line.step > self._spike.step:
            alert, self._spike, now = self._spike, None, time.monotonic()
            if self._spike_told_at is None or now - self._spike_told_at > SPIKES_APART_S:
                self._spike_told_at = now
                self._tell(partial(messages.of_alert, self._layout, self._spec, alert))

    def tell_alert(self, alert: Alert) -> None:
        """Of what was seen beside the trainer."""
        if alert.name == PLATEAU:
            self._tell(partial(messages.of_alert, self._layout, self._spec, alert))

    def tell_end(self, outcome: Outcome) -> None:
        """Of an attempt, once it stands."""
        make: Callable[[Layout, JobSpec, Outcome], Message]
        if outcome.state in (JobState.FINISHED, JobState.FAILED, JobState.DIVERGED):
            make = messages.of_end
        elif (outcome.state, outcome.cause) == (JobState.PAUSED, Cause.NO_SPACE):
            make = messages.of_pause
        elif (outcome.state, outcome.cause) == (JobState.QUEUED, Cause.SPIKE):
            make = messages.of_rollback
        else:
            return
        self._tell(partial(make, self._layout, self._spec, outcome))

    @property
    def _about(self) -> str:
        return f"job {self._spec.id}"

    def _tell(self, make: Callable[[], Message]) -> None:
        if self._spec.sweep is None:
            self._messenger.tell(self.addresses, make, self._about, log_of(self._layout, self._spec))


def tell_sweep(messenger: Messenger, layout: Layout, sweep: Sweep, addresses: Sequence[str]) -> None:
    messenger.tell(addresses, partial(messages.of_sweep, layout, sweep), f"sweep {sweep.called}")
