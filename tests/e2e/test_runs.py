"""Flower's Runs tab in a browser: training as it goes, the buttons, what must not be run, phones and colour schemes.

`pytest tests/e2e/test_runs.py --pictures docs/pictures` also writes what README and the tutorial show.
"""

import http.client
import json
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from gptjobs import progress, record
from gptjobs.durable import make_folder
from gptjobs.job import JobSpec, JobState, Outcome
from gptjobs.layout import Layout
from gptjobs.progress import Alert
from gptjobs.store import Store
from tests.conftest import Commands, Workers, eventually
from tests.e2e.test_flower import TINY, Flower, chromium, flower, moves, page, submit
from tests.unit.conftest import NOON, begin
from tests.unit.test_outputs import step
from tests.unit.test_trials import SWEEP, give

__all__ = ["chromium", "flower", "page"]  # fixtures

EVIL = "<img src=x onerror=alert(1)>"
PHONE = {"width": 390, "height": 844}
TABLET = {"width": 1280, "height": 1120}


def address(flower: Flower, path: str = "") -> str:
    return flower.runs + path


def row(page: Page, name: str) -> Locator:
    return page.locator("#jobs tbody tr", has=page.get_by_role("link", name=name, exact=True))


def points(chart: Locator) -> int:
    """That a chart draws."""
    return int(chart.locator(".runs-chart").get_attribute("data-points") or 0)


def ended(layout: Layout, id: str, *, reason: str = "finished", worker: str = "worker@host", steps: int = 300) -> None:
    """A job that ended before Flower began."""
    record.write_spec(layout, JobSpec(id=id, kind="train", name=f"the-{id}", submitted_at=NOON))
    begin(layout, id, 1)
    file = layout.attempt_file(id, 1)
    file.write_text(json.dumps({**json.loads(file.read_bytes()), "worker": worker}))
    lines = [progress.encode(step(at, 5 - at / 100, 5.0), seconds=NOON + at) for at in range(0, steps + 1, 10)]
    lines.append(progress.encode(Alert(name="spike", step=100, reason=reason), seconds=NOON))
    layout.attempt_lines(id, 1).write_text("\n".join(lines) + "\n")
    layout.log_file("train", id, NOON).write_text(f"Step 10: {reason}\n")
    state = JobState.FINISHED if reason == "finished" else JobState.FAILED
    record.write_outcome(layout, id, Outcome(state=state, reason=reason), 1)


def test_a_job_is_watched_from_the_list_to_its_growing_curve_and_terminated_in_flowers_own_page(
    gptjobs: Commands, workers: Workers, flower: Flower, page: Page
) -> None:
    workers.start()
    job = submit(gptjobs, "seen")
    submit(gptjobs, "waits", "--device", "cuda")
    page.goto(address(flower))
    expect(page.get_by_role("link", name="Runs")).to_have_class("nav-link active")
    expect(row(page, "seen")).to_contain_text("running")
    moves(row(page, "seen"))
    expect(row(page, "waits")).to_contain_text("queued")
    row(page, "seen").get_by_role("link", name="seen").click()
    page.wait_for_url(f"**/runs/{job}")
    loss = page.locator("#loss")
    eventually(lambda: points(loss) > 1)
    first = points(loss)
    eventually(lambda: points(loss) > first)
    expect(page.locator("#checkpoints tbody tr").first).to_contain_text("checkpoint_gpt2_text_step")
    expect(page.locator("#key")).to_contain_text("checkpoint")
    expect(page.locator("#config")).to_contain_text("--batch-size")
    expect(page.locator("#log")).to_contain_text("train loss")
    for axis in ("Tokens", "Time"):
        page.get_by_role("button", name=axis).click()
        expect(page.locator("#loss .u-legend")).to_contain_text(axis)

    page.get_by_role("link", name="Celery's task").click()
    page.get_by_role("button", name="Terminate").click()
    expect(page.locator("#job .badge")).to_have_text("REVOKED")
    page.goto(address(flower, f"/{job}"))
    expect(page.locator("#state")).to_have_text("cancelled")
    expect(page.locator("#actions button")).to_have_count(0)


def test_a_job_is_paused_unpaused_and_cancelled_with_the_buttons(
    gptjobs: Commands, workers: Workers, store: Store, flower: Flower, page: Page
) -> None:
    workers.start()
    job = submit(gptjobs, "seen")
    page.goto(address(flower, "/seen"))  # by its name, as the commands take it
    moves(page.locator("#job"))
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#state")).to_have_text("paused")
    assert store.get(job).state is JobState.PAUSED
    page.get_by_role("button", name="Unpause").click()
    expect(page.locator("#state")).to_have_text("running")
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#state")).to_have_text("cancelled")
    assert store.get(job).state is JobState.CANCELLED
    assert json.loads((gptjobs.layout.outputs / job / "outcome.json").read_bytes())["state"] == "cancelled"
    assert len(gptjobs.layout.log_files(job)) >= 2


def request(flower: Flower, method: str, path: str, **headers: str) -> tuple[int, str, str]:
    """Status, body and cookie of a request as it is spelled: no client's tidying of its path."""
    parts = urlsplit(flower.runs)
    assert parts.hostname
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
    login = b64encode(f"{parts.username}:{parts.password}".encode()).decode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, headers={"Authorization": f"Basic {login}", **named})
    answer = connection.getresponse()
    body, cookie = answer.read().decode(), answer.getheader("Set-Cookie") or ""
    connection.close()
    return answer.status, body, cookie.partition(";")[0]


def press(flower: Flower, job: str, button: str) -> tuple[int, str]:
    """Status, and the state that the job is in then."""
    cookie = request(flower, "GET", "/runs")[2]
    token = cookie.removeprefix("_xsrf=")
    status, body, _ = request(flower, "POST", f"/runs/{job}/{button}", Cookie=cookie, X_XSRFToken=token)
    return status, json.loads(body)["state"]


def test_a_button_acts_only_with_the_pages_own_token(gptjobs: Commands, store: Store, flower: Flower) -> None:
    job = submit(gptjobs, "waits")
    path = f"/runs/{job}/cancel"
    status, _, cookie = request(flower, "GET", "/runs")
    token = cookie.removeprefix("_xsrf=")
    assert status == 200
    assert token
    assert flower.ask(path, post=True)[0] in (401, 403)
    assert request(flower, "POST", path)[0] == 403
    assert request(flower, "POST", path, Cookie=cookie)[0] == 403
    assert request(flower, "POST", path, Cookie=cookie, X_XSRFToken="2|00000000|0000|0")[0] == 403
    for site in ("cross-site", "same-site"):
        assert request(flower, "POST", path, Cookie=cookie, X_XSRFToken=token, Sec_Fetch_Site=site)[0] == 403
    assert request(flower, "POST", path, Cookie=cookie, X_XSRFToken=token, Origin="http://elsewhere")[0] == 403
    assert request(flower, "GET", path)[0] == 405
    assert store.get(job).state is JobState.QUEUED

    status, body, _ = request(flower, "POST", path, Cookie=cookie, X_XSRFToken=token, Sec_Fetch_Site="same-origin")
    assert (status, json.loads(body)["state"]) == (200, "cancelled")
    assert store.get(job).state is JobState.CANCELLED
    assert request(flower, "POST", "/runs/nothing/cancel", Cookie=cookie, X_XSRFToken=token)[0] == 404


def test_no_path_leads_out_of_the_records_and_nothing_is_shown_without_the_password(
    layout: Layout, flower: Flower
) -> None:
    ended(layout, "aa0000000001")
    secret = layout.root / "secret.json"
    secret.write_text('{"secret": 1}')
    pages = ("", "/data", "/sweeps", "/sweeps/data", "/compare", "/compare/data?jobs=aa0000000001", "/aa0000000001",
             "/aa0000000001/data", "/aa0000000001/record")  # fmt: skip
    for path in pages:
        assert flower.ask(f"/runs{path}")[0] == 401
        assert flower.ask(f"/runs{path}", login=True)[0] == 200
    for path in (
        "/runs/../../etc", "/runs/..%2f..%2fsecret.json", "/runs/%2e%2e/data", "/runs/..", "/runs/.../record",
        "/runs/nothing", "/runs/sweeps/..%2f..", "/runs/sweeps/nothing/data", "/runs/nothing/record",
        "/files/../runs.py", "/files/..%2f..%2frecord.py", "/runs/compare/data?jobs=../secret,aa0000000001",
    ):  # fmt: skip
        status, body, _ = request(flower, "GET", path)
        assert status in (403, 404), path
        assert '"secret"' not in body
    assert request(flower, "GET", "/runs/aa0000000001/data?axis=x")[0] == 400


def test_what_jobs_say_is_text_and_never_markup(layout: Layout, flower: Flower, page: Page) -> None:
    """Names of jobs may have no such characters; a record that has them is no job."""
    make_folder(layout.job_outputs("bb0000000002"))
    named = JobSpec(id="bb0000000002", kind="train", submitted_at=NOON).to_dict() | {"name": EVIL}
    layout.job_file("bb0000000002").write_text(json.dumps(named))
    ended(layout, "aa0000000001", reason=f"it said {EVIL}", worker=f"w@{EVIL}")
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    page.goto(address(flower))
    expect(page.locator("#jobs tbody tr")).to_have_count(1)
    page.locator("#search").fill(EVIL + EVIL)
    expect(page.locator("#found")).to_have_text("0 of 1 job")
    page.locator("#search").fill(EVIL)
    expect(page.locator("#found")).to_have_text("1 job")
    page.get_by_role("link", name="the-aa0000000001").click()
    for place in ("#alert", "#alerts", "#log", "#metrics", "#attempts"):
        expect(page.locator(place)).to_contain_text(EVIL)
    _, said, _ = request(flower, "GET", f"/runs/compare/data?jobs={quote(EVIL)}")
    assert "&lt;img" in said
    assert "<img src=x" not in said
    assert page.locator("#main-content img").count() == 0
    assert dialogs == []


def test_no_script_but_our_own_files_would_run(flower: Flower, chromium: Browser) -> None:
    page = chromium.new_page()
    page.goto(address(flower))
    answer = page.request.get(address(flower))
    policy = answer.headers["content-security-policy"]
    assert "script-src 'self';" in policy
    assert "unsafe" not in policy
    page.evaluate("window.ran = 0")
    refused = page.evaluate(
        """() => new Promise(done => {
            document.addEventListener('securitypolicyviolation', event => done(event.violatedDirective));
            const script = document.createElement('script');
            script.textContent = 'window.ran = 1';
            document.body.append(script);
        })"""
    )
    assert refused.startswith("script-src")
    assert page.evaluate("window.ran") == 0
    page.close()


def test_jobs_from_before_are_there_also_when_redis_forgot_them(layout: Layout, flower: Flower, page: Page) -> None:
    ended(layout, "aa0000000001")
    page.goto(address(flower))
    expect(row(page, "the-aa0000000001")).to_contain_text("finished")
    expect(row(page, "the-aa0000000001").locator(".job-bar")).to_have_text("300/400")
    row(page, "the-aa0000000001").get_by_role("link").click()
    eventually(lambda: points(page.locator("#loss")) == 31)
    expect(page.locator("#metrics")).to_contain_text("as on record")


def test_the_list_is_searched_sorted_and_paged_without_losing_its_place(
    store: Store, flower: Flower, page: Page
) -> None:
    for number in range(60):
        store.submit(JobSpec(id=f"{number:02d}abcdef", kind="train", name=f"waits-{number:02d}", submitted_at=number))
    rows = page.locator("#jobs tbody tr")
    page.goto(address(flower))
    expect(rows).to_have_count(50)
    expect(rows.first).to_contain_text("waits-59")
    page.get_by_role("button", name="Next").click()
    expect(rows).to_have_count(10)
    page.get_by_role("button", name="Job", exact=True).click()
    expect(rows.first).to_contain_text("waits-00")
    page.locator("#search").fill("waits-1")
    expect(rows).to_have_count(10)
    marked = page.evaluate("document.querySelector('#jobs tbody tr').mark = 'the same element'")
    store.ask("cancel", "10abcdef", "cancelled")
    expect(row(page, "waits-10")).to_contain_text("cancelled")
    assert page.evaluate("document.querySelector('#jobs tbody tr').mark") == marked  # patched, not drawn anew
    page.get_by_role("button", name="cancelled 1").click()
    expect(rows).to_have_count(1)
    page.reload()
    expect(rows).to_have_count(1)
    expect(page.locator("#search")).to_have_value("waits-1")


def test_jobs_that_are_ticked_are_compared_in_one_chart(layout: Layout, flower: Flower, page: Page) -> None:
    for number in range(1, 4):
        ended(layout, f"aa000000000{number}")
    page.goto(address(flower))
    for number in (1, 3):
        page.get_by_label(f"Compare the-aa000000000{number}").check()
    page.get_by_role("link", name="Compare 2").click()
    chart = page.locator("#chart")
    eventually(lambda: points(chart) == 31)
    expect(chart.locator(".u-legend")).to_contain_text("the-aa0000000003")
    for name in ("Train", "Learning rate", "Gradient norm", "Tokens/s"):
        page.get_by_role("button", name=name).click()
        expect(page.get_by_role("button", name=name)).to_have_attribute("aria-pressed", "true")
        eventually(lambda: points(chart) == 31)


def test_a_sweep_has_its_table_and_parallel_coordinates(layout: Layout, flower: Flower, page: Page) -> None:
    for number, loss in enumerate((2.0, 1.0, 1.5)):
        give(layout, number, {0: 3.0, 40: 2.5, 90: loss})
    page.goto(address(flower))
    page.get_by_role("link", name="Sweeps 1").click()
    page.locator("#sweeps a").click()
    page.wait_for_url(f"**/runs/sweeps/{SWEEP.id}")
    expect(page.locator("#parallel .runs-line")).to_have_count(3)
    expect(page.locator("#trials tbody tr")).to_have_count(3)
    expect(page.locator("#trials tbody tr").first).to_contain_text("1.0000")
    expect(page.locator("#verdict")).to_contain_text("better than")
    page.get_by_role("link", name="Compare the best").click()
    eventually(lambda: points(page.locator("#chart")) == 3)


@contextmanager
def seen_as(chromium: Browser, scheme: Any, size: Any) -> Iterator[Page]:
    made = chromium.new_page(viewport=size, color_scheme=scheme)
    faults: list[str] = []
    made.on("pageerror", lambda error: faults.append(str(error)))
    made.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    yield made
    made.close()
    assert faults == []


def test_pages_fit_a_phone_and_follow_the_colour_scheme(layout: Layout, flower: Flower, chromium: Browser) -> None:
    ended(layout, "aa0000000001")
    ended(layout, "aa0000000002", reason="out of memory, and much more of what a trainer may say of it at length")
    for number, loss in enumerate((2.0, 1.0, 1.5)):
        give(layout, number, {0: 3.0, 40: 2.5, 90: loss})
    shades = {}
    paths = {
        "": "#jobs tbody tr", "/aa0000000002": "#loss canvas", "/sweeps": "#sweeps tbody tr",
        f"/sweeps/{SWEEP.id}": "#parallel path", "/compare?jobs=aa0000000001,aa0000000002": "#chart canvas",
    }  # fmt: skip
    for scheme in ("light", "dark"):
        with seen_as(chromium, scheme, PHONE) as phone:
            for path, there in paths.items():
                phone.goto(address(flower, path))
                expect(phone.locator(there).first).to_be_visible()
                assert phone.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], path
            shades[scheme] = phone.evaluate("getComputedStyle(document.body).backgroundColor")
            phone.goto(address(flower))
            for part in ("finished", "5.0000", "300/400"):
                expect(row(phone, "the-aa0000000001")).to_contain_text(part)
    assert shades["light"] != shades["dark"]


@pytest.mark.timeout(500)
def test_pictures_for_the_documentation(
    gptjobs: Commands, workers: Workers, flower: Flower, chromium: Browser, request: pytest.FixtureRequest
) -> None:
    folder: Path | None = request.config.getoption("--pictures")
    if folder is None:
        pytest.skip("--pictures FOLDER writes them")
    workers.start(slots=2)
    jobs = {
        name: submit(gptjobs, name, "--learning-rate", rate, "--log-interval", "5", "--schedule", "cosine", steps=steps)
        for name, rate, steps in (
            ("baseline", "3e-3", 1500), ("lower-rate", "5e-4", 1500), ("hotter", "1e-2", 1500),
            ("longer", "3e-3", 16_000),
        )
    }  # fmt: skip
    sweep = gptjobs.ok(
        "submit", "sweep", "-q", *TINY, "--data", "sources/text.md", "--steps", "200", "--name", "which-rate",
        "--grid", "learning_rate=3e-4,1e-3,3e-3,1e-2,3e-2", "--grid", "dropout=0,0.2", "--priority", "9",
    )  # fmt: skip
    submit(gptjobs, "on-the-gpu", "--device", "cuda")
    gptjobs("wait", jobs["baseline"], jobs["lower-rate"], jobs["hotter"], "--timeout", "220")
    pages = {
        "runs": ("", "#jobs tbody tr"),
        "runs-job": (f"/{jobs['longer']}", "#loss canvas"),
        "runs-compare": (f"/compare?jobs={','.join(list(jobs.values())[:3])}", "#chart canvas"),
        "runs-sweep": (f"/sweeps/{sweep}", "#parallel path"),
    }
    store = Store(gptjobs.environment["GPTJOBS_REDIS_URL"])
    eventually(lambda: (store.get(jobs["longer"]).progress.get("step") or 0) > 6000, 300)
    for scheme, size, of in (
        ("light", TABLET, list(pages)),
        ("dark", TABLET, ["runs-job"]),
        ("light", PHONE, ["runs"]),
    ):
        with seen_as(chromium, scheme, size) as seen:
            for name in of:
                path, there = pages[name]
                seen.goto(address(flower, path))
                expect(seen.locator(there).first).to_be_visible()
                seen.wait_for_timeout(1500)  # until bars and curves stand
                suffix = "-phone" if size is PHONE else "-dark" if scheme == "dark" else ""
                seen.screenshot(path=folder / f"{name}{suffix}.png")
