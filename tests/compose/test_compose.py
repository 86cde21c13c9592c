"""docker-compose.yml, really run: the unmodified files on a real engine (`make compose-test`)."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.compose.stack import GPU, UNPRIVILEGED, Stack, docker, fresh_copy, give, make_secrets, signal_from_outside
from tests.conftest import eventually

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1800)]

TINY = (
    "--model", "nano", "--n-layer", "1", "--n-head", "2", "--n-embd", "32", "--batch-size", "4", "--block-size", "32",
    "--data", "shared_data/text.md", "--eval-tokens", "512", "--checkpoint-interval", "50", "--eval-interval", "100",
)  # fmt: skip
LONG = "1000000"
ROOTS_FOLDERS = {"checkpoints", "shared_data", "logs", "outputs"}
STAY_UP = ("redis", "worker", "flower")
ADDED_AT_MOST = 120_000_000
"""bytes by which the client's image exceeds python:3.11-slim, whose 130 MB leave it below 250 MB"""


def submit(stack: Stack, name: str, steps: str = LONG) -> str:
    return stack.client("submit", "train", "-q", *TINY, "--steps", steps, "--name", name)


def in_flower(stack: Stack, job: str) -> dict[str, Any]:
    status, body = stack.flower(f"/api/task/info/{job}", stack.secret("flower/login"))
    return json.loads(body) if status == 200 else {}


def step(stack: Stack, job: str) -> int:
    return in_flower(stack, job).get("step") or 0


def end(stack: Stack, *jobs: str) -> None:
    stack.client("cancel", *jobs)
    stack("run", "--rm", "-T", "--no-deps", "client", "wait", *jobs, "--timeout", "90", check=False)


def kill(stack: Stack, service: str) -> Callable[[], bool]:
    """Kill its first process from outside; tells whether the engine has started it again, and it is well."""
    before = stack.container(service)
    signal_from_outside("KILL", before["State"]["Pid"])

    def is_back() -> bool:
        now = stack.container(service)
        return now["RestartCount"] > before["RestartCount"] and now["State"]["Health"]["Status"] == "healthy"

    return is_back


def test_a_job_that_the_client_submits_is_seen_in_flower_and_goes_on_when_its_worker_is_killed(stack: Stack) -> None:
    job = submit(stack, "survivor")
    eventually(lambda: step(stack, job) > 100)
    is_back = kill(stack, "worker")
    reached = step(stack, job)
    eventually(lambda: (in_flower(stack, job).get("attempt") or 0) > 1 and step(stack, job) > reached)
    eventually(is_back)
    end(stack, job)


def test_nothing_is_lost_when_redis_is_killed(stack: Stack) -> None:
    trains, waits = submit(stack, "trains"), submit(stack, "waits")
    eventually(lambda: step(stack, trains) > 0)
    before = {each["id"] for each in json.loads(stack.client("list", "--json"))["jobs"]}
    eventually(kill(stack, "redis"))
    reached = step(stack, trains)
    eventually(lambda: step(stack, trains) > reached)
    after = {each["id"]: each for each in json.loads(stack.client("list", "--json"))["jobs"]}
    assert after.keys() == before
    assert (after[trains]["state"], after[trains]["attempt"]) == ("running", 1)
    assert after[waits]["state"] == "queued"
    end(stack, trains, waits)


def test_stopping_the_worker_leaves_a_checkpoint_that_older_scripts_resume(stack: Stack) -> None:
    job = submit(stack, "drained")
    eventually(lambda: step(stack, job) > 0)
    stack("stop", "worker")
    assert stack.container("worker")["State"]["ExitCode"] == 0
    assert stack.job(job)["state"] == "queued"
    stack.client("cancel", job)
    (newest, *_) = sorted((stack.folder / "checkpoints" / job).glob("*.pt"), reverse=True)
    said = stack.client(
        "submit", "resume", "-q", CHECKPOINT_PATH=str(newest.relative_to(stack.folder)), BATCH_SIZE="8",
        BLOCK_SIZE="16", LEARNING_RATE="1e-4", RESUME_STEPS="20", TRAINING_DATA_SOURCE="shared_data/text.md",
    )  # fmt: skip
    stack("start", "worker")
    assert stack("run", "--rm", "-T", "--no-deps", "client", "wait", said, "--timeout", "90").returncode == 0
    assert stack.job(said)["config"]["train"]["batch_size"] == 8


def test_three_workers_train_three_jobs_at_once(stack: Stack) -> None:
    stack("up", "--detach", "--no-recreate", "--scale", "worker=3")
    jobs = [submit(stack, f"of-three-{number}") for number in range(3)]
    eventually(lambda: all(step(stack, each) > 0 for each in jobs))
    assert len({in_flower(stack, each)["job_worker"] for each in jobs}) == 3
    end(stack, *jobs)
    stack("up", "--detach", "--no-recreate", "--scale", "worker=1")
    eventually(lambda: len(json.loads(stack.client("worker", "list", "--json"))["workers"]) == 1)


def test_a_workers_metrics_are_told_within_the_network(stack: Stack) -> None:
    """As deploy/prometheus.yml has them scraped. That nobody else gets them, the test of open ports says."""
    read = "import urllib.request as r; print(r.urlopen('http://worker:5556/metrics', timeout=10).read().decode())"
    said = stack("exec", "-T", "flower", "python", "-c", read).stdout
    assert "\ngptjobs_worker_slots{" in said
    assert "\ngptjobs_redis_up 1.0" in stack.flower("/metrics")[1]


def test_a_worker_outside_joins_by_the_file_with_its_url(stack: Stack) -> None:
    """The half of a Mac: the worker runs natively in the same folder."""
    environment = {**os.environ, "GPTJOBS_REDIS_URL": "", "GPTJOBS_REDIS_URL_FILE": "secrets/redis-url"}
    worker = subprocess.Popen(
        [sys.executable, "-m", "gptjobs", "worker", "start", "--device", "cpu", "--name", "native"],
        cwd=stack.folder,
        env=environment,
        stderr=subprocess.DEVNULL,
    )
    try:
        eventually(lambda: "native@" in stack.client("worker", "list"))
    finally:
        worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0


def test_a_worker_that_hangs_is_seen_as_such(stack: Stack) -> None:
    container = stack.container("worker")
    (test,) = container["Config"]["Healthcheck"]["Test"][1:]

    def is_well() -> bool:
        return docker("exec", container["Id"], "sh", "-c", test, check=False).returncode == 0

    assert is_well()
    pids = [line.split()[1] for line in docker("top", container["Id"]).stdout.splitlines()[1:] if "-m worker" in line]
    signal_from_outside("STOP", int(pids[-1]))
    eventually(lambda: not is_well())
    signal_from_outside("CONT", int(pids[-1]))
    eventually(is_well)


def test_ports_are_open_on_loopback_alone(stack: Stack) -> None:
    bound = {
        (port["HostIp"], int(port["HostPort"]))
        for each in stack.containers()
        for ports in each["NetworkSettings"]["Ports"].values()
        for port in ports or ()
    }
    assert bound == {("127.0.0.1", stack.redis_port), ("127.0.0.1", stack.flower_port)}
    other = docker("network", "inspect", "bridge", "-f", "{{(index .IPAM.Config 0).Gateway}}").stdout.strip()
    for port in (stack.redis_port, stack.flower_port):
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass
        with contextlib.suppress(TimeoutError), pytest.raises(ConnectionRefusedError):
            socket.create_connection((other, port), timeout=5)


def test_nobody_comes_in_without_a_password(stack: Stack) -> None:
    for who in ("", ":wrong@", "worker:wrong@"):
        url = f"redis://{who}127.0.0.1:{stack.redis_port}/0"
        with redis.Redis.from_url(url) as door, pytest.raises(redis.AuthenticationError):
            door.ping()
    for path in ("/tasks", "/workers", "/api/tasks", "/api/workers"):
        assert stack.flower(path)[0] == 401
        assert stack.flower(path, "gptjobs:wrong")[0] == 401
        assert stack.flower(path, stack.secret("flower/login"))[0] == 200


def test_each_sees_its_own_password_and_the_engine_none(stack: Stack) -> None:
    names = ("client/redis-url", "worker/redis-url", "flower/redis-url", "flower/login", "grafana/password")
    passwords = {name: stack.secret(name).split("@")[0].rpartition(":")[2] for name in names}
    assert len(set(passwords.values())) == len(names)
    known = json.dumps(stack.containers()) + stack("--profile", "*", "config").stdout + stack("logs").stdout
    for image in {each["Image"] for each in stack.containers()}:
        known += docker("history", "--no-trunc", image).stdout + docker("image", "inspect", image).stdout
    assert not [name for name, password in passwords.items() if password in known]
    for service in STAY_UP:
        seen = stack("exec", "-T", service, "sh", "-c", "cat /run/secrets/*").stdout
        assert [name for name in names if passwords[name] in seen] == [n for n in names if n.startswith(f"{service}/")]
        mounts = {each["Source"] for each in stack.container(service)["Mounts"] if each["Type"] == "bind"}
        assert {Path(each).name for each in mounts} - {service} == (ROOTS_FOLDERS if service != "redis" else set())
    for path in (stack.folder / "secrets").rglob("*"):
        is_private = path.is_dir() or path.name in (".gitkeep", "users.acl") or path.stat().st_mode & 0o077 == 0
        assert is_private, path


def test_containers_are_confined(stack: Stack) -> None:
    for each in stack.containers():
        host, name = each["HostConfig"], each["Name"]
        assert host["ReadonlyRootfs"] and host["Init"] and not host["Privileged"], name
        assert host["CapDrop"] == ["ALL"] and not host["CapAdd"], name
        assert host["SecurityOpt"] == ["no-new-privileges:true"], name
        assert host["Memory"] > 0 and host["PidsLimit"] > 0, name
        assert host["LogConfig"]["Config"] == {"max-size": "10m", "max-file": "3"}, name
    for service in STAY_UP:
        assert stack.container(service)["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"
        status = stack("exec", "-T", service, "cat", "/proc/1/status").stdout
        facts = dict(line.split(":", 1) for line in status.splitlines())
        assert "0" not in facts["Uid"].split() and int(facts["CapEff"], 16) == 0 and int(facts["NoNewPrivs"]) == 1
        refused = stack("exec", "-T", service, "sh", "-c", "echo >/etc/x", check=False)
        assert "Read-only file system" in refused.stderr or "ermission denied" in refused.stderr
    assert "Read-only" in stack("exec", "-T", "flower", "touch", "checkpoints/x", check=False).stderr


def test_what_containers_write_is_in_the_root_and_its_users(stack: Stack) -> None:
    of_user = {UNPRIVILEGED if os.geteuid() == 0 else os.geteuid()}
    written = [path for name in ("checkpoints", "outputs", "logs") for path in (stack.folder / name).rglob("*")]
    assert {path.suffix for path in written} >= {".pt", ".json", ".log"}
    there = [path for name in ("checkpoints", "logs", "secrets") for path in (stack.folder / name).rglob("*")]
    assert {path.lstat().st_uid for path in there} == of_user
    fresh = fresh_copy(stack.folder.parent / "fresh")
    added = {path.name for path in stack.folder.iterdir()} - {path.name for path in fresh.iterdir()}
    assert added - {".env"} == {".gptjobs-root"}
    shutil.rmtree(fresh)


def test_the_clients_image_has_no_torch_and_is_small(stack: Stack) -> None:
    size = {
        name: int(docker("image", "inspect", "-f", "{{.Size}}", image).stdout)
        for name, image in {"client": f"{stack.name}-client", "base": "python:3.11-slim"}.items()
    }
    assert size["client"] - size["base"] < ADDED_AT_MOST
    packages = json.loads(stack.client("version", "--json"))["versions"]
    assert packages["torch"] == "not installed" and packages["flower"] != "not installed"


def test_the_folder_of_another_user_is_refused_with_what_helps(stack: Stack, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives a folder to somebody else")
    folder = fresh_copy(tmp_path / "other")
    give(folder, 1234)
    other = Stack(folder)
    refused = other("run", "--rm", "-T", "setup", check=False)
    assert refused.returncode == 1
    assert "printf 'GPTJOBS_UID=1234\\nGPTJOBS_GID=1234\\n' >>.env" in refused.stderr
    assert make_secrets(folder).returncode == 0
    other("run", "--rm", "-T", "setup")
    assert {path.stat().st_uid for path in folder.rglob("*")} == {1234}


def test_the_gpu_file_asks_for_gpus(stack: Stack) -> None:
    docker("tag", f"{stack.name}-worker", f"{stack.name}-worker-cuda")  # which has CUDA's torch where it is built
    made = stack(*GPU, "up", "--detach", "--no-deps", "--no-build", "worker", check=False)
    try:
        (asked,) = stack.container("worker")["HostConfig"]["DeviceRequests"]
        assert (asked["Driver"], asked["Count"], asked["Capabilities"]) == ("nvidia", -1, [["gpu"]])
        if "could not select device driver" in made.stderr:
            pytest.skip("the engine has no GPU to give: the request was made, and refused")
        assert made.returncode == 0, made.stderr
    finally:
        stack("up", "--detach", "worker")
        docker("image", "rm", f"{stack.name}-worker-cuda")


def test_down_leaves_nothing(stack: Stack) -> None:
    stack.down()
    for kind in ("container ls -a", "network ls", "volume ls"):
        listed = docker(*kind.split(), "-q", "--filter", f"label=com.docker.compose.project={stack.name}").stdout
        assert listed == ""
