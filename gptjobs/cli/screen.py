"""The pictures that `gptjobs watch` shows: all jobs as a table, and one job. No line is wider than the terminal."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.text import Text

from gptjobs.cli import chart, output
from gptjobs.cli.chart import FAINT
from gptjobs.job import Job, JobState
from gptjobs.progress import duration

if TYPE_CHECKING:
    from gptjobs.presence import Presence

_ENDED_SHOWN = 5
_CHART_LINES = (8, 24)
"""at least, at most"""
_TAIL_LINES = (2, 8)
_BAR_COLUMNS = (8, 40)
_NAME_COLUMNS = 24
_SPARKLINE_COLUMNS = 24


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What is known of a job now. `log` is the end of its newest log, `note` what the user should know."""

    job: Job
    metrics: Sequence[dict[str, Any]] = ()
    events: Sequence[dict[str, Any]] = ()
    log: Sequence[str] = ()
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class SeenAll:
    """What is known of all jobs, oldest first, and of the workers now."""

    jobs: Sequence[Job]
    workers: "Sequence[Presence]" = ()
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Column:
    """`left_out` says when: 1 is the first to go in a narrow terminal, 0 stays."""

    title: str
    cells: list[Text]
    right: bool = False
    left_out: int = 0

    @property
    def width(self) -> int:
        return max(len(self.title), *(each.cell_len for each in self.cells))


def one_job(seen: Seen, width: int, height: int) -> list[Text]:
    """At most `height` lines of at most `width` columns."""
    lines = _head(seen, width)
    each = max(_TAIL_LINES[0], min(_TAIL_LINES[1], (height - 15) // 4))
    events = [in_words for event in seen.events if (in_words := _event(event))][-each:]
    tails = [("events", events), ("log", [Text.from_ansi(line.expandtabs(), style="dim") for line in seen.log[-each:]])]
    taken = len(lines) + sum(len(tail) + 1 for _, tail in tails if tail)
    lines += _curve(seen, width, max(_CHART_LINES[0], min(_CHART_LINES[1], height - taken)))
    for title, tail in tails:
        if tail:
            lines += [Text(f"── {title} ".ljust(width, "─"), style=FAINT), *tail]
    return _fitted(lines, width, height)


def _head(seen: Seen, width: int) -> list[Text]:
    job, shown = seen.job, seen.job.to_dict()
    where = f"attempt {job.attempt} on {job.worker}, {shown['device']}" if job.worker else f"for {shown['device']}"
    name = Text(job.spec.called, style="bold")
    name.truncate(width // 2, overflow="ellipsis")
    title = Text.assemble(name, "  ", _state(job), "  ", (f"{job.spec.id}, {where}" if job.spec.name else where, FAINT))
    lines = [title, _bar_line(job, width)]
    if note := seen.note or job.why:
        lines.append(Text(note, style="yellow"))
    if shown["step"] is not None:
        lines += [_losses(shown, seen), _meters(shown, seen, width)]
    return [*lines, Text()]


def _bar_line(job: Job, width: int) -> Text:
    shown = job.to_dict()
    if shown["step"] is None:
        return _stage(job)
    parts = [f"step {shown['step']:,} of {shown['end_step']:,}", f"{shown['step'] / shown['end_step']:.0%}"]
    if shown["stage"] not in (None, "training"):
        parts.append(shown["stage"])
    elif shown["eta_s"] is not None:
        parts.append(f"{duration(shown['eta_s'])} left")
    words = "  ".join(parts)
    return Text.assemble(_bar(job, width - len(words) - 2), "  ", words)


def _losses(shown: dict[str, Any], seen: Seen) -> Text:
    parts = [f"train loss {output.number(shown['train_loss'], '.4f')}"]
    evaluated = [each for each in seen.metrics if each["val_loss"] is not None]
    if shown["val_loss"] is not None:
        parts.append(f"val loss {shown['val_loss']:.4f} at context {shown['eval_context']}")
    if evaluated:
        best = min(evaluated, key=lambda each: float(each["val_loss"]))
        parts.append(f"best {best['val_loss']:.4f} at step {best['step']:,}")
    return Text("   ".join(parts))


def _meters(shown: dict[str, Any], seen: Seen, width: int) -> Text:
    """Learning rate, gradient norm and speed, each with its course where there is room."""
    words = {
        "learning_rate": f"lr {output.number(shown['learning_rate'], '.3g')}",
        "grad_norm": f"grad norm {output.number(shown['grad_norm'], '.3f')}",
        "tokens_per_s": f"{output.number(shown['tokens_per_s'], ',.0f')} tokens/s",
    }
    room = min((width - sum(map(len, words.values())) - 9) // 3, _SPARKLINE_COLUMNS)
    line = Text()
    for name, each in words.items():
        course = chart.sparkline([value for _, value in chart.points(seen.metrics, name)], room)
        line.append(each).append(f" {course}   ", style=chart.TRAIN)
    line.rstrip()
    return line


def _curve(seen: Seen, width: int, height: int) -> list[Text]:
    window = chart.window_of([seen.metrics])
    if window is None:
        return [Text("no losses yet", style=FAINT)]
    return chart.losses(seen.metrics, window, width=width, height=height)


def _event(event: dict[str, Any]) -> Text | None:
    """None for one that says what another says too."""
    match event["kind"]:
        case "attempt":
            begins = f"from step {event['step']:,}" if event["start"] else "from scratch"
            words = f"attempt on {event['worker']}, {event['device']}, {begins}"
        case "checkpoint":
            loss = "" if event["val_loss"] is None else f", val loss {event['val_loss']:.4f}"
            words = f"checkpoint of step {event['step']:,}{loss}"
        case "micro_batch":
            words = f"out of memory: from {event['before']} windows at once to {event['windows']}"
        case "arithmetic" if event["before"]:
            words = f"not bit-equal from step {event['step']:,} on: {event['words']}, before {event['before']}"
        case "alert":
            words = f"alert: {event['reason']}"
        case "quarantined":
            words = f"checkpoint of step {event['step']:,} quarantined, {event['reason']}"
        case "ended":
            reason = "" if event["reason"] == event["state"] else f": {event['reason']}"
            words = f"back to the queue{reason}" if event["state"] == "queued" else f"{event['state']}{reason}"
        case _:
            return None
    return Text.assemble((time.strftime("%H:%M:%S  ", time.localtime(event["time"])), FAINT), words)


def all_jobs(seen: SeenAll, width: int, height: int) -> list[Text]:
    """The jobs in work, then those that wait, then the newest that ended, as far as they fit."""
    jobs = seen.jobs
    lines = [_summary(seen), Text(seen.note or "", style="yellow")]
    if not jobs:
        return _fitted([*lines, Text("no jobs yet; gptjobs submit train --help", style=FAINT)], width, height)
    in_work = [each for each in jobs if each.state.has_trainer]
    waiting = [each for each in jobs if not each.state.has_trainer and not each.state.is_terminal]
    ended = [each for each in jobs if each.state.is_terminal][-_ENDED_SHOWN:]
    room = max(height - len(lines) - 2 - len(in_work) - len(ended), 0)
    lines += _table([*in_work, *waiting[:room], *ended], width)[: max(height - len(lines) - 1, 0)]
    if waiting[room:]:
        lines.append(Text(f"and {len(waiting[room:])} more that wait", style=FAINT))
    return _fitted(lines, width, height)


def _summary(seen: SeenAll) -> Text:
    slots, busy = sum(len(each.slots) for each in seen.workers), sum(each.busy for each in seen.workers)
    words = [f"{len(seen.workers)} worker{'' if len(seen.workers) == 1 else 's'}, {busy} of {slots} slots busy"]
    for state in JobState:
        count = sum(each.state is state for each in seen.jobs)
        if count:
            words.append(f"{count} {state}")
    return Text.assemble(("gptjobs", "bold"), "  ", (" · ".join(words), FAINT))


def _table(jobs: Sequence[Job], width: int) -> list[Text]:
    shown = [each.to_dict() for each in jobs]

    def numbers(name: str, form: str) -> list[Text]:
        return [Text(output.number(each[name], form)) for each in shown]

    count = Counter(each.spec.called for each in jobs)
    names = [Text(each.spec.called if count[each.spec.called] == 1 else each.spec.id) for each in jobs]
    for each in names:
        each.truncate(_NAME_COLUMNS, overflow="ellipsis")
    columns = [
        _Column(title="JOB", cells=names),
        _Column(title="STATE", cells=[_state(each) for each in jobs]),
        _Column(title="STEP", cells=[_stage(each) for each in jobs], right=True),
        _Column(title="LOSS", cells=numbers("train_loss", ".3f"), right=True, left_out=4),
        _Column(title="VAL", cells=numbers("val_loss", ".3f"), right=True, left_out=5),
        _Column(title="TOKENS/S", cells=numbers("tokens_per_s", ",.0f"), right=True, left_out=2),
        _Column(
            title="LEFT",
            cells=[Text("-" if each["eta_s"] is None else duration(each["eta_s"])) for each in shown],
            right=True,
            left_out=3,
        ),
        _Column(title="DEVICE", cells=[Text(each["device"]) for each in shown], left_out=1),
    ]
    while _room(columns, width) < _BAR_COLUMNS[0] and any(each.left_out for each in columns):
        columns.remove(min((each for each in columns if each.left_out), key=lambda each: each.left_out))
    room = min(_room(columns, width), _BAR_COLUMNS[1])
    if room >= _BAR_COLUMNS[0]:
        columns.insert(2, _Column(title="PROGRESS", cells=[_bar(each, room) for each in jobs]))
    return _rows(columns)


def _room(columns: Sequence[_Column], width: int) -> int:
    """What is left for the bars."""
    return width - sum(each.width + 2 for each in columns)


def _rows(columns: Sequence[_Column]) -> list[Text]:
    lines = []
    for cells in zip(*([Text(each.title, style=FAINT), *each.cells] for each in columns), strict=True):
        for cell, column in zip(cells, columns, strict=True):
            room = column.width - cell.cell_len
            (cell.pad_left if column.right else cell.pad_right)(room)
        lines.append(Text("  ").join(cells))
    return lines


def _state(job: Job) -> Text:
    return Text(job.state.value, style=output.COLOURS.get(job.state, ""))


def _stage(job: Job) -> Text:
    """How far a job is, in a few words."""
    shown = job.to_dict()
    if shown["step"] is not None:
        return Text(f"{shown['step']:,}/{shown['end_step']:,}")
    done = job.progress.get("done")
    return Text((shown["stage"] or "-") + ("" if done is None or not shown["stage"] else f" {done:.0%}"))


def _bar(job: Job, width: int) -> Text:
    shown = job.to_dict()
    done = shown["step"] / shown["end_step"] if shown["step"] is not None else job.progress.get("done") or 0.0
    halves = round(2 * width * min(done, 1.0))
    full = "━" * (halves // 2) + "╸" * (halves % 2)
    return Text.assemble((full, output.COLOURS.get(job.state, "")), ("─" * (width - len(full)), FAINT))


def _fitted(lines: Sequence[Text], width: int, height: int) -> list[Text]:
    fitted = list(lines[:height])
    for each in fitted:
        each.rstrip()
        each.truncate(width, overflow="ellipsis")
    return fitted
