"""What `watch` sees at each look, and what it says in one line."""

from types import SimpleNamespace
from typing import Any

import pytest

from gptjobs import record
from gptjobs.cli.follow import Followed
from gptjobs.cli.watch import Sight, in_one_line
from gptjobs.errors import NotFound, RedisUnreachable
from gptjobs.history import History
from gptjobs.job import Job, JobState, Outcome
from gptjobs.layout import Layout
from gptjobs.progress import encode
from tests.unit.conftest import NOON, begin
from tests.unit.test_outputs import step
from tests.unit.test_screen import PROGRESS, job, waiting


def followed(seen: Job) -> Followed:
    """A job that is always found as it is."""
    place: Any = SimpleNamespace(store=SimpleNamespace(get=lambda id: seen))
    return Followed(place, seen)


def test_what_the_files_know_already_is_shown_before_redis_knows_it(layout: Layout) -> None:
    running = job()
    begin(layout, running.spec.id, 1)
    lines = [step(1000, 2.6, 2.7), step(1020, 2.4)]
    file = layout.attempt_lines(running.spec.id, 1)
    file.write_text("".join(encode(each, seconds=NOON) + "\n" for each in lines))
    seen = Sight(layout, followed(running)).look()
    assert (seen.job.progress["step"], seen.job.progress["train_loss"]) == (1020, 2.4)
    assert seen.job.progress["val_loss"] == PROGRESS["val_loss"]  # step 1020 has none


def test_a_storage_root_that_is_away_for_a_while_is_noted(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    log = layout.log_file("train", job().spec.id, NOON)
    log.write_text("Step 1\n")
    sight = Sight(layout, followed(job()))
    assert sight.look().note is None

    def stale(self: History) -> History:
        raise OSError(116, "Stale file handle")

    with monkeypatch.context() as patched:
        patched.setattr(History, "read", stale)
        seen = sight.look()
    assert "Stale file handle" in (seen.note or "") and seen.log == ["Step 1"]
    assert sight.look().note is None


def test_only_whole_lines_of_a_long_logs_end_are_shown(layout: Layout) -> None:
    log = layout.log_file("train", job().spec.id, NOON)
    log.write_text("".join(f"line {number:06d}\n" for number in range(5000)))
    lines = Sight(layout, followed(job())).look().log
    assert lines[-1] == "line 004999" and 100 < len(lines) < 1000 and lines[0].startswith("line ")


def test_redis_away_for_several_looks_is_said_once(capsys: pytest.CaptureFixture[str], layout: Layout) -> None:
    answers = iter([RedisUnreachable("Redis is away"), RedisUnreachable("Redis is away"), waiting("next"), job()])

    def get(id: str) -> Job:
        answer = next(answers)
        if isinstance(answer, RedisUnreachable):
            raise answer
        return answer

    place: Any = SimpleNamespace(store=SimpleNamespace(get=get), layout=layout)
    seen = Followed(place, job())
    assert [seen.look_and_say().state for _ in range(4)] == ["running", "running", "queued", "running"]
    assert capsys.readouterr().err == "Redis is away; waiting on, Ctrl-C detaches\nRedis has it again\n"


def test_a_job_that_redis_was_made_to_forget_is_followed_to_the_end_on_record(layout: Layout) -> None:
    def get(id: str) -> Job:
        raise NotFound(f"Redis has no job {id}")

    place: Any = SimpleNamespace(store=SimpleNamespace(get=get), layout=layout)
    followed = Followed(place, job())
    assert (followed.look().state, followed.away) == ("running", f"Redis has no job {job().spec.id}")
    record.write_outcome(layout, job().spec.id, Outcome(state=JobState.FINISHED, reason="finished"), 0)
    assert followed.look().state == "finished"


@pytest.mark.parametrize(
    ("shown", "line"),
    [
        (waiting("next"), "next  queued"),
        (job(progress={"stage": "encoding", "done": 0.4}), "plateau  running  encoding"),
        (job(state=JobState.FAILED, reason="no space", progress={}), "plateau  failed  no space"),
        (
            job(),
            "plateau  running  step 1010/2000, train loss 2.5653, val loss 2.5856, lr 0.0001, grad norm 0.6542, "
            "10,204 tokens/s, 6m37s left",
        ),
    ],
)
def test_a_job_in_one_line(shown: Job, line: str) -> None:
    assert in_one_line(shown) == line
