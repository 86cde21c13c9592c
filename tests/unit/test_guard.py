"""Spikes: seen where the loss rises and stays, not where it is noisy; and what becomes of the job then."""

import json
import math
import random
from typing import Any

import pytest
from torch import Tensor

from gptjobs import checkpoint, progress, record
from gptjobs.checkpoint import skipped
from gptjobs.config import Plan
from gptjobs.diagnosis import NOISE_STEPS, Detector, Spike
from gptjobs.job import Cause, JobState, Outcome
from gptjobs.layout import Layout
from gptjobs.progress import Alert
from tests.unit.test_training import CPU, Ended, attempted, planned
from worker.child import Stop
from worker.trainer.loop import train
from worker.trainer.model import GPT

LOSS = GPT.loss


def spikes(losses: list[float]) -> list[Spike]:
    detector = Detector()
    return [found for step, loss in enumerate(losses, start=1) if (found := detector.add(step, loss))]


def noisy(steps: int, level: Any = lambda step: 2.0, noise: float = 0.05, seed: int = 1) -> list[float]:
    draw = random.Random(seed)
    return [level(step) + draw.gauss(0, noise) for step in range(1, steps + 1)]


@pytest.mark.parametrize("seed", range(20))
def test_a_loss_that_falls_or_stays_however_noisy_is_no_spike(seed: int) -> None:
    assert spikes(noisy(600, lambda step: 2.0 + 3.5 * math.exp(-step / 60), seed=seed)) == []
    assert spikes(noisy(600, noise=0.3, seed=seed)) == []


def test_a_loss_that_rises_and_stays_is_seen_within_ten_steps_of_its_rise() -> None:
    first = spikes(noisy(300, lambda step: 2.0 if step <= 200 else 3.0))[0]
    assert 200 < first.step <= 210 and first.since == 201
    assert first.level == pytest.approx(2.0, abs=0.05) and first.now == pytest.approx(3.0, abs=0.6)


def test_a_single_outlier_is_no_spike_and_a_slow_climb_is_one() -> None:
    alone = noisy(300)
    alone[200] = alone[201] = 40.0
    assert spikes(alone) == []
    assert 220 < spikes(noisy(600, lambda step: 2.0 + max(0, step - 200) / 200))[0].step < 350


def test_what_is_no_number_is_a_spike_once_it_stays() -> None:
    assert 5 <= spikes([*noisy(100), *[math.nan] * 20])[0].step - 100 <= 10


def test_a_detector_goes_on_from_what_a_checkpoint_keeps_of_it() -> None:
    losses = noisy(300, lambda step: 2.0 if step <= 200 else 3.0)
    before, expected = Detector(), spikes(losses)
    for step, loss in enumerate(losses[:190], start=1):
        before.add(step, loss)
    after = Detector.from_dict(before.to_dict())
    found = [one for step, loss in enumerate(losses[190:], start=191) if (one := after.add(step, loss))]
    assert found == expected


def test_windows_that_are_left_out_count_as_seen() -> None:
    assert [skipped(each, [[8, 16], [16, 20]]) for each in (0, 7, 8, 15, 16, 20, 24)] == [0, 7, 20, 20, 20, 20, 24]
    assert skipped(12, ()) == 12


@pytest.fixture
def spiking(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """From the 101st update on the loss is so much higher; returns the windows of all updates, as they come."""
    seen: list[Tensor] = []

    def loss(model: GPT, inputs: Tensor, *others: Any) -> Tensor:
        seen.append(inputs)
        made = LOSS(model, inputs, *others)
        return made + 5.0 if len(seen) > 100 else made

    monkeypatch.setattr(GPT, "loss", loss)
    return seen


def planned_with(layout: Layout, on_spike: str, **values: Any) -> Plan:
    usual = {"steps": 200, "log_interval": 5, "eval_interval": 1000, "checkpoint_interval": 30, "learning_rate": 1e-3}
    return planned(layout, "job", **{**usual, "on_spike": on_spike, **values})


def alerts(ended: Ended) -> list[Alert]:
    return [each for each in ended.lines if isinstance(each, Alert)]


def test_a_job_that_is_only_to_tell_goes_on(layout: Layout, spiking: list[Tensor]) -> None:
    ended = attempted(layout, planned_with(layout, "warn"))
    assert ended.finished.outcome == "finished"
    (alert,) = alerts(ended)
    assert (alert.name, alert.since) == ("spike", 101) and alert.step <= 115
    assert ended.last.manifest.step == 200


def test_a_spike_ends_the_attempt_and_puts_away_what_was_written_in_it(layout: Layout, spiking: list[Tensor]) -> None:
    ended = attempted(layout, planned_with(layout, "rollback", checkpoint_interval=5))
    assert (ended.finished.outcome, ended.finished.cause) == ("failed", Cause.SPIKE.value)
    steps = {each.manifest.step: each.manifest.status for each in checkpoint.of_job(layout, "job")}
    assert {step for step, status in steps.items() if status == "good"} == set(range(5, 100, 5))
    assert all(status == "quarantined" for step, status in steps.items() if step >= 100)
    assert "from step 101 on" in (ended.finished.reason or "")


def test_the_next_attempt_goes_on_from_before_it_without_its_windows(
    layout: Layout, spiking: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned_with(layout, "rollback")
    ended = attempted(layout, plan)
    (alert,) = alerts(ended)
    assert alert.windows == [396, 4 * ended.finished.step]
    monkeypatch.setattr(GPT, "loss", LOSS)
    start = checkpoint.start_of_next_attempt(layout, "job", None)
    assert start is not None and start.manifest.step == 90
    outcome = Outcome(state=JobState.QUEUED, reason="spike", cause=Cause.SPIKE)
    kept = [progress.encode(alert, seconds=0.0), json.dumps({"kind": "ended", "time": 0.0, **outcome.to_dict()})]
    layout.attempt_lines("job", 1).write_text("".join(f"{each}\n" for each in kept))
    skips = record.windows_of_spikes(record.read_attempts(layout, "job"))
    assert skips == [[396, 4 * ended.finished.step]]
    checkpoint.begin_attempt(layout, "job", 2, start, worker="test", device="cpu", skips=skips)
    gone_on = attempted_with(layout, plan, 2)
    assert gone_on.finished.outcome == "finished"
    left_out = ended.finished.step - 99
    assert gone_on.last.manifest.cursor.windows == 4 * (200 + left_out)
    assert gone_on.last.manifest.tokens == 200 * 4 * 8


def attempted_with(layout: Layout, plan: Plan, token: int) -> Ended:
    """An attempt that was begun already."""
    attempt = checkpoint.read_attempt(layout, plan.job, token)
    lines: list[Any] = []
    start = checkpoint.read(layout, attempt.start) if attempt.start else None
    finished = train(layout, plan, attempt, start, CPU, lines.append, Stop())
    return Ended(finished, lines, checkpoint.counting(layout, plan.job)[-1])


def test_a_level_needs_its_steps() -> None:
    assert spikes([*[2.0] * (NOISE_STEPS - 20), *[9.0] * 15]) == []
