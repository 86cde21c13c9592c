"""`gptjobs diagnose JOB --replay FROM:TO`: steps of a job, run again in a process that loads torch."""

import json
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from gptjobs import case, durable, replayed
from gptjobs.cli import output
from gptjobs.cli.tensors import child_of
from gptjobs.config import Plan
from gptjobs.course import plan_of
from gptjobs.errors import GptjobsError, NotFound, Refused, UsageError
from gptjobs.layout import Layout

_MOST_STEPS = 1000
"""that are run again"""


@dataclass
class _Replay:
    """What the child has said so far."""

    start: str | None = None
    step: int = 0
    device: str = ""
    text: dict[int, float] = field(default_factory=dict)
    variants: dict[str, dict[int, float]] = field(default_factory=dict)


def show_replay(layout: Layout, job: str, name: str, words: str, device: str | None, as_json: bool) -> None:
    """Run the steps that `words` names again, and print their losses and what they say. Raises UsageError, NotFound,
    Refused."""
    steps = _steps_of(words, plan_of(layout, job), name)
    first, last = steps[0], steps[-1]
    flight = _flight_of(layout, job, steps)
    recorded = {each["step"]: each["loss"] for each in flight.get("steps", []) if each["step"] in steps}
    asked = [str(layout.root), job, str(first), str(last)]
    left_out = [str(each["step"]) for each in flight.get("steps", []) if each.get("left_out")]
    asked += [f"--token={flight['token']}", *(["--left-out", *left_out] if left_out else [])] if flight else []
    asked += [f"--device={device}"] if device else []
    ran = _ran(asked, last)
    judgement = replayed.judge(recorded, ran.text, ran.variants, steps, ran.device)
    if as_json:
        told = {"recorded": recorded, **asdict(ran), **asdict(judgement)}
        output.as_json({"job": job, "from": ran.start, **durable.without_nan(told)})
        return
    output.say(f"from {ran.start or 'the first weights'}, step {ran.step}, on {ran.device}")
    columns = {"IN THE JOB": recorded, "TEXT": ran.text, **{each.upper(): it for each, it in ran.variants.items()}}
    rows = [(str(step), *(output.number(it.get(step), ".4f") for it in columns.values())) for step in steps]
    output.table(("STEP", *columns), rows, right=range(1 + len(columns)))
    output.result()
    output.result(judgement.words)
    for evidence in judgement.evidence:
        output.result(f"  {evidence}")


def _steps_of(words: str, plan: Plan, name: str) -> range:
    """What `1990:2000` means, both included. Raises UsageError for what means nothing, NotFound for steps that the job
    has not."""
    first, colon, last = words.partition(":")
    if not colon or not (first.isdecimal() and last.isdecimal()) or int(first) > int(last):
        raise UsageError(f"{words} is no range of steps", hint="--replay 1990:2000")
    least, most = plan.settled.start_step + 1, plan.settled.end_step
    if int(first) < least or int(last) > most:
        raise NotFound(f"job {name} has the steps {least} to {most}", hint=f"--replay {least}:{most}, or fewer of them")
    return range(int(first), int(last) + 1)


def _flight_of(layout: Layout, job: str, steps: range) -> Mapping[str, Any]:
    """The flight record with most of these steps, of the first attempt where several have as many: there the spike
    was, and not in the attempt that went back. Nothing where none has one."""
    found = case.flights(layout, job)
    most = max(found, key=lambda each: sum(step["step"] in steps for step in each["steps"]), default={})
    return most if any(step["step"] in steps for step in most.get("steps", ())) else {}


def _ran(asked: list[str], last: int) -> _Replay:
    """Raises Refused with what stands against it."""
    ran = _Replay()
    for said in _lines_of("worker.replay", *asked):
        if "refused" in said:
            raise Refused(said["refused"], hint=said["hint"])
        if "variants" in said:
            ran.start, ran.step, ran.device = said["start"], said["step"], said["device"]
            if last - ran.step > _MOST_STEPS:
                raise Refused(
                    f"the checkpoint before is {last - ran.step:,} steps away", hint="fewer steps, later ones"
                )
            ran.variants = {each: {} for each in said["variants"]}
        elif "text" in said:
            ran.text = {int(step): loss for step, loss in said["text"].items()}
        elif "variant" in said:
            ran.variants[said["variant"]][said["step"]] = said["loss"]
    if not ran.text or not all(last in losses for losses in ran.variants.values()):
        raise GptjobsError("the replay ended early", hint="what it said stands above")
    return ran


def _lines_of(module: str, *words: str) -> Iterator[dict[str, Any]]:
    with subprocess.Popen(child_of(module, *words), stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            for line in child.stdout:
                yield json.loads(line)
        finally:
            child.kill()
