"""Many jobs and many who submit: each is there once, and done once."""

import time

import pytest

from gptjobs.job import JobSpec
from tests.conftest import eventually
from tests.faults.scene import Scene

JOBS, WORKERS = 1000, 10
LIST_S = 0.3


def test_two_submits_of_the_same_thing_at_once_are_two_jobs(scene: Scene) -> None:
    scene.worker()
    scene.script(["step"])
    commands = [scene.start(*scene.submission(steps=1)) for _ in range(2)]
    assert [each.wait(30) for each in commands] == [0, 0]
    jobs = [each.spec.id for each in scene.store.all()]
    assert len(jobs) == 2
    for job in jobs:
        assert scene.ends(job) == "finished"
        assert scene.steps(job) == [(1, 1)]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_1000_jobs_on_10_workers_are_each_done_once(scene: Scene) -> None:
    template = scene.job(scene.submit(["step"], steps=1)).spec
    for number in range(1, JOBS):
        spec = JobSpec.from_dict({**template.to_dict(), "id": f"{number:012x}", "submitted_at": time.time()})
        assert scene.store.submit(spec)
        scene.ring(spec.id, 1)
    jobs = [each.spec.id for each in scene.store.all()]
    assert len(jobs) == JOBS
    assert len(scene.gptjobs.ok("list").splitlines()) == JOBS + 1
    assert seconds_to_list(scene) < LIST_S
    for number in range(WORKERS):
        scene.worker(f"worker{number}")
    eventually(lambda: all(each.state.is_terminal for each in scene.store.all()), 800)
    assert {each.state.value for each in scene.store.all()} == {"finished"}
    assert [scene.steps(job) for job in jobs] == [[(1, 1)]] * JOBS
    assert len({scene.job(job).worker for job in jobs}) == WORKERS


def seconds_to_list(scene: Scene) -> float:
    """From the start of the command to its end; of several times the least, as others use the machine too."""
    taken = []
    for _ in range(10):
        began = time.monotonic()
        scene.gptjobs.ok("list")
        taken.append(time.monotonic() - began)
    return min(taken)
