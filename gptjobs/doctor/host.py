"""This host: what is installed, and whether its devices compute."""

import importlib.util
import platform
from collections.abc import Iterator
from importlib.metadata import version

import gptjobs
from gptjobs.doctor.check import Check, problem, skipped
from gptjobs.doctor.child import NoAnswer, answer

WORKER_PACKAGES = (
    "torch", "numpy", "tiktoken", "matplotlib", "safetensors", "optuna", "cmaes", "psutil", "prometheus_client",
)  # fmt: skip
DEVICE_LIMIT_S = 60.0


def is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def packages() -> Check:
    """Whether this installation is a client's or a worker's, and whole. What a client has of a worker's, such as numpy
    for other ends, makes it none: torch does."""
    here = f"gptjobs {gptjobs.__version__}, Python {platform.python_version()}"
    versions = ", ".join(f"{name} {version(name)}" for name in ("celery", "redis"))
    if not is_installed("torch"):
        return Check(name="packages", says=f"{here}, {versions}: a client, which submits jobs and trains none")
    missing = [name for name in WORKER_PACKAGES if not is_installed(name)]
    if missing:
        says = f"{here}: a worker here would lack {', '.join(missing)}"
        return problem("packages", says, "pip install 'gptjobs[worker]'")
    of_worker = ", ".join(f"{name} {version(name)}" for name in WORKER_PACKAGES)
    return Check(name="packages", says=f"{here}, {versions}, {of_worker}")


def flower() -> Check:
    if is_installed("flower"):
        return Check(name="flower", says=f"flower {version('flower')}")
    return skipped("flower", "not installed: gptjobs up has no web page (pip install 'gptjobs[local]')")


def devices() -> Iterator[Check]:
    """What a worker would offer here, and whether torch computes on it. Asked of processes of their own, as this one
    imports neither the worker nor torch."""
    if not is_installed("torch"):
        yield skipped("devices", "no torch here: no worker")
        return
    try:
        offered = answer("worker.host", limit_s=DEVICE_LIMIT_S).split()
    except NoAnswer as error:
        yield problem("devices", f"what a worker would offer here is not known: {error}", "nvidia-smi")
        return
    try:
        computed = answer("worker.trainer.device", limit_s=DEVICE_LIMIT_S).split()
    except NoAnswer as error:
        hint = "nvidia-smi" if error.hung else "pip install --force-reinstall torch"
        yield problem("devices", f"torch does not work here: {error}", hint)
        return
    kind = offered[0].partition(":")[0]
    if missing := [each for each in offered if each not in computed]:
        here = computed[0].partition(":")[0]
        says = f"a worker would offer {' '.join(offered)}, but torch here computes only on {' '.join(computed)}"
        if here == kind:
            yield problem("devices", f"{says}, not on {' '.join(missing)}", "nvidia-smi; unset CUDA_VISIBLE_DEVICES")
        else:
            hint = f"pip install a torch built for {kind}, or gptjobs worker start --device {here}"
            yield problem("devices", says, hint)
        return
    yield Check(name="devices", says=f"a worker here offers {' '.join(offered)}, and torch computes on it")
