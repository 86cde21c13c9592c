"""The one door to Celery: its settings, and ringing the doorbell.

The message is only a doorbell, acknowledged early: a job's id and the serial that its record must have.
With late acknowledgement Redis redelivers every message older than the visibility timeout, so a long job
would be trained twice; early acknowledgement alone loses a job with its worker. So that timeout is years,
prefetching is off, and the lease decides (see leases.py).
"""

import logging
from typing import Any

from celery import Celery
from kombu.entity import Queue
from kombu.exceptions import OperationalError

from gptjobs.config import MOST_GPUS
from gptjobs.errors import RedisUnreachable
from gptjobs.job import ANY, DEVICES, HIGHEST_PRIORITY, Job, JobState, Outcome, queue_of
from gptjobs.settings import address, public

App = Celery
TASK = "gptjobs.train"
QUEUES = tuple(queue_of(device, gpus) for device in (*DEVICES, ANY) for gpus in range(1, MOST_GPUS + 1))
logger = logging.getLogger(__name__)

_YEARS_S = 10 * 365 * 24 * 3600


def connect(redis_url: str) -> Celery:
    """The Celery application on that Redis; nothing is contacted yet."""
    where = address(redis_url)
    app = Celery("gptjobs", broker=where.url, set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        broker_channel_error_retry=True,  # an error that Redis answers, such as a full disk's, ends no worker
        broker_connection_max_retries=None,
        broker_connection_retry_on_startup=True,
        broker_transport_options={
            "visibility_timeout": _YEARS_S,
            "priority_steps": list(range(HIGHEST_PRIORITY + 1)),
            "queue_order_strategy": "priority",
            "health_check_interval": 5,
            "socket_timeout": 10,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
        },
        broker_use_ssl=dict(where.tls) or False,
        task_acks_late=False,
        task_create_missing_queues=False,
        task_ignore_result=True,
        task_queues=[Queue(each) for each in QUEUES],  # type: ignore[no-untyped-call]
        task_default_queue=ANY,
        task_send_sent_event=True,
        task_serializer="json",
        worker_cancel_long_running_tasks_on_connection_loss=True,  # those acknowledged late: none; else it warns
        worker_disable_prefetch=True,
        worker_hijack_root_logger=False,
        worker_prefetch_multiplier=1,
        worker_send_task_events=True,
    )
    return app


def ring(app: Celery, job: Job) -> None:
    """Tell the workers of the job's device that it waits. Ringing twice is harmless."""
    spec = job.spec
    options: dict[str, Any] = {
        "task_id": spec.id,
        "queue": spec.queue,
        "priority": HIGHEST_PRIORITY - job.priority,
        "retry": False,
        "argsrepr": f"({spec.called!r})",
    }
    try:
        app.send_task(TASK, args=[spec.id, job.serial], **options)
    except OperationalError as error:
        raise RedisUnreachable(
            f"Redis at {public(app.conf.broker_url)} cannot be reached: {error}",
            hint="gptjobs up starts one here; GPTJOBS_REDIS_URL names another",
        ) from error


def send_event(app: Celery, worker: str, job: str, kind: str, /, **fields: Any) -> None:
    """Tell Flower about a job, as Celery tells it about a task. What Redis does not take now is dropped: an
    event is for the eye, the record is elsewhere."""
    connection = app.connection_for_write()
    errors = (*connection.connection_errors, *connection.channel_errors)
    try:
        with app.events.default_dispatcher(hostname=worker) as dispatcher:
            dispatcher.send(kind, uuid=job, retry=False, **fields)
    except (OperationalError, *errors) as error:
        logger.info("no event %s for job %s: %s", kind, job, error)


def tell_progress(app: Celery, job: Job) -> None:
    """Tell Flower how a running attempt goes; the lease's token tells it from older ones."""
    send_event(app, job.worker or "", job.spec.id, "task-progress", token=job.token, job=job.to_dict())


def tell_end(app: Celery, worker: str, job: str, token: int, outcome: Outcome) -> None:
    """Tell Flower of an attempt's end that no end of a Celery task tells: cancelled, paused or queued again."""
    if outcome.state is JobState.CANCELLED:
        send_event(app, worker, job, "task-revoked", token=token, terminated=True, signum=None, expired=False)
    else:
        send_event(app, worker, job, "task-retried", token=token, exception=outcome.reason)
