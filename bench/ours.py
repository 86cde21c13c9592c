"""Jobs for the trainer as it is shipped: `python -m worker.trainer outputs/<job>/config.json`, with no queue."""

import os
import sys
from pathlib import Path

from gptjobs import durable
from gptjobs.config import ModelConfig, Plan, Settled, TrainConfig
from gptjobs.layout import Layout

REPOSITORY = Path(__file__).parents[1]


def write_job(
    layout: Layout, job: str, model: ModelConfig, train: TrainConfig, data_name: str, data_digest: str
) -> Path:
    """The job's `config.json`, which is all that the trainer asks for beside the tokens."""
    settled = Settled(model=model, train=train, start_step=0, origins={})
    plan = Plan(
        job=job, kind="train", settled=settled, data_name=data_name, data_digest=data_digest, parent=None
    )  # fmt: skip
    path = layout.config_file(job)
    durable.make_folder(path.parent)
    durable.write(path, durable.to_json(plan.to_dict()))
    return path


def command(config: Path, device: str) -> list[str]:
    return [sys.executable, "-m", "worker.trainer", str(config), "--device", device]


def environment(threads: int) -> dict[str, str]:
    """Of every process that is measured. Nothing is written into a rival's folder, also no compiled module."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": str(REPOSITORY),
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "HF_HUB_OFFLINE": "1",
    }
