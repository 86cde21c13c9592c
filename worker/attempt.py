"""One attempt of a job: from its claim to its settled config, its files, its trainer and its end."""

import json
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import IO, Any

from gptjobs import adoption, checkpoint, durable, planning, record, storage
from gptjobs.checkpoint import Checkpoint
from gptjobs.config import ROLLBACK, Plan
from gptjobs.data import tokens
from gptjobs.errors import GptjobsError, NoSpace, NotFound, OutOfMemory, StorageAway
from gptjobs.job import (
    FRUITLESS_LIMIT,
    WAYS,
    Cause,
    Fruitless,
    Job,
    JobState,
    Outcome,
    against_again,
    count_fruitless,
)
from gptjobs.layout import Layout
from gptjobs.progress import Alert, CheckpointWritten, Line, Progress, StageBegan
from gptjobs.trials import PRUNED
from worker import outputs, sweeps
from worker.lease import HeldLease
from worker.messenger import Messenger
from worker.meter import JobMeter
from worker.news import News
from worker.onlooker import Onlooker, taught_losses, taught_speed
from worker.supervisor import Drain, Ended, Supervisor, encoder_command, trainer_command

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How an attempt ended for its job: terminal, paused, or queued again."""

    outcome: Outcome
    fruitless: Fruitless = field(default_factory=dict)


class Attempt:
    """Runs in the task's thread, under a held lease."""

    def __init__(
        self, layout: Layout, job: Job, held: HeldLease, worker: str, device: str, drain: Drain,
        news: News | None = None,
    ) -> None:  # fmt: skip
        self._layout, self._job, self._spec, self._held = layout, job, job.spec, held
        self._worker, self._device, self._drain = worker, device, drain
        self._news = news or News(Messenger(), layout, job.spec)
        self.meter = JobMeter()
        self._is_pruned = False
        self._growth: str | None = None
        """in words, for which the trainer was stopped"""

    def run(self) -> Verdict:
        """Train the job as far as it goes, and say how that ended."""
        try:
            storage.check(self._layout)
            plan, verdict = self._run()
            storage.check(self._layout)  # what was missed on a bare mount point is not gone
        except (OSError, NoSpace, StorageAway) as error:
            plan, verdict = None, self._in_trouble(error)
        except Exception as error:  # the edge of an attempt: a fault of ours must not look like a lost host
            logger.exception("job %s: the attempt failed", self._spec.id)
            plan, verdict = None, self._again(Cause.ERROR, f"{type(error).__name__}: {error}", wrote_checkpoint=False)
        try:
            if self._is_the_newest:
                self._write_down(plan, verdict.outcome)
        except OSError as error:
            logger.warning("job %s: its end could not be written down: %s", self._spec.id, error)
            if verdict.outcome.state.is_terminal:
                return self._in_trouble(error)
        return verdict

    def _run(self) -> tuple[Plan | None, Verdict]:
        layout, spec, plan = self._layout, self._spec, None
        record.write_spec(layout, spec, self._news.addresses)
        if self._job.is_unpaused:
            record.take_back(layout, spec.id, "pause")
        ended_before = record.read_outcome(layout, spec.id)
        if ended_before is not None:
            return None, Verdict(outcome=ended_before)
        asked_for = record.with_requests(layout, spec.id, JobState.QUEUED)
        if asked_for is not JobState.QUEUED:
            return None, Verdict(outcome=Outcome(state=asked_for, reason=asked_for.value))
        try:
            plan = self._settled_plan()
            with self._open_log(plan) as log:
                if self._held.lease.attempt == 1:
                    self._news.verify()
                if not self._begin(plan, log):
                    return plan, self._again(Cause.STOPPED, "a later attempt is on record", wrote_checkpoint=False)
                ended = self._encode(plan, log) or self._train(plan, log)
                verdict = self._verdict(ended)
                if verdict.outcome.cause is not None:
                    log.write(f"{self._in_words(verdict)}\n".encode())
            return plan, verdict
        except (NoSpace, StorageAway):
            raise
        except GptjobsError as error:
            return plan, Verdict(outcome=Outcome(state=JobState.FAILED, reason=error.message, hint=error.hint))

    def _in_trouble(self, error: Exception) -> Verdict:
        """What it means for the job that the storage root does not work here, or is full."""
        logger.warning("job %s: %s", self._spec.id, error)
        if storage.cause_of(error) is Cause.NO_SPACE:
            return self._paused_for_space(str(error))
        reason = f"the storage root does not work on {self._worker}: {error}"
        return self._again(Cause.STORAGE, reason, wrote_checkpoint=False)

    def _paused_for_space(self, words: str) -> Verdict:
        reason = f"{words}; free space in the storage root, then gptjobs unpause {self._spec.called}"
        with suppress(OSError):  # a full root may not take this either
            if self._is_the_newest:
                record.ask(self._layout, self._spec.id, "pause", reason)
        return Verdict(outcome=Outcome(state=JobState.PAUSED, reason=reason, cause=Cause.NO_SPACE))

    @property
    def _is_the_newest(self) -> bool:
        """Whether what this attempt writes counts, by Redis and by the storage root."""
        newest = checkpoint.latest_token(self._layout, self._spec.id)
        return not self._held.lost and newest <= self._held.lease.token

    def _settled_plan(self) -> Plan:
        """`config.json`, made by the first attempt and never changed."""
        if record.read_plan(self._layout, self._spec.id) is None:
            made, parent = planning.plan(self._layout, self._spec)
            if parent is not None:
                adoption.commit(self._layout, parent)
            with suppress(FileExistsError):
                durable.create(self._layout.config_file(made.job), durable.to_json(made.to_dict()))
        plan = record.read_plan(self._layout, self._spec.id)
        assert plan is not None
        return plan

    def _begin(self, plan: Plan, log: IO[bytes]) -> bool:
        """Write down that this attempt is the newest, and from where it starts; False where it is not any more."""
        layout, token = self._layout, self._held.lease.token
        corrupt: list[Checkpoint] = []
        start = checkpoint.start_of_next_attempt(layout, plan.job, plan.parent, corrupt.append)
        planning.check_room(layout, plan, start.manifest.step if start else 0)
        past = record.read_attempts(layout, plan.job)
        windows = record.micro_batch(past, self._device, plan.settled.train.windows_at_once)
        if not self._is_the_newest:
            return False
        checkpoint.begin_attempt(
            layout, plan.job, token, start, worker=self._worker, device=self._device, micro_batch=windows,
            skips=record.windows_of_spikes(past),
        )  # fmt: skip
        if self._is_the_newest:
            checkpoint.sweep_leftovers(layout, plan.job)
        for each in corrupt:
            self._tell_quarantine(each, log)
        self.meter.begin(plan, start.manifest.step if start else 0, past)
        self._held.show({"end_step": plan.settled.end_step})
        return True

    def _tell_quarantine(self, each: Checkpoint, log: IO[bytes]) -> None:
        log.write(f"checkpoint {each.name} is quarantined, {each.manifest.reason}; an earlier one is used\n".encode())
        self._write_line("quarantined", name=each.name, step=each.manifest.step, reason=each.manifest.reason)

    def _write_line(self, kind: str, **values: Any) -> None:
        """Add to the attempt's own lines what its trainer does not know."""
        line = {"schema": 1, "kind": kind, "time": time.time(), **values}
        with self._layout.attempt_lines(self._spec.id, self._held.lease.token).open("a") as lines:
            lines.write(json.dumps(line) + "\n")

    def _open_log(self, plan: Plan) -> IO[bytes]:
        self._layout.logs.mkdir(exist_ok=True)
        return self._layout.log_file(plan.kind, plan.job, time.time()).open("ab", buffering=0)

    def _encode(self, plan: Plan, log: IO[bytes]) -> Ended | None:
        """Encode the data where that was not done; None when the tokens are there."""
        if tokens.read_manifest(planning.token_file_of(self._layout, plan)) is not None:
            return None
        source = self._layout.path(plan.settled.train.data)
        if not source.is_file():
            raise NotFound(
                f"the data {plan.settled.train.data} is gone from the storage root", hint="put it back there"
            )
        command = encoder_command(self._layout.config_file(plan.job), source)
        ended = Supervisor(command, log, self._held, self._drain, self._show).run()
        is_done = ended.finished is not None and ended.finished.outcome == "finished"
        return None if is_done else ended

    def _train(self, plan: Plan, log: IO[bytes]) -> Ended:
        layout, token = self._layout, self._held.lease.token
        command = trainer_command(layout.config_file(plan.job), token)
        with layout.attempt_lines(plan.job, token).open("ab", buffering=0) as lines:

            def keep(line: Line, text: str) -> None:
                self._show(line, text)
                onlooker.note(line)
                self._news.note(line)
                try:
                    lines.write(f"{text}\n".encode())
                    if isinstance(line, CheckpointWritten):
                        outputs.put_together(layout, self._spec)
                    if self._is_to_stop_early(line):
                        supervisor.stop()
                except OSError as error:
                    logger.warning("job %s: a line was not kept: %s", plan.job, error)

            def stop(growth: str) -> None:
                if plan.settled.train.restarts_on_growth(self._device.partition(":")[0]):
                    self._growth = growth
                    supervisor.stop()

            onlooker = Onlooker(
                taught_speed(layout, plan, self._device),
                taught_losses(layout, plan),
                lambda alert: self._tell(alert, log),
                stop,
            )
            supervisor = Supervisor(command, log, self._held, self._drain, keep)
            with onlooker.looking_at(supervisor.pid):
                return supervisor.run()

    def _tell(self, alert: Alert, log: IO[bytes]) -> None:
        if self._held.lost:
            return
        logger.warning("job %s: %s", self._spec.id, alert.reason)
        self.meter.note(alert)
        try:
            log.write(f"alert: {alert.reason}\n".encode())
            self._write_line(alert.kind, **asdict(alert))
        except OSError as error:
            logger.warning("job %s: an alert was not kept: %s", self._spec.id, error)
        self._news.tell_alert(alert)

    def _is_to_stop_early(self, line: Line) -> bool:
        """Whether the pruner of the job's sweep stops it at this evaluation."""
        is_evaluated = isinstance(line, Progress) and line.val_loss is not None and line.step < line.end_step
        if is_evaluated and not self._is_pruned:
            self._is_pruned = sweeps.is_to_stop(self._layout, self._spec)
            return self._is_pruned
        return False

    def _show(self, line: Line, text: str) -> None:
        """Let the lease's next renewal carry what the line says."""
        self.meter.note(line)
        if isinstance(line, StageBegan):
            self._held.show({"stage": line.stage, "done": line.done})
        elif isinstance(line, Progress):
            newest: Mapping[str, Any] = {name: value for name, value in asdict(line).items() if value is not None}
            self._held.show({**newest, "stage": "training"})
        elif isinstance(line, CheckpointWritten):
            self._held.show({"checkpoint": line.name})

    def _verdict(self, ended: Ended) -> Verdict:
        """What the attempt's end means for the job."""
        finished = ended.finished
        if finished is not None and finished.outcome in ("finished", "target", "patience"):
            reason = finished.reason or finished.outcome
            return Verdict(outcome=Outcome(state=JobState.FINISHED, reason=reason))
        if finished is not None and finished.outcome == "diverged":
            reason = finished.reason or "diverged"
            return Verdict(outcome=Outcome(state=JobState.DIVERGED, reason=reason, hint=finished.hint))
        if self._held.state is JobState.CANCELLING:
            return Verdict(outcome=Outcome(state=JobState.CANCELLED, reason="cancelled"))
        if self._is_pruned and ended.cause is Cause.STOPPED:
            return Verdict(outcome=Outcome(state=JobState.FINISHED, reason=PRUNED))
        if self._growth is not None and ended.cause is Cause.STOPPED:
            return self._again(Cause.GROWTH, self._growth, wrote_checkpoint=ended.wrote_checkpoint)
        hint = finished.hint if finished is not None else f"gptjobs logs {self._spec.id}"
        if ended.cause is Cause.SPIKE:
            return self._after_spike(ended)
        if ended.cause is Cause.OUT_OF_MEMORY:
            hint = OutOfMemory.remedy
        if ended.cause is Cause.REFUSED:
            return Verdict(outcome=Outcome(state=JobState.FAILED, reason=ended.words, hint=hint, cause=ended.cause))
        if ended.cause is Cause.NO_SPACE:
            return self._paused_for_space(ended.words)
        if ended.cause is Cause.STOPPED:
            words = f"{self._worker} stopped" if self._drain.is_set() else ended.words
            return self._again(ended.cause, words, wrote_checkpoint=ended.wrote_checkpoint)
        return self._again(ended.cause, ended.words, wrote_checkpoint=ended.wrote_checkpoint, hint=hint)

    def _after_spike(self, ended: Ended) -> Verdict:
        """Go back, if the job may and has not too often."""
        plan = record.read_plan(self._layout, self._spec.id)
        assert plan is not None and ended.finished is not None
        train, past = plan.settled.train, record.read_attempts(self._layout, self._spec.id)
        before = sum(each.ended is not None and each.ended.cause is Cause.SPIKE for each in past)
        if train.on_spike == ROLLBACK and before < train.max_rollbacks:
            return self._again(Cause.SPIKE, f"spike: {ended.words}", wrote_checkpoint=ended.wrote_checkpoint)
        again = f", after {before} rollbacks" if before else ""
        outcome = Outcome(state=JobState.DIVERGED, reason=f"spike: {ended.words}{again}", hint=ended.finished.hint)
        return Verdict(outcome=outcome)

    def _again(self, cause: Cause, reason: str, *, wrote_checkpoint: bool, hint: str | None = None) -> Verdict:
        """The job is to be tried again, unless the same cause in the trainer has ended too many attempts in a row."""
        fruitless = count_fruitless(self._job.fruitless, cause, wrote_checkpoint=wrote_checkpoint)
        is_over = cause.counts and fruitless.get(cause, 0) >= FRUITLESS_LIMIT
        state = JobState.FAILED if is_over else JobState.QUEUED
        outcome = Outcome(state=state, reason=reason, hint=hint if is_over else None, cause=cause)
        return Verdict(outcome=outcome, fruitless=fruitless)

    def _in_words(self, verdict: Verdict) -> str:
        """The log's last line: why the attempt ended before its job did, and what is next."""
        outcome, number = verdict.outcome, self._held.lease.attempt
        often = against_again(outcome.cause, verdict.fruitless)
        why = f" ({often})" if often else ""
        if outcome.state.is_terminal:
            return f"attempt {number} ended, and with it the job: {outcome}{why}"
        after = WAYS["release"][self._held.state] if outcome.state is JobState.QUEUED else outcome.state
        again = f"queued again{why}" if after is JobState.QUEUED else after.value
        return f"attempt {number} ended: {outcome.reason}; {again}"

    def _write_down(self, plan: Plan | None, outcome: Outcome) -> None:
        """How the attempt ended, in the root before Redis hears of it; at the job's end also a summary."""
        layout, job = self._layout, self._spec.id
        durable.make_folder(layout.attempts(job))
        self._write_line("ended", **outcome.to_dict())
        if outcome.state.is_terminal:
            outcome = record.write_outcome(layout, job, outcome, self._held.lease.token)
        try:
            if outcome.state.is_terminal and plan is not None:
                outputs.summarise(layout, self._spec, plan, outcome)
            else:
                outputs.put_together(layout, self._spec)
        except OSError as error:  # it is on record how the job ended; this is for people
            logger.warning("job %s: its outputs could not be written: %s", job, error)
