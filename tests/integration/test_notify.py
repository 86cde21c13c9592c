"""Where a job's end is told: what submit takes, where it keeps it, who hears of it, and what it costs."""

import json
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from gptjobs import broker, control, notify, record, repair, sweeping
from gptjobs.errors import RedisRefused
from gptjobs.job import JobSpec, JobState, Outcome
from gptjobs.layout import Layout
from gptjobs.leases import Lease, LeaseStore
from gptjobs.notify import Kind, Message
from gptjobs.store import Store
from gptjobs.sweep import Sweep, grid
from tests.conftest import Commands, Workers, eventually
from tests.integration.test_errors import assert_error
from tests.integration.test_sweeping import end
from tests.integration.test_tls import TINY
from tests.receiver import SECRET, receiving
from tests.unit.conftest import NOON, typed
from worker import messenger, sweeps
from worker.host import Host
from worker.messenger import Messenger
from worker.rescue import Rescue
from worker.tasks import Station, tell_of

NTFY = f"ntfy://{SECRET}"
HOOK = f"https://hook.example/{SECRET}"
MASKED = ["ntfy://…", "https://hook.example/…"]
MESSAGE = Message(title="title", body="one\n# two *a* <b> & c_d_e", kind=Kind.WARNING)
SPEC = JobSpec(id="3f9a01c2d4e5", kind="train", notify=("ntfy://…",), submitted_at=NOON)
WITHOUT_APPRISE = 'import sys\nsys.modules["apprise"] = None\n'


def without_apprise(gptjobs: Commands, folder: Path) -> None:
    (folder / "sitecustomize.py").write_text(WITHOUT_APPRISE)
    gptjobs.environment["PYTHONPATH"] = f"{folder}:{gptjobs.environment.get('PYTHONPATH', '')}"


def test_the_request_has_masked_addresses_and_their_file_is_its_owners_alone(gptjobs: Commands, store: Store) -> None:
    job = gptjobs.ok("submit", "train", "-q", *TINY, "--notify", NTFY, "--notify", HOOK)
    assert list(store.get(job).spec.notify) == MASKED
    assert json.loads(gptjobs.layout.job_file(job).read_text())["notify"] == MASKED
    assert record.read_addresses(gptjobs.layout, job) == store.addresses(job) == (NTFY, HOOK)
    assert stat.S_IMODE(gptjobs.layout.addresses_file(job).stat().st_mode) == 0o600


def test_what_is_nearer_says_where_and_files_may_say_it(gptjobs: Commands, store: Store, tmp_path: Path) -> None:
    def told(*words: str) -> tuple[str, ...]:
        return store.addresses(gptjobs.ok("submit", "train", "-q", *TINY, *words))

    assert told() == ()
    (gptjobs.layout.root / "gptjobs.toml").write_text(f'notify = ["{NTFY}", "{HOOK}"]\nbatch_size = 2\n')
    assert told() == (NTFY, HOOK)
    (tmp_path / "own.toml").write_text('notify = "ntfy://own"\n')
    assert told("--config", str(tmp_path / "own.toml")) == ("ntfy://own",)
    assert told("--config", str(tmp_path / "own.toml"), "--notify", "ntfy://typed") == ("ntfy://typed",)
    (tmp_path / "none.toml").write_text("notify = []\n")
    assert told("--config", str(tmp_path / "none.toml")) == ()


@pytest.mark.parametrize("words", ["submit train", "submit sweep --grid seed=1,2"])
@pytest.mark.parametrize(
    ("given", "why"),
    [(f"#{SECRET}", "what --notify names is no URL"), (f"nobody://{SECRET}", "nobody://… is no address of a service")],
)
def test_what_can_be_no_address_is_refused_before_anything_is_queued_and_is_not_shown(
    gptjobs: Commands, store: Store, words: str, given: str, why: str
) -> None:
    done = gptjobs(*words.split(), *TINY, "--notify", given)
    assert_error(done, 2, why, hint="docs/notify.md")
    assert SECRET not in done.stderr and store.all() == []
    (gptjobs.layout.root / "gptjobs.toml").write_text(f'notify = "{given}"\n')
    done = gptjobs(*words.split(), *TINY)
    assert done.returncode == 2 and SECRET not in done.stderr


def test_a_retry_tells_where_its_job_did(gptjobs: Commands, store: Store) -> None:
    job = gptjobs.ok("submit", "train", "-q", *TINY, "--notify", NTFY)
    gptjobs.ok("cancel", job)
    again = gptjobs.ok("retry", job)
    assert store.addresses(again) == (NTFY,) and list(store.get(again).spec.notify) == MASKED[:1]
    gptjobs.layout.addresses_file(job).unlink()
    store._redis.delete("gptjobs:notify")
    gptjobs.ok("cancel", again)
    done = gptjobs("retry", job)
    assert "note: nothing of it is told to ntfy://…" in done.stderr
    assert store.get(done.stdout.strip()).spec.notify == ()


def test_a_client_without_the_root_leaves_them_to_the_worker_which_writes_them_down(
    gptjobs: Commands, workers: Workers, store: Store, tmp_path: Path
) -> None:
    with receiving() as receiver:
        (tmp_path / "laptop").mkdir()
        job = gptjobs.ok("--root", str(tmp_path / "laptop"), "submit", "train", "-q", *TINY, "--notify", receiver.url)
        assert record.read_addresses(gptjobs.layout, job) == () and store.addresses(job) == (receiver.url,)
        workers.start()
        gptjobs.ok("wait", job, "--timeout", "90")
        assert record.read_addresses(gptjobs.layout, job) == (receiver.url,)
        assert stat.S_IMODE(gptjobs.layout.addresses_file(job).stat().st_mode) == 0o600
        eventually(lambda: receiver.messages)


def test_after_a_flush_they_are_put_back_from_the_root(gptjobs: Commands, store: Store) -> None:
    job = gptjobs.ok("submit", "train", "-q", *TINY, "--notify", NTFY)
    store._redis.flushall()
    gptjobs.ok("repair")
    assert store.addresses(job) == (NTFY,)
    store._redis.delete("gptjobs:notify")
    assert control.addresses_of(store, gptjobs.layout, store.get(job).spec) == (NTFY,)


def test_the_same_key_submitted_again_tells_where_it_was_said_first(gptjobs: Commands, store: Store) -> None:
    words = ("submit", "train", "-q", *TINY, "--idempotency-key", "friday", "--notify")
    job = gptjobs.ok(*words, NTFY)
    assert gptjobs.ok(*words, "ntfy://other") == job
    assert store.addresses(job) == record.read_addresses(gptjobs.layout, job) == (NTFY,)


@pytest.mark.parametrize("content", ["{", "7", "{}", "null", '["ntfy://a", 7]'])
def test_what_is_no_list_of_addresses_in_redis_is_none(store: Store, layout: Layout, content: str) -> None:
    store._redis.hset("gptjobs:notify", SPEC.id, content)
    assert control.addresses_of(store, layout, SPEC) == (("ntfy://a",) if "ntfy" in content else ())


def test_where_apprise_is_not_installed_a_job_trains_and_its_log_says_so(
    gptjobs: Commands, workers: Workers, tmp_path: Path
) -> None:
    without_apprise(gptjobs, tmp_path)
    worker = workers.start()
    job = gptjobs.ok("submit", "train", "-q", *TINY, "--notify", f"nobody://{SECRET}")
    gptjobs.ok("wait", job, "--timeout", "90")
    worker.terminate()
    worker.wait(60)
    log = gptjobs.ok("logs", "-n", "1000", job)
    for what in ("nothing can be told", f"'{job}: finished"):
        assert any(line.startswith(f"warning: {what}") and "'gptjobs[notify]'" in line for line in log.splitlines())
    assert_error(gptjobs("notify", NTFY), 4, "Apprise", hint="gptjobs[notify]")


def test_a_test_message_says_what_came_of_it(gptjobs: Commands) -> None:
    with receiving(200, 500) as receiver:
        plain = f"http://{receiver.host}/hook?token={SECRET}"
        assert gptjobs.ok("notify", plain) == f"http://{receiver.host}/…  sent"
        assert receiver.paths == [f"/hook?token={SECRET}"]
        done = gptjobs("notify", receiver.url, "ntfy://", "--json")
        assert_error(done, 2, "address 2 of the command is no URL")
        done = gptjobs("notify", receiver.url, "--json")
        assert done.returncode == 1
        assert json.loads(done.stdout)["sent"] == [{"to": receiver.masked, "trouble": "it was not taken"}]
    assert_error(gptjobs("notify"), 2, "no address was named")
    assert_error(gptjobs("notify", GPTJOBS_NOTIFY=SECRET), 2, "what GPTJOBS_NOTIFY names is no URL")
    assert_error(gptjobs("worker", "start", "--device", "cpu", GPTJOBS_NOTIFY=SECRET), 2, "GPTJOBS_NOTIFY")


def test_a_message_arrives_as_it_was_written(layout: Layout) -> None:
    with receiving() as receiver:
        assert notify.trouble(receiver.url, MESSAGE) is None
        (got,) = receiver.messages
    assert (got["title"], got["message"], got["type"]) == ("title", MESSAGE.body, "warning")


def test_what_was_refused_is_tried_again_but_not_once_the_worker_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messenger, "PAUSES_S", (600.0, 600.0))
    said: list[str] = []
    with receiving(500) as receiver:
        made = Messenger()
        made.tell([receiver.url, receiver.url], lambda: MESSAGE, "job a", said.append)
        eventually(lambda: receiver.messages)
        made.close()
        assert len(receiver.messages) == 1
    assert said == [f"'title' was not told to {receiver.masked}: it was not taken"]


def test_a_worker_that_ends_waits_for_what_is_being_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    is_being_made = threading.Event()
    with receiving() as receiver:
        made = Messenger([receiver.url])

        def make() -> Message:
            is_being_made.set()
            return MESSAGE

        made.tell([], make, "job a")
        is_being_made.wait()
        made.close()
        assert len(receiver.messages) == 1


def test_a_worker_waits_no_longer_than_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messenger, "CLOSE_LIMIT_S", 0.1)
    with receiving(None) as receiver:
        made = Messenger()
        made.tell([receiver.url], lambda: MESSAGE, "job a")
        eventually(lambda: receiver.messages)
        made.close()
        assert any(each.name == "message" for each in threading.enumerate())
    eventually(lambda: not any(each.name == "message" for each in threading.enumerate()))


def test_a_message_that_cannot_be_made_harms_nothing(caplog: pytest.LogCaptureFixture) -> None:
    made = Messenger([NTFY])
    made.tell([], lambda: 1 // 0, "job a")  # type: ignore[arg-type,return-value]
    made.close()
    assert "job a: a message was not sent" in caplog.text


def test_a_message_that_cannot_be_sent_harms_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_process(url: str, message: Message | None = None) -> int:
        raise BlockingIOError("no more processes")

    fell: list[object] = []
    monkeypatch.setattr(threading, "excepthook", fell.append)  # by which a worker drains
    monkeypatch.setattr(notify, "attempt", no_process)
    sends = Messenger()
    sends.tell([HOOK], lambda: MESSAGE, "job a")
    sends.close()
    assert fell == [] and "no more processes" in caplog.text
    with monkeypatch.context() as threads:
        threads.setattr(threading.Thread, "start", lambda thread: (_ for _ in ()).throw(RuntimeError("no threads")))
        sends.tell([HOOK], lambda: MESSAGE, "job a")
    sends.close()
    assert "no threads" in caplog.text


def test_an_address_that_would_have_the_worker_read_a_file_is_refused_here_and_there(
    gptjobs: Commands, tmp_path: Path
) -> None:
    url = f"discord://{SECRET}/{SECRET}?Template={tmp_path}/private.json"
    refused = gptjobs("submit", "train", *TINY, "--notify", url)
    assert_error(refused, 2, "discord://… names a file of the host that sends")
    assert notify.attempt(url, MESSAGE) == notify.OF_FILES


def test_a_child_imports_nothing_from_the_folder_that_a_command_is_given_in(tmp_path: Path) -> None:
    (tmp_path / "worker").mkdir()
    (tmp_path / "worker" / "__init__.py").write_text("import pathlib; pathlib.Path('imported').touch()")
    with receiving() as receiver:
        command = [sys.executable, "-P", "-m", "gptjobs", "notify", receiver.url]
        assert subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60).returncode == 0
    assert not (tmp_path / "imported").exists()


class Titles(Messenger):
    """Keeps what was to be sent, and to whom."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[str, tuple[str, ...]]] = []

    def tell(self, addresses: Any, make: Any, about: str, log: Any = None) -> None:
        self.told.append((make().title, tuple(addresses)))


@pytest.fixture
def station(layout: Layout, redis_url: str) -> Station:
    host = Host(worker="a@host", slots=("cpu",))
    app = broker.connect(redis_url)
    return Station(host=host, layout=layout, store=LeaseStore(redis_url), app=app, messenger=Titles())


def claimed(station: Station) -> Lease:
    control.submit(station.store, station.layout, station.app, SPEC, [NTFY])
    lease = station.store.claim(SPEC.id, 1, floor=0, nonce="n", worker="b@host", device="cpu")
    assert lease is not None
    return lease


@pytest.mark.parametrize("told", [True, False])
def test_a_reaper_tells_of_the_end_that_a_dead_holder_left_on_record(station: Station, told: bool) -> None:
    lease = claimed(station)
    if told:
        outcome = Outcome(state=JobState.FINISHED, reason="finished")
        record.write_outcome(station.layout, SPEC.id, outcome, lease.token)
    seen = station.store.get(SPEC.id)
    for _ in range(2):
        Rescue(station)._reap(seen)
    assert isinstance(station.messenger, Titles)
    assert station.messenger.told == ([(f"{SPEC.id}: finished", (NTFY,))] if told else [])


def test_in_redis_an_address_lies_until_the_end_was_told(station: Station) -> None:
    lease = claimed(station)
    record.write_outcome(station.layout, SPEC.id, Outcome(state=JobState.FINISHED, reason="finished"), lease.token)
    station.store.keep_addresses(SPEC.id, [HOOK])
    Rescue(station)._reap(station.store.get(SPEC.id))
    assert station.store.get(SPEC.id).state is JobState.FINISHED
    assert station.store.addresses(SPEC.id) == ()


def test_a_sweep_that_redis_refuses_is_not_begun_by_repair(
    station: Station, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(sweep: Sweep) -> None:
        raise RedisRefused("forbidden", hint="gptjobs doctor")

    monkeypatch.setattr(station.store, "begin_sweep", refuse)
    with pytest.raises(RedisRefused):
        submitted(station)
    assert not [*layout.outputs.iterdir()]


def submitted(station: Station, **values: Any) -> Sweep:
    sweep = Sweep(
        id="5a0b1c2d3e4f", overrides=typed(model="nano", data="sources/text.md", steps=10),
        dimensions=(grid("seed=1,2"),), trials=2, parallel=2, notify=("ntfy://…",), submitted_at=NOON, **values,
    )  # fmt: skip
    sweeping.submit(station.store, station.layout, sweep, [NTFY])
    return sweep


def test_the_end_of_a_sweep_is_told_once_however_many_workers_see_it(station: Station, redis_url: str) -> None:
    sweep = submitted(station)

    def look() -> None:
        tell_of(station, sweeps.advance(LeaseStore(redis_url), station.layout, station.app, sweep.id))

    look()
    for each in station.store.all():
        end(station.layout, each.spec.id)
        assert each.spec.notify == ()
    threads = [threading.Thread(target=look) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    look()
    assert isinstance(station.messenger, Titles)
    assert station.messenger.told == [(f"{sweep.id}: sweep finished, no trial made all its steps", (NTFY,))]


def test_a_sweep_that_cannot_begin_says_so_and_one_that_a_user_stops_does_not(station: Station) -> None:
    stopped = submitted(station)
    sweeping.stop(station.store, station.layout, stopped)
    tell_of(station, sweeps.advance(station.store, station.layout, station.app, stopped.id))
    assert isinstance(station.messenger, Titles) and station.messenger.told == []
    wrong = Sweep(
        id="6a0b1c2d3e4f", parent="nowhere@best", dimensions=(grid("seed=1,2"),), trials=2, notify=("ntfy://…",),
        submitted_at=NOON,
    )  # fmt: skip
    station.store.keep_addresses(wrong.id, [NTFY])
    station.store.begin_sweep(wrong)
    for _ in range(2):
        tell_of(station, sweeps.see_to(station.store, station.layout, station.app, wrong))
    assert station.messenger.told == [(f"{wrong.id}: sweep failed", (NTFY,))]
    assert record.read_addresses(station.layout, wrong.id) == (NTFY,)
    assert repair.missing_sweeps(station.store, station.layout) == []
