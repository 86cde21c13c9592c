"""What importing may import: help must be quick, and a client has neither torch nor what workers need."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "optuna", "celery", "kombu", "redis", "tiktoken", "matplotlib", "flower", "psutil")
OF_WORKERS = ("torch", "numpy", "tiktoken", "matplotlib", "optuna", "psutil")

IMPORT_ALL = """
import importlib, pkgutil, sys

def import_all(name):
    package = importlib.import_module(name)
    names = [each.name for each in pkgutil.walk_packages(package.__path__, name + ".")]
    names.remove("gptjobs.study") if "gptjobs.study" in names else None  # Optuna's one door, which workers alone open
    for each in names:
        importlib.import_module(each)
    return names
"""

BLOCK = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Blocker())
"""


def run(program: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *arguments], capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("package", ["gptjobs.cli", "gptjobs.data"])
def test_importing_commands_imports_nothing_heavy(package: str):
    done = run(f"{IMPORT_ALL}\nprint(len(import_all({package!r})))\nprint(*(set({HEAVY!r}) & set(sys.modules)))")
    assert done.returncode == 0, done.stderr
    count, heavy = done.stdout.splitlines()
    assert int(count) > 1
    assert heavy == ""


def test_all_of_gptjobs_imports_where_only_a_client_is_installed():
    program = f"BLOCKED = {OF_WORKERS!r}\n{BLOCK}{IMPORT_ALL}\nprint(*import_all('gptjobs'))"
    done = run(program)
    assert done.returncode == 0, done.stderr
    assert {"gptjobs.store", "gptjobs.broker", "gptjobs.planning", "gptjobs.cli.submit"} <= set(done.stdout.split())


def test_the_block_on_imports_holds():
    done = run(f"BLOCKED = {OF_WORKERS!r}\n{BLOCK}\nimport torch")
    assert "torch is not installed here" in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["submit", "resume", "--help"], ["version"]], ids=" ".join)
def test_help_needs_nothing_heavy_to_be_installed(arguments: list[str]):
    done = run(f"BLOCKED = {(*HEAVY, 'rich')!r}\n{BLOCK}\nfrom gptjobs.cli import main\nmain({arguments!r})")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
