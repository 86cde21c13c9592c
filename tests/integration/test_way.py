"""Finding the way as a user does: explain, doctor, completion, and jobs that Redis does not have."""

import json
import os
import pty
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from gptjobs.job import JobSpec, Outcome
from gptjobs.job import JobState as State
from gptjobs.layout import Layout
from gptjobs.local import _free_port
from gptjobs.presence import Presence
from gptjobs.record import write_outcome, write_spec
from gptjobs.store import Store
from tests.conftest import Commands, eventually
from tests.integration.test_checkpoint_errors import checkpoint_in
from tests.integration.test_errors import FIRST, TRAIN, assert_error

PROGRAM = Path(sys.executable).parent / "gptjobs"


@pytest.fixture
def away() -> str:
    """The URL of a server that is not there."""
    return f"redis://127.0.0.1:{_free_port()}/0"


@pytest.fixture
def first(layout: Layout, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A job on record that Redis does not have, with a checkpoint of step 2."""
    checkpoint_in(layout, tmp_path_factory.getbasetemp())
    return FIRST


def test_explain_says_why_a_job_waits_and_what_to_type(gptjobs: Commands, store: Store) -> None:
    gptjobs.ok(*TRAIN, "sources/text.md", "--name", "lm", "--device", "cuda")
    lines = gptjobs.ok("explain", "lm").splitlines()
    assert lines[0].endswith("(lm): queued")
    assert lines[1:] == ["  No worker is there to take it.", "next", "  gptjobs worker start"]
    said = json.loads(gptjobs.ok("explain", "@", "--json"))
    assert (said["schema"], said["state"], said["next"]) == (1, "queued", ["gptjobs worker start"])
    assert said["because"] == ["No worker is there to take it."]


def test_explain_names_the_cause_of_a_failure_from_the_record(gptjobs: Commands, first: str, away: str) -> None:
    write_outcome(gptjobs.layout, first, Outcome(state=State.FAILED, reason="it broke", hint="mend it"), 1)
    done = gptjobs("explain", first, GPTJOBS_REDIS_URL=away)
    assert done.returncode == 0
    assert "on record as failed" in done.stdout and "it broke" in done.stdout and "Hint: mend it." in done.stdout
    assert f"gptjobs retry {first}" in done.stdout


@pytest.mark.parametrize("command", ["show", "logs", "explain"])
def test_a_job_is_shown_from_its_record_while_redis_is_away(
    gptjobs: Commands, first: str, away: str, command: str
) -> None:
    (gptjobs.layout.logs / f"training_log_{first}_11222025_112739.log").write_text("Step 2: said\n")
    done = gptjobs(command, "first", GPTJOBS_REDIS_URL=away)
    assert done.returncode == 0, done.stderr
    assert "does not answer" in done.stderr and "this is the record" in done.stderr
    assert {"show": f"job {first}", "logs": "Step 2: said", "explain": "only Redis knows"}[command] in done.stdout


@pytest.mark.parametrize("reference", ["@", "first", FIRST[:4]])
def test_a_job_is_shown_from_its_record_after_redis_was_flushed(
    gptjobs: Commands, first: str, store: Store, reference: str
) -> None:
    done = gptjobs("show", reference)
    assert done.returncode == 0, done.stderr
    assert "Redis has no such job; this is the record" in done.stderr
    assert f"job {first}" in done.stdout
    assert "1 more on record" in gptjobs("list").stderr


def test_a_job_that_neither_redis_nor_the_record_has_is_not_found(
    gptjobs: Commands, first: str, store: Store, away: str
) -> None:
    assert_error(gptjobs("show", "fisrt"), 4, "no job is called 'fisrt'", hint="did you mean first?")
    assert_error(gptjobs("show", "fisrt", GPTJOBS_REDIS_URL=away), 5, "does not answer")


def test_redis_has_the_word_about_a_job_that_it_has(gptjobs: Commands, first: str, store: Store) -> None:
    store.submit(JobSpec(id=first, kind="train", name="first", submitted_at=1.0))
    done = gptjobs("show", "first")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"job {first} (first): queued" in done.stdout


def test_the_root_may_be_named_after_the_command_too(gptjobs: Commands, first: str, tmp_path: Path) -> None:
    elsewhere = str(tmp_path)
    for words in (("--root", str(gptjobs.layout.root), "checkpoints", "list"),
                  ("checkpoints", "list", "--root", str(gptjobs.layout.root)),
                  ("--root", elsewhere, "checkpoints", "list", "--root", str(gptjobs.layout.root))):  # fmt: skip
        assert "first@2" in gptjobs.ok(*words, GPTJOBS_ROOT=elsewhere)


def test_doctor_says_ok_of_what_is_well_and_what_to_type_for_the_rest(gptjobs: Commands, store: Store) -> None:
    store.submit(JobSpec(id=FIRST, kind="train", device="cuda", submitted_at=1.0))
    store.announce(
        Presence(name="old@b", host="b", version="0.0.9", queues=["cpu", "any"], slots=["cpu"], busy=0, jobs=[],
                 started_at=1.0)
    )  # fmt: skip
    done = gptjobs("doctor", "--json")
    checks = {each["name"]: each for each in json.loads(done.stdout)["checks"]}
    verdicts = {name: each["verdict"] for name, each in checks.items()}
    assert done.returncode == (1 if "problem" in verdicts.values() else 0)
    assert (verdicts["root"], verdicts["redis"], verdicts["workers"]) == ("ok", "ok", "ok")
    assert (verdicts["appendonly"], verdicts["versions"], verdicts["queues"]) == ("warning", "warning", "warning")
    assert "0.0.9" in checks["versions"]["says"]
    assert checks["queues"]["hint"] == "gptjobs worker start --device cuda"


def test_doctor_ends_with_1_where_there_is_no_redis_and_no_root(gptjobs: Commands, away: str, tmp_path: Path) -> None:
    done = gptjobs("doctor", GPTJOBS_REDIS_URL=away, GPTJOBS_ROOT=str(tmp_path / "nothing"))
    assert done.returncode == 1
    assert "warning  root" in done.stdout and "problem  redis" in done.stdout
    assert done.stderr == ""


def complete(gptjobs: Commands, shell: str, script: str) -> str:
    """What the shell prints, with the completion of gptjobs loaded; Redis is not there."""
    file = gptjobs.layout.root / "completion"
    file.write_text(gptjobs.ok("completion", shell))
    environment = {**gptjobs.environment, "GPTJOBS_REDIS_URL": "redis://nowhere.invalid:1/0"}
    environment["PATH"] = f"{PROGRAM.parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        [shell, "-c", script], env=environment, cwd=gptjobs.layout.root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        (("sh",), ["show"]),
        (("show", ""), ["first", "second"]),
        (("cancel", "first", "s"), ["second"]),
        (("logs", FIRST[:3]), [FIRST]),
        (("checkpoints", "list", "f"), ["first"]),
        (("checkpoints", "show", "f"), ["first@best", "first@last"]),
        (("submit", "resume", "--from", "first@"), ["first@best", "first@last", "first@2", "first@4"]),
        (("submit", "resume", "--from", "second@"), []),
        (("submit", "train", "--device", "c"), ["cuda", "cpu"]),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, tuple) else "",
)
def test_bash_completes_commands_jobs_and_checkpoints(
    gptjobs: Commands, first: str, typed: tuple[str, ...], completed: list[str]
) -> None:
    write_spec(gptjobs.layout, JobSpec(id="3f9a00000001", kind="train", name="second", submitted_at=0.5))
    words = " ".join(f"'{each}'" for each in ("gptjobs", *typed))
    script = f"""
        source completion
        COMP_WORDS=({words}) COMP_CWORD={len(typed)} COMPREPLY=()
        _gptjobs_completion gptjobs
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    assert complete(gptjobs, "bash", script).split() == completed


def test_bash_completes_a_checkpoint_of_a_job_at_a_key_press(gptjobs: Commands, first: str) -> None:
    """In an interactive bash an @ parts words, unless it is told otherwise."""
    (gptjobs.layout.root / "completion").write_text(gptjobs.ok("completion", "bash"))
    ours, theirs = pty.openpty()
    environment = {**gptjobs.environment, "PATH": f"{PROGRAM.parent}{os.pathsep}{gptjobs.environment['PATH']}"}
    bash = subprocess.Popen(
        ["bash", "--norc", "--noprofile", "-i"], env={**environment, "PS1": "ready> ", "TERM": "dumb"},
        cwd=gptjobs.layout.root, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    os.set_blocking(ours, False)
    seen = bytearray()

    def shows(text: bytes) -> bool:
        with suppress(BlockingIOError):
            seen.extend(os.read(ours, 4096))
        return text in seen

    try:
        os.write(ours, b"source completion && echo load''ed\n")
        eventually(lambda: shows(b"loaded"), 20)
        os.write(ours, b"gptjobs submit resume --from first@b\t")
        eventually(lambda: shows(b"first@best"), 20)
    finally:
        bash.kill()
        bash.wait()
        os.close(ours)


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not here")
def test_fish_completes_jobs_and_checkpoints(gptjobs: Commands, first: str) -> None:
    script = "source completion; complete --do-complete 'gptjobs submit resume --from first@'"
    completed = {each.split("\t")[0] for each in complete(gptjobs, "fish", script).splitlines()}
    assert completed == {"first@best", "first@last", "first@2", "first@4"}


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not here")
def test_zsh_takes_the_script(gptjobs: Commands) -> None:
    script = "autoload -Uz compinit && compinit -u -d ./dump && source ./completion && echo $_comps[gptjobs]"
    assert complete(gptjobs, "zsh", script).strip() == "_gptjobs_completion"


def test_wait_prints_json(gptjobs: Commands, store: Store) -> None:
    store.submit(JobSpec(id=FIRST, kind="train", submitted_at=1.0))
    store.ask("cancel", FIRST, "cancelled")
    done = gptjobs("wait", "@", "--json")
    assert done.returncode == 10
    (job,) = json.loads(done.stdout)["jobs"]
    assert (job["id"], job["state"]) == (FIRST, "cancelled")


def test_a_name_that_another_job_has_is_said(gptjobs: Commands, store: Store, first: str) -> None:
    done = gptjobs(*TRAIN, "sources/text.md", "--name", "first")
    assert f"note: job {first} is called first too" in done.stderr
    assert "called" not in gptjobs(*TRAIN, "sources/text.md", "--name", "other").stderr


def test_a_dry_run_says_that_no_worker_would_take_the_job(gptjobs: Commands, store: Store, away: str) -> None:
    train = (*TRAIN, "sources/text.md", "--dry-run")
    assert "note: no worker is there" in gptjobs(*train).stderr
    done = gptjobs(*train, GPTJOBS_REDIS_URL=away)
    assert done.returncode == 0
    assert "note: Redis at" in done.stderr
    assert_error(gptjobs(*train, "--require-worker"), 6, "no worker is there", hint="gptjobs worker start")


def test_a_mistyped_root_is_said_before_a_redis_that_was_never_there(gptjobs: Commands, tmp_path: Path) -> None:
    done = gptjobs("list", "--root", str(tmp_path / "nothing"), GPTJOBS_REDIS_URL="")
    assert_error(done, 4, "there is no folder", hint="gptjobs up")
