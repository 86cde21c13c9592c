"""What a job leaves in `outputs/`: metrics and events along its lineage, a summary, a picture of its losses.

Hosts never append to one file: an attempt writes its own lines, and these are put together from them.
"""

import json
from pathlib import Path
from typing import Any

from gptjobs import checkpoint, durable, record
from gptjobs.config import Plan
from gptjobs.job import JobSpec, Outcome
from gptjobs.layout import Layout

_EVENTS = ("checkpoint", "alert", "finished", "ended")


def put_together(layout: Layout, spec: JobSpec) -> list[dict[str, Any]]:
    """Write `metrics.jsonl` and `events.jsonl` anew from the attempts' lines; returns the metrics."""
    by_step: dict[int, dict[str, Any]] = {}
    for token, until in checkpoint.lineage(layout, spec.id):
        for line in record.attempt_lines(layout, spec.id, token):
            if line["kind"] == "progress" and line["step"] <= until:
                _add(by_step, line)
    metrics = [by_step[step] for step in sorted(by_step)]
    events: list[dict[str, Any]] = [{"schema": 1, "kind": "submitted", "time": spec.submitted_at}]
    for attempt in checkpoint.attempts(layout, spec.id):
        events.append(
            {
                "schema": 1,
                "kind": "attempt",
                "time": attempt.began_at,
                "token": attempt.token,
                "worker": attempt.worker,
                "device": attempt.device,
                "start": attempt.start,
                "step": attempt.start_step,
            }
        )
        for line in record.attempt_lines(layout, spec.id, attempt.token):
            if line["kind"] in _EVENTS:
                events.append({**line, "token": attempt.token})
    _write_lines(layout.metrics_file(spec.id), metrics)
    _write_lines(layout.events_file(spec.id), events)
    return metrics


def _add(by_step: dict[int, dict[str, Any]], line: dict[str, Any]) -> None:
    """An attempt begins with a line at the step where the one before it ended. The older has the mean of more
    steps; the newer may have the evaluation that the older was stopped in."""
    older = by_step.setdefault(line["step"], line)
    if older["val_loss"] is None:
        by_step[line["step"]] = {**older, "val_loss": line["val_loss"], "eval_context": line["eval_context"]}


def _write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    durable.write(path, "".join(json.dumps(each) + "\n" for each in records).encode())


def summarise(layout: Layout, spec: JobSpec, plan: Plan, outcome: Outcome) -> None:
    """Write `summary.md` and `loss.png`."""
    metrics = put_together(layout, spec)
    durable.write(layout.summary_file(spec.id), _summary(layout, spec, plan, outcome, metrics).encode())
    if metrics:
        _draw(layout.loss_picture(spec.id), metrics, spec.name or spec.id)


def _summary(layout: Layout, spec: JobSpec, plan: Plan, outcome: Outcome, metrics: list[dict[str, Any]]) -> str:
    evaluated = [each for each in metrics if each["val_loss"] is not None]
    settled = plan.settled
    last_step = metrics[-1]["step"] if metrics else settled.start_step
    lines = [f"# Job {spec.name or spec.id}", ""]
    lines += [f"- id: {spec.id}", f"- {outcome}"]
    lines += [f"- steps {settled.start_step} → {last_step} (planned: {settled.end_step})"]
    if plan.parent:
        lines += [f"- from {plan.parent}"]
    if evaluated:
        first, last = evaluated[0], evaluated[-1]
        best = min(evaluated, key=lambda each: float(each["val_loss"]))
        lines += [
            f"- validation loss {first['val_loss']:.4f} at step {first['step']} → {last['val_loss']:.4f} at "
            f"step {last['step']}; best {best['val_loss']:.4f} at step {best['step']} "
            f"(nats a token, context {last['eval_context']})"
        ]
    lines += [f"- data {settled.train.data}, SHA-256 {plan.data_digest}"]
    lines += ["", "![losses](loss.png)"] if metrics else []
    lines += ["", "## Checkpoints", "", "| file | step | tokens | val loss |"]
    lines += ["| --- | ---: | ---: | ---: |"]
    for each in checkpoint.counting(layout, spec.id):
        manifest = each.manifest
        val_loss = "" if manifest.losses.val_loss is None else f"{manifest.losses.val_loss:.4f}"
        lines += [f"| {each.name} | {manifest.step} | {manifest.tokens} | {val_loss} |"]
    lines += ["", "## Configuration", "", "| | value | from |", "| --- | ---: | --- |"]
    values = settled.to_dict()
    for name, value in {**values["model"], **values["train"]}.items():
        lines += [f"| {name} | {value} | {settled.origins[name]} |"]
    return "\n".join([*lines, ""])


def _draw(path: Path, metrics: list[dict[str, Any]], title: str) -> None:
    """Losses over tokens, the axis on which jobs of different batch and block sizes compare."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, label, style in (("train_loss", "train", "-"), ("val_loss", "validation", "o-")):
        points = [(each["tokens"], each[name]) for each in metrics if each[name] is not None]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, markersize=4, linewidth=1.2)
    axes.set(xlabel="tokens trained on", ylabel="loss (nats a token)", title=title)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    axes.legend()
    beside = durable.temporary(path)
    figure.savefig(beside, format="png")
    beside.replace(path)
