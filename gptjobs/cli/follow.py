"""Following jobs to their end: while Redis may be away, with Ctrl-C that only detaches, and their exit codes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import click

from gptjobs import record
from gptjobs.cli import output
from gptjobs.cli.output import CTRL_C
from gptjobs.cli.place import Place
from gptjobs.errors import JobCancelled, JobFailed, NotFound, RedisUnreachable
from gptjobs.job import Job, JobState, plain
from gptjobs.layout import Layout

POLL_S = 0.5
LOG_BYTES = 8192
"""that are read for the end of a log"""


class Followed:
    """A job as it was last seen. `away` says why Redis did not answer the last time."""

    def __init__(self, place: Place, job: Job) -> None:
        self._place, self.job = place, job
        self.away: str | None = None

    def look(self) -> Job:
        """The job as it is now; as it was, or as it ended by the record, where Redis is away or was flushed."""
        try:
            self.job, self.away = self._place.store.get(self.job.spec.id), None
        except (RedisUnreachable, NotFound) as error:
            self.away = error.message
            outcome = record.read_outcome(self._place.layout, self.job.spec.id)
            if outcome is not None:
                self.job = replace(self.job, state=outcome.state, reason=outcome.reason)
        return self.job

    def look_and_say(self) -> Job:
        """The same, and say so once when Redis goes away or comes back."""
        was_away = self.away is not None
        self.look()
        if self.away is not None and not was_away:
            output.say(f"{self.away.rstrip('.')}; waiting on, Ctrl-C detaches")
        if self.away is None and was_away:
            output.say("Redis has it again")
        return self.job


@contextmanager
def detachable(back: str) -> Iterator[None]:
    """Ctrl-C leaves the jobs alone, says the command that comes `back` to them, and exits."""
    try:
        yield
    except KeyboardInterrupt:
        output.say(f"\ndetached; nothing was stopped. To come back: {back}")
        raise click.exceptions.Exit(CTRL_C) from None


def exit_as(job: Job) -> None:
    """Raise the error whose exit code is the job's; nothing for a finished one."""
    if job.state is JobState.CANCELLED:
        raise JobCancelled(f"job {job.spec.called} was cancelled")
    if job.state is not JobState.FINISHED:
        raise JobFailed(f"job {job.spec.called} {job.state}: {job.reason}", hint=f"gptjobs show {job.spec.id}")


def end_of_log(layout: Layout, job: str) -> list[str]:
    """The last whole lines of the newest attempt's log."""
    paths = layout.log_files(job)
    if not paths:
        return []
    with paths[-1].open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(size - LOG_BYTES, 0))
        lines = file.read().decode(errors="replace").splitlines()[1 if size > LOG_BYTES else 0 :]
    return [plain(each) for each in lines]
