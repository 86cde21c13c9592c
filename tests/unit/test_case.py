"""What a diagnosis reads: logs of this and other programs, and a job's record with all that may be torn in it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gptjobs import durable, progress, record
from gptjobs.case import Case, flights, of_job
from gptjobs.causes import possible_causes
from gptjobs.checkpoint import quarantine, read
from gptjobs.config import Plan, settle
from gptjobs.errors import NotFound, Refused
from gptjobs.job import JobSpec
from gptjobs.layout import Layout
from gptjobs.losslog import of_file
from gptjobs.progress import Alert, in_words
from tests.unit.cases import falling, noisy
from tests.unit.conftest import NANO, NOON, begin, commit, typed
from tests.unit.test_outputs import step


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "old.log"


def read_log(file: Path, *lines: str, **values: Any) -> Case:
    file.write_text("".join(line + "\n" for line in lines))
    return of_file(file, **values)


def losses(found: Case) -> list[tuple[int, float | None, float | None]]:
    return [(each.step, each.train_loss, each.val_loss) for each in found.points]


# logs


@pytest.mark.parametrize(
    ("line", "read"),
    [
        ("Step 2000: train loss 6.51, val loss 6.65", (2000, 6.51, 6.65)),
        ("2025-11-22 11:27:39 INFO Step 2000/4000: Training loss = 6.51 | validation loss: 6.65", (2000, 6.51, 6.65)),
        ("step 250: train loss 2.5000, val loss 2.6000", (250, 2.5, 2.6)),
        ("iter 250: loss 2.4000, time 5.00ms, mfu 3.00%", (250, 2.4, None)),
        ("step=250 train_loss=2.5 val_loss=2.6e0", (250, 2.5, 2.6)),
        ("iteration 7, loss: 1.5", (7, 1.5, None)),
        ("Step 10: train loss nan, val loss inf", (10, None, None)),
        ("Step 10: train loss 2.5.", (10, 2.5, None)),
        (in_words(step(30, 1.5, 1.75)), (30, 1.5, 1.75)),
        (progress.encode(step(30, 1.5, 1.75), seconds=NOON), (30, 1.5, 1.75)),
        (
            '{"step": 3, "train_loss": 2.5, "val_loss": NaN, "learning_rate": "much", "grad_norm": 1e999}',
            (3, 2.5, None),
        ),
    ],
)
def test_a_line_is_read_whoever_wrote_it(file: Path, line: str, read: Any) -> None:
    assert losses(read_log(file, "It begins.", line, "")) == [read]


@pytest.mark.parametrize("form", [in_words, lambda line: progress.encode(line, seconds=NOON)])
def test_of_our_own_lines_rate_norm_and_speed_are_read_too(file: Path, form: Any) -> None:
    (point,) = read_log(file, form(step(30, 1.5))).points
    assert (point.learning_rate, point.grad_norm, point.tokens_per_s) == (1e-3, 1.0, 1e4)


@pytest.mark.parametrize(
    "line",
    [
        "outlier: loss 9.5810, gradient norm 3.2 at step 1990",
        "checkpoint checkpoint_gpt2_text_step000009.pt",
        "step 5 of the plan: read about loss",
        '{"kind": "alert", "step": 5}',
        '{"step": true, "train_loss": 2.5}',
        '{"step": -1, "train_loss": 2.5}',
        '{"step": 1e300, "train_loss": 2.5}',
        "[" * 5000,
        "{" + '"a":{' * 5000,
        "step 99999999999999999999: loss 2.5",
    ],
)
def test_other_lines_are_passed_over(file: Path, line: str) -> None:
    assert losses(read_log(file, line, "Step 1: train loss 2.5")) == [(1, 2.5, None)]


def test_nanogpts_lines_of_one_step_are_put_together(file: Path) -> None:
    found = read_log(file, "step 250: train loss 2.5, val loss 2.6", "iter 250: loss 2.4, time 5ms, mfu 3%")
    assert losses(found) == [(250, 2.4, 2.6)]
    found = read_log(file, "iter 250: loss 2.4, time 5ms, mfu 3%", "step 250: val loss 2.6")
    assert losses(found) == [(250, 2.4, 2.6)]


def test_after_a_resume_the_later_lines_count_and_what_they_went_back_over_does_not(file: Path) -> None:
    lines = [f"Step {each}: train loss {each}.5" for each in (500, 1000, 1500, 2000)]
    lines += [f"Step {each}: train loss {each}.25" for each in (1000, 1200)]
    assert losses(read_log(file, *lines)) == [(500, 500.5, None), (1000, 1000.25, None), (1200, 1200.25, None)]


def test_tokens_follow_from_sizes_where_a_line_does_not_tell_them(file: Path) -> None:
    found = read_log(
        file, "Step 0: train loss 3.5", "Step 2: train loss 2.5", '{"step": 3, "train_loss": 2.0, "tokens": 7}',
        batch_size=8, block_size=256,
    )  # fmt: skip
    assert [each.tokens for each in found.points] == [0, 4096, 7]
    assert (found.tokens_a_step, found.plan) == (2048, None)


@pytest.mark.parametrize(
    "content", [b"", b"\0\xff\xfe" * 1000, b"step 1 " * 300_000, b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 400]
)
def test_a_file_without_losses_is_refused_with_what_one_looks_like(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(Refused, match="has no losses that can be read") as refused:
        of_file(file)
    assert "Step 2000: train loss 6.51" in str(refused.value.hint)


def test_losses_between_garbage_are_read(file: Path) -> None:
    file.write_bytes(
        b"\xff\xfe\0" * 99 + b"\r\nStep 5: train loss 2.5\r" + bytes(range(128, 256)) + b"\nstep 6: loss 2.4"
    )
    assert losses(of_file(file)) == [(5, 2.5, None), (6, 2.4, None)]


def test_a_million_lines_are_read_and_a_rise_among_them_is_seen(file: Path) -> None:
    with file.open("w") as lines:
        for each in range(1_000_000):
            lines.write(f"iter {each}: loss {(2.5 if each < 900_000 else 4.5) + each % 7 / 50:.4f}, time 5ms\n")
    found = of_file(file)
    assert len(found.points) == 1_000_000
    (rise,) = found.rises
    assert abs(rise.since - 900_000) <= 101 and rise.reason.startswith("the loss rose from 2.5")
    assert possible_causes(found)[0].name == "rise"


SEEDS = [(500, 7.2), (1000, 6.9), (1500, 6.65), (2000, 9.58)]


def said(*losses: tuple[int, float]) -> Iterator[str]:
    return (f"Step {number}: train loss {loss - 0.1:.4f}, val loss {loss:.4f}" for number, loss in losses)


def test_the_rise_of_an_old_log_is_found_with_where_it_began(file: Path) -> None:
    found = read_log(file, *said(*SEEDS))
    assert [(each.since, each.step, each.reason) for each in found.rises] == [
        (2000, 2000, "the loss rose from 6.5500 to 9.4800 from step 2000 on")
    ]
    (cause,) = (each for each in possible_causes(found) if each.name == "rise")
    assert "it began after step 1500, the last line without it" in cause.evidence


@pytest.mark.parametrize(
    ("more", "spans"),
    [
        ([(2500, 9.4)], [(2000, 2500)]),
        ([(2500, 9.4), (3000, 6.6)], [(2000, 2500)]),
        ([(2500, 6.6), (3000, 6.5)], []),
        ([(2500, 9.4), (3000, 6.5), (3500, 6.4), (4000, 8.8)], [(2000, 2500), (4000, 4000)]),
    ],
)
def test_one_high_line_is_an_outlier_two_or_one_at_the_end_are_a_rise(
    file: Path, more: list[tuple[int, float]], spans: list[tuple[int, int]]
) -> None:
    found = read_log(file, *said(*SEEDS, *more))
    assert [(each.since, each.step) for each in found.rises] == spans


def test_evaluations_above_the_training_loss_are_no_rise(file: Path) -> None:
    lines = [f"iter {each}: loss {2.4 - each / 10_000:.4f}, time 5ms" for each in range(0, 1000, 10)]
    lines[50:50] = ["step 500: train loss 2.3500, val loss 3.1000"]
    assert read_log(file, *lines, "step 1000: train loss 2.3000, val loss 3.2000").rises == ()


@pytest.mark.parametrize("count", [30, 60, 300, 20_000])
def test_a_noisy_log_has_no_rise(file: Path, count: int) -> None:
    """Lines of single steps, as nanoGPT writes them."""
    course = noisy(falling(5.5, 2.4, count / 10), 0.1)
    assert read_log(file, *(f"iter {each}: loss {course(each):.4f}" for each in range(count))).rises == ()


@pytest.mark.parametrize("count", [30, 300])
def test_a_loss_that_is_no_number_any_more_is_a_rise(file: Path, count: int) -> None:
    lines = [f"iter {each}: loss {'nan' if each >= count // 2 else 2.5}" for each in range(count)]
    (rise,) = read_log(file, *lines).rises[:1]
    assert rise.reason == f"the loss is no number from step {count // 2} on"


# jobs

FIRST = JobSpec(id="first", kind="train", name="owls", overrides=typed(batch_size=8), submitted_at=NOON)


def write(layout: Layout, spec: JobSpec, plan: Plan) -> None:
    record.write_spec(layout, spec)
    durable.write(layout.config_file(spec.id), durable.to_json(plan.to_dict()))


def write_lines(layout: Layout, job: str, token: int, *lines: Any) -> None:
    text = "".join(progress.encode(line, seconds=NOON) + "\n" for line in lines)
    layout.attempt_lines(job, token).write_text(text)


@pytest.fixture
def spiked(layout: Layout) -> Layout:
    """A job that went on from step 200 of another, spiked at 230, and again after it went back."""
    write(
        layout,
        FIRST,
        Plan(job="first", kind="train", settled=NANO, data_name="text", data_digest="d" * 64, parent=None),
    )
    begin(layout, "first", 1)
    write_lines(layout, "first", 1, *(step(each, 3.0) for each in range(0, 301, 10)))
    start = commit(layout, "first", 1, 200)
    settled = settle(typed(learning_rate=1e-2), parent=NANO, parent_step=200)
    plan = Plan(job="second", kind="resume", settled=settled, data_name="text", data_digest="d" * 64, parent=start)
    spec = JobSpec(
        id="second", kind="resume", name="larks", overrides=typed(learning_rate=1e-2), parent=start,
        accept_data_change=True, submitted_at=NOON,
    )  # fmt: skip
    write(layout, spec, plan)
    for token, since in ((1, 230), (2, 250)):
        begin(layout, "second", token)
        alert = Alert(
            name="spike", step=since + 10, since=since, reason="the loss rose", windows=[since * 8, since * 9]
        )
        write_lines(layout, "second", token, *(step(each, 3.0) for each in range(200, 271, 10)), alert)
        flight(layout, token, range(since - 50, since + 11))
    return layout


def flight(layout: Layout, token: int, steps: range, **changes: Any) -> None:
    layout.flight("second").mkdir(exist_ok=True)
    made = [{"step": each, "loss": 3.0, "learning_rate": 1e-3, "grad_norm": 1.0, "seen": each * 8} for each in steps]
    content = {"schema": 1, "token": token, "steps": made, **changes}
    layout.flight_file("second", token, steps[-1]).write_text(json.dumps(content))


def test_a_jobs_case_has_its_parents_lines_its_spikes_and_their_flights(spiked: Layout) -> None:
    found = of_job(spiked, "second", "larks")
    assert [each.step for each in found.points if each.job == "first"] == list(range(0, 201, 10))
    assert [each.step for each in found.points if each.job == "second"] == list(range(200, 271, 10))
    assert [(each.since, each.step, each.token, each.windows) for each in found.rises] == [
        (230, 240, 1, (1840, 2070)), (250, 260, 2, (2000, 2250)),
    ]  # fmt: skip
    assert [each.steps[-1]["step"] for each in found.rises] == [240, 260]
    assert (list(found.parents), found.accepts_data_change) == (["first"], True)
    assert found.parent == read(spiked, str(found.parent)).name
    assert dict(found.overrides) == typed(learning_rate=1e-2)


def test_a_spike_that_was_met_twice_on_the_same_windows_counts_once(spiked: Layout) -> None:
    begin(spiked, "second", 3)
    alert = Alert(name="spike", step=240, since=230, reason="again", windows=[1840, 2070])
    write_lines(spiked, "second", 3, step(200, 3.0), alert)
    assert [(each.since, each.token) for each in of_job(spiked, "second", "larks").rises] == [(230, 3), (250, 2)]


def test_flight_records_that_are_torn_foreign_or_empty_are_passed_over(spiked: Layout) -> None:
    folder = spiked.flight("second")
    for number, content in enumerate(
        ("", "{", "[]", "7", '{"token": 1, "steps": []}', '{"token": 1, "steps": [7]}', '{"steps": [{"step": 300}]}',
         '{"token": null, "steps": [{"step": 300}]}', "[" * 100_000)
    ):  # fmt: skip
        (folder / f"1-{number:06d}.json").write_text(content)
    assert [(each["token"], each["steps"][-1]["step"]) for each in flights(spiked, "second")] == [(1, 240), (2, 260)]
    assert len(of_job(spiked, "second", "larks").rises[0].steps) == 61


def test_a_parent_that_was_deleted_or_is_in_quarantine_is_not_named(spiked: Layout) -> None:
    parent = read(spiked, str(of_job(spiked, "second", "larks").parent))
    quarantine(spiked, parent, "spike")
    assert of_job(spiked, "second", "larks").parent is None
    spiked.path(parent.name).unlink()
    found = of_job(spiked, "second", "larks")
    assert (found.parent, found.parents, len(found.points)) == (None, {}, 8)


def test_a_job_that_said_nothing_yet_is_refused_with_what_to_type(layout: Layout) -> None:
    write(
        layout,
        FIRST,
        Plan(job="first", kind="train", settled=NANO, data_name="text", data_digest="d" * 64, parent=None),
    )
    with pytest.raises(Refused, match="job owls has reported no losses yet"):
        of_job(layout, "first", "owls")
    with pytest.raises(NotFound, match="has not begun"):
        of_job(layout, "never", "never")
