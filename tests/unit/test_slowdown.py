"""A slowdown, by lines of progress alone."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjobs import progress
from gptjobs.config import Plan
from gptjobs.layout import Layout
from gptjobs.progress import Progress
from gptjobs.slowdown import FIRST_LOOKS, LOOK_S, SLOW_LOOKS, SLOW_S, Slowdown, SpeedWatch
from tests.unit.conftest import NANO, NOON, begin
from worker.onlooker import taught_speed

TOKENS = 1000
"""of a step"""
FIRST_S = LOOK_S * FIRST_LOOKS
"""of a job, from which its usual speed is known"""


class Trainer:
    """Reports as the real one does: a line after `log_interval` steps and, where they take long, also in between."""

    def __init__(self, log_interval: int = 10, line_every_s: float = 10.0) -> None:
        self.log_interval, self._line_every_s = log_interval, line_every_s
        self.step = 0

    def line(self, tokens_per_s: float) -> Progress:
        return Progress(
            step=self.step, end_step=10**9, tokens=TOKENS * self.step, train_loss=1.0, learning_rate=1e-3,
            grad_norm=1.0, tokens_per_s=tokens_per_s, eta_s=1.0,
        )  # fmt: skip

    def begins(self, step_s: float = 1.0) -> Progress:
        """The line within its first step."""
        self._count, self._seconds, self._silent_s = 0, 0.0, 0.0
        return self.line(TOKENS / step_s)

    def trains(self, seconds: float, step_s: float) -> Iterator[Progress]:
        """The lines of so many seconds, of which a step takes so many."""
        until = 0.0
        while until < seconds:
            until += step_s
            self.step += 1
            self._count += 1
            self._seconds += step_s
            self._silent_s += step_s
            if self.step % self.log_interval and self._silent_s < self._line_every_s:
                continue
            self._silent_s = 0.0
            yield self.line(self._count * TOKENS / self._seconds)
            if self.step % self.log_interval == 0:
                self._count, self._seconds = 0, 0.0


def told(watch: SpeedWatch, lines: Iterator[Progress]) -> list[Slowdown]:
    return [found for found in map(watch.add, lines) if found]


def knowing(trainer: Trainer, step_s: float = 1.0) -> SpeedWatch:
    """A watch that has seen the job's first minutes."""
    watch = SpeedWatch(trainer.log_interval)
    watch.add(trainer.begins())
    assert told(watch, trainer.trains(FIRST_S + 3 * LOOK_S, step_s)) == []
    assert watch.knows_usual
    return watch


@pytest.mark.parametrize(
    ("log_interval", "step_s"), [(10, 1.0), (10, 0.003), (1, 0.05), (10, 20.0), (1000, 1.0), (7, 3.3)]
)
def test_ten_minutes_at_half_the_speed_are_told_once_and_not_before(log_interval: int, step_s: float) -> None:
    trainer = Trainer(log_interval)
    watch = SpeedWatch(log_interval)
    watch.add(trainer.begins(step_s))
    told(watch, trainer.trains((FIRST_LOOKS + 3) * max(LOOK_S, 2 * step_s), step_s))
    assert watch.knows_usual
    assert told(watch, trainer.trains(SLOW_S - LOOK_S - step_s, 2 * step_s)) == []
    (slow,) = told(watch, trainer.trains(10 * SLOW_S, 2 * step_s))
    assert slow.usual == pytest.approx(TOKENS / step_s, rel=0.02)
    assert slow.now == pytest.approx(slow.usual / 2, rel=0.1)
    assert SLOW_S <= slow.seconds <= SLOW_S + LOOK_S + 2 * step_s + 20.0
    assert f"{slow.now / slow.usual:.0%} of the {slow.usual:,.0f} of the job's first minutes" in str(slow)


@pytest.mark.parametrize(("part", "is_slow"), [(0.65, True), (0.75, False)])
def test_slow_is_what_is_under_seven_tenths(part: float, is_slow: bool) -> None:
    trainer = Trainer()
    watch = knowing(trainer)
    assert bool(told(watch, trainer.trains(2 * SLOW_S, 1.0 / part))) is is_slow


def test_a_minute_at_the_usual_speed_begins_the_ten_minutes_anew() -> None:
    trainer = Trainer()
    watch = knowing(trainer)
    for _ in range(5):
        assert told(watch, trainer.trains(SLOW_S - 3 * LOOK_S, 2.0)) == []
        assert told(watch, trainer.trains(2 * LOOK_S, 1.0)) == []


def test_it_is_told_again_only_after_it_was_over() -> None:
    trainer = Trainer()
    watch = knowing(trainer)
    assert len(told(watch, trainer.trains(SLOW_S + 100.0, 2.0))) == 1
    assert told(watch, trainer.trains(3 * SLOW_S, 2.0)) == []
    assert told(watch, trainer.trains(3 * LOOK_S, 1.0)) == []
    assert len(told(watch, trainer.trains(SLOW_S + 100.0, 2.0))) == 1


def test_the_slow_steps_that_a_job_begins_with_teach_nothing() -> None:
    trainer = Trainer()
    watch = SpeedWatch(trainer.log_interval)
    watch.add(trainer.begins())
    told(watch, trainer.trains(LOOK_S, 15.0))
    told(watch, trainer.trains(FIRST_S, 1.0))
    (slow,) = told(watch, trainer.trains(SLOW_S + 100.0, 2.0))
    assert slow.usual == pytest.approx(TOKENS, rel=0.02)


def test_a_standstill_in_few_lines_is_no_slowdown_yet() -> None:
    trainer = Trainer()
    watch = knowing(trainer)
    assert told(watch, trainer.trains((SLOW_LOOKS - 1) * SLOW_S, SLOW_S)) == []
    assert len(told(watch, trainer.trains(SLOW_S, SLOW_S))) == 1


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0.72, 1.3), min_size=40, max_size=40))
def test_a_job_whose_speed_varies_by_less_than_that_is_never_told(factors: list[float]) -> None:
    trainer = Trainer()
    watch = knowing(trainer)
    assert [found for each in factors for found in told(watch, trainer.trains(60.0, 1.0 / each))] == []


def test_lines_without_a_speed_or_with_none_at_all_are_passed_over() -> None:
    watch = knowing(Trainer())
    line = Trainer().line(1.0)
    assert watch.add(replace(line, tokens_per_s=None)) is None
    assert watch.add(replace(line, tokens_per_s=0.0)) is None


PLAN = Plan(job="first", kind="train", settled=NANO, data_name="text", data_digest="d" * 64, parent=None)


@pytest.mark.parametrize(("device", "goes_on"), [("cpu", True), ("cuda:0", False)])
def test_a_later_attempt_on_such_a_device_knows_the_first_minutes_from_the_record(
    layout: Layout, device: str, goes_on: bool
) -> None:
    trainer = Trainer(NANO.train.log_interval)
    begin(layout, "first", 1)
    lines = [trainer.begins(), *trainer.trains(FIRST_S + 2 * LOOK_S, 1.0)]
    text = "".join(progress.encode(line, seconds=NOON) + "\n" for line in lines)
    layout.attempt_lines("first", 1).write_text(text)
    begin(layout, "first", 2)

    watch = taught_speed(layout, PLAN, device)
    assert watch.knows_usual is goes_on
    watch.add(trainer.begins())
    slow = told(watch, trainer.trains(2 * SLOW_S, 2.0))
    assert [round(each.usual) for each in slow] == ([TOKENS] if goes_on else [])
