"""`python -m tests.faults.saves FOLDER`: a trainer that is killed before each operation of a checkpoint's writing, in
the background, while it waits to train on.

In FOLDER/root lies a job with a checkpoint of its first step. For each operation on a file that saving the second one
takes, a child with a copy of that root, FOLDER/<number>, is killed right before it; the last child lives through all.
Prints the operations.
"""

import itertools
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gptjobs.config import Plan
from gptjobs.layout import Layout
from worker.trainer import optim
from worker.trainer.commit import Hashed
from worker.trainer.device import open_device
from worker.trainer.model import GPT
from worker.trainer.saving import Saver
from worker.trainer.state import TrainingState

JOB, TOKEN = "3f9a00000001", 1
WRITES = 60
"""of the hundreds of writes that make a file, one in so many counts as an operation"""


class Operations:
    """Counts the operations on files of a root, and kills the process before one of them."""

    def __init__(self, root: Path, fatal: int, report: int) -> None:
        self._root, self._fatal, self._report, self._count = str(root), fatal, report, 0
        sys.addaudithook(self._audit)
        os.fsync = self._counted("fsync", os.fsync)
        Hashed.write = self._counted("write", Hashed.write, every=WRITES)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        changes = event in ("os.mkdir", "os.link", "os.rename", "os.remove") or event == "open"
        if changes and str(arguments[0]).startswith(self._root):
            self._note(event)

    def _counted(self, name: str, real: Callable[..., Any], every: int = 1) -> Callable[..., Any]:
        calls = itertools.count()

        def counted(*arguments: Any) -> Any:
            if next(calls) % every == 0:
                self._note(name)
            return real(*arguments)

        return counted

    def _note(self, name: str) -> None:
        self._count += 1
        os.write(self._report, f"{self._count} {name}\n".encode())
        if self._count == self._fatal:
            os.kill(os.getpid(), signal.SIGKILL)


def saved(root: Path, at: TrainingState) -> None:
    """Train a step without data, and save."""
    layout = Layout(root)
    plan = Plan.from_dict(json.loads(layout.config_file(JOB).read_bytes()))
    at.optimizer.zero_grad()
    sum(each.sum() for each in at.model.parameters()).backward()
    at.optimizer.step()
    at.step += 1
    with Saver(layout, plan, TOKEN, lambda line: None) as saver:
        saver.begin(at)
        saver.before_update()


def main() -> int:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    plan = Plan.from_dict(json.loads(Layout(folder / "root").config_file(JOB).read_bytes()))
    model = GPT(plan.settled.model)
    at = TrainingState(model=model, optimizer=optim.adamw(model, plan.settled.train, open_device("cpu", "float32")))
    saved(folder / "root", at)
    fatal, lives = 0, False
    while not lives:
        fatal += 1
        root = folder / str(fatal)
        shutil.copytree(folder / "root", root)
        child = os.fork()
        if child == 0:
            Operations(root, fatal, os.open(folder / f"{fatal}.log", os.O_WRONLY | os.O_CREAT))
            saved(root, at)
            os._exit(0)
        lives = os.waitpid(child, 0)[1] == 0
    print((folder / f"{fatal}.log").read_text(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
