"""Sweeps with real workers: every trial once, stopped early, gone on with, compared; and workers that die."""

import csv
import io
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from gptjobs import checkpoint, record, trials
from gptjobs.job import JobState
from tests.conftest import Commands, Workers, eventually
from tests.e2e.test_line import TINY
from tests.e2e.test_loss_of_hosts import trainers


@pytest.fixture
def parent(gptjobs: Commands, workers: Workers) -> str:
    """A finished job, and a worker that is there."""
    workers.start("first")
    job = gptjobs.ok(
        "submit", "train", "-q", *TINY, "--data", "sources/text.md", "--steps", "40", "--learning-rate", "1e-3",
        "--eval-interval", "40", "--name", "parent",
    )  # fmt: skip
    gptjobs.ok("wait", job, "--timeout", "120")
    return job


def shown(gptjobs: Commands, sweep: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(gptjobs.ok("sweep", "show", sweep, "--json"))
    return found


def tried(gptjobs: Commands, sweep: str) -> list[trials.Tried]:
    return trials.read(gptjobs.layout, sweep)


def outputs(gptjobs: Commands, sweep: str) -> Path:
    return gptjobs.layout.outputs / sweep


def test_a_grid_over_two_workers_of_which_one_dies_has_every_trial_once(
    gptjobs: Commands, workers: Workers, parent: str
) -> None:
    second = workers.start("second")
    sweep = gptjobs.ok(
        "submit", "sweep", "-q", "--from", "parent@last", "--steps", "600", "--grid", "learning_rate=1e-4,1e-3,3e-3",
        "--grid", "block_size=16,32", "--checkpoint-interval", "100", "--name", "rates",
    )  # fmt: skip
    victim = eventually(lambda: _with_a_checkpoint_on(gptjobs, sweep, "second@"))
    for trainer in trainers(victim.job):
        os.kill(trainer, signal.SIGKILL)
    second.kill()
    gptjobs.ok("wait", "rates", "--timeout", "170")

    ended = tried(gptjobs, sweep)
    assert [each.trial.params for each in ended] == [
        {"learning_rate": rate, "block_size": block} for rate in (1e-4, 1e-3, 3e-3) for block in (16, 32)
    ]
    assert all(each.is_whole and len(each.jobs) == 1 for each in ended)
    assert {each.last.tokens - 40 * 4 * 32 for each in ended if each.last} == {600 * 4 * 32}
    assert {each.last.context for each in ended if each.last} == {16}
    attempts = {each.job: checkpoint.attempts(gptjobs.layout, each.job) for each in ended}
    assert [job for job, of_job in attempts.items() if len(of_job) > 1] == [victim.job]
    assert attempts[victim.job][1].start is not None, "it was resumed, not repeated"
    assert {of_job[0].worker.partition("@")[0] for of_job in attempts.values()} == {"first", "second"}

    found = shown(gptjobs, "rates")
    losses = [each["val_loss"] for each in found["rows"]]
    assert found["state"] == "finished" and losses == sorted(losses)
    assert [each["rank"] for each in found["rows"]] == [1, 2, 3, 4, 5, 6]
    summary = (outputs(gptjobs, sweep) / "summary.md").read_text()
    assert "gptjobs submit resume --from rates@best" in summary and "learning_rate" in summary
    for picture in ("loss.png", "parallel.png"):
        assert (outputs(gptjobs, sweep) / picture).read_bytes().startswith(b"\x89PNG")
    best = json.loads(gptjobs.ok("submit", "resume", "--from", "rates@best", "--dry-run", "--json"))
    assert f"/{found['rows'][0]['job']}/" in best["contract"]["parent"]
    rows = list(csv.DictReader(io.StringIO(gptjobs.ok("sweep", "export", "rates"))))
    assert len(rows) == 6 and {each["learning_rate"] for each in rows} == {"0.0001", "0.001", "0.003"}
    exported = json.loads(gptjobs.ok("sweep", "export", "rates", "--format", "json"))
    assert all(len(each["evaluations"]) >= 2 for each in exported["rows"])
    compared = json.loads(gptjobs.ok("compare", *(each["job"] for each in found["rows"][:2]), "--json"))
    assert compared["ranked"] and compared["against_the_best"][0]["mean"] >= 0


def _with_a_checkpoint_on(gptjobs: Commands, sweep: str, worker: str) -> trials.Tried | None:
    """A trial that goes on there."""
    for each in tried(gptjobs, sweep):
        attempts = checkpoint.attempts(gptjobs.layout, each.job) if each.jobs else []
        if each.goes_on and attempts and attempts[-1].worker.startswith(worker) and _has_checkpoint(gptjobs, each):
            return each
    return None


def _has_checkpoint(gptjobs: Commands, each: trials.Tried) -> bool:
    return bool(checkpoint.counting(gptjobs.layout, each.job))


def test_asha_stops_trials_at_rungs_and_goes_on_with_them_from_their_checkpoints(
    gptjobs: Commands, parent: str
) -> None:
    sweep = gptjobs.ok(
        "submit", "sweep", "-q", "--from", "parent@last", "--steps", "160", "--trials", "8", "--sampler", "tpe",
        "--pruner", "asha", "--range", "learning_rate=1e-5:1e-2:log", "--range", "dropout=0:0.3",
    )  # fmt: skip
    gptjobs.ok("wait", sweep, "--timeout", "170")
    ended = tried(gptjobs, sweep)
    assert len(ended) == 8 and len({each.trial.params["learning_rate"] for each in ended}) == 8
    stopped = [each for each in ended if each.is_pruned]
    assert stopped and any(each.is_whole for each in ended)
    trained = sum(each.last.step - 40 for each in ended if each.last)
    assert trained < 8 * 160

    gptjobs.ok("wait", sweep, sweep, "--timeout", "5")
    found = shown(gptjobs, sweep)
    assert [each["state"] for each in found["rows"] if each["rank"]] == ["finished"] * (8 - len(stopped))
    victim = stopped[0]
    job = gptjobs.ok("sweep", "promote", sweep, str(victim.trial.number))
    gptjobs.ok("wait", job, "--timeout", "120")
    promoted = tried(gptjobs, sweep)[victim.trial.number]
    assert promoted.is_whole and [*promoted.jobs] == [*victim.jobs, job]
    plan = record.read_plan(gptjobs.layout, job)
    assert plan is not None and plan.parent is not None and f"/{victim.job}/" in plan.parent
    assert plan.settled.start_step > 40 and plan.settled.end_step == 200
    assert victim.last and promoted.last and promoted.last.step == 200
    refused = gptjobs("sweep", "promote", sweep, str(victim.trial.number))
    assert refused.returncode == 3 and "was not stopped by a pruner" in refused.stderr


def test_diagnose_names_the_change_that_hurts_and_finds_none_in_a_logging_interval(
    gptjobs: Commands, parent: str
) -> None:
    better = gptjobs.ok(
        "submit",
        "resume",
        "-q",
        "--from",
        "parent@last",
        "--steps",
        "500",
        "--learning-rate",
        "3e-3",
        "--name",
        "better",
    )
    gptjobs.ok("wait", better, "--timeout", "120")
    sweep = gptjobs.ok(
        "submit", "sweep", "-q", "--from", "better@last", "--steps", "60", "--preset", "diagnose", "--learning-rate",
        "0.3", "--log-interval", "7", "--seeds", "1,2", "--name", "why",
    )  # fmt: skip
    gptjobs.ok("wait", sweep, "--timeout", "170")
    verdict = {each["one"]: each["difference"] for each in shown(gptjobs, "why")["verdict"]}
    assert list(verdict) == ["learning_rate=0.3", "log_interval=7", "learning_rate=0.3, log_interval=7"]
    hurts, nothing = verdict["learning_rate=0.3"], verdict["log_interval=7"]
    assert hurts["low"] > 0 and hurts["seeds"] == 2
    assert nothing["low"] == nothing["mean"] == nothing["high"] == 0
    summary = (outputs(gptjobs, sweep) / "summary.md").read_text()
    assert "- learning_rate=0.3: worse than the control by +" in summary
    assert "- log_interval=7: no difference seen: +0.0000" in summary


def test_a_sweep_without_workers_waits_and_one_that_was_stopped_goes_on(
    gptjobs: Commands, workers: Workers, parent: str
) -> None:
    workers.stop()
    sweep = gptjobs.ok(
        "submit", "sweep", "-q", "--from", "parent@last", "--steps", "3000", "--grid", "learning_rate=1e-4,1e-3",
        "--checkpoint-interval", "100",
    )  # fmt: skip
    assert tried(gptjobs, sweep) == []
    workers.start("later")
    first = eventually(lambda: next((e for e in tried(gptjobs, sweep) if e.jobs and _has_checkpoint(gptjobs, e)), None))
    gptjobs.ok("sweep", "stop", sweep)
    state = eventually(lambda: json.loads(gptjobs.ok("show", first.job, "--json"))["state"] == JobState.PAUSED)
    assert state and shown(gptjobs, sweep)["state"] == "stopped"
    assert gptjobs("wait", sweep).returncode == 3
    step = checkpoint.counting(gptjobs.layout, first.job)[-1].manifest.step
    gptjobs.ok("sweep", "start", sweep)
    gptjobs.ok("wait", sweep, "--timeout", "170")
    ended = tried(gptjobs, sweep)
    assert [each.is_whole for each in ended] == [True, True]
    assert checkpoint.attempts(gptjobs.layout, first.job)[1].start_step == step


def test_a_trial_that_cannot_be_fails_and_the_sweep_goes_on(gptjobs: Commands, parent: str) -> None:
    sweep = gptjobs.ok(
        "submit", "sweep", "-q", "--from", "parent@last", "--steps", "10", "--grid", "block_size=32,4096"
    )  # fmt: skip
    gptjobs.ok("wait", sweep, "--timeout", "120")
    states = {each.trial.params["block_size"]: each.state for each in tried(gptjobs, sweep)}
    assert states == {32: "finished", 4096: "failed"}
    (failed,) = (each for each in shown(gptjobs, sweep)["rows"] if each["state"] == "failed")
    assert "larger than the position table" in failed["why"]


def test_a_client_without_the_root_submits_a_sweep_and_a_file_says_what_is_searched(
    gptjobs: Commands, parent: str, tmp_path: Path
) -> None:
    laptop = tmp_path / "laptop"
    laptop.mkdir()
    (laptop / "sweep.toml").write_text(
        'steps = 10\n[grid]\nlearning_rate = [1e-4, 1e-3]\n[sweep]\nfrom = "parent@last"\nseeds = [1, 2]\n'
    )
    sweep = gptjobs.ok(
        "submit", "sweep", "-q", "--config", str(laptop / "sweep.toml"), GPTJOBS_ROOT=str(laptop)
    )  # fmt: skip
    gptjobs.ok("wait", sweep, "--timeout", "120") if eventually(lambda: tried(gptjobs, sweep)) else None
    assert [(each.trial.params["learning_rate"], each.trial.params["seed"]) for each in tried(gptjobs, sweep)] == [
        (1e-4, 1), (1e-4, 2), (1e-3, 1), (1e-3, 2),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--grid", "learning_rates=1"), 2, "did you mean learning_rate?"),
        (("--grid", "learning_rate="), 2, "there is no value to try"),
        (("--range", "weight_decay=0:1:log"), 2, "a logarithm has no value at 0"),
        ((*TINY, "--grid", "seed=" + ",".join(map(str, range(10_001)))), 2, "the grid has 10,001 trials"),
        (TINY, 2, "there is nothing to search"),
        (("--preset", "diagnose", "--model", "nano"), 2, "--model is no change"),
        (("--from", "nowhere@best", "--grid", "seed=1,2"), 4, "no job is called 'nowhere'"),
        (("--preset", "diagnose"), 2, "was given no change"),
    ],
)
def test_bad_input_ends_in_an_error_and_queues_nothing(
    gptjobs: Commands, words: tuple[str, ...], code: int, said: str
) -> None:
    ended = gptjobs("submit", "sweep", "--data", "sources/text.md", *words)
    assert (ended.returncode, said in ended.stderr) == (code, True), ended.stderr
    assert trials.sweeps(gptjobs.layout) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("grid = 5\n", "'grid' is no table"),
        ("[grid]\nlearning_rate = 1e-5\n", "[grid] learning_rate is no list"),
        ("[grid]\nseed = [1, 2]\n[sweep]\nsampeler = 'tpe'\n", "[sweep] has no 'sampeler'"),
    ],
)
def test_a_file_that_means_no_sweep_is_said(gptjobs: Commands, content: str, said: str) -> None:
    (gptjobs.layout.root / "sweep.toml").write_text(content)
    ended = gptjobs("submit", "sweep", *TINY, "--data", "sources/text.md", "--config", "sweep.toml")
    assert (ended.returncode, said in ended.stderr) == (2, True), ended.stderr


def test_a_dry_run_shows_every_trial_with_its_steps_and_queues_nothing(gptjobs: Commands) -> None:
    ended = gptjobs(
        "submit", "sweep", *TINY, "--data", "sources/text.md", "--steps", "100", "--grid", "n_embd=32,48", "--dry-run",
        "--grid", "learning_rate=1e-3,3e-3",
    )  # fmt: skip
    assert ended.returncode == 2  # the width is said already
    ended = gptjobs(
        "submit", "sweep", *TINY, "--data", "sources/text.md", "--steps", "100", "--grid", "dropout=0,0.1", "--dry-run"
    )
    assert ended.returncode == 0
    assert "12,800 tokens a trial, evaluated at context 32" in ended.stderr
    assert "1: dropout=0.1  (100 steps of 4 × 32 tokens)" in ended.stderr
    assert trials.sweeps(gptjobs.layout) == []
