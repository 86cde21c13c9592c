"""Flower as `gptjobs up` starts it, seen by a browser: real training, a real click on Terminate."""

import base64
import json
import re
import shutil
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from gptjobs import checkpoint
from gptjobs.job import JobSpec, JobState
from gptjobs.local import _free_port
from gptjobs.store import Store
from tests.conftest import WAIT_S, Commands, Workers, eventually
from tests.e2e.test_loss_of_hosts import newest_step

TINY = (
    "--model", "nano", "--n-layer", "1", "--n-head", "2", "--n-embd", "32", "--batch-size", "4", "--block-size", "32",
    "--eval-tokens", "512", "--eval-interval", "50", "--checkpoint-interval", "50",
)  # fmt: skip
END_STEP = 50_000
expect.set_options(timeout=WAIT_S * 1000)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("chromium is not on the PATH; on Debian: apt-get install chromium fonts-dejavu-core")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """A page on which no script fails, and that needs no internet."""
    made = chromium.new_page(viewport={"width": 1280, "height": 720})
    faults: list[str] = []
    made.on("pageerror", lambda error: faults.append(str(error)))
    made.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    made.on("request", lambda sent: faults.append(sent.url) if urlsplit(sent.url).hostname != "127.0.0.1" else None)
    yield made
    made.close()
    assert not [each for each in faults if "ERR_CONNECTION" not in each]


class Flower:
    """`gptjobs up` with nothing but Flower on the test's Redis; the worker is elsewhere."""

    def __init__(self, gptjobs: Commands, log: Path) -> None:
        self._gptjobs, self._log, self._port = gptjobs, log, str(_free_port())
        self.start()

    def start(self) -> None:
        with self._log.open("wb") as log:
            self._process = self._gptjobs.start(
                "up", "--no-worker", "--flower-port", self._port, stdout=log, stderr=subprocess.STDOUT
            )
        self.runs = eventually(lambda: re.search(r"Flower  (\S+)", self._log.read_text()))[1]
        self.url = self.runs.removesuffix("/runs") + "/tasks"
        eventually(self._answers)

    def _answers(self) -> bool:
        try:
            return self.ask("/healthcheck")[0] == 200
        except OSError:
            return False

    def stop(self) -> None:
        self._process.send_signal(signal.SIGINT)
        assert self._process.wait(60) == 0

    def ask(self, path: str, *, post: bool = False, login: bool = False, site: str | None = None) -> tuple[int, str]:
        """Status and body of a request without a browser."""
        parts = urlsplit(self.url)
        request = urllib.request.Request(f"http://127.0.0.1:{parts.port}{path}", data=b"" if post else None)
        if login:
            words = base64.b64encode(f"{parts.username}:{parts.password}".encode()).decode()
            request.add_header("Authorization", f"Basic {words}")
        if site:
            request.add_header("Sec-Fetch-Site", site)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()


@pytest.fixture
def flower(gptjobs: Commands, tmp_path: Path) -> Iterator[Flower]:
    made = Flower(gptjobs, tmp_path / "flower.log")
    yield made
    made.stop()


def submit(gptjobs: Commands, name: str, *options: str, steps: int = END_STEP) -> str:
    return gptjobs.ok(
        "submit", "train", "-q", *TINY, "--data", "sources/text.md", "--steps", str(steps), "--name", name, *options
    )


def row(page: Page, name: str) -> Locator:
    return page.locator("#tasks-table tbody tr", has_text=name)


def step(place: Locator) -> int:
    """The step that a bar shows; 0 where it shows none yet."""
    match = re.match(rf"(\d+)/{END_STEP}", place.locator(".job-bar").inner_text())
    return int(match[1]) if match else 0


def moves(place: Locator) -> None:
    """Wait until a bar has grown by itself."""
    expect(place.locator(".job-bar")).to_have_text(re.compile(rf"^\d+/{END_STEP}"))
    first = step(place)
    eventually(lambda: step(place) > first)


def cells(page: Page, name: str) -> dict[str, str]:
    headings = [each.strip().lower() for each in page.locator(".dataTables_scrollHead th").all_inner_texts()]
    return dict(zip(headings, row(page, name).locator("td").all_inner_texts(), strict=True))


def test_the_table_shows_training_as_it_goes(gptjobs: Commands, workers: Workers, flower: Flower, page: Page) -> None:
    workers.start()
    submit(gptjobs, "seen")
    submit(gptjobs, "waits", "--device", "cuda")
    page.goto(flower.url)
    expect(row(page, "seen")).to_contain_text("STARTED")
    moves(row(page, "seen"))
    shown = cells(page, "seen")
    assert shown["state"] == "STARTED"
    assert shown["worker"].replace("\n", "").startswith("worker@")
    bar = row(page, "seen").locator(".job-bar")
    width, words = bar.evaluate("bar => [bar.firstChild.style.width, bar.innerText]")
    assert float(width.rstrip("%")) == pytest.approx(100 * int(words.split("/")[0]) / END_STEP, rel=1e-3)
    assert cells(page, "waits")["state"] == "PENDING"


def test_the_table_keeps_order_page_and_search_while_it_refreshes(store: Store, flower: Flower, page: Page) -> None:
    for number in range(17):  # of which no event tells
        store.submit(JobSpec(id=f"{number:02d}abcdef", kind="train", name=f"waits-{number:02d}", submitted_at=number))
    rows = page.locator("#tasks-table tbody tr")
    page.goto(flower.url)
    expect(rows).to_have_count(15)
    expect(rows.first).to_contain_text("waits-16")  # the newest first
    page.locator(".dataTables_scrollHead th", has_text="Job").click()
    expect(rows.first).to_contain_text("waits-00")
    page.locator(".paginate_button", has_text="2").click()
    expect(rows).to_have_count(2)

    store.ask("cancel", "16abcdef", "cancelled")
    expect(rows.last).to_contain_text("REVOKED")
    expect(rows.first).to_contain_text("waits-15")
    page.locator("input[type=search]").fill("state:REVOKED")
    expect(rows).to_have_count(1)
    store.ask("cancel", "03abcdef", "cancelled")
    expect(rows).to_have_count(2)
    expect(rows.first).to_contain_text("waits-03")


def test_a_jobs_page_follows_it_and_terminate_cancels_with_a_checkpoint(
    gptjobs: Commands, workers: Workers, flower: Flower, page: Page
) -> None:
    workers.start()
    job = submit(gptjobs, "seen", "--checkpoint-interval", "1000000")
    page.goto(flower.url)
    row(page, "seen").get_by_role("link", name="seen").click()
    page.wait_for_url(f"**/task/{job}")
    moves(page.locator("#job"))
    expect(page.get_by_role("link", name="in Runs")).to_have_attribute("href", f"/runs/{job}")
    seen = step(page.locator("#job"))
    page.get_by_role("button", name="Terminate").click()
    expect(page.locator("#job .badge")).to_have_text("REVOKED")
    expect(page.get_by_role("button", name="Terminate")).to_be_hidden()
    assert gptjobs("wait", job, "--timeout", "60").returncode == 10
    assert newest_step(gptjobs, job) >= seen
    page.goto(flower.url)
    expect(row(page, "seen")).to_contain_text("REVOKED")


def test_terminate_cancels_a_job_that_waits(gptjobs: Commands, store: Store, flower: Flower, page: Page) -> None:
    job = submit(gptjobs, "waits")
    page.goto(flower.url)
    row(page, "waits").get_by_role("link").click()
    page.get_by_role("button", name="Terminate").click()
    expect(page.locator("#job .badge")).to_have_text("REVOKED")
    assert store.get(job).state is JobState.CANCELLED
    assert json.loads((gptjobs.layout.outputs / job / "outcome.json").read_bytes())["state"] == "cancelled"


def test_terminate_cancels_a_job_whose_worker_was_killed(
    gptjobs: Commands, workers: Workers, store: Store, flower: Flower, page: Page
) -> None:
    first = workers.start("first")
    job = submit(gptjobs, "orphan")
    eventually(lambda: newest_step(gptjobs, job) >= 50)
    first.kill()
    page.goto(flower.url)
    row(page, "orphan").get_by_role("link", name="orphan").click()
    page.get_by_role("button", name="Terminate").click()
    expect(page.locator("#job .job-state")).to_have_text("cancelling")
    assert store.get(job).state is JobState.CANCELLING
    workers.start("second")
    expect(page.locator("#job .badge")).to_have_text("REVOKED")
    assert len(checkpoint.attempts(gptjobs.layout, job)) == 1
    assert newest_step(gptjobs, job) >= 50


def test_flower_started_again_knows_all_jobs(gptjobs: Commands, workers: Workers, flower: Flower, page: Page) -> None:
    workers.start()
    done = submit(gptjobs, "done", steps=20)
    gptjobs.ok("wait", done, "--timeout", "90")
    submit(gptjobs, "goes-on")
    submit(gptjobs, "waits")
    page.goto(flower.url)
    moves(row(page, "goes-on"))
    before = step(row(page, "goes-on"))
    flower.stop()
    expect(page.locator(".job-stale")).to_be_visible()  # the page says that it is old, and shows it on
    expect(row(page, "goes-on")).to_be_visible()

    flower.start()
    expect(page.locator(".job-stale")).to_have_count(0)
    eventually(lambda: step(row(page, "goes-on")) > before)
    moves(row(page, "goes-on"))
    expect(row(page, "done").locator(".job-bar")).to_have_text("20/20")
    states = {name: cells(page, name)["state"] for name in ("done", "goes-on", "waits")}
    assert states == {"done": "SUCCESS", "goes-on": "STARTED", "waits": "PENDING"}


def test_nothing_is_shown_or_done_without_the_password(gptjobs: Commands, store: Store, flower: Flower) -> None:
    job = submit(gptjobs, "waits")
    cancelling = f"/api/task/revoke/{job}"
    for path in ("/tasks", f"/task/{job}", "/api/tasks", f"/api/task/info/{job}", "/files/jobs.js"):
        assert flower.ask(path)[0] == 401
        eventually(lambda path=path: flower.ask(path, login=True)[0] == 200)
    assert flower.ask("/tasks/datatable", post=True)[0] == 401
    assert flower.ask(cancelling, post=True)[0] == 401
    assert flower.ask(cancelling, post=True, login=True, site="cross-site")[0] == 403
    assert store.get(job).state is JobState.QUEUED

    def task() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(flower.ask(f"/api/task/info/{job}", login=True)[1])
        return found

    eventually(lambda: task()["job"] == "waits", 5)
    assert (task()["state"], task()["attempt"]) == ("PENDING", 0)
    status, said = flower.ask("/api/task/revoke/nothing", post=True, login=True)
    assert (status, said) == (404, "Redis has no job nothing")
    assert flower.ask(cancelling, post=True, login=True, site="same-origin")[0] == 200
    assert store.get(job).state is JobState.CANCELLED


def test_a_job_that_redis_was_made_to_forget_is_forgotten(gptjobs: Commands, store: Store, flower: Flower) -> None:
    job = submit(gptjobs, "forgotten")
    eventually(lambda: job in flower.ask("/api/tasks", login=True)[1])
    store._redis.flushall()
    eventually(lambda: job not in flower.ask("/api/tasks", login=True)[1])
