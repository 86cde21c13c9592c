"""Weights & Biases, by its own package, which takes its key, project and mode from the worker's environment.

There a step that was logged cannot be taken back, and a lower one is ignored. So a job has one run as long as its steps
only go up; an attempt that goes back begins another, with all that counts before it.
"""

import wandb

from gptjobs.history import Line
from gptjobs.job import JobState, Outcome
from worker.subject import Subject, values


class Wandb:
    """Named as the job, grouped by sweep; alerts as W&B's alerts, the outcome in its summary."""

    def __init__(self, subject: Subject) -> None:
        spec, branch, attempt = subject.spec, subject.branch, subject.attempt
        place = {"attempt": attempt.token, "worker": attempt.worker, "device": attempt.device}
        self._run = wandb.init(
            id=spec.id if branch is None else f"{spec.id}-{branch}",
            name=spec.called if branch is None else f"{spec.called} (attempt {branch})",
            group=subject.group,
            job_type=spec.kind,
            config={**subject.hyperparameters, **place},
            resume="allow",
            settings=wandb.Settings(
                console="off", silent=True, disable_git=True, x_disable_meta=True, x_disable_stats=True
            ),
        )

    def progress(self, line: Line) -> None:
        if line["step"] >= self._run.starting_step:  # what the server does not have already; offline that is nothing
            self._run.log({**values(line), "_timestamp": line["time"]}, step=line["step"], commit=True)

    def alert(self, line: Line, *, is_told: bool) -> None:
        if not is_told:
            text = f"step {line['step']}: {line['reason']}"
            self._run.alert(title=line["name"], text=text, level="WARN")

    def flush(self) -> None:
        pass

    def end(self, outcome: Outcome | None) -> None:
        if outcome is not None:
            self._run.summary["outcome"] = str(outcome)
        is_bad = outcome is None or outcome.state in (JobState.FAILED, JobState.DIVERGED)
        self._run.finish(exit_code=int(is_bad))
