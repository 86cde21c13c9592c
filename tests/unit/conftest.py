"""What unit tests share: overrides as a user types them, attempts, checkpoints made by hand of any bytes."""

import hashlib
import json
from typing import Any

from gptjobs import checkpoint
from gptjobs.checkpoint import Attempt, Cursor, Losses, Manifest
from gptjobs.config import Given, Overrides, option, settle
from gptjobs.layout import Layout, checkpoint_name

NOON = 1_763_812_800.0
"""seconds since the epoch"""


def typed(**values: Any) -> Overrides:
    """Overrides as flags of a command."""
    return {name: Given(value, option(name)) for name, value in values.items()}


NANO = settle(
    typed(model="nano", data="sources/text.md", steps=400, batch_size=8, block_size=64, warmup_steps=20, seed=7)
)


def manifest(**changes: Any) -> Manifest:
    """That of step 200 of the job `first`, unless changed."""
    values: dict[str, Any] = {
        "job": "first",
        "token": 1,
        "step": 200,
        "tokens": 102_400,
        "losses": Losses(train_loss=2.5, val_loss=2.75, eval_step=200, eval_context=64, eval_tokens=4096),
        "cursor": Cursor(block_size=64, windows=1600),
        "settled": NANO,
        "data_name": "text",
        "data_digest": "d" * 64,
        "parent": None,
        "size": 7,
        "sha256": hashlib.sha256(b"weights").hexdigest(),
        "versions": {"gptjobs": "0.1.0"},
    }
    return Manifest(**{**values, **changes})


def commit(layout: Layout, job: str, token: int, step: int, parent: str | None = None, **changes: Any) -> str:
    """Write a checkpoint of a few bytes and its manifest; returns its name."""
    content = f"weights of {job} at step {step} by {token}".encode()
    path = layout.job_checkpoints(job) / checkpoint_name("text", step, NOON + token)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    values = {"job": job, "token": token, "step": step, "parent": parent, "size": len(content), "sha256": sha256}
    made = manifest(**{**values, **changes})
    checkpoint.manifest_path(path).write_text(json.dumps(made.to_dict()))
    return layout.name_of_checkpoint(job, path.name)


def begin(layout: Layout, job: str, token: int, start: str | None = None) -> Attempt:
    """Begin an attempt of the job."""
    from_ = checkpoint.read(layout, start) if start else None
    return checkpoint.begin_attempt(layout, job, token, from_, worker="worker@host", device="cpu")
