"""The Runs tab without a browser: what a look reads, what is shown of jobs, how curves are thinned."""

import io
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gptjobs import record
from gptjobs.errors import RedisUnreachable, UsageError
from gptjobs.flower import board, curves, told
from gptjobs.flower.board import Board
from gptjobs.flower.curves import AXES, BUCKETS, Curves, places, thinned
from gptjobs.flower.pages import FILES, TEMPLATES
from gptjobs.flower.runs import with_runs
from gptjobs.history import Line
from gptjobs.job import Job, JobSpec, JobState, Outcome, new_job
from gptjobs.layout import Layout
from gptjobs.progress import Alert, CheckpointWritten, encode
from tests.unit.conftest import NOON, begin, commit
from tests.unit.test_outputs import step
from tests.unit.test_trials import give

REPOSITORY = Path(__file__).parents[2]


class Redis:
    """What the board asks Redis for."""

    def __init__(self, *jobs: Job) -> None:
        self.jobs = {job.spec.id: job for job in jobs}
        self.is_away = False
        self.asked_for: list[set[str]] = []

    def ids(self) -> set[str]:
        if self.is_away:
            raise RedisUnreachable("Redis does not answer")
        return set(self.jobs)

    def all(self, but: Any = ()) -> list[Job]:
        self.asked_for.append(set(self.jobs) - set(but))
        return [job for id, job in self.jobs.items() if id not in but]


@pytest.fixture(autouse=True)
def each_look_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board, "LOOK_AGAIN_S", 0.0)


def put(
    layout: Layout, id: str, *lines: str, state: JobState | None = None, reason: str = "x", age: float = 60
) -> None:
    """A job on record, whose files are so old."""
    record.write_spec(layout, JobSpec(id=id, kind="train", name=f"the-{id}", submitted_at=NOON + len(id)))
    begin(layout, id, 1)
    layout.attempt_lines(id, 1).write_text("".join(line + "\n" for line in lines))
    if state:
        record.write_outcome(layout, id, Outcome(state=state, reason=reason), 1)
    grow_old(layout, id, age)


def grow_old(layout: Layout, id: str, age: float) -> None:
    then = layout.job_file(id).stat().st_mtime - age
    for path in (*layout.job_outputs(id).rglob("*"), layout.attempts(id), layout.job_outputs(id)):
        os.utime(path, (then, then))


def line(number: int, loss: float, val_loss: float | None = None) -> str:
    return encode(step(number, loss, val_loss), seconds=NOON + number)


def looking(layout: Layout, *jobs: Job) -> tuple[Board, Redis]:
    store = Redis(*jobs)
    return Board(store, layout), store  # type: ignore[arg-type]  # what a board asks of it is there


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The files that were opened since the list was cleared."""
    names: list[str] = []
    real: Callable[..., Any] = io.open

    def counted(file: Any, *arguments: Any, **options: Any) -> Any:
        names.append(Path(str(file)).name)
        return real(file, *arguments, **options)

    monkeypatch.setattr(io, "open", counted)
    yield names


def test_a_second_look_reads_nothing_that_has_not_changed(layout: Layout, opened: list[str]) -> None:
    put(layout, "ended", line(10, 1.0), state=JobState.FINISHED, reason="finished")
    put(layout, "goeson", line(10, 1.0))
    here, _ = looking(layout)
    assert set(here.look().rows) == {"ended", "goeson"}
    assert opened
    opened.clear()
    here.look()
    assert opened == []


def test_a_look_reads_what_a_job_grew_by(layout: Layout, opened: list[str]) -> None:
    put(layout, "ended", line(10, 1.0), state=JobState.FINISHED, reason="finished")
    put(layout, "goeson", line(10, 1.0))
    here, _ = looking(layout)
    here.look()
    opened.clear()
    with layout.attempt_lines("goeson", 1).open("a") as file:
        file.write(line(20, 0.5, 0.6) + "\n")
    assert here.look().rows["goeson"]["train_loss"] == 0.5
    assert here.rows["goeson"]["val_loss"] == 0.6
    assert set(opened) <= {"1.jsonl", "outcome.json", "cancel.json", "pause.json", "priority.json"}
    record.write_outcome(layout, "goeson", Outcome(state=JobState.DIVERGED, reason="no number"), 1)
    assert here.look().rows["goeson"]["state"] == "diverged"


def test_what_changes_right_after_a_look_is_seen_by_the_next(layout: Layout) -> None:
    """Times of change tell nothing between two ticks of a clock."""
    put(layout, "goeson", line(10, 1.0), age=0)
    here, _ = looking(layout)
    assert here.look().rows["goeson"]["state"] == "running"
    was = layout.job_outputs("goeson").stat().st_mtime_ns
    record.write_outcome(layout, "goeson", Outcome(state=JobState.CANCELLED, reason="cancelled"), 1)
    os.utime(layout.job_outputs("goeson"), ns=(was, was))
    assert here.look().rows["goeson"]["state"] == "cancelled"


def test_redis_says_how_a_job_is_and_the_record_what_became_of_it(layout: Layout) -> None:
    alert = encode(Alert(name="spike", step=20, reason="the loss rose"), seconds=NOON)
    put(layout, "ours", line(10, 1.0), alert)
    spec = record.read_spec(layout, "ours")
    live = Job(
        **{**vars(new_job(spec)), "state": JobState.CANCELLING, "progress": {"step": 30, "end_step": 400, "tokens": 9}}
    )
    here, store = looking(layout, live, new_job(JobSpec(id="elsewhere", kind="train", submitted_at=NOON)))
    rows = here.look().rows
    assert (rows["ours"]["state"], rows["ours"]["step"], rows["ours"]["is_live"]) == ("cancelling", 30, True)
    assert (rows["ours"]["alerts"], rows["ours"]["alert"]) == (1, "Alert at step 20: the loss rose")
    assert rows["elsewhere"]["state"] == "queued"

    store.is_away = True
    rows = here.look().rows
    assert here.trouble == "Redis does not answer"
    assert (rows["ours"]["state"], rows["ours"]["step"], rows["ours"]["is_live"]) == ("running", 10, False)
    assert "elsewhere" not in rows


def test_redis_is_asked_once_for_a_job_that_ended(layout: Layout) -> None:
    spec = JobSpec(id="ended", kind="train", submitted_at=NOON)
    here, store = looking(layout, Job(**{**vars(new_job(spec)), "state": JobState.FINISHED}))
    assert set(here.look().rows) == set(here.look().rows) == {"ended"}
    assert store.asked_for == [{"ended"}, set()]
    store.jobs.clear()
    assert not here.look().rows


def test_a_record_that_is_no_job_hides_no_other(layout: Layout) -> None:
    put(layout, "ours", line(10, 1.0))
    evil = JobSpec(id="evil", kind="train", submitted_at=NOON).to_dict() | {"name": "<img src=x onerror=alert(1)>"}
    for id, text in (("evil", json.dumps(evil)), ("torn", '{"schema": 1, "id":'), ("a b", "{}")):
        layout.job_outputs(id).mkdir()
        layout.job_file(id).write_text(text)
    (layout.outputs / "notes.txt").write_text("mine")
    here, _ = looking(layout)
    assert set(here.look().rows) == {"ours"}


def names(found: dict[str, Any]) -> list[str]:
    return [row["id"] for row in found["jobs"]]


def test_a_page_has_what_was_searched_for_in_the_order_asked_for(layout: Layout) -> None:
    put(layout, "aa", line(10, 3.0), state=JobState.FINISHED, reason="finished")
    put(layout, "bbb", line(10, 1.0), state=JobState.FAILED, reason="out of memory")
    put(layout, "cccc", line(10, 2.0))
    record.write_spec(layout, JobSpec(id="waits", kind="train", submitted_at=NOON))
    here = looking(layout)[0].look()

    def page(words: str = "", state: str = "", by: str = "submitted_at", *, descending: bool = True) -> dict[str, Any]:
        return told.page(here, words, state, by, descending=descending, number=1)

    assert names(page()) == ["cccc", "bbb", "aa", "waits"]
    assert names(page(by="train_loss", descending=False)) == ["bbb", "cccc", "aa", "waits"]
    assert names(page(by="train_loss")) == ["aa", "cccc", "bbb", "waits"]
    assert names(page("MEMORY")) == ["bbb"]
    assert names(page("the- finished")) == ["aa"]
    assert names(page(state="queued")) == ["waits"]
    assert page(state="queued")["counts"] == {"finished": 1, "failed": 1, "running": 1, "queued": 1}


def test_pages_hold_fifty_jobs_and_the_last_one_stands_for_any_after_it(layout: Layout) -> None:
    specs = [JobSpec(id=f"job{number:03d}", kind="train", submitted_at=NOON + number) for number in range(120)]
    here = looking(layout, *map(new_job, specs))[0].look()
    counts = [len(told.page(here, "", "", "", descending=True, number=number)["jobs"]) for number in (0, 1, 2, 3, 9)]
    assert counts == [50, 50, 50, 20, 20]


def metrics(count: int, **spikes: float) -> list[Line]:
    found: list[Line] = [json.loads(line(number, 2.0 + (number % 7) / 10)) for number in range(count)]
    for place, loss in spikes.items():
        found[int(place[1:])]["train_loss"] = loss
    return found


def test_a_hundred_thousand_points_are_thinned_and_no_spike_is_lost() -> None:
    lines = metrics(100_000, _12345=9.5, _77777=0.01)
    lines[50_000]["grad_norm"] = 1e4
    lines[60_001]["val_loss"] = 1.5
    curve = thinned(lines, places(lines, "step"))
    assert len(curve["x"]) <= 4 * BUCKETS * 5
    assert 9.5 in curve["train_loss"]
    assert 0.01 in curve["train_loss"]
    assert curve["x"][curve["train_loss"].index(9.5)] == 12345
    assert 1e4 in curve["grad_norm"]
    assert 1.5 in curve["val_loss"]
    assert (curve["x"][0], curve["x"][-1]) == (0, 99_999)
    assert curve["x"] == sorted(curve["x"])
    assert {len(values) for values in curve.values()} == {len(curve["x"])}


def test_each_bucket_keeps_its_first_last_lowest_and_highest() -> None:
    lines = metrics(20_000)
    for number, each in enumerate(lines):
        each["train_loss"] = float((number * 7919) % 1000)
    curve = thinned(lines, places(lines, "step"), 10)
    kept = dict(zip(curve["x"], curve["train_loss"], strict=True))
    for first in range(0, 20_000, 2000):
        of_bucket = [each["train_loss"] for each in lines[first : first + 1999]]
        near = [loss for x, loss in kept.items() if x is not None and first <= x < first + 2000]
        assert min(of_bucket) in near
        assert max(of_bucket) in near


def test_few_points_stay_all_with_their_gaps() -> None:
    lines = metrics(100)
    lines[7]["train_loss"] = None
    curve = thinned(lines, places(lines, "step"))
    assert len(curve["x"]) == 100
    assert curve["train_loss"][7] is None


def test_time_begins_at_the_first_line_and_never_goes_back() -> None:
    lines = metrics(4)
    for each, seconds in zip(lines, (NOON, NOON + 9, NOON + 4, NOON + 12), strict=True):
        each["time"] = seconds
    assert places(lines, "time") == [0.0, 9.0, 9.0, 12.0]
    assert places(lines, "tokens") == [0, 512, 1024, 1536]
    lines[1].pop("time")
    assert places(lines, "time") == [0.0, 0.0, 4.0, 12.0]


def test_alerts_and_checkpoints_are_marked_where_they_count(layout: Layout) -> None:
    """Attempt 1 was lost after step 20; what it wrote at step 30 is on a dead branch."""
    record.write_spec(layout, JobSpec(id="first", kind="train", submitted_at=NOON))
    begin(layout, "first", 1)
    start = commit(layout, "first", token=1, step=20)
    written = [CheckpointWritten(name="a.pt", step=at, tokens=at * 512, size=9, val_loss=1.5) for at in (20, 30)]
    lines = [
        line(0, 3.0),
        line(10, 2.5),
        line(20, 2.0),
        line(30, 1.9),
        *(encode(each, seconds=NOON) for each in written),
    ]
    layout.attempt_lines("first", 1).write_text("\n".join(lines) + "\n")
    begin(layout, "first", 2, start=start)
    alert = encode(Alert(name="spike", step=30, reason="it rose"), seconds=NOON)
    layout.attempt_lines("first", 2).write_text("\n".join([line(20, 2.0), line(30, 5.0), alert]) + "\n")
    found = Curves(layout).of("first", "tokens")
    assert found["curve"]["train_loss"] == [3.0, 2.5, 2.0, 5.0]
    marked = [(mark["kind"], mark["step"], mark["x"]) for mark in found["marks"]]
    assert sorted(marked) == [("alert", 30, 30 * 512), ("attempt", 20, 20 * 512), ("checkpoint", 20, 20 * 512)]
    assert "spike at step 30: it rose" in [mark["words"] for mark in found["marks"]]


def test_no_more_histories_are_kept_than_are_compared(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "KEPT", 2)
    here = Curves(layout)
    for id in ("one", "two", "three"):
        put(layout, id, line(10, 1.0))
        here.of(id, "step")
    assert list(here._histories) == ["two", "three"]


def test_eight_jobs_are_compared_and_no_more(layout: Layout) -> None:
    here = looking(layout)[0].look()
    with pytest.raises(UsageError, match="at most 8 jobs"):
        told.comparison_of(layout, here, Curves(layout), [f"job{number}" for number in range(9)], "step")
    with pytest.raises(UsageError, match="no axis"):
        told.axis_of("epochs")
    assert [told.axis_of(each) for each in AXES] == list(AXES)


def test_jobs_are_compared_as_the_command_compares_them(layout: Layout) -> None:
    first, second = (give(layout, number, {0: 3.0, 90: loss}) for number, loss in ((0, 2.0), (1, 1.0)))
    here = looking(layout)[0].look()
    found = told.comparison_of(layout, here, Curves(layout), [first, second], "tokens")
    assert [row["id"] for row in found["rows"]] == [second, first]
    assert found["why_not"] is None
    assert found["verdict"] == [f"{first} against {second}: +1.0000 [+1.0000, +1.0000]"]
    assert [each["curve"]["val_loss"] for each in found["curves"]] == [[3.0, 2.0], [3.0, 1.0]]


def test_a_sweep_is_a_line_for_each_trial_over_its_hyperparameters(layout: Layout) -> None:
    for number, loss in enumerate((2.0, 1.0, 1.5)):
        give(layout, number, {0: 3.0, 90: loss})
    here = looking(layout)[0].look()
    found = told.sweep_of(layout, here.sweeps["a1b2c3d4e5f6"])
    assert [(row["rank"], row["trial"], row["params"]) for row in found["rows"]] == [
        (1, 1, ["0.0001"]), (2, 2, ["0.001"]), (3, 0, ["1e-05"]),
    ]  # fmt: skip
    assert [axis["name"] for axis in found["axes"]] == ["learning_rate", "val_loss"]
    assert [tick["words"] for tick in found["axes"][1]["ticks"]] == ["1.0000", "1.5000", "2.0000"]
    assert [(line["trial"], line["heights"]) for line in found["lines"]] == [
        (1, (0.5, 0.0)), (2, (1.0, 0.5)), (0, (0.0, 1.0)),
    ]  # fmt: skip
    assert told.sweeps(layout, here)["sweeps"][0]["best"] == 1.0


def test_the_lineage_leads_to_the_jobs_before_and_after(layout: Layout) -> None:
    put(layout, "before", line(200, 1.0))
    start = commit(layout, "before", token=1, step=200)
    spec = JobSpec(id="after", kind="resume", parent=start, submitted_at=NOON)
    record.write_spec(layout, spec)
    plan = record.read_plan(layout, give(layout, 0, {0: 3.0}))
    assert plan is not None
    text = json.dumps({**plan.to_dict(), "job": "after", "kind": "resume", "parent": start})
    layout.config_file("after").write_text(text)
    here = looking(layout)[0].look()
    found = told.record_of(layout, here, "after")
    assert found["ancestors"] == [{"checkpoint": start, "job": "before", "step": 200}]
    assert found["contract"]["parent"] == start
    assert {each["origin"] for each in found["config"]} >= {"--steps", "default"}
    assert [each["id"] for each in told.record_of(layout, here, "before")["children"]] == ["after"]

    layout.path(start).unlink()
    found = told.record_of(layout, here, "after")
    assert found["ancestors"] == [{"checkpoint": start, "job": None, "step": None}]
    assert "there is no checkpoint" in found["contract"]["missing"]


def test_of_a_long_log_the_end_is_shown(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("".join(f"line {number}\n" for number in range(50_000)))
    tail = told.log_tail([log])
    assert tail is not None
    assert (len(tail["lines"]), tail["lines"][-1]) == (200, "line 49999")
    assert told.log_tail([]) is None


def test_the_tab_is_before_flowers_own() -> None:
    page = with_runs(b'<nav><ul class="a"><li>Workers</li></ul><ul></ul></nav>', "/runs", is_active=True)
    assert page.index(">Runs<") < page.index("Workers")
    assert page.count(">Runs<") == 1


def test_everything_that_the_pages_load_is_in_the_package() -> None:
    """Git ignores nothing of it, and so neither does the build."""
    there = [path for path in FILES.rglob("*") if path.is_file()]
    needed = {"uPlot.iife.min.js", "uPlot.min.css", "LICENSE", "page.js", "chart.js", "list.js", "job.js", "runs.css"}
    assert needed <= {path.name for path in there}
    asked = subprocess.run(["git", "check-ignore", *there, *TEMPLATES.iterdir()], cwd=REPOSITORY, capture_output=True)
    assert asked.stdout == b""
    for page in TEMPLATES.glob("*.html"):
        assert "://" not in page.read_text()
