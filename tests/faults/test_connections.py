"""Connections that are cut, slow or stalled between everybody and Redis: nothing is lost, nothing is doubled."""

import time
from collections.abc import Callable
from functools import partial

import pytest

from tests.conftest import eventually
from tests.faults.proxy import Proxy
from tests.faults.scene import Scene

FAULT_S = 10.0


def cut_every_3_s(proxy: Proxy) -> None:
    began = time.monotonic()
    while time.monotonic() - began < FAULT_S:
        time.sleep(3)
        proxy.cut()


def delay_by_2_s(proxy: Proxy) -> None:
    proxy.delay(2.0)
    time.sleep(FAULT_S)


def black_hole(proxy: Proxy, seconds: float) -> None:
    proxy.hold()
    time.sleep(seconds)


@pytest.mark.parametrize(
    "fault",
    [
        cut_every_3_s,
        pytest.param(delay_by_2_s, marks=pytest.mark.long),
        pytest.param(partial(black_hole, seconds=30), id="black_hole_for_30_s", marks=pytest.mark.long),
    ],
)
def test_a_faulty_network_loses_and_doubles_nothing(scene: Scene, fault: Callable[[Proxy], None]) -> None:
    proxy = scene.proxy()
    for name in ("first", "second"):
        scene.worker(name, proxy=proxy)
    long = scene.submit(["train"], name="long", steps=400, interval=100)
    cancelled = scene.submit(["train"], name="cancelled")
    for job in (long, cancelled):
        scene.trains(job)
    short = [scene.submit(["train"], name=f"short{number}", steps=20) for number in range(6)]
    scene.gptjobs.ok("cancel", cancelled)
    fault(proxy)
    proxy.mend()
    late = scene.submit(["step"], name="late", steps=1)
    for job in (long, *short, late):
        assert scene.ends(job, 120) == scene.outcome(job) == "finished"
        assert scene.weights_are_undisturbed(job)
        assert scene.was_trained_once(job)
    assert scene.ends(cancelled) == scene.outcome(cancelled) == "cancelled"
    assert scene.job(long).attempt == 1
    for each in scene.workers:
        assert each.process.poll() is None
        assert "Traceback" not in each.log
    eventually(lambda: not scene.trainers())
