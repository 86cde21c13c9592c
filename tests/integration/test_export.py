"""Checkpoints for other programs: what they compute from them is what we do; and back again."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gptjobs import checkpoint, record
from gptjobs.checkpoint import Checkpoint
from gptjobs.data import encoding, tokenizer
from gptjobs.job import JobSpec
from gptjobs.layout import Layout
from tests.conftest import Commands
from tests.unit.conftest import NOON
from tests.unit.test_foreign import NANOGPT
from tests.unit.test_training import CPU, attempted, planned
from worker.trainer import state, stored

TOKENS = torch.tensor([[84, 104, 101, 32, 111, 119, 108], [32, 115, 97, 119, 32, 105, 116]])


def trained(layout: Layout, **values: Any) -> Checkpoint:
    record.write_spec(layout, JobSpec(id="first", kind="train", submitted_at=NOON))
    return attempted(layout, planned(layout, "first", **values)).last


@torch.no_grad()
def ours(layout: Layout, found: Checkpoint) -> Tensor:
    return state.load_model(layout, found, CPU)(TOKENS)


@pytest.mark.parametrize("values", [{}, {"activation": "gelu", "bias": False}, {"tied": False}])
def test_transformers_computes_the_same_from_an_exported_folder(
    gptjobs: Commands, layout: Layout, tmp_path: Path, values: dict[str, Any]
) -> None:
    from transformers import AutoTokenizer, GPT2LMHeadModel

    found = trained(layout, **values)
    folder = tmp_path / "exported"
    gptjobs.ok("checkpoints", "export", "first@last", str(folder))
    model = GPT2LMHeadModel.from_pretrained(folder).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=TOKENS).logits, ours(layout, found), rtol=1e-4, atol=1e-5)
    text = "The owl — naïve, 你好"
    read = AutoTokenizer.from_pretrained(folder)
    assert read.encode(text) == list(text.encode())
    assert read.decode(list(text.encode())) == text

    gptjobs.ok("checkpoints", "import", str(folder), "--encoding", "bytes")
    (back,) = checkpoint.brought(layout)
    torch.testing.assert_close(ours(layout, back), ours(layout, found), rtol=1e-5, atol=1e-6)
    refused = gptjobs("checkpoints", "export", "first@last", str(folder))
    assert refused.returncode == 3 and "is there already" in refused.stderr


def test_an_exported_file_of_nanogpts_comes_back_with_adams_moments(
    gptjobs: Commands, layout: Layout, tmp_path: Path
) -> None:
    found = trained(layout, activation="gelu")
    file = str(tmp_path / "ckpt.pt")
    gptjobs.ok("checkpoints", "export", "first@last", file, "--format", "nanogpt")
    gptjobs.ok("checkpoints", "import", file)
    (back,) = checkpoint.brought(layout)
    assert (back.manifest.layout, back.manifest.step, back.manifest.has_moments) == ("nanoGPT", 6, True)
    assert back.manifest.losses.val_loss == found.manifest.losses.val_loss
    one, other = (stored.read(layout.path(each.name), each.manifest) for each in (found, back))
    assert one["model"].keys() == other["model"].keys()
    for name, tensor in one["model"].items():
        assert torch.equal(tensor, other["model"][name])
        for moment in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(one["optimizer"][name][moment], other["optimizer"][name][moment]), (name, moment)


def test_a_model_with_a_head_of_its_own_is_none_of_nanogpts(gptjobs: Commands, layout: Layout, tmp_path: Path) -> None:
    trained(layout, tied=False)
    ended = gptjobs("checkpoints", "export", "first@last", str(tmp_path / "ckpt.pt"), "--format", "nanogpt")
    assert ended.returncode == 3 and "a head of its own" in ended.stderr


@pytest.mark.skipif(NANOGPT not in os.environ, reason=f"{NANOGPT} names no clone of github.com/karpathy/nanoGPT")
def test_nanogpts_own_model_has_the_same_loss_from_an_exported_file(gptjobs: Commands, layout: Layout) -> None:
    found = trained(layout, activation="gelu")
    gptjobs.ok("checkpoints", "export", "first@last", "ckpt.pt", "--format", "nanogpt")
    program = """
import json, sys, torch
sys.path.insert(0, sys.argv[1])
from model import GPT, GPTConfig
saved = torch.load("ckpt.pt", weights_only=True)
model = GPT(GPTConfig(**saved["model_args"]))
model.load_state_dict(saved["model"])
optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), "cpu")
optimizer.load_state_dict(saved["optimizer"])
tokens = torch.tensor(json.loads(sys.argv[2]))
print("loss", model(tokens[:, :-1], tokens[:, 1:].contiguous())[1].item())
"""
    words = [os.environ[NANOGPT], json.dumps(TOKENS.tolist())]
    done = subprocess.run([sys.executable, "-c", program, *words], cwd=layout.root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = state.load_model(layout, found, CPU).losses(TOKENS[:, :-1], TOKENS[:, 1:]).mean().item()
    assert float(done.stdout.split()[-1]) == pytest.approx(expected, abs=1e-4)


def test_the_tokenizer_of_byte_pairs_merges_as_tiktoken_does(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPT-2's own table cannot be had everywhere: this one is small."""
    import tiktoken
    from tiktoken_ext.openai_public import r50k_pat_str
    from transformers import GPT2Tokenizer

    pairs = (
        b"he",
        b"ll",
        b"in",
        b"an",
        b"hell",
        b" t",
        b"the",
        b" the",
        b"hello",
        b"\xc3\xa9",
        b"ana",
        b"ing",
        b" hello",
    )
    ranks = {bytes([each]): place for place, each in enumerate(range(256))}
    ranks |= {token: 256 + place for place, token in enumerate(pairs)}
    monkeypatch.setattr(encoding, "ranks", lambda layout: ranks)
    for name, content in tokenizer.files(layout, "r50k_base").items():
        (tmp_path / name).write_bytes(content)
    known = tiktoken.Encoding("small", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={})
    read = GPT2Tokenizer.from_pretrained(tmp_path)
    for text in ("hello the hell", "thinking banana ananas", "café the\n\nhello  the hellhello", "naïve 你好"):
        assert read.encode(text) == known.encode_ordinary(text)
        assert read.decode(known.encode_ordinary(text)) == text


def test_a_sample_goes_on_from_its_prompt_and_is_the_same_with_the_same_seed(gptjobs: Commands, layout: Layout) -> None:
    trained(layout)
    words = ("checkpoints", "sample", "first@last", "--prompt", "The owl", "--tokens", "30", "--device", "cpu")
    first = gptjobs(*words, "--seed", "1")
    assert first.returncode == 0 and first.stdout.startswith("The owl") and len(first.stdout) > 20
    assert gptjobs(*words, "--seed", "1").stdout == first.stdout != gptjobs(*words, "--seed", "2").stdout
    assert gptjobs("checkpoints", "sample", "first@last", "--prompt", "").returncode == 2
