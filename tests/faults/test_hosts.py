"""Several hosts, set up by the words of docs/hosts.md; links that are cut for a while and healed."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from gptjobs import checkpoint, record
from gptjobs.history import History
from gptjobs.local import FLOWER_PORT
from tests.conftest import eventually
from tests.faults.hosts import Host, Hosts, blocks
from tests.faults.scene import TAKEN_OVER_S

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has network namespaces")

MINUTE_S = 60.0
BACK_S = 180.0
"""for TCP to send again what a cut held up: it waits longer each time, up to as long as the cut was"""
LOG_INTERVAL = 10
JOB = (
    "--model", "nano", "--n-layer", "1", "--n-head", "2", "--n-embd", "32", "--batch-size", "4", "--block-size", "32",
    "--eval-tokens", "512", "--eval-interval", "1000000", "--checkpoint-interval", "200", "--steps", "1000000",
    "--log-interval", str(LOG_INTERVAL), "--data", "sources/book.md",
)  # fmt: skip
BOUND, BY_NETWORK = "bound", "by network"


@pytest.fixture
def make_hosts(tmp_path: Path) -> Iterator[Callable[[str], Hosts]]:
    made: list[Hosts] = []

    def make(storage: str) -> Hosts:
        made.append(Hosts(tmp_path, storage_by_network=storage == BY_NETWORK))
        return made[0]

    yield make
    for each in made:
        each.close()


def submit(hosts: Hosts, *options: str) -> str:
    return hosts.laptop.gptjobs("submit", "train", "-q", *JOB, *options)


def saved(hosts: Hosts, job: str) -> int:
    """The newest step that is safe."""
    return max((each.manifest.step for each in checkpoint.counting(hosts.layout, job)), default=0)


def newest_step(hosts: Hosts, job: str) -> int:
    """That the newest attempt has told of."""
    return max((each["step"] for each in History(hosts.layout, job).read().metrics), default=0)


def trainers(host: Host, job: str) -> list[int]:
    """The job's on a host, told by where it has the root."""
    listed = subprocess.run(["ps", "-axww", "-o", "pid=,args="], capture_output=True, text=True, check=True).stdout
    mine = [each for each in listed.splitlines() if "worker.trainer" in each and f"{host.root}/outputs/{job}/" in each]
    return [int(each.split()[0]) for each in mine]


def holder(hosts: Hosts, job: str) -> str:
    """The host on which the newest attempt is."""
    return checkpoint.attempts(hosts.layout, job)[-1].worker.partition("@")[0]


def there(hosts: Hosts) -> set[str]:
    """The hosts whose workers the laptop sees."""
    listed = json.loads(hosts.laptop.gptjobs("worker", "list", "--json"))["workers"]
    return {each["host"] for each in listed}


def assert_every_step_is_told_once(hosts: Hosts, job: str) -> None:
    """Cancelled from the laptop, the job ends, and its metrics have no step twice and none left out."""
    hosts.laptop.gptjobs("cancel", job)
    assert hosts.laptop("wait", job, "--timeout", "90").returncode == 10
    ended = record.read_outcome(hosts.layout, job)
    assert ended is not None and ended.state == "cancelled"
    lines = hosts.layout.metrics_file(job).read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps[-1] == saved(hosts, job)
    gaps = {after - before for before, after in pairwise(steps)}
    assert min(gaps) > 0 and max(gaps) <= LOG_INTERVAL


def test_hosts_are_set_up_by_the_pages_own_words(make_hosts: Callable[[str], Hosts]) -> None:
    hosts = make_hosts(BOUND)
    hosts.start_workers(hosts.box2, hosts.mac)
    said = "".join(hosts.laptop.types(each) for each in blocks("laptop"))
    assert "rediss://box1.lan:6380/0 answers" in said and "box2@box2 (cpu), mac@mac (cpu)" in said
    jobs = json.loads(hosts.laptop.gptjobs("list", "--json"))["jobs"]
    assert [(each["name"], each["state"]) for each in jobs] == [("first", "finished")]
    (flower,) = blocks("flower")
    hosts.box1.starts("flower", "sh", "-euc", flower)
    eventually(lambda: hosts.box1.listens(FLOWER_PORT))
    examined = hosts.mac.gptjobs("doctor")
    assert "/home/mac/gpt (marker" in examined and "problem" not in examined


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("storage", "cut_s"),
    [
        (BOUND, 0.0),
        pytest.param(BOUND, MINUTE_S, marks=pytest.mark.long),
        pytest.param(BY_NETWORK, MINUTE_S, marks=pytest.mark.long),
    ],
)
def test_a_host_that_was_cut_off_is_fenced_and_takes_the_next_job(
    make_hosts: Callable[[str], Hosts], storage: str, cut_s: float
) -> None:
    hosts = make_hosts(storage)
    hosts.start_workers(hosts.box2, hosts.mac)
    job = submit(hosts)
    eventually(lambda: saved(hosts, job))
    lost, other = (hosts.box2, hosts.mac) if holder(hosts, job) == "box2" else (hosts.mac, hosts.box2)
    before = saved(hosts, job)
    (in_vain,) = trainers(lost, job)

    lost.cut()
    cut_at = time.monotonic()
    eventually(lambda: holder(hosts, job) == other.name, TAKEN_OVER_S)
    start = checkpoint.attempts(hosts.layout, job)[-1].start_step
    eventually(lambda: newest_step(hosts, job) > start)
    print(f"trained elsewhere, from step {start}, after {time.monotonic() - cut_at:.1f} s")
    assert start >= before
    if storage == BOUND:  # it writes on, what nobody will count
        eventually(lambda: [each for each in checkpoint.of_job(hosts.layout, job) if is_late(each, start)])
    time.sleep(max(0.0, cut_at + cut_s - time.monotonic()))
    assert there(hosts) == {other.name} or not cut_s
    lost.mend()
    mended_at = time.monotonic()

    eventually(lambda: in_vain not in trainers(lost, job))
    print(f"the trainer in vain was gone {time.monotonic() - mended_at:.1f} s after healing")
    assert f"job {job} was fenced" in lost.log("worker").read_text()
    assert lost.processes[-1].poll() is None
    if cut_s:
        another = submit(hosts, "--steps", "20")  # the other one is busy
        hosts.laptop.gptjobs("wait", another, "--timeout", f"{BACK_S}")
        print(f"its next job ended {time.monotonic() - mended_at:.1f} s after healing")
        assert holder(hosts, another) == lost.name
        assert there(hosts) == {"box2", "mac"}
    assert len(trainers(other, job)) == 1
    assert_every_step_is_told_once(hosts, job)
    assert not [each for each in checkpoint.counting(hosts.layout, job) if is_late(each, start)]
    assert len(checkpoint.attempts(hosts.layout, job)) == 2


def is_late(each: checkpoint.Checkpoint, start: int) -> bool:
    """Whether the first attempt wrote it after the second one's start."""
    return each.manifest.token == 1 and each.manifest.step > start


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("storage", "cut_off"), [(BOUND, "the worker"), (BY_NETWORK, "the worker"), (BOUND, "Redis")])
def test_a_minute_without_redis_costs_no_step_where_nobody_else_can_take_the_job(
    make_hosts: Callable[[str], Hosts], storage: str, cut_off: str
) -> None:
    hosts = make_hosts(storage)
    workers = [hosts.box2, hosts.mac] if cut_off == "Redis" else [hosts.box2]
    hosts.start_workers(*workers)
    jobs = [submit(hosts) for _ in workers]
    for job in jobs:
        eventually(lambda job=job: saved(hosts, job))
    where = {job: next(each for each in workers if each.name == holder(hosts, job)) for job in jobs}
    before = {job: trainers(host, job) for job, host in where.items()}
    assert len({each.name for each in where.values()}) == len(workers)

    cut = hosts.box1 if cut_off == "Redis" else hosts.box2
    cut.cut()
    time.sleep(MINUTE_S)
    if cut_off == "Redis":
        refused = hosts.laptop("list")
        assert refused.returncode == 5 and "does not answer" in refused.stderr
    else:
        assert there(hosts) == set()
    told = {job: newest_step(hosts, job) for job in jobs}
    if storage == BOUND:
        for job in jobs:
            eventually(lambda job=job: saved(hosts, job) > told[job])
        told = {job: newest_step(hosts, job) for job in jobs}
    cut.mend()
    mended_at = time.monotonic()
    for job, host in where.items():
        eventually(lambda host=host: "answers again" in host.log("worker").read_text())
        print(f"Redis heard of job {job} again after {time.monotonic() - mended_at:.1f} s")
        eventually(lambda job=job: newest_step(hosts, job) > told[job], BACK_S)
        print(f"it trained on after {time.monotonic() - mended_at:.1f} s")
    eventually(lambda: there(hosts) == {each.name for each in workers})
    for job, host in where.items():
        assert trainers(host, job) == before[job]
        assert_every_step_is_told_once(hosts, job)
        assert len(checkpoint.attempts(hosts.layout, job)) == 1
