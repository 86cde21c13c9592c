"""What users get wrong, run as real commands: each is told what and why, with a hint and an exit code."""

import os
import pty
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from gptjobs import record
from gptjobs.config import Given
from gptjobs.job import JobSpec, JobState
from gptjobs.local import _free_port
from gptjobs.store import Store
from tests.conftest import Commands, english

FIRST = "a1b2c3d4e5f6"
"""a job that is on record before"""
TRAIN = ("submit", "train", "--encoding", "bytes", "--data")


def assert_error(done: CompletedProcess[str], code: int, *words: str, hint: str | None = None) -> None:
    """The command ended with `code`, said these words and such a hint, and nothing else went wrong."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    for each in words:
        assert each in done.stderr
    _, hinted, rest = done.stderr.partition("hint: ")
    assert hint is None or (hinted and hint in rest), done.stderr


def assert_refused(gptjobs: Commands, done: CompletedProcess[str], code: int, *words: str, hint: str | None) -> None:
    """As assert_error; and nothing was queued or put on record."""
    assert_error(done, code, *words, hint=hint)
    assert Store(gptjobs.environment["GPTJOBS_REDIS_URL"]).all() == []
    on_record = {each.parent.name for each in gptjobs.layout.outputs.glob("*/job.json")}
    assert on_record <= {FIRST}


@pytest.mark.parametrize(
    ("option", "value", "why"),
    [
        ("--batch-size", "0", "0 is below 1"),
        ("--learning-rate", "-0.001", "-0.001 is not above 0"),
        ("--learning-rate", "nan", "nan is no finite number"),
        ("--learning-rate", "inf", "inf is no finite number"),
        ("--dropout", "1", "1.0 is above 0.95"),
        ("--n-head", "5", "768 is no multiple of --n-head 5"),
    ],
)
def test_a_hyperparameter_out_of_its_bounds_is_a_usage_error(
    gptjobs: Commands, option: str, value: str, why: str
) -> None:
    done = gptjobs(*TRAIN, "sources/text.md", option, value)
    assert_refused(gptjobs, done, 2, option, why, hint="submit train --help")


def test_all_that_is_out_of_bounds_is_said_at_once(gptjobs: Commands) -> None:
    done = gptjobs(*TRAIN, "sources/text.md", "--batch-size", "0", LEARNING_RATE="nan")
    assert_refused(gptjobs, done, 2, "--batch-size", "--learning-rate (LEARNING_RATE)", hint="--help")


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (("--data", "text.md", "--batch-size", "0"), 2, "0 is below 1"),
        (("--data", "text.md", "--learning-rate", "nan"), 2, "nan is no finite number"),
        ((), 2, "no data was named"),
    ],
)
def test_what_needs_no_files_is_refused_also_without_the_root(
    gptjobs: Commands, tmp_path: Path, arguments: tuple[str, ...], code: int, why: str
) -> None:
    (tmp_path / "laptop").mkdir()
    done = gptjobs("submit", "train", *arguments, GPTJOBS_ROOT=str(tmp_path / "laptop"))
    assert_refused(gptjobs, done, code, why, hint="")


@pytest.mark.parametrize(
    ("content", "code", "why", "hint"),
    [
        (b"", 3, "is empty", "with text in it"),
        (b"a line of text\n" * 8, 3, "too short: 120 bytes; block size 128 needs 1,290", "smaller --block-size"),
        (b"text\0text\n" * 1000, 3, "is no text: byte 4 is zero", "UTF-8 text"),
        (b"caf\xe9 au lait\n" * 1000, 3, "byte 3 is 0xe9", "iconv"),
        (None, 4, "there is no data file", "in the storage root"),
    ],
    ids=["empty", "short", "binary", "latin1", "missing"],
)
def test_data_that_nothing_can_be_trained_on_is_refused(
    gptjobs: Commands, content: bytes | None, code: int, why: str, hint: str
) -> None:
    if content is not None:
        (gptjobs.layout.root / "sources" / "bad.md").write_bytes(content)
    assert_refused(gptjobs, gptjobs(*TRAIN, "sources/bad.md"), code, "sources/bad.md", why, hint=hint)


def test_data_outside_the_root_is_copied_into_it_and_that_is_said(gptjobs: Commands, store: Store) -> None:
    outside, inside = gptjobs.layout.root.parent / "book.md", gptjobs.layout.shared_data / "book.md"
    outside.write_text(english(2000))
    assert gptjobs(*TRAIN, "../book.md", "--dry-run").returncode == 0
    assert not inside.exists()
    done = gptjobs(*TRAIN, "../book.md")
    assert f"../book.md lies outside the root; its copy for all hosts is {inside}" in done.stderr
    assert inside.read_text() == outside.read_text()
    assert store.find("@").spec.overrides["data"] == Given("shared_data/book.md", "--data")

    outside.write_text(english(3000))
    assert_error(gptjobs(*TRAIN, "../book.md"), 3, "another file is at", hint="a name of its own")
    assert inside.read_text() == english(2000)
    assert len(store.all()) == 1


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "", "x" * 65])
def test_a_name_that_could_lead_out_of_a_folder_is_refused(gptjobs: Commands, name: str) -> None:
    assert_refused(gptjobs, gptjobs(*TRAIN, "sources/text.md", "--name", name), 2, "no name", hint="letters, digits")


@pytest.mark.parametrize(
    ("toml", "why", "hint"),
    [
        ("batchsize = 3", "no hyperparameter 'batchsize'", "did you mean batch_size?"),
        ("[train]\nbatch_size = 3", "no hyperparameter 'train'", ""),
        ('batch_size = "3"', "'3' is no whole number", ""),
        ("batch_size = true", "True is no whole number", ""),
        ("data = 3", "data", ""),
        ('model = ["nano"]', "model", ""),
        ("batch_size: 3", "is no TOML", "batch_size = 32"),
    ],
)
def test_a_mistake_in_the_roots_toml_file_is_explained(gptjobs: Commands, toml: str, why: str, hint: str) -> None:
    (gptjobs.layout.root / "gptjobs.toml").write_text(toml + "\n")
    data = () if "data" in toml else ("--data", "sources/text.md")
    done = gptjobs("submit", "train", "--encoding", "bytes", *data)
    assert_refused(gptjobs, done, 2, "gptjobs.toml", why, hint=hint)


@pytest.mark.parametrize(("name", "codes"), [("none.toml", {4}), ("sources", {2, 4})])
def test_a_config_that_is_no_file_is_refused(gptjobs: Commands, name: str, codes: set[int]) -> None:
    done = gptjobs(*TRAIN, "sources/text.md", "--config", name)
    assert_refused(gptjobs, done, done.returncode, name, hint=None)
    assert done.returncode in codes


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("sumbit", "train"), "submit"),
        (("submit", "trian"), "train"),
        (("checkpoints", "lst"), "list"),
        (("submit", "train", "--batchsize", "3"), "--batch-size"),
        (("submit", "resume", "--lerning-rate=1"), "--learning-rate"),
        (("lis",), "list"),
    ],
)
def test_a_mistyped_command_or_option_is_answered_with_the_right_one(
    gptjobs: Commands, words: tuple[str, ...], meant: str
) -> None:
    done = gptjobs(*words)
    assert_error(done, 2, "id you mean")
    assert meant in done.stderr.partition("id you mean")[2]


@pytest.mark.parametrize("command", ["show", "logs", "pause", "cancel"])
def test_a_job_that_is_not_there_is_not_found_but_one_like_it_is(gptjobs: Commands, store: Store, command: str) -> None:
    store.submit(JobSpec(id="3f9a00000001", kind="train", name="nightly", submitted_at=1.0))
    assert_error(gptjobs(command, "nigthly"), 4, "no job is called 'nigthly'", hint="did you mean nightly?")
    assert [each.state.value for each in store.all()] == ["queued"]


def test_no_job_is_found_where_none_is_there_or_none_is_like_it(gptjobs: Commands, store: Store) -> None:
    assert_error(gptjobs("show", "@"), 4, "there are no jobs yet", hint="gptjobs submit train")
    store.submit(JobSpec(id="3f9a00000001", kind="train", submitted_at=1.0))
    assert_error(gptjobs("show", "zzz"), 4, "no job is called 'zzz'", hint="gptjobs list")


@pytest.mark.parametrize("command", ["show", "cancel"])
def test_a_prefix_that_could_be_two_jobs_is_neither(gptjobs: Commands, store: Store, command: str) -> None:
    for id in ("3f9a00000001", "3f9a00000002"):
        store.submit(JobSpec(id=id, kind="train", submitted_at=1.0))
    done = gptjobs(command, "3f9a")
    assert_error(done, 2, "3f9a00000001", "3f9a00000002", hint="type more of the job's id")
    assert [each.state.value for each in store.all()] == ["queued", "queued"]


@pytest.mark.parametrize(
    "command",
    [
        "list",
        "show @",
        "logs @",
        "wait @",
        "cancel @",
        "worker list",
        "worker start",
        "submit train --data sources/text.md --encoding bytes",
    ],
)
def test_a_server_that_is_not_there_is_said_with_what_starts_one(gptjobs: Commands, command: str) -> None:
    port = _free_port()
    done = gptjobs(*command.split(), GPTJOBS_REDIS_URL=f"redis://:hunter2@127.0.0.1:{port}/0")
    assert_error(done, 5, f"Redis at redis://127.0.0.1:{port}/0 does not answer", hint="gptjobs up")
    assert "hunter2" not in done.stderr
    assert list(gptjobs.layout.outputs.iterdir()) == []


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hunter2@127.0.0.1:{port}/0",
        "redis://127.0.0.1:{port}/0",
        "redis://:secret@127.0.0.1:{port}/9999",
        "redis://:hunter2@127.0.0.1:port/0",
        "redis://:hunter2@[::1/0",
        ":hunter2@127.0.0.1:{port}",
    ],
    ids=["wrong password", "no password", "no such database", "no port", "no address", "no scheme"],
)
def test_a_url_that_opens_no_server_is_an_error_that_shows_no_password(
    gptjobs: Commands, redis_url: str, url: str
) -> None:
    port = redis_url.rpartition(":")[2].partition("/")[0]
    done = gptjobs(*TRAIN, "sources/text.md", GPTJOBS_REDIS_URL=url.format(port=port))
    assert_error(done, 5, "Redis", hint="GPTJOBS_REDIS_URL")
    assert "hunter2" not in done.stderr and "secret" not in done.stderr
    assert list(gptjobs.layout.outputs.iterdir()) == []


def test_a_server_that_is_full_takes_no_job_and_none_is_on_record(gptjobs: Commands, store: Store) -> None:
    store._redis.config_set("maxmemory", 1)
    try:
        done = gptjobs("submit", "train", "--data", "sources/text.md", "--encoding", "bytes")
    finally:
        store._redis.config_set("maxmemory", 0)
    assert_error(done, 5, "Redis", hint="")
    assert store.all() == []
    assert list(gptjobs.layout.outputs.iterdir()) == []


@pytest.mark.parametrize(("device", "why"), [("any", "no worker is there"), ("cuda", "no worker offers cuda")])
def test_a_job_that_requires_a_worker_is_refused_where_none_is(gptjobs: Commands, device: str, why: str) -> None:
    train = ("submit", "train", "--data", "sources/text.md", "--encoding", "bytes", "--device", device)
    assert_refused(gptjobs, gptjobs(*train, "--require-worker"), 6, why, hint="gptjobs worker start")
    assert f"note: {why}" in gptjobs(*train).stderr


def test_a_wait_that_takes_too_long_ends_with_124(gptjobs: Commands, store: Store) -> None:
    store.submit(JobSpec(id="3f9a00000001", kind="train", submitted_at=1.0))
    assert_error(gptjobs("wait", "@", "--timeout", "0.2"), 124, "3f9a00000001 is still queued after 0.2 s")
    assert store.get("3f9a00000001").state.value == "queued"


@pytest.mark.parametrize(("variables", "is_coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colour_is_for_terminals_of_those_who_want_it(
    gptjobs: Commands, variables: dict[str, str], is_coloured: bool
) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "gptjobs", "show", "nothing"]
    subprocess.run(command, env={**gptjobs.environment, **variables}, stderr=theirs, stdout=theirs)
    os.close(theirs)
    said = os.read(ours, 4096).decode()
    os.close(ours)
    assert "no job is called 'nothing'" in said
    assert ("\x1b[" in said) == is_coloured


def test_what_the_file_system_refuses_is_an_error_and_no_traceback(gptjobs: Commands) -> None:
    gptjobs.layout.outputs.rmdir()
    gptjobs.layout.outputs.write_text("a file where a folder should be")
    done = gptjobs(*TRAIN, "sources/text.md")
    assert_error(done, 1, str(gptjobs.layout.outputs), "Not a directory")


def test_a_reader_that_has_enough_is_no_failure(gptjobs: Commands) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    done = gptjobs.start("checkpoints", "import", "--help", stdout=writes, stderr=subprocess.PIPE)
    listed = gptjobs.start("worker", "list", "--json", stdout=writes, stderr=subprocess.PIPE)
    os.close(writes)
    for process in (done, listed):
        _, said = process.communicate(timeout=60)
        assert (process.returncode, said) == (0, b"")


def test_a_job_that_redis_was_made_to_forget_can_be_cancelled_on_record(gptjobs: Commands, store: Store) -> None:
    job = gptjobs.ok("submit", "train", "-q", "--model", "nano", "--data", "sources/text.md")
    store._redis.flushall()
    done = gptjobs("cancel", job)
    assert (done.returncode, done.stdout.split()[:2]) == (0, [job, "cancelled"]), done.stderr
    outcome = record.read_outcome(gptjobs.layout, job)
    assert outcome is not None and outcome.state is JobState.CANCELLED
    assert gptjobs.layout.request_file(job, "cancel").is_file()


NAMES = ("x" * 10_000, "\x1b]0;owned\x07\x1b[31mred", "a\rb", "a\nb", "\u202eevil", "../../x")


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name[:9]))
def test_a_name_of_ten_thousand_or_of_control_characters_is_refused_and_drives_no_terminal(
    gptjobs: Commands, name: str
) -> None:
    done = gptjobs(*TRAIN, "sources/text.md", "--name", name)
    assert_refused(gptjobs, done, 2, "is no name for a job", hint="letters, digits")
    for command in (("show", name), ("cancel", name), ("submit", "resume", "--from", name), ("--root", name, "list")):
        done = gptjobs(*command)
        assert done.returncode in (1, 2, 3, 4)
        assert done.stderr.startswith("error: ") and len(done.stderr) < 3000
        assert all(line.isprintable() for line in done.stderr.split("\n"))
