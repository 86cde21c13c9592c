"""What can follow a job's curves, besides what gptjobs draws itself: TensorBoard's files, and Weights & Biases."""

import importlib.util
from collections.abc import Iterable, Mapping

from gptjobs.errors import UsageError

EXTRAS: Mapping[str, str] = {"tensorboard": "tb", "wandb": "track"}
"""trackers, each by the name of its package, and the extra of gptjobs that installs it"""


def check(names: Iterable[str]) -> None:
    """Raise UsageError for a tracker whose package is not installed here."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UsageError(
                f"--track {name} needs the package {name}, which is not installed on this host",
                hint=f"pip install 'gptjobs[{EXTRAS[name]}]'",
            )
