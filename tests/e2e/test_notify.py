"""Messages of real jobs, as a web server gets them."""

import json
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from gptjobs import record
from tests.conftest import Commands, Workers, eventually
from tests.e2e.test_flower import Flower
from tests.e2e.test_line import TINY
from tests.e2e.test_spikes import SPIKING
from tests.integration.test_secrets import PAGES
from tests.receiver import SECRET, Receiver, receiving

DATA = ("--data", "sources/text.md")
IMPATIENT = """
from worker import messenger
messenger.PAUSES_S = (0.1, 0.1)
"""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


def submitted(gptjobs: Commands, receiver: Receiver, *words: str) -> str:
    return gptjobs.ok("submit", "train", "-q", *TINY, *DATA, *words, "--notify", receiver.url)


def ended(gptjobs: Commands, job: str) -> int:
    return gptjobs("wait", job, "--timeout", "120").returncode


def drained(worker: "subprocess.Popen[bytes]") -> None:
    """All that it had to tell is told."""
    worker.terminate()
    assert worker.wait(60) == 0


def with_code(gptjobs: Commands, folder: Path, code: str) -> None:
    """It runs first in every process."""
    (folder / "sitecustomize.py").write_text(code)
    gptjobs.environment["PYTHONPATH"] = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])


def test_the_end_of_a_job_is_told_once_with_its_losses_and_what_to_type(
    gptjobs: Commands, workers: Workers, receiver: Receiver
) -> None:
    worker = workers.start()
    job = submitted(gptjobs, receiver, "--steps", "40", "--eval-interval", "20", "--name", "first")
    assert ended(gptjobs, job) == 0
    drained(worker)
    (message,) = receiver.messages
    assert message["title"].startswith("first: finished at step 40, val loss ")
    assert message["type"] == "success"
    lines = message["message"].splitlines()
    assert lines[-1] == f"gptjobs show {job}" and "1 attempt, worker@" in lines[-2]
    assert receiver.paths == [f"/{SECRET}?token={SECRET}"]


def test_a_failure_is_told_as_one_once_and_not_at_each_attempt(
    gptjobs: Commands, workers: Workers, receiver: Receiver, tmp_path: Path
) -> None:
    with_code(gptjobs, tmp_path, 'import os, sys\nif "worker.trainer" in sys.orig_argv: os._exit(7)\n')
    worker = workers.start()
    job = submitted(gptjobs, receiver, "--steps", "40")
    assert ended(gptjobs, job) == 1
    drained(worker)
    (message,) = receiver.messages
    assert (message["title"], message["type"]) == (f"{job}: failed", "failure")
    assert "exit code 7" in message["message"] and "5 attempts" in message["message"]
    assert f"gptjobs retry {job}" in message["message"]


def test_a_spike_is_told_where_the_job_goes_back_and_then_its_end(
    gptjobs: Commands, workers: Workers, receiver: Receiver, tmp_path: Path
) -> None:
    with_code(gptjobs, tmp_path, SPIKING.format(attempts=["1"]))
    worker = workers.start()
    job = submitted(gptjobs, receiver, "--checkpoint-interval", "30", "--on-spike", "rollback", "--steps", "150")
    assert ended(gptjobs, job) == 0
    drained(worker)
    spike, end = receiver.messages
    assert spike["title"].startswith(f"{job}: spike at step 1") and spike["type"] == "warning"
    assert "the loss rose from" in spike["message"] and "It goes back to step 90" in spike["message"]
    assert f"gptjobs diagnose {job}" in spike["message"]
    assert end["title"].startswith(f"{job}: finished at step 150") and "2 attempts" in end["message"]


@pytest.mark.parametrize(("on_spike", "titles"), [("warn", ["spike", "finished"]), ("stop", ["diverged"])])
def test_a_spike_is_told_where_the_job_trains_on_and_as_its_end_where_it_stops(
    gptjobs: Commands, workers: Workers, receiver: Receiver, tmp_path: Path, on_spike: str, titles: list[str]
) -> None:
    with_code(gptjobs, tmp_path, SPIKING.format(attempts=["1"]))
    worker = workers.start()
    job = submitted(gptjobs, receiver, "--checkpoint-interval", "30", "--on-spike", on_spike, "--steps", "130")
    ended(gptjobs, job)
    drained(worker)
    assert [each.removeprefix(f"{job}: ").split()[0] for each in sorted(receiver.titles, reverse=True)] == titles


def test_a_plateau_is_told_once_however_long_it_lasts_and_however_many_attempts_see_it(
    gptjobs: Commands, workers: Workers, receiver: Receiver
) -> None:
    worker = workers.start()
    job = submitted(
        gptjobs, receiver, "--steps", "1000000", "--eval-interval", "2", "--learning-rate", "1e-9",
        "--warmup-steps", "0", "--name", "flat",
    )  # fmt: skip
    message = eventually(lambda: receiver.messages)[0]
    assert message["title"].startswith("flat: plateau at step 2") and "stands still" in message["message"]
    assert f"gptjobs diagnose {job}" in message["message"]
    assert "the validation loss stands still" in gptjobs.ok("explain", job)
    drained(worker)
    worker = workers.start()
    eventually(lambda: json.loads(gptjobs.ok("show", job, "--json"))["attempt"] == 2)
    step = json.loads(gptjobs.ok("show", job, "--json"))["step"] or 0
    eventually(lambda: (json.loads(gptjobs.ok("show", job, "--json"))["step"] or 0) > step + 60)
    gptjobs.ok("cancel", job)
    assert ended(gptjobs, job) == 10
    drained(worker)
    assert len(receiver.messages) == 1, "neither the plateau again, nor that a user cancelled it"


def test_a_sweep_is_told_once_at_its_end_with_its_best_trials_and_a_trial_is_not(
    gptjobs: Commands, workers: Workers, receiver: Receiver
) -> None:
    both = [workers.start("first"), workers.start("second")]
    gptjobs.ok(
        "submit", "sweep", "-q", *(each for each in TINY if each not in ("--n-head", "2")), *DATA, "--steps", "40",
        "--eval-interval", "20", "--name", "rates",
        "--grid", "learning_rate=1e-4,1e-3,3e-3", "--grid", "n_head=2,3", "--notify", receiver.url,
    )  # fmt: skip
    gptjobs("wait", "rates", "--timeout", "170")
    eventually(lambda: receiver.messages)
    for each in both:
        drained(each)
    (message,) = receiver.messages
    assert message["title"].startswith("rates: sweep finished, best val loss ") and message["type"] == "warning"
    lines = message["message"].splitlines()
    assert lines[0] == "6 trials: 3 finished, 3 failed"
    assert [line[:2] for line in lines[1:4]] == ["1.", "2.", "3."]
    assert "gptjobs sweep show rates" in lines


def test_a_worker_tells_of_every_job_where_it_was_told_to(
    gptjobs: Commands, workers: Workers, receiver: Receiver
) -> None:
    gptjobs.environment["GPTJOBS_NOTIFY"] = f"{receiver.url} {receiver.url}"
    worker = workers.start()
    job = gptjobs.ok("submit", "train", "-q", *TINY, *DATA, "--steps", "20")
    assert ended(gptjobs, job) == 0
    drained(worker)
    assert len(receiver.messages) == 1
    assert json.loads(gptjobs.ok("notify", "--json"))["sent"] == [{"to": receiver.masked, "trouble": None}]
    assert receiver.titles[1] == "gptjobs: a test message"


def test_a_service_that_is_silent_or_refuses_costs_a_job_nothing_but_a_line_in_its_log(
    gptjobs: Commands, workers: Workers, tmp_path: Path
) -> None:
    with_code(gptjobs, tmp_path, IMPATIENT)
    worker = workers.start()
    with receiving(None) as silent, receiving(500, 500, 500) as refusing, receiving(500) as coming_to:
        job = gptjobs.ok(
            "submit", "train", "-q", *TINY, *DATA, "--steps", "20", "--notify", silent.url,
            "--notify", refusing.url, "--notify", coming_to.url, "--notify", f"json://127.0.0.1:1/{SECRET}",
        )  # fmt: skip
        assert ended(gptjobs, job) == 0
        assert json.loads(gptjobs.ok("show", job, "--json"))["attempt"] == 1
        log = eventually(lambda: text if "no answer" in (text := gptjobs.ok("logs", "-n", "1000", job)) else "")
        drained(worker)
    assert [len(each.messages) for each in (silent, refusing, coming_to)] == [1, 3, 2]
    said = [line for line in log.splitlines() if line.startswith("warning: ")]
    assert sorted(said) == sorted(
        f"warning: '{silent.messages[0]['title']}' was not told to {to}: {why}"
        for to, why in (
            (silent.masked, "no answer within 20 s"), (refusing.masked, "it was not taken"),
            ("json://127.0.0.1:1/…", "it was not taken"),
        )
    )  # fmt: skip
    assert all(line.removeprefix("warning: ") in workers.log() for line in said)


def test_an_address_of_no_service_is_in_the_log_from_the_start(
    gptjobs: Commands, workers: Workers, receiver: Receiver
) -> None:
    """As a client without Apprise may submit it."""
    job = submitted(gptjobs, receiver, "--steps", "20")
    record.write_addresses(gptjobs.layout, job, [f"nobody://{SECRET}", receiver.url])
    worker = workers.start()
    assert ended(gptjobs, job) == 0
    drained(worker)
    log = gptjobs.ok("logs", "-n", "1000", job)
    assert "warning: nothing can be told to nobody://…: it is no address of a service that is known" in log
    assert len(receiver.messages) == 1


def test_the_address_is_shown_nowhere(
    gptjobs: Commands, workers: Workers, receiver: Receiver, redis_url: str, tmp_path: Path
) -> None:
    worker, flower = workers.start(), Flower(gptjobs, tmp_path / "flower.log")
    said: list[str] = []
    try:
        for words in ((), ("--json",), ("--dry-run",), ("--dry-run", "--json")):
            done = gptjobs("submit", "train", *TINY, *DATA, "--steps", "20", *words, "--notify", receiver.url)
            assert receiver.masked in done.stdout + done.stderr
            said += [done.stdout, done.stderr]
        job = submitted(gptjobs, receiver, "--steps", "20", "--name", "told")
        sweep = gptjobs.ok(
            "submit", "sweep", "-q", *TINY, *DATA, "--steps", "20", "--name", "tried", "--grid", "seed=1",
            "--notify", receiver.url,
        )  # fmt: skip
        for each in ("told", "tried"):
            gptjobs("wait", each, "--timeout", "120")
        again = gptjobs.ok("retry", "told", "--from-scratch")
        gptjobs("wait", again, "--timeout", "120")
        eventually(lambda: sum("finished" in each for each in receiver.titles) == 5)
        for words in (
            "list --json", "show told", "show told --json", "explain told", "logs told", "sweep list --json",
            "sweep show tried --json", "sweep export tried", "watch told", "worker list --json", "doctor", "repair",
        ):  # fmt: skip
            done = gptjobs(*words.split())
            said += [done.stdout, done.stderr]
        host = json.loads(gptjobs.ok("show", job, "--json"))["worker"]
        for each in (*PAGES, f"/runs/sweeps/{sweep}", f"/runs/sweeps/{sweep}/data"):
            page = each.format(job=job, worker=host)
            eventually(lambda page=page: flower.ask(page, login=True)[0] == 200)  # type: ignore[misc]
            said.append(flower.ask(page, login=True)[1])
    finally:
        flower.stop()
    drained(worker)
    assert f"told to {receiver.masked}" in gptjobs.ok("show", job)
    addresses = {gptjobs.layout.addresses_file(each) for each in (job, sweep, again)}
    assert all(stat.S_IMODE(each.stat().st_mode) == 0o600 for each in addresses)
    files = [each for each in tmp_path.rglob("*") if each.is_file() and each.name != "notify.json"]
    said += [each.read_text(errors="replace") for each in files]
    assert len(said) > 60 and receiver.masked in gptjobs.layout.job_file(job).read_text()
    assert not [each for each in said if SECRET in each]
    with redis.Redis.from_url(redis_url, decode_responses=True) as door:
        holders = [key for key in door.scan_iter() if SECRET in str(_value(door, key))]
        assert holders == [], "it lies in Redis until the end was told"


def _value(door: "redis.Redis", key: str) -> object:
    kind = door.type(key)
    return {
        "hash": door.hgetall, "string": door.get, "set": door.smembers,
        "list": lambda key: door.lrange(key, 0, -1), "zset": lambda key: door.zrange(key, 0, -1),
    }[str(kind)](key)  # fmt: skip
