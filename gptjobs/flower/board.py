"""All jobs as Flower's Runs tab shows them: as the storage root has them on record, and as Redis has them live.

What was read is kept. A look reads of a job only what has changed since, and of one that ended nothing.
"""

import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptjobs import checkpoint, record, trials
from gptjobs.errors import GptjobsError, NotFound, Refused
from gptjobs.job import Job, JobSpec
from gptjobs.layout import Layout, is_name
from gptjobs.progress import CHECKPOINT_FAILED
from gptjobs.record import PastAttempt
from gptjobs.store import Store
from gptjobs.sweep import Sweep

LOOK_AGAIN_S = 1.0
"""Looks that are nearer to each other are one."""
FRESH_S = 5.0
"""What was seen so long ago is shown while a new look is on its way."""
TRUSTED_AFTER_S = 2.0
"""A folder that changed just now may change again without its time of change telling, as clocks tick."""
ENDED_FOR_GOOD_S = 10.0
"""By then whoever ended the job has said everything about it."""

Row = dict[str, Any]
"""a job as `list --json` shows it, with `alerts` (how many), `alert` (in words, one that holds), `why`, `seen_at`
(seconds since the epoch) and `is_live` (whether Redis has it)"""


@dataclass
class Recorded:
    """A job on record, with its files as far as they were read."""

    spec: JobSpec
    mark: tuple[int, ...] | None = None
    """the times of change when it was read; None where they are not to be trusted"""
    past: dict[int, PastAttempt] = field(default_factory=dict)
    read_bytes: dict[int, int] = field(default_factory=dict)
    job: Job | None = None
    seen_at: float = 0.0
    alert: str | None = None
    is_ended: bool = False

    @property
    def attempts(self) -> list[PastAttempt]:
        return [self.past[token] for token in sorted(self.past)]


class Board:
    """Looks are for a thread, as they may take long. `rows` is replaced whole: any thread may read it."""

    def __init__(self, store: Store, layout: Layout) -> None:
        self._store, self._layout = store, layout
        self._lock = threading.Lock()
        self._looked_at: float | None = None
        self._recorded: dict[str, Recorded] = {}
        self._ended: dict[str, Job] = {}
        self._beats: dict[str, tuple[int, float]] = {}
        self._shown: dict[str, tuple[Job, Row]] = {}
        self.sweeps: dict[str, Sweep] = {}
        self.rows: Mapping[str, Row] = {}
        """newest first"""
        self.trouble: str | None = None
        """why Redis does not tell how the jobs are now"""

    def look(self) -> "Board":
        with self._lock:
            if self._looked_at is None or time.monotonic() - self._looked_at >= LOOK_AGAIN_S:
                self._look_at_records()
                live = self._ask_redis()
                self.rows = self._rows(live)
                self._looked_at = time.monotonic()
        return self

    @property
    def is_fresh(self) -> bool:
        return self._looked_at is not None and time.monotonic() - self._looked_at < FRESH_S

    def look_anew(self) -> "Board":
        """After a change of one's own."""
        with self._lock:
            self._looked_at = None
        return self.look()

    def row(self, job: str) -> Row:
        if job not in self.rows:
            raise NotFound(f"there is no job {job}", hint="gptjobs list")
        return self.rows[job]

    def spec(self, job: str) -> JobSpec:
        return self._shown[job][0].spec

    def jobs(self) -> list[tuple[Job, Row]]:
        """Every job, with what is shown of it."""
        return list(self._shown.values())

    def attempts(self, job: str) -> Sequence[PastAttempt]:
        found = self._recorded.get(job)
        return found.attempts if found else ()

    def children(self, job: str) -> list[Row]:
        """The jobs that began from a checkpoint of this one."""
        prefixes = (self._layout.name_of_checkpoint(job, ""), f"{job}@")
        specs = ((id, shown[0].spec.parent) for id, shown in list(self._shown.items()))
        return [self.rows[id] for id, parent in specs if parent and parent.startswith(prefixes) and id in self.rows]

    def _look_at_records(self) -> None:
        """Where the root is away, what was read before stands."""
        try:
            there = {path.name for path in self._layout.outputs.iterdir()}
        except OSError:
            return
        for gone in self._recorded.keys() - there:
            del self._recorded[gone]
        for gone in self.sweeps.keys() - there:
            del self.sweeps[gone]
        for id in there - self._recorded.keys() - self.sweeps.keys():
            if is_name(id):
                self._begin(id)
        for each in self._recorded.values():
            if not each.is_ended:
                with suppress(OSError, Refused, ValueError, KeyError, TypeError):  # torn: it hides no other job
                    self._read(each)

    def _begin(self, id: str) -> None:
        """Know a job or a sweep from now on; one whose request cannot be read hides no other."""
        with suppress(OSError, Refused, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            if self._layout.job_file(id).is_file():
                self._recorded[id] = Recorded(spec=record.read_spec(self._layout, id))
            elif self._layout.sweep_file(id).is_file():
                self.sweeps[id] = trials.read_sweep(self._layout, id)

    def _read(self, each: Recorded) -> None:
        """Read what has changed of a job's files."""
        layout, id = self._layout, each.spec.id
        folders = [_changed_at(path) for path in (layout.job_outputs(id), layout.attempts(id))]
        tokens = sorted(checkpoint.tokens_of_attempts(layout, id))
        lines = [_changed_at(layout.attempt_lines(id, token)) for token in tokens]
        mark = (*folders, *lines)
        if mark == each.mark:
            return
        now = time.time()
        for token in tokens:
            if token not in each.past:
                each.past[token], each.read_bytes[token] = record.read_attempt(layout, id, token)
            else:
                each.past[token], each.read_bytes[token] = record.read_on(
                    layout, id, each.past[token], each.read_bytes[token]
                )
        each.job = record.job_of(layout, each.spec, each.attempts)
        each.alert = self._standing_alert(each)
        newest = max(mark, default=0) / 1e9
        each.seen_at = (lines[-1] if lines else 0) / 1e9 or newest
        each.mark = mark if now - newest > TRUSTED_AFTER_S else None
        each.is_ended = each.job.state.is_terminal and now - newest > ENDED_FOR_GOOD_S

    def _standing_alert(self, each: Recorded) -> str | None:
        past = each.attempts
        newest = past[-1] if past else None
        needs = any(alert["name"] == CHECKPOINT_FAILED for alert in newest.alerts) if newest else False
        return record.standing_alert(newest, checkpoint.counting(self._layout, each.spec.id) if needs else ())

    def _ask_redis(self) -> dict[str, Job]:
        """Every job that Redis has; what ended is asked for once."""
        try:
            ids = self._store.ids()
            jobs = self._store.all(self._ended)
        except GptjobsError as error:
            self.trouble = error.message
            return {}
        self.trouble = None
        self._ended = {id: job for id, job in self._ended.items() if id in ids}
        self._ended |= {job.spec.id: job for job in jobs if job.state.is_terminal}
        return {**self._ended, **{job.spec.id: job for job in jobs}}

    def _rows(self, live: Mapping[str, Job]) -> dict[str, Row]:
        now = time.time()
        shown: dict[str, tuple[Job, Row]] = {}
        for id in {**self._recorded, **live}:
            recorded, job = self._recorded.get(id), live.get(id)
            is_live = job is not None
            job = job or (recorded.job if recorded else None)
            if job is None:
                continue
            was = self._shown.get(id)
            if was and was[0] is job and (recorded is None or recorded.is_ended) and was[1]["is_live"] == is_live:
                shown[id] = was
                continue
            shown[id] = job, self._row(job, recorded, is_live, now)
        self._shown = shown
        newest_first = sorted(shown.items(), key=lambda pair: pair[1][1]["submitted_at"], reverse=True)
        return {id: row for id, (_, row) in newest_first}

    def _row(self, job: Job, recorded: Recorded | None, is_live: bool, now: float) -> Row:
        alerts = sum(len(past.alerts) for past in recorded.attempts) if recorded else 0
        return {
            **job.to_dict(),
            "why": job.why,
            "alerts": alerts,
            "alert": recorded.alert if recorded else None,
            "seen_at": self._seen_at(job, recorded, is_live, now),
            "is_live": is_live,
        }

    def _seen_at(self, job: Job, recorded: Recorded | None, is_live: bool, now: float) -> float:
        """When something was last heard of it: a line of its trainer, or a beat of its lease between two looks."""
        id, found = job.spec.id, recorded.seen_at if recorded else job.spec.submitted_at
        if not (is_live and job.state.has_trainer):
            self._beats.pop(id, None)
            return found
        was = self._beats.get(id)
        if was is None or was[0] != job.beat:
            self._beats[id] = job.beat, found if was is None else now
        return max(found, self._beats[id][1])


def _changed_at(path: Path) -> int:
    """In ns since the epoch; 0 for what is not there."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
