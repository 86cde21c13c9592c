"""`python -m tests.faults.trainer CONFIG --attempt TOKEN`: a trainer without torch that follows a script.

The test writes the script to `scripts/<name of the job>.json` in the storage root: a list an attempt (the last one
also for all after it), each of these words:

    step        one step and its line
    checkpoint  commit one
    torn        place a checkpoint's file, but not yet its manifest; `commit` does that
    train       step on to the job's end, a step every PACE_S, with checkpoints at the job's interval
    leak        the same, and keep LEAK_BYTES more at each step
    wait NAME   until the file NAME is in the storage root
    crash       exit with 3, without a last line
    hang        live on in silence

Each step is written to `trace/<job>.jsonl`. The weights are a hash over all steps since the first one, so that a step
that is lost, doubled or trained from the wrong checkpoint changes them.
"""

import argparse
import hashlib
import json
import os
import sys
import time
from pathlib import Path

from gptjobs import checkpoint, durable
from gptjobs.checkpoint import Checkpoint, Cursor, Losses, Manifest, manifest_path
from gptjobs.config import Plan
from gptjobs.layout import Layout, checkpoint_name
from gptjobs.progress import CheckpointWritten, Finished, Progress, StageBegan, TrainerOutcome
from worker.child import Report, Stop, mind_the_leash

PACE_S = 0.05
LEAK_BYTES = 1 << 21
CRASHED = 3
_LOOK_S = 0.02


def weights_after(steps: int) -> str:
    """What an undisturbed trainer's checkpoint holds."""
    weights = "scratch"
    for step in range(1, steps + 1):
        weights = _trained(weights, step)
    return weights


def _trained(weights: str, step: int) -> str:
    return hashlib.sha256(f"{weights} {step}".encode()).hexdigest()


class Trainer:
    """An attempt's state, and what each word of a script does to it."""

    def __init__(self, layout: Layout, plan: Plan, token: int, start: Checkpoint | None) -> None:
        self._layout, self._plan, self._token = layout, plan, token
        self.report, self.stop = Report(), Stop().listen()
        self.step, self._newest, self._weights = 0, None, "scratch"
        self._written, self._leak_bytes, self._kept = 0, 0, []
        if start is not None:
            self._weights = layout.path(start.name).read_text()
            self.step, self._newest, self._written = start.manifest.step, start.name, start.manifest.step

    def follow(self, script: list[str]) -> Finished:
        """Do what each word says, until one of them ends it or the job is asked to stop."""
        self.report(StageBegan(stage="loading"))
        self.report(StageBegan(stage="training"))
        for words in script:
            word, _, rest = words.partition(" ")
            getattr(self, f"_{word}")(*rest.split())
            if self.stop.requested and self.step < self._plan.settled.end_step:
                return self._ended("stopped")
        return self._ended("finished")

    def _ended(self, outcome: TrainerOutcome) -> Finished:
        if self._written != self.step:
            self._checkpoint()
        return Finished(outcome=outcome, step=self.step)

    def _step(self) -> None:
        self.step += 1
        self._weights = _trained(self._weights, self.step)
        line = {"token": self._token, "step": self.step, "pid": os.getpid()}
        trace = self._layout.root / "trace" / f"{self._plan.job}.jsonl"
        with trace.open("a") as lines:
            lines.write(json.dumps(line) + "\n")
        self.report(
            Progress(
                step=self.step, end_step=self._plan.settled.end_step, tokens=self.step,
                train_loss=float(self._token),  # so that its lines tell one attempt from another
                learning_rate=1e-4, grad_norm=1.0, tokens_per_s=None, eta_s=None,
            )
        )  # fmt: skip
        print(f"Step {self.step}: by {self._token}", file=sys.stderr, flush=True)

    def _train(self) -> None:
        settled = self._plan.settled
        while self.step < settled.end_step and not self.stop.requested:
            time.sleep(PACE_S)
            self._step()
            self._kept.append(b"x" * self._leak_bytes)
            if settled.saves_at(self.step):
                self._checkpoint()

    def _leak(self) -> None:
        self._leak_bytes = LEAK_BYTES
        self._train()

    def _checkpoint(self) -> None:
        self._torn()
        self._commit()

    def _torn(self) -> None:
        self.report(StageBegan(stage="saving"))
        folder = self._layout.job_checkpoints(self._plan.job)
        folder.mkdir(exist_ok=True)
        beside = durable.temporary(folder / "checkpoint.pt")
        beside.write_text(self._weights)
        now = time.time()
        while (path := folder / checkpoint_name(self._plan.data_name, self.step, now)).exists():
            now += 1.0
        durable.place(beside, path)
        self._path = path

    def _commit(self) -> None:
        plan, content = self._plan, self._weights.encode()
        manifest = Manifest(
            job=plan.job, token=self._token, step=self.step, tokens=self.step, losses=Losses(),
            cursor=Cursor(block_size=plan.settled.train.block_size, windows=self.step), settled=plan.settled,
            data_name=plan.data_name, data_digest=plan.data_digest, parent=self._newest, size=len(content),
            sha256=hashlib.sha256(content).hexdigest(), versions={}, written_at=time.time(),
        )  # fmt: skip
        durable.create(manifest_path(self._path), durable.to_json(manifest.to_dict()))
        self._newest, self._written = self._layout.name_of_checkpoint(plan.job, self._path.name), self.step
        self.report(
            CheckpointWritten(
                name=self._path.name, step=self.step, tokens=self.step, size=len(content), val_loss=None
            )
        )  # fmt: skip
        self.report(StageBegan(stage="training"))

    def _wait(self, name: str) -> None:
        while not (self._layout.root / name).exists() and not self.stop.requested:
            time.sleep(_LOOK_S)

    def _crash(self) -> None:
        os._exit(CRASHED)

    def _hang(self) -> None:
        while True:
            time.sleep(1.0)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--leash", action="store_true")
    arguments = parser.parse_args()
    mind_the_leash()
    layout = Layout(arguments.config.parents[2])
    plan = Plan.from_dict(json.loads(arguments.config.read_bytes()))
    name = json.loads(layout.job_file(plan.job).read_bytes())["name"]
    scripts = json.loads((layout.root / "scripts" / f"{name}.json").read_bytes())
    earlier = [each for each in checkpoint.attempts(layout, plan.job) if each.token < arguments.attempt]
    attempt = checkpoint.read_attempt(layout, plan.job, arguments.attempt)
    start = checkpoint.read(layout, attempt.start) if attempt.start else None
    trainer = Trainer(layout, plan, attempt.token, start)
    trainer.report(trainer.follow(scripts[min(len(earlier), len(scripts) - 1)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
