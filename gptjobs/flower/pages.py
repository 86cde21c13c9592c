"""What Flower's web server answers otherwise than by itself: the table's rows, cancelling, our templates and files."""

from pathlib import Path
from typing import Any

import flower
from flower.api import BaseApiHandler
from flower.api.control import TaskRevoke
from flower.utils.search import QuerySyntaxError
from flower.utils.tasks import search_tasks
from flower.views import BaseHandler
from flower.views.monitor import Metrics
from flower.views.tasks import TasksDataTable
from tornado.template import Loader, Template
from tornado.web import HTTPError, StaticFileHandler, authenticated

from gptjobs import control
from gptjobs.errors import GptjobsError, NotFound
from gptjobs.flower.task import JobTask
from gptjobs.job import Job
from gptjobs.layout import Layout
from gptjobs.store import Store

COLUMNS = {
    "job": "Job",
    "state": "State",
    "step": "Progress",
    "worker": "Worker",
    "received": "Submitted",
}
"""of the table, with their headings; the tab Runs has the rest"""
_SORTED_BY = {"worker": "job_worker", "received": "submitted_at"}
"""Celery's own mean the worker that heard of the job last, and when: also one that did not get its lease"""
TEMPLATES = Path(__file__).parent / "templates"
FILES = Path(__file__).parent / "static"
_FLOWERS_TEMPLATES = Path(flower.__file__).parent / "templates"
_FLOWERS = "flower/"


class Templates(Loader):
    """Ours, else Flower's. Ours extend Flower's of the same name as `flower/NAME`."""

    def _create_template(self, name: str) -> Template:
        ours = Path(self.root) / name
        path = ours if ours.is_file() else _FLOWERS_TEMPLATES / name.removeprefix(_FLOWERS)
        return Template(path.read_bytes(), name=name, loader=self)


class Files(StaticFileHandler, BaseHandler):  # type: ignore[misc]  # Flower publishes no types
    """Our style and script, behind the login."""

    def prepare(self) -> None:
        if not self.current_user:
            raise HTTPError(401)

    def set_extra_headers(self, path: str) -> None:
        self.set_header("Cache-Control", "no-cache")  # ask each time: an update changes them under the same name


class JobMetrics(Metrics):  # type: ignore[misc]
    """Flower's metrics with ours, after a look at the jobs that does not keep others waiting."""

    async def get(self) -> None:
        events = self.application.events
        await events.io_loop.run_in_executor(None, events.metrics.look, set(events.state.workers))
        await super().get()


class JobsTable(TasksDataTable):  # type: ignore[misc]
    """The rows that the table shows: found, sorted, one page of them. Flower's sorts numbers as text."""

    @authenticated
    def get(self) -> None:
        events = self.application.events
        answer = {"draw": self.get_argument("draw", type=int, required=True)}
        try:
            found = search_tasks(events, search=self.get_argument("search[value]", "", escape=False))
        except QuerySyntaxError as error:
            total = len(events.state.tasks)
            self.write({**answer, "data": [], "recordsTotal": total, "recordsFiltered": 0, "searchError": str(error)})
            return
        tasks = [events.state.tasks.data[id] for id in found.task_ids]
        column = self.get_argument("order[0][column]", type=int, required=True)
        by = self.get_argument(f"columns[{column}][data]")
        tasks.sort(key=lambda task: place(task, by), reverse=self.get_argument("order[0][dir]") == "desc")
        start, length = (self.get_argument(name, type=int, required=True) for name in ("start", "length"))
        rows = [row(task) for task in tasks[start : start + length]]
        self.write({**answer, "data": rows, "recordsTotal": found.total_count, "recordsFiltered": len(tasks)})


def place(task: JobTask, column: str) -> tuple[bool, Any]:
    """Where a column sorts the job; those without a value come first, or last when the order is turned."""
    value: Any = getattr(task, _SORTED_BY.get(column, column))
    return value is not None, value


def row(task: JobTask) -> dict[str, Any]:
    """The job in words, by column, with what the script needs to draw it."""
    return {
        "uuid": task.uuid,
        "percent": task.percent,
        "job": task.job or task.uuid,
        "state": task.state,
        "job_state": task.job_state,
        "reason": task.reason,
        "step": progress(task),
        "worker": task.job_worker,
        "received": task.submitted_at,
    }


def progress(task: JobTask) -> str:
    """`1510/3500`, `1500/3500 saving`, `encoding 40%`; empty before anything began."""
    stage = task.stage or ""
    if task.step is None:
        return stage if task.done is None else f"{stage} {task.done:.0%}"
    steps = f"{task.step}/{task.end_step}"
    return steps if stage in ("", "training") else f"{steps} {stage}"


class Cancel(TaskRevoke):  # type: ignore[misc]
    """What Flower's Terminate asks for. Flower would tell the workers; the record also takes it when none is there."""

    @authenticated
    async def post(self, taskid: str) -> None:
        if self.application.options.read_only:
            raise HTTPError(403, "Read only mode is enabled")
        events = self.application.events
        try:
            job = await events.io_loop.run_in_executor(None, _cancel, events.store, events.layout, taskid)
        except GptjobsError as error:
            raise HTTPError(404 if isinstance(error, NotFound) else 503, error.message) from error
        events.take(job)
        self.write({"message": f"Job {job.spec.name or taskid} is {job.state}"})


def _cancel(store: Store, layout: Layout, id: str) -> Job:
    control.cancel(store, layout, store.get(id))
    return store.get(id)


_write_api_error = BaseApiHandler.write_error


def write_api_error(handler: BaseApiHandler, status: int, **details: Any) -> None:
    """Flower's API refuses without asking for the password, and to a page whose URL has it, as that which
    `gptjobs up` prints, Chromium sends it only when asked."""
    if status == 401:
        handler.set_header("WWW-Authenticate", 'Basic realm="flower"')
    _write_api_error(handler, status, **details)
