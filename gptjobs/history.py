"""What a job's trainers reported: metrics along its lineage, and events, read from its attempts' own lines."""

import json
from collections import defaultdict
from typing import Any

from gptjobs import checkpoint, progress
from gptjobs.checkpoint import Attempt
from gptjobs.layout import Layout

_EVENTS = ("checkpoint", "quarantined", "alert", "micro_batch", "arithmetic", "finished", "ended")

Line = dict[str, Any]
"""as progress.py encodes it, with the fields of later versions"""


def attempt_lines(layout: Layout, job: str, token: int, start: int = 0) -> tuple[list[Line], int]:
    """The whole lines of an attempt from the byte `start`, and the byte after them; a killed worker or a full disk
    may have left half of one."""
    path = layout.attempt_lines(job, token)
    if not path.is_file():
        return [], start
    with path.open("rb") as file:
        file.seek(start)
        whole, end, _ = file.read().rpartition(b"\n")
    return [line for text in whole.splitlines() if (line := _line(text))], start + len(whole) + len(end)


def _line(text: bytes) -> Line | None:
    """None for what is no line: half of one, which a full disk left, or garbage."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or "kind" not in line:
        return None
    return line if str(line["kind"]) not in progress.KINDS or progress.from_record(line) else None


class History:
    """A job's lines as far as they were read. `metrics` has each step once, from the attempt whose step counts;
    `events` tells of all attempts, also of those on dead branches."""

    def __init__(self, layout: Layout, job: str) -> None:
        self._layout, self._job = layout, job
        self._attempts: list[Attempt] = []
        self._lineage: list[tuple[int, float]] = []
        self._read_bytes: dict[int, int] = defaultdict(int)
        self._progress: dict[int, list[Line]] = defaultdict(list)
        self._events: dict[int, list[Line]] = defaultdict(list)
        self.metrics: list[Line] = []
        self.events: list[Line] = []

    def read(self) -> "History":
        """Take what is new since the last time: attempts, and what their files grew by."""
        newest = self._attempts[-1].token if self._attempts else 0
        is_new = checkpoint.latest_token(self._layout, self._job) > newest
        if is_new:
            self._attempts = checkpoint.attempts(self._layout, self._job)
            self._lineage = checkpoint.lineage(self._layout, self._job)
        grew = [self._read_lines(each.token) for each in self._attempts]
        if is_new or any(grew):
            self.metrics = self._put_metrics_together()
            self.events = [event for each in self._attempts for event in self._events_of(each)]
        return self

    def _read_lines(self, token: int) -> bool:
        """Take the lines that an attempt's file grew by."""
        lines, self._read_bytes[token] = attempt_lines(self._layout, self._job, token, self._read_bytes[token])
        for line in lines:
            if line["kind"] == "progress":
                self._progress[token].append(line)
            elif line["kind"] in _EVENTS:
                self._events[token].append({**line, "token": token})
        return bool(lines)

    def _put_metrics_together(self) -> list[Line]:
        by_step: dict[int, Line] = {}
        for token, until in self._lineage:
            for line in self._progress[token]:
                if line["step"] <= until:
                    _add(by_step, line)
        return [by_step[step] for step in sorted(by_step)]

    def _events_of(self, attempt: Attempt) -> list[Line]:
        began = {
            "schema": 1,
            "kind": "attempt",
            "time": attempt.began_at,
            "token": attempt.token,
            "worker": attempt.worker,
            "device": attempt.device,
            "start": attempt.start,
            "step": attempt.start_step,
            "micro_batch": attempt.micro_batch,
        }
        return [began, *self._events[attempt.token]]


def _add(by_step: dict[int, Line], line: Line) -> None:
    """An attempt begins with a line at the step where the one before it ended. The older has the mean of more
    steps; the newer may have the evaluation that the older was stopped in."""
    older = by_step.setdefault(line["step"], line)
    if older["val_loss"] is None:
        by_step[line["step"]] = {**older, "val_loss": line["val_loss"], "eval_context": line["eval_context"]}
