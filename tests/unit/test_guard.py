"""Spikes: seen where the loss rises and stays, not where it is noisy; and what becomes of the job then."""

import json
import math
import random
from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from gptjobs import checkpoint, progress, record
from gptjobs.config import Plan
from gptjobs.diagnosis import LEFT_OUT_STEPS, NOISE_STEPS, NOT_FINITE_STEPS, Band, Detector, Spike
from gptjobs.job import Cause, JobState, Outcome
from gptjobs.layout import Layout
from gptjobs.progress import Alert
from tests.unit.test_training import CPU, Ended, Killed, assert_same_bits, attempted, planned, tensors
from worker.child import Stop
from worker.trainer.batches import Batches
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


@pytest.mark.parametrize("before", [100, 3])
def test_what_is_no_number_is_a_spike_once_it_stays(before: int) -> None:
    first = spikes([*noisy(before), *[math.nan] * 20])[0]
    assert (first.since, first.step) == (before + 1, before + NOT_FINITE_STEPS)
    assert str(first) == f"the loss or the gradient is no finite number from step {before + 1} on"
    alone = noisy(300)
    alone[100:109] = [math.nan] * 9
    assert spikes(alone) == []


def test_a_loss_that_falls_at_once_to_a_part_is_seen_and_one_that_learns_fast_is_not() -> None:
    first = spikes(noisy(300, lambda step: 2.0 if step <= 200 else max(0.1, 2.0 - (step - 200) * 0.2)))[0]
    assert first.is_fall and 200 < first.step < 220 and 200 < first.since < 210
    assert str(first).startswith("the loss fell from ")
    assert spikes(noisy(300, lambda step: 4.0 if step <= 100 else max(1.8, 4.0 - (step - 100) * 0.2))) == []


def test_steps_whose_updates_were_left_out_are_a_spike_only_once_they_are_many_in_a_row() -> None:
    detector = Detector()
    for step, loss in enumerate(noisy(100), start=1):
        assert detector.add(step, loss) is None
    many = [detector.add(100 + each, 9.0, left_out=True) for each in range(1, LEFT_OUT_STEPS)]
    assert many == [None] * (LEFT_OUT_STEPS - 1)
    assert detector.add(200, 2.0) is None, "the level is that of before"
    found = [detector.add(200 + each, 9.0, left_out=True) for each in range(1, LEFT_OUT_STEPS + 1)]
    assert found[:-1] == [None] * (LEFT_OUT_STEPS - 1) and found[-1] is not None and found[-1].since == 201


def test_the_band_holds_every_step_of_a_noisy_loss_and_no_outlier() -> None:
    detector = Detector()
    for step, loss in enumerate(noisy(NOISE_STEPS - 1), start=1):
        detector.add(step, loss, 1.0)
    assert detector.band() is None
    for step, loss in enumerate(noisy(400), start=NOISE_STEPS):
        detector.add(step, loss, 1.0)
        band = detector.band()
        assert band is not None and band.low < 1.85 and band.high > 2.15
        assert not band.holds(2.6, 1.0) and not band.holds(1.4, 1.0) and not band.holds(2.0, 11.0)


def test_a_detector_goes_on_from_what_a_checkpoint_keeps_of_it() -> None:
    losses = noisy(300, lambda step: 2.0 if step <= 200 else 3.0)
    before, expected = Detector(), spikes(losses)
    for step, loss in enumerate(losses[:190], start=1):
        before.add(step, loss)
    after = Detector.from_dict(json.loads(json.dumps(before.to_dict())))
    assert after.band() == before.band()
    found = [one for step, loss in enumerate(losses[190:], start=191) if (one := after.add(step, loss))]
    assert found == expected


@pytest.mark.parametrize("seed", range(5))
def test_a_gradient_norm_that_spreads_widely_is_no_outlier_and_one_far_above_is(seed: int) -> None:
    draw, detector = random.Random(seed), Detector()
    for step in range(1, 2000):
        norm, band = math.exp(draw.gauss(0, 0.6)), detector.band()
        assert band is None or band.holds(2.0, norm), step
        detector.add(step, 2.0 + draw.gauss(0, 0.05), norm)
    band = detector.band()
    assert band is not None and not band.holds(2.0, 5000.0)


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


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """What is added to the loss of an update, by its number; to be filled in."""
    added: dict[int, float] = {}
    counted = 0

    def loss(model: GPT, *words: Any) -> Tensor:
        nonlocal counted
        counted += 1
        return LOSS(model, *words) + added.get(counted, 0.0)

    monkeypatch.setattr(GPT, "loss", loss)
    return added


def weights(layout: Layout, ended: Ended) -> dict[str, Tensor]:
    return {name: each.clone() for name, each in tensors(layout, ended.last).items()}


@pytest.mark.parametrize(("on_outlier", "left_out"), [("note", False), ("skip", True)])
def test_an_outlier_is_noted_and_its_update_left_out_where_that_was_asked_for(
    layout: Layout, odd: dict[int, float], on_outlier: str, left_out: bool
) -> None:
    odd |= {103: 20.0, 104: 20.0}
    plan = planned_with(layout, "rollback", steps=110, on_outlier=on_outlier)
    ended = attempted(layout, plan)
    assert ended.finished.outcome == "finished"
    (alert,) = alerts(ended)
    assert (alert.name, alert.since, alert.step, alert.windows) == ("outlier", 103, 104, [408, 416])
    assert alert.starts == Batches.of_plan(layout, plan, None).at(408, 416).tolist()
    assert ("the update was left out" in alert.reason) is left_out
    flight = json.loads(layout.flight_file("job", 1, 110).read_bytes())
    assert [each["step"] for each in flight["steps"] if each["left_out"]] == ([103, 104] if left_out else [])
    assert ended.last.manifest.tokens == 110 * 4 * 8


def test_a_job_that_leaves_outliers_out_is_bit_equal_resumed_and_never_stopped(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limits are those of the last tenth step, also where it goes on from another one."""

    def band(detector: Detector) -> Band | None:
        newest = detector._losses[-1][0] if detector._losses else 0
        return Band(low=0.0, high=math.inf if newest % 20 == 10 else 0.0, norm=math.inf) if newest else None

    monkeypatch.setattr(Detector, "band", band)
    values = {"steps": 30, "log_interval": 10, "on_outlier": "skip"}
    never = attempted(layout, planned(layout, "never", **values))
    with pytest.raises(Killed):
        attempted(layout, planned(layout, "resumed", **values, checkpoint_interval=16), killed_at=20)
    resumed = attempted(layout, planned(layout, "resumed", **values, checkpoint_interval=16))
    assert resumed.finished.outcome == never.finished.outcome == "finished"
    assert_same_bits(weights(layout, never), weights(layout, resumed))
    flight = json.loads(layout.flight_file("never", 1, 30).read_bytes())
    assert [each["step"] for each in flight["steps"] if each["left_out"]] == list(range(21, 31))


def test_a_step_without_a_number_changes_no_weight_and_is_told(layout: Layout, odd: dict[int, float]) -> None:
    values = {"log_interval": 1, "schedule": "constant"}
    before = attempted(layout, planned_with(layout, "rollback", steps=6, **values))
    odd |= {6 + 7: math.nan}
    plan = replace(planned_with(layout, "rollback", steps=7, **values), job="other")
    ended = attempted(layout, plan)
    assert ended.finished.outcome == "finished"
    (alert,) = alerts(ended)
    assert (alert.name, alert.step, alert.windows) == ("not_finite", 7, [24, 28])
    assert_same_bits(weights(layout, before), weights(layout, ended))
    losses = {each.step: each.train_loss or math.nan for each in ended.progress}
    assert math.isnan(losses[7]) and math.isfinite(losses[6])
    flight = json.loads(layout.flight_file("other", 1, 7).read_bytes())
    assert flight["steps"][-1]["loss"] is None and flight["steps"][-1]["left_out"]


def test_a_spike_is_seen_where_lines_are_far_apart(layout: Layout, spiking: list[Tensor]) -> None:
    ended = attempted(layout, planned_with(layout, "rollback", steps=400, log_interval=1000, checkpoint_interval=50))
    assert ended.finished.cause == Cause.SPIKE.value
    (alert,) = alerts(ended)
    assert (alert.since, alert.windows) == (101, [396, 4 * alert.step]) and alert.step <= 125


def test_a_spike_across_a_pause_knows_what_it_saw_before_it(layout: Layout, odd: dict[int, float]) -> None:
    odd |= dict.fromkeys(range(101, 1000), 1.0)
    plan = planned_with(layout, "rollback", steps=300, checkpoint_interval=50, log_interval=1)
    assert attempted(layout, plan, stop_at=104).finished.outcome == "stopped"
    ended = attempted(layout, plan)
    (alert,) = alerts(ended)
    assert (alert.since, alert.windows) == (101, [396, 4 * alert.step])
    good = [each.manifest.step for each in checkpoint.counting(layout, "job")]
    assert good == [50]


def test_the_hint_after_a_spike_names_what_is_there(layout: Layout, odd: dict[int, float]) -> None:
    parent = attempted(layout, planned(layout, "parent")).last
    odd |= dict.fromkeys(range(6 + 61, 1000), 5.0)
    values = {"steps": 200, "on_spike": "stop", "checkpoint_interval": 1000, "log_interval": 5, "eval_interval": 1000}
    ended = attempted(layout, planned(layout, "child", parent, **values))
    assert ended.finished.hint == f"gptjobs submit resume --from {parent.name} --learning-rate 0.001"


def test_a_job_without_numbers_from_its_start_has_diverged(layout: Layout, odd: dict[int, float]) -> None:
    odd |= dict.fromkeys(range(1, 100), math.nan)
    ended = attempted(layout, planned_with(layout, "rollback"))
    assert (ended.finished.outcome, ended.finished.step) == ("diverged", NOT_FINITE_STEPS)
    assert ended.finished.hint == "submit it again with a smaller one: --learning-rate 0.0001"


def test_after_going_back_outliers_are_left_out_without_another_spike(layout: Layout, odd: dict[int, float]) -> None:
    plan = planned_with(layout, "rollback", steps=150)
    first = attempted(layout, plan, stop_at=96)
    start = checkpoint.start_of_next_attempt(layout, "job", None)
    assert start is not None and first.finished.outcome == "stopped"
    checkpoint.begin_attempt(layout, "job", 2, start, worker="test", device="cpu", skips=[[400, 404]])
    odd |= dict.fromkeys(range(101, 141), 20.0)
    ended = attempted_with(layout, plan, 2)
    assert ended.finished.outcome == "finished"
    assert [each.name for each in alerts(ended)].count("outlier") == 8
    assert all("the update was left out" in each.reason for each in alerts(ended))


def test_the_flight_record_has_the_newest_steps_with_norms_by_layer_group(layout: Layout) -> None:
    plan = planned_with(layout, "rollback", steps=230)
    attempted(layout, plan)
    flight = json.loads(layout.flight_file("job", 1, 230).read_bytes())
    assert [each["step"] for each in flight["steps"]] == list(range(31, 231))
    assert set(flight["groups"]) == {"embeddings", "block 0", "head"}
    for each in flight["steps"]:
        assert (each["seen"], each["end"]) == (4 * each["step"] - 4, 4 * each["step"])
        assert sum(norm**2 for norm in each["norms"]) == pytest.approx(each["grad_norm"] ** 2, rel=1e-4)
        assert each["learning_rate"] == plan.settled.train.learning_rate_at(each["step"] - 1)


def test_a_level_needs_its_steps() -> None:
    assert spikes([*[2.0] * (NOISE_STEPS - 20), *[9.0] * 15]) == []
