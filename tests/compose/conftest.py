"""One stack for all tests of this folder: its images take minutes."""

import shutil
from collections.abc import Iterator

import pytest

from tests.compose.stack import BUILD_LIMIT_S, GPU, LAN, Stack, docker, fresh_copy
from tests.conftest import english, eventually


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Up and healthy, with a text in shared_data/. Skipped, and not passed, where there is no engine."""
    if shutil.which("docker") is None:
        pytest.skip("there is no docker here: nothing was looked at")
    made = Stack(fresh_copy(tmp_path_factory.mktemp("compose") / "gptjobs"))
    for files in ((), GPU):
        made(*files, "--profile", "*", "config", "--quiet")
    made(*LAN, "config", "--quiet", GPTJOBS_LAN_ADDRESS="192.168.1.10")
    if docker("info", check=False).returncode:
        pytest.skip("no Docker engine answers: the files are valid, and nothing was run")
    text = made.folder / "shared_data" / "text.md"
    text.write_text(english(9000))
    try:
        made("build", timeout=BUILD_LIMIT_S)
        made("up", "--detach")
        eventually(lambda: states(made) == {"healthy"})
        yield made
    finally:
        made.down()
        docker("image", "rm", *(f"{made.name}-{each}" for each in ("client", "worker")), check=False)


def states(stack: Stack) -> set[str]:
    """How healthy the services are that stay up."""
    services = ("redis", "worker", "flower")
    return {each["State"].get("Health", {}).get("Status") for name in services for each in stack.containers(name)}
