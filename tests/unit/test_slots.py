"""Which devices of a worker a job gets, and which queues a worker listens to."""

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from gptjobs import settings
from gptjobs.job import JobSpec, queue_of
from tests.conftest import eventually
from tests.unit.conftest import NOON, typed
from worker.host import Host
from worker.slots import Slots, together

LIMIT_S = 20.0


class Job:
    """Takes slots in a thread of its own, and keeps them until it is over."""

    def __init__(self, slots: Slots, count: int, drain: threading.Event) -> None:
        self.device: str | None = None
        self.is_served = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._take, args=(slots, count, drain), daemon=True)
        self._thread.start()

    def _take(self, slots: Slots, count: int, drain: threading.Event) -> None:
        with slots.taken(count, drain) as self.device:
            self.is_served = True
            self._over.wait()

    def end(self) -> None:
        self._over.set()
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive()


@pytest.fixture
def drain() -> Iterator[threading.Event]:
    made = threading.Event()
    yield made
    made.set()


def taking(slots: Slots, count: int, drain: threading.Event) -> Job:
    job = Job(slots, count, drain)
    eventually(lambda: job.is_served, LIMIT_S)
    return job


def waiting(slots: Slots, count: int, drain: threading.Event) -> Job:
    """A job that stands in line."""
    before = len(slots._line)
    job = Job(slots, count, drain)
    eventually(lambda: len(slots._line) == before + 1, LIMIT_S)
    return job


def test_a_job_takes_all_its_slots_at_once_and_gives_them_back(drain: threading.Event) -> None:
    slots = Slots(["cuda:0", "cuda:1", "cuda:2"])
    two = taking(slots, 2, drain)
    assert two.device == "cuda:0,1"
    one = taking(slots, 1, drain)
    assert one.device == "cuda:2" and not slots.is_idle
    two.end()
    assert slots.is_idle
    one.end()
    with slots.taken(3, drain) as device:
        assert device == "cuda:0,1,2"


def test_two_jobs_that_want_several_do_not_wait_for_each_other(drain: threading.Event) -> None:
    slots = Slots(["cpu"] * 3)
    first = taking(slots, 2, drain)
    second = waiting(slots, 2, drain)
    assert not second.is_served
    first.end()
    eventually(lambda: second.is_served, LIMIT_S)
    second.end()


def test_a_job_that_wants_several_is_not_overtaken(drain: threading.Event) -> None:
    """Nor does an idle worker ring for others meanwhile, though a slot is free."""
    slots = Slots(["cuda:0", "cuda:1"])
    first = taking(slots, 1, drain)
    large = waiting(slots, 2, drain)
    small = waiting(slots, 1, drain)
    assert not slots.is_idle and not small.is_served
    first.end()
    eventually(lambda: large.is_served, LIMIT_S)
    assert not small.is_served
    large.end()
    eventually(lambda: small.is_served, LIMIT_S)
    small.end()


def test_who_waits_for_slots_goes_when_the_worker_drains(drain: threading.Event) -> None:
    slots = Slots(["cpu"])
    first = taking(slots, 1, drain)
    second = waiting(slots, 1, drain)
    drain.set()
    eventually(lambda: second.is_served, LIMIT_S)
    assert second.device is None
    second.end()
    first.end()
    with ExitStack() as stack:
        assert stack.enter_context(slots.taken(1, threading.Event())) == "cpu"


def test_jobs_that_share_gpus_are_spread_over_them(drain: threading.Event) -> None:
    slots = Slots(["cuda:0", "cuda:1", "cuda:0", "cuda:1"])
    jobs = [taking(slots, 1, drain) for _ in range(3)]
    assert [each.device for each in jobs] == ["cuda:0", "cuda:1", "cuda:0"]
    jobs[0].end()
    jobs[2].end()
    again = taking(slots, 1, drain)
    assert again.device == "cuda:0"
    both = taking(slots, 2, drain)
    assert both.device == "cuda:0,1"
    third = waiting(slots, 2, drain)
    assert not third.is_served
    for each in (jobs[1], again, both, third):
        each.end()


def test_each_slot_of_a_cpu_has_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "cores", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", "")  # so that it is undone
    monkeypatch.delenv("OMP_NUM_THREADS")
    settings.share_cores(3)
    assert os.environ["OMP_NUM_THREADS"] == "2"
    settings.share_cores(8)
    assert os.environ["OMP_NUM_THREADS"] == "2", "what was said stands"


def test_slots_in_one_word() -> None:
    assert together(["cuda:0", "cuda:3"]) == "cuda:0,3"
    assert (together(["cuda:1"]), together(["cpu", "cpu"]), together(["mps"])) == ("cuda:1", "cpu", "mps")


@pytest.mark.parametrize(
    ("slots", "queues"),
    [
        (("cpu",), ["cpu", "any"]),
        (("cuda:0", "cuda:1"), ["cuda", "any", "cuda.2", "any.2"]),
        (("cuda:0", "cuda:1", "cuda:0", "cuda:1"), ["cuda", "any", "cuda.2", "any.2"]),
        (("mps", "mps"), ["mps", "any"]),
    ],
)
def test_a_worker_listens_for_jobs_of_as_many_devices_as_it_has(slots: tuple[str, ...], queues: list[str]) -> None:
    assert Host(worker="w@host", slots=slots).queues == queues


@pytest.mark.parametrize(("value", "gpus"), [(1, 1), (3, 3), (0, 1), (10**9, 1), ("2", 1), (True, 1), (2.0, 1)])
def test_a_job_rings_where_its_devices_are(value: object, gpus: int) -> None:
    """What is no number of devices is refused by the worker that takes it."""
    spec = JobSpec(id="job", kind="train", overrides=typed(gpus=value), device="cuda", submitted_at=NOON)
    assert (spec.gpus, spec.queue) == (gpus, queue_of("cuda", gpus))
