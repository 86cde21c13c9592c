"""The Runs tab: its pages, what they fetch, and the buttons. Flower's own handlers give login and look."""

import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from flower.views import BaseHandler
from tornado.web import HTTPError, RequestHandler, authenticated, url

from gptjobs import control, record, storage
from gptjobs.errors import GptjobsError, NotFound, RedisUnreachable, UsageError
from gptjobs.flower import told
from gptjobs.flower.board import Board
from gptjobs.flower.events import JobEvents
from gptjobs.job import Job, JobState
from gptjobs.layout import Layout
from gptjobs.reference import Known, pick
from gptjobs.store import Store
from gptjobs.sweep import Sweep

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
"""No script but the files of Flower and of this package: whatever a job or a log says, nothing of it is run."""
_NAME = r"([A-Za-z0-9][A-Za-z0-9._-]{0,63})"
_STATUS = {NotFound: 404, UsageError: 400}


def with_runs(page: bytes, address: str, *, is_active: bool) -> str:
    """Flower's bar of tabs with ours before its first."""
    state = ' active" aria-current="page' if is_active else ""
    tab = f'<li class="nav-item"><a class="nav-link{state}" href="{address}">Runs</a></li>'
    return re.sub(r"<ul[^>]*>", lambda first: first[0] + tab, page.decode(), count=1)


class Runs(BaseHandler):  # type: ignore[misc]  # Flower publishes no types
    """What all of them share."""

    def set_default_headers(self) -> None:
        super().set_default_headers()
        self.set_header("Content-Security-Policy", POLICY)
        self.set_header("Referrer-Policy", "same-origin")
        self.set_header("X-Frame-Options", "DENY")

    def check_xsrf_cookie(self) -> None:
        """Flower asks for a token only where it has sessions; these pages send one always, so it is asked for."""
        super().check_xsrf_cookie()
        RequestHandler.check_xsrf_cookie(self)

    @property
    def events(self) -> JobEvents:
        found: JobEvents = self.application.events
        return found

    @property
    def layout(self) -> Layout:
        return self.events.layout

    async def wait_for(self, look: Callable[..., Any], *arguments: Any) -> Any:
        """What `look` answers in a thread; what a user can act on becomes a status."""
        try:
            return await self.events.io_loop.run_in_executor(None, look, *arguments)
        except GptjobsError as error:
            status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 503)
            raise HTTPError(status, error.message) from error

    async def board(self) -> Board:
        """As it is, or was a few seconds ago: then a new look begins, for who asks next."""
        board = self.events.board
        if board.is_fresh:
            self.events.io_loop.run_in_executor(None, board.look)
            return board
        found: Board = await self.wait_for(board.look)
        return found

    async def board_with(self, *jobs: str) -> Board:
        """The board with these jobs on it, if need be after a look; raises 404."""
        board = await self.board()
        if not all(id in board.rows for id in jobs):
            await self.wait_for(board.look_anew)
        for id in jobs:
            await self.wait_for(board.row, id)
        return board

    async def sweep(self, id: str) -> Sweep:
        board = await self.board()
        if id not in board.sweeps:
            await self.wait_for(board.look_anew)
        if id not in board.sweeps:
            raise HTTPError(404, f"there is no sweep {id}")
        return board.sweeps[id]

    def word(self, name: str, default: str = "") -> str:
        return str(self.get_argument(name, default, escape=False))

    def show(self, template: str, **values: Any) -> None:
        self.render(template, read_only=self.application.options.read_only, **values)


class JobsPage(Runs):
    @authenticated
    def get(self) -> None:
        self.show("runs.html")


class JobsData(Runs):
    @authenticated
    async def get(self) -> None:
        board = await self.board()
        number = self.word("page", "1")
        by, descending = self.word("by", "submitted_at"), self.word("order", "desc") == "desc"
        found = told.page(
            board, self.word("q"), self.word("state"), by, descending=descending,
            number=int(number) if number.isascii() and number.isdigit() else 1,
        )  # fmt: skip
        self.write({**found, "trouble": board.trouble, "sweeps": len(board.sweeps)})


class JobPage(Runs):
    @authenticated
    async def get(self, reference: str) -> None:
        board = await self.board()
        if reference not in board.rows:
            await self.wait_for(board.look_anew)
        if reference not in board.rows:
            known = [Known(row["id"], row["name"], row["submitted_at"]) for row in board.rows.values()]
            self.redirect(self.reverse_url("run", await self.wait_for(pick, reference, known)))
            return
        self.show("run.html", job=board.row(reference))


class JobData(Runs):
    @authenticated
    async def get(self, id: str) -> None:
        board = await self.board_with(id)
        axis = await self.wait_for(told.axis_of, self.word("axis", "step"))
        shown = await self.wait_for(self.events.curves.of, id, axis)
        self.write({"job": board.row(id), "trouble": board.trouble, **shown})


class JobRecord(Runs):
    @authenticated
    async def get(self, id: str) -> None:
        board = await self.board_with(id)
        self.write(await self.wait_for(told.record_of, self.layout, board, id))


class JobRequest(Runs):
    """Cancel, pause, unpause."""

    @authenticated
    async def post(self, id: str, request: str) -> None:
        if self.application.options.read_only:
            raise HTTPError(403, "Read only mode is enabled")
        board = await self.board_with(id)
        state = await self.wait_for(_ask, self.events.store, self.layout, id, request)
        await self.wait_for(board.look_anew)
        self.write({"id": id, "state": state})


def _ask(store: Store, layout: Layout, id: str, request: str) -> JobState:
    with suppress(RedisUnreachable):
        storage.expect(layout, store.root())
    try:
        job: Job = store.get(id)
    except (NotFound, RedisUnreachable):
        job = record.read_job(layout, id)
    if request == "unpause":
        return control.unpause(store, layout, None, job)  # Flower's user of Redis rings no doorbells
    return control.cancel(store, layout, job) if request == "cancel" else control.pause(store, layout, job)


class SweepsPage(Runs):
    @authenticated
    def get(self) -> None:
        self.show("sweeps.html")


class SweepsData(Runs):
    @authenticated
    async def get(self) -> None:
        self.write(await self.wait_for(told.sweeps, self.layout, await self.board()))


class SweepPage(Runs):
    @authenticated
    async def get(self, id: str) -> None:
        self.show("sweep.html", sweep=await self.sweep(id))


class SweepData(Runs):
    @authenticated
    async def get(self, id: str) -> None:
        self.write(await self.wait_for(told.sweep_of, self.layout, await self.sweep(id)))


class ComparePage(Runs):
    @authenticated
    def get(self) -> None:
        self.show("compare.html")


class CompareData(Runs):
    @authenticated
    async def get(self) -> None:
        jobs = list(dict.fromkeys(filter(None, self.word("jobs").split(","))))
        board, curves = await self.board_with(*jobs), self.events.curves
        axis = await self.wait_for(told.axis_of, self.word("axis", "tokens"))
        self.write(await self.wait_for(told.comparison_of, self.layout, board, curves, jobs, axis))


HANDLERS = [
    url(r"/runs/?", JobsPage, name="runs"),
    url(r"/runs/data", JobsData),
    url(r"/runs/sweeps/?", SweepsPage, name="sweeps"),
    url(r"/runs/sweeps/data", SweepsData),
    url(rf"/runs/sweeps/{_NAME}", SweepPage, name="sweep"),
    url(rf"/runs/sweeps/{_NAME}/data", SweepData),
    url(r"/runs/compare", ComparePage, name="compare"),
    url(r"/runs/compare/data", CompareData),
    url(rf"/runs/{_NAME}", JobPage, name="run"),
    url(rf"/runs/{_NAME}/data", JobData),
    url(rf"/runs/{_NAME}/record", JobRecord),
    url(rf"/runs/{_NAME}/(cancel|pause|unpause)", JobRequest),
]
