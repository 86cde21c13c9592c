"""What Flower is started with (`celery -A gptjobs.flower flower`): the Celery application, and how a job's
progress is taken."""

from typing import Any

import flower.events
from celery.events.state import Task
from celery.states import READY_STATES, STARTED

from gptjobs import broker, settings


class JobTask(Task):  # type: ignore[misc]  # Celery publishes no types
    """A job as Flower holds it.

    Celery makes an event type that it does not know the task's state, which then outranks REVOKED and hides the
    button that terminates. Here progress leaves a job STARTED, and comes too late for one that has ended.
    """

    def event(self, type_: str, *arguments: Any, **named: Any) -> None:
        if type_ != "progress":
            super().event(type_, *arguments, **named)
        elif self.state not in READY_STATES:
            timestamp, _, fields = arguments
            self.__dict__.update(state=STARTED, result=fields["result"], timestamp=timestamp)


flower.events.EventsState.Task = JobTask
app = broker.connect(settings.load().redis_url)
