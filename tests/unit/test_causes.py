"""Each cause is named where it is there, with its numbers, and not beside it; healthy jobs have none."""

import math
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gptjobs import durable, planning, progress, record
from gptjobs.case import Case, Point, of_job
from gptjobs.causes import possible_causes
from gptjobs.causes.facts import stands_still
from gptjobs.cli import gptjobs
from gptjobs.config import Plan, settle
from gptjobs.data import tokens
from gptjobs.job import JobSpec
from gptjobs.layout import Layout
from gptjobs.local import _free_port
from gptjobs.settings import LOOPBACK
from tests.conftest import english
from tests.unit.cases import (
    BATCH,
    BLOCK,
    ENTROPY,
    ODD,
    TEXT,
    TOKENS,
    case,
    falling,
    level,
    log,
    named,
    names,
    noisy,
    planned,
    points,
    rise,
)
from tests.unit.conftest import NOON, typed
from tests.unit.test_training import TINY, attempted

ALARMING = 0.6
"""a strength, from which on a cause is called likely"""


def cosine(peak: float, steps: int, low: float = 0.0) -> Callable[[int], float]:
    return lambda step: low + (peak - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))


def with_evaluations(course: tuple[Point, ...], losses: dict[int, float], context: int = BLOCK) -> tuple[Point, ...]:
    return tuple(
        replace(each, val_loss=losses[each.step], eval_context=context) if each.step in losses else each
        for each in course
    )


HEALTHY = {
    "fast": points(falling(5.5, 1.5, 100)),
    "slow": points(falling(5.5, 1.5, 1500), rate=lambda step: 1e-4),
    "tiny": points(falling(5.5, 2.2, 40), steps=60),
    "a few lines": points(falling(5.5, 2.2, 40), steps=30),
    "one line": points(falling(5.5, 2.2, 40), steps=0),
    "early": points(falling(5.5, 1.5, 300), steps=150),
    "end of a cosine": points(falling(5.5, 1.5, 150), rate=cosine(1e-3, 1000, 1e-4)),
    "cosine to nought": points(falling(5.5, 1.5, 400), rate=cosine(1e-3, 1000)),
    "cosine to nought, flat": points(falling(5.5, 1.5, 60), rate=cosine(1e-3, 1000)),
    "wild at first": points(falling(5.5, 1.5, 100), norm=lambda step: 12.0 * math.exp(-step / 30) + 0.4),
    "noisy": points(noisy(lambda step: 2.0 + 3.5 * math.exp(-step / 100), 0.2)),
    "evaluated": with_evaluations(
        points(falling(5.5, 1.5, 200)), {each: 1.6 + 4 * math.exp(-each / 200) for each in range(0, 1001, 100)}
    ),
    "a high evaluation": with_evaluations(
        points(falling(5.5, 1.5, 200)), {0: 5.6, 200: 3.0, 400: 2.1, 600: 1.8, 800: 1.7, 1000: 1.76}
    ),
    "measured noise": points(falling(5.5, 1.5, 200), micro_norm=3.0, micro_windows=2),
}


@pytest.mark.parametrize("course", HEALTHY)
@pytest.mark.parametrize("of", [case, log])
def test_of_a_healthy_job_no_cause_is_likely(course: str, of: Callable[..., Case]) -> None:
    assert [each for each in possible_causes(of(HEALTHY[course])) if each.strength >= ALARMING] == []


@pytest.mark.parametrize("of", [case, log])
def test_lines_without_numbers_are_no_causes(of: Callable[..., Case]) -> None:
    empty = tuple(Point(step=each, job="first") for each in range(0, 400, 10))
    assert possible_causes(of(empty)) == []
    assert possible_causes(of(empty, text=None)) == []


# a loss that stands still


@pytest.mark.parametrize(("end", "stands"), [(1.955, False), (1.98, True), (2.0, True), (2.06, True), (2.4, False)])
def test_a_loss_stands_still_that_changes_little_over_the_last_third(end: float, stands: bool) -> None:
    """From 2 at the beginning, evenly."""
    found = stands_still(case(points(lambda step: 2.0 + (end - 2.0) * step / 1000 * 3 / 2)))
    assert (found is not None) is stands


def test_a_loss_at_the_entropy_of_frequencies_is_named_first_and_no_lower_rate_is_proposed() -> None:
    found = possible_causes(case(points(level(ENTROPY + 0.03), rate=lambda step: 1e-5)))
    assert (found[0].name, found[0].strength) == ("unigram", 0.95)
    assert "the loss ends at 3.0" in found[0].evidence[0] and "frequencies is 3.000" in found[0].evidence[0]
    assert "a lower learning rate is the wrong cure" in found[0].evidence[2]
    assert found[0].tests == (
        "gptjobs submit resume --from owls@last --learning-rate 3e-05 --warmup-steps 100 --steps 1000",
    )


def test_a_loss_that_stands_below_the_entropy_has_learned_more() -> None:
    assert "unigram" not in names(case(points(level(0.95 * ENTROPY))))


def test_a_loss_above_the_entropy_that_still_falls_is_possible_only() -> None:
    assert named(case(points(falling(8.0, 3.2, 600))), "unigram").strength < 0.4


def test_where_a_high_rate_learned_nothing_a_lower_one_is_proposed() -> None:
    found = named(case(points(level(ENTROPY), rate=lambda step: 0.03)), "unigram")
    assert "a lower one may learn more" in found.evidence[2] and "--learning-rate 0.01 " in found.tests[0]


def test_a_rate_that_has_decayed_to_nothing_is_named() -> None:
    found = named(case(points(level(2.0), rate=cosine(1e-3, 500))), "rate_gone")
    assert (found.strength, found.evidence[0].split(",")[0]) == (0.85, "from step 460 on")
    assert "below 2% of its highest, 0.001" in found.evidence[0] and "it ends at 0" in found.evidence[0]
    assert "--learning-rate 0.00033 --schedule cosine" in found.tests[0]


@pytest.mark.parametrize(
    "course",
    [points(level(2.0), rate=cosine(1e-3, 500, 1e-4)), points(falling(5.5, 1.5, 900), rate=cosine(1e-3, 500))],
)
def test_a_tenth_of_the_rate_or_a_loss_that_falls_is_no_rate_that_is_gone(course: tuple[Point, ...]) -> None:
    assert "rate_gone" not in names(case(course))


def test_a_resume_at_a_hundredth_of_the_rate_is_one_that_is_gone() -> None:
    before = points(level(2.0), steps=500, job="parent", rate=lambda step: 6e-4)
    course = before + points(level(2.0), first=500, rate=lambda step: 1e-5)
    assert "from step 500 on" in named(case(course, plan=planned()), "rate_gone").evidence[0]


@pytest.mark.parametrize(("rate", "is_low"), [(2e-5, True), (2e-4, False)])
def test_a_low_rate_is_mentioned(rate: float, is_low: bool) -> None:
    found = [
        each
        for each in possible_causes(case(points(level(2.0), rate=lambda step: rate)))
        if each.name == "rate_too_low"
    ]
    assert [each.strength for each in found] == ([0.45] if is_low else [])
    assert not is_low or "--learning-rate 6e-05 " in found[0].tests[0]


@pytest.mark.parametrize(("norm", "is_clipped"), [(3.0, True), (0.9, False)])
def test_a_clip_that_always_holds_is_mentioned(norm: float, is_clipped: bool) -> None:
    made = case(points(falling(5.5, 1.5, 100), norm=lambda step: norm))
    assert ("clipped" in names(made)) is is_clipped
    if is_clipped:
        assert (
            "100% of the lines have a norm above --grad-clip 1; its median is 3" in named(made, "clipped").evidence[0]
        )
        assert "--grad-clip 6 " in named(made, "clipped").tests[0]


def test_the_noise_scale_is_that_of_its_formula() -> None:
    """A gradient of norm 1 and a noise of 80 in trace: of n windows the square of the norm is 1 + 80 / n."""
    norms: dict[str, Any] = {"micro_norm": math.sqrt(1 + 80 / 2), "micro_windows": 2}
    course = points(falling(5.5, 1.5, 100), norm=lambda step: math.sqrt(1 + 80 / BATCH), **norms)
    found = named(case(course), "noisy")
    assert f"is 80 windows, the batch has {BATCH}" in found.evidence[0]
    assert f"--batch-size {4 * BATCH} " in found.tests[0]
    assert "noisy" not in names(case(course, batch_size=80))
    foreign = points(falling(5.5, 1.5, 100), job="parent", norm=lambda step: 3.0, **norms)
    assert "noisy" not in names(case(foreign + points(level(1.5), first=1000, steps=1100)))


def test_too_few_tokens_are_named_by_parameters_and_epochs() -> None:
    seen = 1000 * TOKENS
    found = named(case(points(falling(5.5, 1.5, 500))), "few_tokens")
    assert found.evidence[0].startswith(f"{seen:,} tokens for 950,272 parameters: 0.539 each")
    assert "900,000 tokens to train on: 0.57 epochs" in found.evidence[1]
    assert found.tests == ("gptjobs submit resume --from owls@last --steps 1000",)
    again = named(case(points(falling(5.5, 1.5, 500)), text=replace(TEXT, tokens=100_000)), "few_tokens")
    assert again.strength == 0.5 and "more than 4 epochs" in again.evidence[2]
    assert "few_tokens" not in names(case(points(level(2.0))))


OVERFIT = {0: 5.6, 200: 3.0, 400: 2.5, 600: 2.6, 800: 2.8, 1000: 3.0}


def test_overfitting_is_named_first_with_where_it_began() -> None:
    found = possible_causes(case(with_evaluations(points(falling(5.5, 1.5, 200)), OVERFIT)))[0]
    assert found.name == "overfitting" and found.strength > 0.8
    assert "lowest at step 400, 2.5000, and ends at 3.0000; training loss fell from 2." in found.evidence[0]
    assert found.tests == ("gptjobs submit resume --from owls@best --dropout 0.1 --steps 500",)


def test_losses_of_several_contexts_are_no_overfitting() -> None:
    course = with_evaluations(points(falling(5.5, 1.5, 200)), OVERFIT)
    course = tuple(replace(each, eval_context=32) if each.step >= 600 else each for each in course)
    assert "overfitting" not in names(case(course))


def test_a_training_loss_that_rises_too_is_no_overfitting() -> None:
    course = with_evaluations(points(noisy(lambda step: 2.0 + step / 500)), OVERFIT)
    assert "overfitting" not in names(case(course))


def test_where_dropout_is_there_already_more_is_proposed() -> None:
    course = with_evaluations(points(falling(5.5, 1.5, 200)), OVERFIT)
    assert "--dropout 0.4 " in named(case(course, plan=planned(dropout=0.2)), "overfitting").tests[0]


def test_a_job_that_became_slow_is_told_since_when() -> None:
    course = points(falling(5.5, 1.5, 200))
    slow = tuple(replace(each, tokens_per_s=4e3) if each.step > 600 else each for each in course)
    found = named(case(slow), "slow")
    assert found.evidence == ("4,000 tokens/s at the end, 10,000 at first; below 70% after step 600",)
    assert found.tests == ("gptjobs doctor", "gptjobs logs owls")
    assert named(log(slow), "slow").tests == ("gptjobs doctor",)
    assert "slow" not in names(case(course))
    assert named(case(course, slow=({"reason": "hot"},)), "slow").evidence == ("hot",)


def resumed(**overrides: Any) -> dict[str, Any]:
    """A job of 500 steps on from its parent."""
    settled = settle(typed(**overrides), parent=planned().settled, parent_step=500)
    plan = Plan(job="first", kind="resume", settled=settled, data_name="text", data_digest="d" * 64, parent="a/b.pt")
    return {
        "plan": plan, "overrides": typed(**overrides), "parents": {"aa": planned()}, "parent": "a/b.pt",
        "checkpoints": (), "batch_size": settled.train.batch_size, "block_size": settled.train.block_size,
    }  # fmt: skip


def test_steps_of_other_sizes_and_losses_of_other_contexts_are_corrected() -> None:
    before = with_evaluations(points(falling(5.5, 1.5, 200), steps=500, job="aa"), {0: 5.5, 500: 1.9})
    own = points(falling(5.5, 1.5, 200), first=500)
    course = before + with_evaluations(own, {500: 2.0, 1000: 1.95}, 32)
    found = named(case(course, **resumed(batch_size=4, block_size=32)), "wrong_axis")
    assert f"the 500 steps since are {500 * 128:,} tokens, as many as 125 of the steps before" in found.evidence[0]
    assert "1.9000 at context 64, 1.9500 at context 32" in found.evidence[1]
    assert found.tests == ("gptjobs compare aa owls --eval-context 32", "gptjobs plot aa owls")
    same = before + with_evaluations(own, {500: 1.9, 1000: 1.6})
    assert "wrong_axis" not in names(case(same, **resumed()))


# a loss that rises


def warming(step: int) -> float:
    return 1e-5 * step


BROKEN = points(noisy(lambda step: 2.5 if step < 500 else 6.0), rate=warming)
AT_ONE_RATE = points(noisy(lambda step: 2.5 if step < 500 else 6.0))


def test_a_spike_while_the_schedule_raised_the_rate_is_named_first() -> None:
    made = case(BROKEN, rises=(rise(rate=warming),), plan=planned(learning_rate=1e-2, warmup_steps=1000))
    found = possible_causes(made)[0]
    assert (found.name, found.strength) == ("schedule", 0.92)
    assert "rose 2 times: 0.0025 at step 250, 0.005 at step 500" in found.evidence[1]
    assert found.evidence[2:] == (
        "it was higher there than at any step before",
        "0% of the windows that it had seen lie in odd text",
    )
    rate = (made.plan.settled.train.learning_rate_at(400) if made.plan else 0) / 3
    assert found.tests == (
        f"gptjobs submit resume --from owls@400 --learning-rate {rate:.2g} --schedule cosine --steps 600",
        "gptjobs diagnose owls --replay 498:510",
    )


def test_a_spike_at_a_rate_that_did_not_rise_is_not_the_schedules() -> None:
    made = case(AT_ONE_RATE, rises=(rise(),))
    assert names(made)[0] == "rate_too_high" and "schedule" not in names(made)
    found = named(made, "rate_too_high")
    assert (found.strength, found.tests[0]) == (
        0.5, "gptjobs submit resume --from owls@400 --learning-rate 0.0002 --steps 600",
    )  # fmt: skip


def test_a_spike_late_in_a_decay_is_not_the_rates() -> None:
    rate = cosine(1e-3, 600)
    made = case(points(noisy(lambda step: 2.5 if step < 500 else 6.0), rate=rate), rises=(rise(rate=rate),))
    assert {"schedule", "rate_too_high"}.isdisjoint(names(made))


def test_one_spike_after_the_other_on_other_text_is_likely_the_rate() -> None:
    course = AT_ONE_RATE
    found = named(case(course, rises=(rise(), rise(700, 710, token=2))), "rate_too_high")
    assert found.strength == pytest.approx(0.7)
    assert "it rose 2 times, at the steps 500, 700, on other text each time" in found.evidence
    unknown = named(case(course, rises=(rise(windows=None), rise(700, 710, windows=None))), "rate_too_high")
    assert "it rose 2 times, at the steps 500, 700" in unknown.evidence


IN_ODD = tuple(range(ODD.first, ODD.last - BLOCK, BLOCK))


def test_a_spike_on_odd_text_is_named_first_whatever_the_schedule_did() -> None:
    made = case(BROKEN, rises=(rise(rate=warming, starts=IN_ODD),), text=replace(TEXT, odd=(ODD,)))
    found = possible_causes(made)
    assert (found[0].name, found[0].strength) == ("data", 0.96)
    assert named(made, "schedule").strength == 0.4
    assert found[0].evidence[1:] == (
        "100% of the windows that it had seen lie in tokens 40,000 to 50,000, which are 1.0% of the text (line 300 on)",
        "there: compresses to 0.02 of its bytes", "it begins: spam spam",
    )  # fmt: skip
    assert found[0].tests == (
        "gptjobs submit resume --from owls@400 --skip-tokens 40000:50000 --steps 600",
        "gptjobs data clean sources/text.md --encoding bytes --dry-run",
        "gptjobs diagnose owls --replay 498:510",
    )


def test_a_spike_whose_windows_touch_odd_text_by_chance_is_not_the_texts() -> None:
    few = (*IN_ODD[:2], *range(600_000, 606_000, BLOCK))
    assert "data" not in names(case(BROKEN, rises=(rise(starts=few),), text=replace(TEXT, odd=(ODD,))))


def test_a_fall_on_odd_text_is_the_texts_alone() -> None:
    made = case(BROKEN, rises=(rise(starts=IN_ODD, is_fall=True, norm=warming),), text=replace(TEXT, odd=(ODD,)))
    assert names(made)[0] == "data"
    assert {"schedule", "rate_too_high", "norm_first", "warmup"}.isdisjoint(names(made))


def test_what_is_left_out_already_stays_left_out() -> None:
    plan = planned(skip_tokens="100k:200k")
    made = case(BROKEN, rises=(rise(starts=IN_ODD),), text=replace(TEXT, odd=(ODD,)), plan=plan)
    assert "--skip-tokens 40000:50000,100000:200000 " in named(made, "data").tests[0]


EPOCH = (900_000 - 1) // BLOCK
"""windows"""


@pytest.mark.parametrize(("windows_after", "is_named"), [(1, True), (-2 * BATCH, False), (11 * BATCH, False)])
def test_a_spike_right_after_an_epochs_end_is_named(windows_after: int, is_named: bool) -> None:
    """Counted from the first window of the update before the rise."""
    first = EPOCH + windows_after
    made = case(points(level(2.5)), rises=(rise(windows=(first, first + 90)),))
    assert ("epoch" in names(made)) is is_named
    if is_named:
        assert "epoch 1 of the data, of 14,062 windows, ended at most 11 steps before" in named(made, "epoch").evidence
        assert "--seed 8 " in named(made, "epoch").tests[0]


def test_a_spike_in_the_first_steps_or_with_short_epochs_is_at_no_epochs_end() -> None:
    assert "epoch" not in names(case(points(level(2.5)), rises=(rise(12, 40, windows=(0, 90)),)))
    short = replace(TEXT, tokens=100 * TOKENS)
    assert "epoch" not in names(case(points(level(2.5)), rises=(rise(windows=(720, 800)),), text=short))


def test_gradients_that_grew_before_the_loss_are_told_with_a_rewarm() -> None:
    def grew(step: int) -> float:
        return 0.5 if step < 480 else 4.0

    found = named(case(points(level(2.5)), rises=(rise(norm=grew),)), "norm_first")
    assert "norm was 0.5, by its median, and 4 right before" in found.evidence[1]
    assert found.tests[0] == "gptjobs submit resume --from owls@400 --optimizer rewarm --steps 500"
    assert "norm_first" not in names(case(points(level(2.5)), rises=(rise(),)))
    without = case(points(level(2.5)), rises=(rise(norm=grew),), checkpoints=())
    assert named(without, "norm_first").tests == ("gptjobs diagnose owls --replay 498:510",)


def wild(step: int) -> float:
    return 1.0 if step < 20 else 20.0 if step < 60 else 0.5


def test_gradients_out_of_hand_at_the_warm_ups_end_are_named() -> None:
    found = named(case(points(falling(5.5, 1.5, 200), norm=wild)), "warmup")
    assert found.strength < 0.6
    assert (
        "20 steps of warm-up; by step 70 the gradient's norm went from 1 to 20, later its median is 0.5"
        in found.evidence
    )
    assert found.tests == (
        "gptjobs submit train --model nano --data sources/text.md --steps 1000 --batch-size 8 --block-size 64 --seed 7 "
        "--warmup-steps 200",
    )
    with_spike = case(points(falling(5.5, 1.5, 200), norm=wild), rises=(rise(45, 60, norm=wild),), checkpoints=())
    assert named(with_spike, "warmup").strength == 0.6
    later = case(points(falling(5.5, 1.5, 200), norm=wild), rises=(rise(),))
    assert "warmup" not in names(later)
    assert "warmup" not in names(case(HEALTHY["wild at first"]))
    assert "warmup" not in names(case(points(falling(5.5, 1.5, 200), norm=wild), **resumed()))


def test_a_rise_in_a_log_says_where_to_look() -> None:
    course = points(noisy(lambda step: 2.5 if step < 80 else 6.0))
    text = replace(TEXT, odd=(ODD,), source="my book.md", encoding="bytes")
    found = named(log(course, rises=(rise(80, 1000, flown=False, windows=None, starts=()),), text=text), "rise")
    assert f"these steps saw tokens {70 * TOKENS:,} to {80 * TOKENS:,}, counted from the start" in found.evidence[2]
    assert "line 300 on: compresses" in found.evidence[3]
    assert found.tests[0] == "gptjobs data inspect 'my book.md' --encoding bytes"
    assert found.tests[1].startswith("gptjobs submit resume --from CHECKPOINT --learning-rate 0.0002 ")
    unknown = named(log(course, rises=(rise(80, 1000, flown=False),), text=None, batch_size=None), "rise")
    assert len(unknown.evidence) == 2 and unknown.tests[0] == "gptjobs data inspect FILE"


# the commands


@pytest.fixture
def trained(layout: Layout, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """A root with a job `owls` of six steps, checkpoints at 3 and 6, and one that went on from it for four, `larks`,
    whose schedule ends at nearly nought. It has a line of each."""
    monkeypatch.setenv("GPTJOBS_REDIS_URL", f"redis://{LOOPBACK}:{_free_port()}/0")
    shutil.copytree(trained_root(tmp_path_factory.getbasetemp()), layout.root, dirs_exist_ok=True)
    monkeypatch.chdir(layout.root)
    return layout


@cache
def trained_root(folder: Path) -> Path:
    """Such a root below the folder, made once."""
    layout = Layout(folder / "owls and larks")
    layout.make()
    (layout.root / "sources").mkdir()
    (layout.root / "sources" / "text.md").write_text(english(9000))
    owls = JobSpec(
        id="aa0000000001", kind="train", name="owls", overrides=typed(**TINY | {"min_learning_rate": 1e-3}),
        submitted_at=NOON,
    )  # fmt: skip
    parent = recorded(layout, owls)
    decays = typed(learning_rate=1e-3, schedule="linear", min_learning_rate=1e-9, steps=4, batch_size=2, block_size=16)
    larks = JobSpec(
        id="aa0000000002", kind="resume", name="larks", overrides=decays, parent=parent, submitted_at=NOON + 1
    )
    recorded(layout, larks)
    return layout.root


def recorded(layout: Layout, spec: JobSpec) -> str:
    """Train the job; returns its last checkpoint."""
    record.write_spec(layout, spec)
    plan, _ = planning.plan(layout, spec)
    tokens.prepare(layout, layout.path("sources/text.md"), plan.data_digest, plan.settled.train.encoding)
    durable.write(layout.config_file(spec.id), durable.to_json(plan.to_dict()))
    ended = attempted(layout, plan)
    layout.attempt_lines(spec.id, 1).write_text(progress.encode(ended.progress[-1], seconds=NOON) + "\n")
    return ended.last.name


def accepted(layout: Layout, command: str) -> None:
    """A command of submit is taken, but for queueing it; of another its options and jobs are."""
    words = shlex.split(command)
    assert words[0] == "gptjobs"
    if words[1] == "submit":
        done = CliRunner().invoke(gptjobs, ["--root", str(layout.root), *words[1:], "--dry-run", "--json"])
        assert done.exception is None, f"{command}: {done.exception} {done.output}"
        return
    group, rest = gptjobs, words[1:]
    context = group.make_context("gptjobs", ["--root", str(layout.root), *rest])
    while True:
        name, command_of, rest = group.resolve_command(context, list(rest))
        assert command_of is not None and name is not None
        if not hasattr(command_of, "resolve_command"):
            break
        group = command_of  # type: ignore[assignment]  # data, checkpoints: groups too
    command_of.make_context(name, list(rest), parent=context)


def of_trained(layout: Layout, name: str, course: tuple[Point, ...], **changes: Any) -> Case:
    """A case of a job that is there, with this course."""
    job = {"owls": "aa0000000001", "larks": "aa0000000002"}[name]
    real = of_job(layout, job, name)
    own = tuple(replace(each, job=job) for each in course)
    return replace(real, points=own, text=replace(TEXT, odd=(ODD,)), **changes)


def grown(step: int) -> float:
    return 0.5 if step < 480 else 4.0


CASES: dict[str, dict[str, Any]] = {
    "unigram": {"course": points(level(3.0), norm=lambda step: 9.0)},
    "gone": {"course": points(level(2.0), rate=cosine(1e-3, 500))},
    "low": {"course": points(level(2.0), rate=lambda step: 1e-5)},
    "few": {"course": tuple(replace(each, tokens=each.step) for each in points(falling(5.5, 1.5, 500)))},
    "overfitting": {"course": with_evaluations(points(falling(5.5, 1.5, 200)), OVERFIT)},
    "noise": {"course": points(falling(5.5, 1.5, 100), norm=lambda step: 21**0.5, micro_norm=9.0, micro_windows=1)},
    "wild": {"course": points(falling(5.5, 1.5, 200), norm=wild)},
    "slow": {"course": points(falling(5.5, 1.5, 200)), "slow": ({"reason": "hot"},)},
    "rises": {
        "course": BROKEN,
        "rises": (
            rise(rate=warming, starts=IN_ODD, norm=grown), rise(700, 710, windows=((900_000 - 1) // 8, 113_000)),
        ),
    },
}  # fmt: skip


@pytest.mark.parametrize("job", ["owls", "larks"])
@pytest.mark.parametrize("checkpoints", ["own", "none"])
@pytest.mark.parametrize("shape", CASES)
def test_every_command_is_taken_as_it_is_printed(trained: Layout, shape: str, checkpoints: str, job: str) -> None:
    changes = dict(CASES[shape])
    course = changes.pop("course")
    if checkpoints == "none":
        changes["checkpoints"] = ()
    found = possible_causes(of_trained(trained, job, course, **changes))
    commands = [command for each in found for command in each.tests]
    for command in commands:
        if not (checkpoints == "none" and "@best" in command):
            accepted(trained, command)


def test_the_cases_of_that_have_all_rules_with_commands(trained: Layout) -> None:
    found = {
        each.name
        for shape, changes in CASES.items()
        for each in possible_causes(
            of_trained(trained, "owls", changes["course"], **{k: v for k, v in changes.items() if k != "course"})
        )
    }
    assert found == {
        "schedule", "rate_too_high", "data", "epoch", "norm_first", "warmup", "unigram", "rate_gone", "rate_too_low",
        "clipped", "noisy", "few_tokens", "overfitting", "slow",
    }  # fmt: skip


def test_from_the_parent_a_job_is_tried_as_it_was_asked_for(trained: Layout) -> None:
    made = of_trained(trained, "larks", AT_ONE_RATE, rises=(rise(starts=IN_ODD, norm=grown),), checkpoints=())
    first = named(made, "data").tests[0]
    assert first.startswith("gptjobs submit resume --from checkpoints/aa0000000001/checkpoint_gpt2_text_step000006_")
    assert "--learning-rate 0.001 --schedule linear --min-learning-rate 1e-09 --batch-size 2 --block-size 16" in first
    lower = named(made, "rate_too_high").tests[0]
    assert lower.count("--learning-rate") == 1 and "--schedule" not in lower and "--min-learning-rate" not in lower
    assert "--batch-size 2 --block-size 16" in lower


def test_without_a_checkpoint_that_can_be_used_a_resume_names_none() -> None:
    gone = resumed() | {"parent": None}
    made = case(AT_ONE_RATE, rises=(rise(),), **gone)
    assert named(made, "rate_too_high").tests[0].startswith("gptjobs submit resume --from CHECKPOINT ")


def test_a_schedule_that_ends_at_nought_is_given_a_rate() -> None:
    plan = planned(schedule="linear")
    plan = replace(plan, settled=replace(plan.settled, train=replace(plan.settled.train, min_learning_rate=0.0)))
    found = named(case(points(falling(5.5, 1.5, 500)), plan=plan), "few_tokens")
    assert found.tests == ("gptjobs submit resume --from owls@last --steps 1000 --learning-rate 0.0002",)
