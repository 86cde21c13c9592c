"""What `watch` shows: pictures that fit the terminal, and say what a user looks for."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from rich.cells import cell_len
from rich.text import Text

from gptjobs.cli import chart, screen
from gptjobs.cli.screen import Seen, SeenAll
from gptjobs.job import Job, JobSpec, JobState
from gptjobs.presence import Presence
from tests.unit.conftest import NOON

SIZES = [(80, 24), (120, 40), (40, 12), (200, 60), (9, 3)]
PROGRESS = {
    "stage": "training", "step": 1010, "end_step": 2000, "tokens": 1_034_240, "train_loss": 2.56534, "val_loss": 2.5856,
    "eval_context": 128, "learning_rate": 1e-4, "grad_norm": 0.6542, "tokens_per_s": 10204.3, "eta_s": 397.0,
}  # fmt: skip
WORKER = Presence(
    name="worker@host", host="host", version="0.1.0", queues=["cpu", "any"], slots=["cpu", "cpu"], busy=1, jobs=[],
    started_at=NOON,
)  # fmt: skip


def job(name: str = "plateau", state: JobState = JobState.RUNNING, **changes: Any) -> Job:
    values: dict[str, Any] = {
        "spec": JobSpec(id="287565b5f8e9", kind="train", name=name, submitted_at=NOON), "state": state, "serial": 1,
        "token": 1, "beat": 5, "attempt": 1, "fruitless": {}, "priority": 5,
        "cause": None, "worker": "worker@host", "used_device": "cpu",
        "reason": None, "progress": PROGRESS,
    }  # fmt: skip
    return Job(**{**values, **changes})


def waiting(name: str) -> Job:
    return job(name, JobState.QUEUED, attempt=0, worker=None, used_device=None, progress={})


METRICS = [
    {
        "step": step, "tokens": 1024 * step, "train_loss": 2.0 + 3.5 / (1 + step / 30), "learning_rate": 1e-4,
        "val_loss": 2.1 + 3.5 / (1 + step / 30) if step % 100 == 0 else None, "eval_context": 128, "grad_norm": 1.0,
        "tokens_per_s": 1e4,
    }
    for step in range(0, 1011, 10)
]  # fmt: skip
EVENTS = [
    {"kind": "attempt", "time": NOON, "worker": "worker@host", "device": "cpu", "start": None, "step": 0},
    {"kind": "checkpoint", "time": NOON, "step": 500, "val_loss": 2.61},
    {"kind": "ended", "time": NOON, "state": "queued", "reason": "signal SIGKILL"},
    {"kind": "attempt", "time": NOON, "worker": "worker@host", "device": "cpu", "start": "a.pt", "step": 500},
    {"kind": "finished", "time": NOON},
]
SEEN = Seen(job=job(), metrics=METRICS, events=EVENTS, log=["Step 1000: train loss 2.4698 " * 5, "a\tb \x1b[31mred"])


def plain(lines: Sequence[Text]) -> str:
    return "\n".join(each.plain for each in lines)


def fits(lines: Sequence[Text], width: int, height: int) -> bool:
    return len(lines) <= height and all(cell_len(each.plain) <= width for each in lines)


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize(
    "seen",
    [
        SEEN,
        Seen(job=waiting("x" * 64)),
        Seen(job=job(progress={"stage": "encoding", "done": 0.4})),
        replace(SEEN, note="Redis at 127.0.0.1 does not answer: " + "why " * 50),
        replace(SEEN, job=job(state=JobState.FAILED, reason="a long cause " * 20)),
        replace(SEEN, metrics=METRICS[:1]),
        replace(SEEN, log=["日本語" * 60]),
    ],
    ids=["running", "queued", "encoding", "Redis away", "failed", "first line", "wide characters"],
)
def test_the_picture_of_a_job_fits_every_terminal(seen: Seen, width: int, height: int) -> None:
    assert fits(screen.one_job(seen, width, height), width, height)


def test_the_picture_of_a_job_says_how_it_goes_in_80_columns() -> None:
    shown = plain(screen.one_job(SEEN, 80, 24))
    for expected in (
        "plateau  running  287565b5f8e9, attempt 1 on worker@host, cpu",
        "step 1,010 of 2,000  50%  6m37s left",
        "train loss 2.5653   val loss 2.5856 at context 128   best 2.2019 at step 1,000",
        "lr 0.0001 ",
        "grad norm 0.654 ",
        "10,204 tokens/s ",
        "● validation at context 128",
        "500k",
        "back to the queue: signal SIGKILL",
        "attempt on worker@host, cpu, from step 500",
        "── log ─",
        "Step 1000: train loss 2.4698",
    ):
        assert expected in shown
    assert "\x1b" not in shown and "finished" not in shown


def test_the_bar_is_as_long_as_the_job_is_far() -> None:
    for step, share in ((0, 0.0), (1000, 0.5), (2000, 1.0)):
        line = screen.one_job(Seen(job=job(progress={**PROGRESS, "step": step})), 80, 24)[1].plain
        full, rest = line.count("━"), line.count("─")
        assert full / (full + rest) == pytest.approx(share, abs=0.03)


def test_a_taller_terminal_shows_more_of_the_log_and_a_higher_curve() -> None:
    seen = replace(SEEN, log=[f"line {number}" for number in range(50)])
    low, high = (plain(screen.one_job(seen, 80, height)) for height in (24, 50))
    assert low.count("line ") < high.count("line ") and "line 49" in low and "line 49" in high
    assert low.count("│") < high.count("│")


def test_without_a_root_there_is_a_curve_and_neither_events_nor_log() -> None:
    shown = plain(screen.one_job(Seen(job=job(), metrics=METRICS), 80, 24))
    assert "● validation" in shown and "events" not in shown and "log" not in shown


def test_why_a_job_is_queued_again_is_said() -> None:
    lost = job(state=JobState.QUEUED, reason="lost worker@other")
    assert "lost worker@other" in plain(screen.one_job(Seen(job=lost), 80, 24))


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_table_of_jobs_fits_every_terminal(width: int, height: int) -> None:
    jobs = [job(), *(waiting(f"waits{number}") for number in range(100)), job("y" * 64, JobState.FINISHED)]
    lines = screen.all_jobs(SeenAll(jobs=jobs, workers=[WORKER]), width, height)
    assert fits(lines, width, height)
    assert width < 40 or re.search(r"and \d+ more that wait", lines[-1].plain)


def test_the_table_leaves_out_the_less_important_where_it_is_narrow() -> None:
    jobs = [job(), job("a-longer-name-of-a-job", JobState.CANCELLING)]

    def titles(width: int) -> list[str]:
        return screen.all_jobs(SeenAll(jobs=jobs), width, 24)[2].plain.split()

    everything = ["JOB", "STATE", "PROGRESS", "STEP", "LOSS", "VAL", "TOKENS/S", "LEFT", "DEVICE"]
    assert titles(120) == everything
    assert titles(80) == [each for each in everything if each not in ("DEVICE", "TOKENS/S")]
    assert titles(50) == ["JOB", "STATE", "STEP"]


def test_the_table_tells_of_workers_and_of_each_job() -> None:
    jobs = [
        job("old", JobState.FINISHED),
        job(),
        waiting("next"),
        job("enc", progress={"stage": "encoding", "done": 0.4}),
    ]
    lines = [each.plain for each in screen.all_jobs(SeenAll(jobs=jobs, workers=[WORKER]), 120, 24)]
    assert lines[0] == "gptjobs  1 worker, 1 of 2 slots busy · 1 queued · 2 running · 1 finished"
    assert [each.split()[:2] for each in lines[3:]] == [
        ["plateau", "running"], ["enc", "running"], ["next", "queued"], ["old", "finished"],
    ]  # fmt: skip
    assert re.search(r"━+╸?─+ +1,010/2,000 +2\.565 +2\.586 +10,204 +6m37s +cpu$", lines[3])
    assert "encoding 40%" in lines[4]


def test_jobs_of_one_name_are_told_apart_by_their_ids() -> None:
    twins = [replace(waiting("twin"), spec=replace(waiting("twin").spec, id=id)) for id in ("3f9a01", "3f9a02")]
    shown = plain(screen.all_jobs(SeenAll(jobs=[*twins, waiting("alone")]), 120, 24))
    assert "3f9a01" in shown and "3f9a02" in shown and "alone" in shown
    assert "twin" not in shown


def test_only_the_newest_jobs_that_ended_are_shown() -> None:
    ended = [job(f"ended{number}", JobState.FINISHED) for number in range(20)]
    shown = plain(screen.all_jobs(SeenAll(jobs=ended), 120, 40))
    assert re.findall(r"ended\d+", shown) == [f"ended{number}" for number in range(15, 20)]


def test_no_jobs_yet_says_how_to_submit_one() -> None:
    assert "gptjobs submit train --help" in plain(screen.all_jobs(SeenAll(jobs=[]), 80, 24))


def curve(losses: list[float | None], *, width: int = 60, height: int = 12) -> list[str]:
    metrics = [
        {"tokens": 100 * i, "train_loss": loss, "val_loss": None, "eval_context": None} for i, loss in enumerate(losses)
    ]
    window = chart.window_of([metrics])
    assert window is not None
    return [each.plain for each in chart.losses(metrics, window, width=width, height=height)]


def dots(line: str) -> list[int]:
    """The columns with braille dots."""
    return [i for i, each in enumerate(line) if 0x2800 < ord(each) <= 0x28FF]


def test_a_falling_loss_falls_from_left_to_right() -> None:
    rows = [columns for line in curve([10 - number / 10 for number in range(100)])[1:-2] if (columns := dots(line))]
    assert len(rows) >= 8
    assert [min(each) for each in rows] == sorted(min(each) for each in rows)


def test_a_spike_is_seen() -> None:
    lines = curve([*[2.0] * 50, 9.0, *[2.0] * 50])
    assert dots(lines[1]) and max(dots(lines[1])) - min(dots(lines[1])) <= 2


def test_a_loss_that_was_no_number_does_no_harm() -> None:
    assert curve([5.0, None, 4.0, 3.0])
    assert chart.window_of([[{"tokens": 0, "train_loss": None, "val_loss": None}]]) is None


def test_the_axes_have_round_numbers() -> None:
    lines = curve([4.0 - number / 50 for number in range(101)])
    assert [line.split()[0] for line in lines if "┤" in line] == ["3.5", "3.0", "2.5", "2.0"]
    assert lines[-1].split() == ["0", "5k", "10k"]


def test_one_value_all_along_is_a_flat_line() -> None:
    rows = [line for line in curve([3.0] * 20)[1:-2] if dots(line)]
    assert len(rows) == 1


def test_a_sparkline_has_the_course_of_its_values() -> None:
    assert chart.sparkline([1, 2, 3, 4, 5, 6, 7, 8], 8) == "▁▂▃▄▅▆▇█"
    assert chart.sparkline([1.0] * 100 + [2.0] * 100, 4) == "▁▁██"
    assert chart.sparkline([3.0, 3.0], 10) == "▁▁"
    assert chart.sparkline([], 10) == chart.sparkline([1.0], 0) == ""
