"""What a job leaves in `outputs/`: metrics and events along its lineage, a summary, a picture of its losses.

Hosts never append to one file: an attempt writes its own lines, and these are put together from them.
"""

import json
from pathlib import Path
from typing import Any

from gptjobs import checkpoint, durable, picture
from gptjobs.config import Plan
from gptjobs.contract import value_in_words
from gptjobs.history import History
from gptjobs.job import JobSpec, Outcome
from gptjobs.layout import Layout


def put_together(layout: Layout, spec: JobSpec) -> History:
    """Write `metrics.jsonl` and `events.jsonl` anew from the attempts' lines; once more where there were events
    meanwhile: on a mount that hangs, a later attempt may have begun, and ended, before these files have their names."""
    history, told = History(layout, spec.id), -1
    submitted = {"schema": 1, "kind": "submitted", "time": spec.submitted_at}
    while len(history.read().events) > told:
        told = len(history.events)
        _write_lines(layout.metrics_file(spec.id), history.metrics)
        _write_lines(layout.events_file(spec.id), [submitted, *history.events])
    return history


def _write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    durable.write(path, "".join(json.dumps(each) + "\n" for each in records).encode())


def summarise(layout: Layout, spec: JobSpec, plan: Plan, outcome: Outcome) -> None:
    """Write `summary.md` and `loss.png`."""
    history = put_together(layout, spec)
    metrics = history.metrics
    durable.write(layout.summary_file(spec.id), _summary(layout, spec, plan, outcome, history).encode())
    if metrics and spec.sweep is None:  # that of a sweep has all its trials; one costs a second of the slot's time
        picture.draw(layout.loss_picture(spec.id), {spec.called: metrics})


def _summary(layout: Layout, spec: JobSpec, plan: Plan, outcome: Outcome, history: History) -> str:
    metrics = history.metrics
    evaluated = [each for each in metrics if each["val_loss"] is not None]
    settled = plan.settled
    last_step = metrics[-1]["step"] if metrics else settled.start_step
    lines = [f"# Job {spec.called}", ""]
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
    lines += ["", "![losses](loss.png)"] if metrics and spec.sweep is None else []
    lines += _alerts(history)
    lines += ["", "## Checkpoints", "", "| file | step | tokens | val loss |"]
    lines += ["| --- | ---: | ---: | ---: |"]
    for each in checkpoint.counting(layout, spec.id):
        manifest = each.manifest
        val_loss = "" if manifest.losses.val_loss is None else f"{manifest.losses.val_loss:.4f}"
        lines += [f"| {each.name} | {manifest.step} | {manifest.tokens} | {val_loss} |"]
    lines += ["", "## Configuration", "", "| | value | from |", "| --- | ---: | --- |"]
    values = settled.to_dict()
    for name, value in {**values["model"], **values["train"]}.items():
        lines += [f"| {name} | {value_in_words(value)} | {settled.origins[name]} |"]
    return "\n".join([*lines, ""])


def _alerts(history: History) -> list[str]:
    told = [each for each in history.events if each["kind"] == "alert"]
    return [
        *(["", "## Alerts", ""] if told else []),
        *(f"- step {each['step']}, {each['name']}: {each['reason']}" for each in told),
    ]
