"""What `submit` does before any worker comes: the job it makes, what it prints, and what is where afterwards."""

import json
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from gptjobs import broker
from gptjobs.config import Given
from gptjobs.job import JobSpec, JobState
from gptjobs.layout import Layout
from gptjobs.local import _free_port
from gptjobs.settings import LOOPBACK
from gptjobs.store import Store
from tests.conftest import Commands
from tests.integration.test_checkpoint_errors import checkpoint_in
from tests.integration.test_errors import FIRST, TRAIN, assert_error

SIX = {
    "BATCH_SIZE": "4", "BLOCK_SIZE": "16", "LEARNING_RATE": "1e-5", "RESUME_STEPS": "2000",
    "TRAINING_DATA_SOURCE": "sources/text.md",
}  # fmt: skip
"""with CHECKPOINT_PATH, all that the environment means"""
FIELDS = {
    "id", "name", "kind", "state", "outcome", "device", "step", "end_step", "tokens", "train_loss", "val_loss",
    "eval_context", "tokens_per_s", "eta_s", "attempt", "worker", "reason", "submitted_at",
}  # fmt: skip


@pytest.fixture
def checkpoint(layout: Layout, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That of step 2 of a job that is called first."""
    return checkpoint_in(layout, tmp_path_factory.getbasetemp())


def job_file(gptjobs: Commands, id: str) -> Any:
    return json.loads(gptjobs.layout.job_file(id).read_text())


def files(folder: Path) -> dict[str, int]:
    """All that is below a folder, with when it was last written."""
    return {str(each.relative_to(folder)): each.stat().st_mtime_ns for each in folder.rglob("*")}


def doorbells(redis_url: str, count: int) -> list[tuple[str, list[Any]]]:
    """The queue and arguments of `count` messages, which are all, in the order in which one slot takes them."""
    taken: list[tuple[str, list[Any]]] = []

    def take(body: Any, message: Any) -> None:
        taken.append((message.delivery_info["routing_key"], body[0]))
        message.ack()

    app = broker.connect(redis_url)
    with (
        app.connection_for_read() as connection,
        connection.Consumer(list(app.amqp.queues.values()), callbacks=[take]) as consumer,
    ):
        consumer.qos(prefetch_count=1)
        while len(taken) < count:
            connection.drain_events(timeout=20)
    assert not any(key.startswith(broker.QUEUES) for key in Store(redis_url)._redis.scan_iter())
    return taken


def test_the_six_environment_variables_make_a_job(gptjobs: Commands, store: Store, checkpoint: Path) -> None:
    id = gptjobs.ok("submit", "resume", CHECKPOINT_PATH=str(checkpoint), **SIX)
    spec = store.get(id).spec
    assert spec.kind == "resume"
    assert spec.parent == f"checkpoints/{FIRST}/{checkpoint.name}"
    assert dict(spec.overrides) == {
        "batch_size": Given(4, "BATCH_SIZE"),
        "block_size": Given(16, "BLOCK_SIZE"),
        "learning_rate": Given(1e-5, "LEARNING_RATE"),
        "steps": Given(2000, "RESUME_STEPS"),
        "data": Given("sources/text.md", "TRAINING_DATA_SOURCE"),
    }
    assert job_file(gptjobs, id) == spec.to_dict()


def test_the_environment_means_these_six_and_nothing_else(gptjobs: Commands, store: Store) -> None:
    others = {"SEED": "1", "GPTJOBS_SEED": "1", "STEPS": "7", "DATA": "x", "GPTJOBS_SUBMIT_TRAIN_SEED": "1"}
    id = gptjobs.ok("submit", "train", "--encoding", "bytes", CHECKPOINT_PATH="none.pt", **SIX, **others)
    spec = store.get(id).spec
    assert (spec.kind, spec.parent) == ("train", None)
    assert set(spec.overrides) == {"encoding", "batch_size", "block_size", "learning_rate", "data"}
    gptjobs.ok("submit", "train", "--encoding", "bytes", **{**SIX, "BATCH_SIZE": ""})
    assert "batch_size" not in store.find("@").spec.overrides


def test_a_flag_wins_over_the_environment_over_config_over_the_roots_file(gptjobs: Commands, checkpoint: Path) -> None:
    root = gptjobs.layout.root
    (root / "gptjobs.toml").write_text("seed = 1\nbatch_size = 1\nblock_size = 11\nsteps = 1\n")
    (root / "mine.toml").write_text("batch_size = 2\nblock_size = 12\nsteps = 2\n")
    said = gptjobs.ok(
        "submit", "resume", "--from", "first@2", "--config", "mine.toml", "--steps", "4", "--dry-run", "--json",
        BLOCK_SIZE="13", RESUME_STEPS="3",
    )  # fmt: skip
    config = json.loads(said)["config"]
    names = ("n_embd", "eval_interval", "grow_positions", "seed", "batch_size", "block_size", "steps")
    values = {**config["model"], **config["train"]}
    assert {name: (values[name], config["origins"][name]) for name in names} == {
        "n_embd": (16, "checkpoint"),
        "eval_interval": (2, "checkpoint"),
        "grow_positions": (False, "default"),
        "seed": (1, "gptjobs.toml"),
        "batch_size": (2, "mine.toml"),
        "block_size": (13, "BLOCK_SIZE"),
        "steps": (4, "--steps"),
    }
    assert set(config["origins"]) == set(values)


def test_a_dry_run_queues_nothing_and_writes_nothing(gptjobs: Commands, store: Store, checkpoint: Path) -> None:
    before = files(gptjobs.layout.root)
    done = gptjobs("submit", "resume", "--from", "first@2", "--dry-run")
    assert (done.returncode, done.stdout) == (0, "")
    assert "dry run: nothing was queued" in done.stderr
    assert json.loads(gptjobs.ok(*TRAIN, "sources/text.md", "--dry-run", "--json"))["id"] is None
    assert files(gptjobs.layout.root) == before
    assert store._redis.keys() == []


def test_a_dry_run_needs_no_server(gptjobs: Commands) -> None:
    away = f"redis://{LOOPBACK}:{_free_port()}/0"
    gptjobs.ok(*TRAIN, "sources/text.md", "--dry-run", GPTJOBS_REDIS_URL=away)


def test_the_result_is_the_id_alone_and_all_talk_is_elsewhere(gptjobs: Commands, store: Store) -> None:
    loud = gptjobs(*TRAIN, "sources/text.md", "--name", "nightly")
    (job,) = store.all()
    assert loud.stdout == f"{job.spec.id}\n"
    for each in ("train 12 layers", "no worker is there", "watch nightly", "show nightly", "wait nightly"):
        assert each in loud.stderr
    quiet = gptjobs(*TRAIN, "sources/text.md", "-q")
    assert quiet.stdout == f"{store.find('@').spec.id}\n"
    assert quiet.stderr == ""


def test_json_has_the_id_the_config_and_the_contract(gptjobs: Commands, store: Store, checkpoint: Path) -> None:
    done = gptjobs("submit", "resume", "--from", "first@2", "--learning-rate", "1e-4", "--json", "--name", "second")
    said = json.loads(done.stdout)
    assert (said["schema"], said["id"], said["name"]) == (1, store.find("second").spec.id, "second")
    assert said["config"]["start_step"] == 2
    assert said["contract"]["step"] == 2
    assert (said["contract"]["rate_before"], said["contract"]["rate_after"]) == (pytest.approx(4.65e-4), 1e-4)
    assert done.stderr == ""


def test_the_contract_says_what_continues_changes_and_resets(gptjobs: Commands, checkpoint: Path) -> None:
    resume = ("submit", "resume", "--from", "first@2", "--dry-run")
    unchanged = gptjobs(*resume).stderr
    assert "the place in the data, after 4 windows" in unchanged.partition("CONTINUES")[2]
    assert "the schedule: cosine from step 0" in unchanged.partition("CONTINUES")[2]
    assert "CHANGES" not in unchanged and "RESETS" not in unchanged
    assert "LEARNING RATE of the first update: 0.000465 before, 0.000465 after" in unchanged

    changed = gptjobs(*resume, "--batch-size", "4", "--learning-rate", "1e-4", "--steps", "10", BLOCK_SIZE="16").stderr
    assert f"resume checkpoints/{FIRST}/{checkpoint.name}\n       step 2 → 12" in changed
    continues, _, rest = changed.partition("CONTINUES")[2].partition("CHANGES")
    changes, _, resets = rest.partition("RESETS")
    assert "weights of step 2, validation loss" in continues and "the optimizer's moments" in continues
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in changes.strip().splitlines()}
    assert lines == {
        "batch_size": "2 → 4 (--batch-size)",
        "block_size": "8 → 16 (BLOCK_SIZE)",
        "learning_rate": "0.0006 → 0.0001 (--learning-rate)",
        "schedule": "cosine → constant (a rate was given, no schedule)",
        "warmup_steps": "1 → 0 (a rate was given, no schedule)",
    }
    assert "the place in the data" in resets and "the schedule: constant 0.0001" in resets
    assert "LEARNING RATE of the first update: 0.000465 before, 0.0001 after" in resets


def test_the_contract_says_what_resets_because_it_was_asked_to(gptjobs: Commands, checkpoint: Path) -> None:
    asked = ("--optimizer", "rewarm", "--warmup-steps", "2", "--data-cursor", "restart")
    said = gptjobs("submit", "resume", "--from", "first@2", "--dry-run", *asked).stderr
    continues, _, resets = said.partition("CONTINUES")[2].partition("RESETS")
    assert "the schedule: cosine from step 0" in continues
    assert [line.strip() for line in resets.splitlines()[1:4]] == [
        "the optimizer's moments: rewarm was asked for (--optimizer)",
        "the place in the data: restart was asked for (--data-cursor); from the data's first window",
        "the warm-up: from step 2 to 4 the rate rises to the schedule's",
    ]
    assert "CHANGES" not in said
    assert "LEARNING RATE of the first update: 0.000465 before, 0.000232 after" in said


def test_how_a_resume_begins_is_no_choice_of_a_job_from_scratch(gptjobs: Commands, checkpoint: Path) -> None:
    train = (*TRAIN, "sources/text.md", "--dry-run")
    assert_error(gptjobs(*train, "--optimizer", "reset"), 2, "No such option", "--optimizer")
    (gptjobs.layout.root / "gptjobs.toml").write_text('data_cursor = "restart"\n')
    words = "--data-cursor (gptjobs.toml) says how a resume begins"
    assert_error(gptjobs(*train), 2, words, hint="gptjobs submit resume")
    assert (
        "restart was asked for (gptjobs.toml)" in gptjobs("submit", "resume", "--from", "first@2", "--dry-run").stderr
    )


@contextmanager
def standing_before(
    redis_url: str, look: Callable[[bytes], bool], hear: Callable[[bytes], bool] = lambda answer: True
) -> Iterator[str]:
    """A server's URL that leads through `look`: it sees each request before the server does, and cuts the line
    where it returns False; as `hear` does with answers."""
    address = (LOOPBACK, int(redis_url.rpartition(":")[2].partition("/")[0]))

    def pump(source: socket.socket, target: socket.socket, goes_on: Callable[[bytes], bool]) -> None:
        try:
            while (data := source.recv(1 << 20)) and goes_on(data):
                target.sendall(data)
        except OSError:
            pass  # one side hung up
        finally:
            for each in (source, target):
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    class Line(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection(address) as server:
                back = threading.Thread(target=pump, args=(server, self.request, hear))
                back.start()
                pump(self.request, server, look)
                back.join()

    with socketserver.ThreadingTCPServer((LOOPBACK, 0), Line) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.05,))
        thread.start()
        yield redis_url.replace(f":{address[1]}/", f":{proxy.server_address[1]}/")
        proxy.shutdown()
        thread.join()


def test_the_job_is_on_record_before_the_doorbell_is_rung(gptjobs: Commands, store: Store, redis_url: str) -> None:
    at_the_ring: list[Any] = []

    def look(request: bytes) -> bool:
        if b"LPUSH" in request:
            job = store.find("@")
            at_the_ring.append((job.state, gptjobs.layout.job_file(job.spec.id).is_file()))
        return True

    with standing_before(redis_url, look) as url:
        id = gptjobs.ok(*TRAIN, "sources/text.md", "--device", "cpu", GPTJOBS_REDIS_URL=url)
    assert at_the_ring == [(JobState.QUEUED, True)]
    assert doorbells(redis_url, 1) == [("cpu", [id, 1])]


def test_a_server_that_goes_away_halfway_leaves_the_job_on_record_and_the_way_to_it_is_said(
    gptjobs: Commands, store: Store, redis_url: str
) -> None:
    with standing_before(redis_url, lambda request: b"EVALSHA" not in request) as url:
        done = gptjobs(*TRAIN, "sources/text.md", GPTJOBS_REDIS_URL=url)
    assert done.returncode == 5
    assert "Traceback" not in done.stderr
    assert store.all() == []
    (folder,) = gptjobs.layout.outputs.iterdir()
    assert f"job {folder.name} may be queued or not" in done.stderr
    assert f"gptjobs show {folder.name}, or gptjobs repair" in done.stderr


def test_a_client_that_lost_its_answer_submits_again_and_gets_the_same_job(
    gptjobs: Commands, store: Store, redis_url: str
) -> None:
    gptjobs.ok(*TRAIN, "sources/text.md")  # the server knows the script now
    keyed, said = (*TRAIN, "sources/text.md", "--idempotency-key", "tonight"), threading.Event()

    def look(request: bytes) -> bool:
        if b"EVALSHA" in request:
            said.set()
        return True

    with standing_before(redis_url, look, lambda answer: not said.is_set()) as url:
        done = gptjobs(*keyed, GPTJOBS_REDIS_URL=url)
    assert (done.returncode, "may be queued or not" in done.stderr) == (5, True), done.stderr
    assert len(store.all()) == 2
    id = gptjobs.ok(*keyed)
    assert id in {job.spec.id for job in store.all()} and len(store.all()) == 2


def test_a_job_whose_doorbell_could_not_be_rung_is_queued_and_its_id_is_printed(
    gptjobs: Commands, store: Store, redis_url: str
) -> None:
    with standing_before(redis_url, lambda request: b"LPUSH" not in request) as url:
        done = gptjobs(*TRAIN, "sources/text.md", GPTJOBS_REDIS_URL=url)
    (job,) = store.waiting()
    assert (done.returncode, done.stdout) == (0, f"{job.spec.id}\n"), done.stderr
    assert job_file(gptjobs, job.spec.id) == job.spec.to_dict()


def test_a_client_without_a_root_submits_by_names_and_writes_nothing(
    gptjobs: Commands, store: Store, tmp_path: Path
) -> None:
    laptop = tmp_path / "laptop"
    laptop.mkdir()
    done = gptjobs(
        "submit", "resume", "--from", "first@best", "--data", "sources/none.md", GPTJOBS_ROOT=str(laptop)
    )  # fmt: skip
    assert done.returncode == 0
    assert "is no storage root: the worker that takes the job checks the files" in done.stderr
    spec = store.get(done.stdout.strip()).spec
    assert (spec.parent, spec.data_digest) == ("first@best", None)
    assert dict(spec.overrides) == {"data": Given("sources/none.md", "--data")}
    gptjobs.ok("cancel", spec.id, GPTJOBS_ROOT=str(laptop))
    assert store.get(spec.id).state is JobState.CANCELLED
    assert list(laptop.iterdir()) == list(gptjobs.layout.outputs.iterdir()) == []


def test_list_shows_every_job_oldest_first(gptjobs: Commands, store: Store) -> None:
    assert json.loads(gptjobs.ok("list", "--json")) == {"schema": 1, "jobs": []}
    ids = ["3f9a00000002", "3f9a00000001", "3f9a00000003"]
    for number, id in enumerate(ids):
        store.submit(JobSpec(id=id, kind="train", name=f"n{number}", submitted_at=float(number)))
    store.ask("cancel", ids[1], "cancelled")
    listed = json.loads(gptjobs.ok("list", "--json"))["jobs"]
    assert [each["id"] for each in listed] == ids
    assert set(listed[0]) >= FIELDS
    assert [each["outcome"] for each in listed] == [None, "cancelled", None]
    lines = gptjobs.ok("list").splitlines()
    assert lines[0].split()[:3] == ["ID", "NAME", "STATE"]
    assert [line.split()[:3] for line in lines[1:]] == [
        [ids[0], "n0", "queued"],
        [ids[1], "n1", "cancelled"],
        [ids[2], "n2", "queued"],
    ]
    assert "\x1b" not in "".join(lines)
    newest = json.loads(gptjobs.ok("list", "--state", "queued", "-n", "1", "--json"))["jobs"]
    assert [each["id"] for each in newest] == [ids[2]]


def test_show_finds_a_job_by_id_prefix_name_and_newest(gptjobs: Commands, checkpoint: Path) -> None:
    id = gptjobs.ok("submit", "resume", "-q", "--from", "first@2", "--name", "second", "--priority", "9")
    for reference in (id, id[:7], "second", "@"):
        shown = json.loads(gptjobs.ok("show", reference, "--json"))
        assert (shown["schema"], shown["id"]) == (1, id)
    assert set(shown) >= FIELDS | {"config", "origins", "contract", "checkpoints", "alerts", "parent"}
    assert shown["parent"] == f"checkpoints/{FIRST}/{checkpoint.name}"
    assert f"job {id} (second): queued" in gptjobs.ok("show", id)


def test_checkpoints_are_shown_without_a_server(gptjobs: Commands, checkpoint: Path) -> None:
    away = {"GPTJOBS_REDIS_URL": f"redis://{LOOPBACK}:{_free_port()}/0"}
    listed = json.loads(gptjobs.ok("checkpoints", "list", "first", "--json", **away))
    assert listed["schema"] == 1
    assert [each["step"] for each in listed["checkpoints"]] == [2, 4]
    assert set(listed["checkpoints"][0]) >= {"name", "job", "step", "tokens", "losses", "status", "size", "sha256"}
    assert listed["checkpoints"][0]["size"] == checkpoint.stat().st_size
    assert [line.split()[:2] for line in gptjobs.ok("checkpoints", "list", **away).splitlines()[1:]] == [
        ["first@2", "2"],
        ["first@4", "4"],
    ]
    for reference in ("first@2", f"{FIRST[:4]}@2", str(checkpoint), f"checkpoints/{FIRST}/{checkpoint.name}"):
        shown = json.loads(gptjobs.ok("checkpoints", "show", reference, "--json", **away))
        assert shown["name"] == f"checkpoints/{FIRST}/{checkpoint.name}"
        assert shown["manifest"]["settled"]["model"]["n_embd"] == 16
    assert "step 2, 32 tokens" in gptjobs.ok("checkpoints", "show", "first@2", **away)


def test_a_queued_job_is_cancelled_in_the_queue_and_on_record(gptjobs: Commands, store: Store) -> None:
    id = gptjobs.ok(*TRAIN, "sources/text.md", "-q")
    assert json.loads(gptjobs.ok("cancel", id, "--json")) == {"schema": 1, "jobs": {id: "cancelled"}}
    assert store.get(id).state is JobState.CANCELLED
    outcome = json.loads(gptjobs.layout.outcome_file(id).read_text())
    assert (outcome["state"], gptjobs.layout.request_file(id, "cancel").is_file()) == ("cancelled", True)
    assert gptjobs("wait", id).returncode == gptjobs("logs", "-f", id).returncode == 10
    again = gptjobs("cancel", id)
    assert (again.returncode, again.stdout) == (0, "")
    assert "is cancelled already" in again.stderr


def test_the_soonest_job_is_taken_first_whatever_its_queue(gptjobs: Commands, redis_url: str) -> None:
    wanted = [(4, "cpu"), (9, "any"), (0, "any"), (5, "cpu"), (8, "cpu")]
    ids = {
        gptjobs.ok(*TRAIN, "sources/text.md", "-q", "--priority", str(priority), "--device", device): priority
        for priority, device in wanted
    }
    taken = [(ids[arguments[0]], queue) for queue, arguments in doorbells(redis_url, 5)]
    assert [priority for priority, _ in taken] == [9, 8, 5, 4, 0]
    assert sorted(taken) == sorted(wanted)


def test_a_queued_job_shows_the_contract_it_was_submitted_with(gptjobs: Commands, checkpoint: Path) -> None:
    gptjobs.ok("submit", "resume", "-q", "--from", "first@2", "--learning-rate", "1e-4", "--name", "waits")
    shown = json.loads(gptjobs.ok("show", "waits", "--json"))
    assert shown["state"] == "queued"
    assert shown["config"]["train"]["learning_rate"] == shown["contract"]["rate_after"] == 1e-4
    assert shown["origins"]["schedule"] == "a rate was given, no schedule"
