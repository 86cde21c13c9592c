"""The scene of each test in this folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from gptjobs.layout import Layout
from tests.faults.scene import Scene


@pytest.fixture
def scene(layout: Layout, tmp_path: Path) -> Iterator[Scene]:
    made = Scene(layout, tmp_path)
    yield made
    made.clear()
