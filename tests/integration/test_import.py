"""Checkpoints of other programs, brought by real commands and gone on with by a real worker."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from gptjobs import checkpoint
from gptjobs.checkpoint import manifest_path
from gptjobs.layout import Layout
from tests import other_programs as other
from tests.conftest import Commands, Workers, english
from tests.integration.test_errors import assert_error, assert_refused
from tests.other_programs import PlainGPT

SEED_NAME = "checkpoint_gpt2_training_data_final_merged_step001000_11222025_144724.pt"
IMPORT = ("checkpoints", "import")
DRY_RESUME = ("submit", "resume", "--dry-run", "--data", "sources/text.md", "--from")


def trained(path: Path, name: str = SEED_NAME) -> Path:
    """A file of the seed's style below `path`, with Adam's moments."""
    model = PlainGPT()
    optimizer = other.adamw(other.nanogpts_groups(model))
    other.train(model, optimizer, 2)
    weights = {f"module.{each}": tensor for each, tensor in model.state_dict().items()}
    config = {"n_head": other.HEADS, "batch_size": 8, "block_size": 16}
    return other.save_as_common(path / name, weights, optimizer, step=1000, config=config)


def tree(layout: Layout) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in layout.root.rglob("*") if path.is_file()}


def test_a_whole_folder_is_imported_and_what_is_none_is_said(gptjobs: Commands) -> None:
    folder = gptjobs.layout.checkpoints
    good, done = trained(folder), trained(folder, "done.pt")
    gptjobs.ok(*IMPORT, str(done))
    (folder / "broken.pt").write_bytes(good.read_bytes()[:1000])
    torch.save({"net.0.weight": torch.zeros(3)}, folder / "cnn.pt")
    (folder / "notes.txt").write_text("no checkpoint")

    result = gptjobs(*IMPORT, "checkpoints")
    assert result.returncode == 3, result.stderr
    assert "Traceback" not in result.stderr
    assert "2 of 4 files were not imported" in result.stderr
    assert "broken.pt is no whole PyTorch checkpoint" in result.stderr
    assert "cnn.pt is no whole GPT-2" in result.stderr
    assert "checkpoints/done.pt has a manifest already" in result.stderr
    assert SEED_NAME in result.stdout
    assert {path.stem for path in folder.glob("*.json")} == {good.stem, "done"}

    again = gptjobs(*IMPORT, "checkpoints", "--json")
    assert again.returncode == 3
    shown = json.loads(again.stdout)
    assert (shown["schema"], shown["imported"], len(shown["refused"])) == (1, [], 2)

    (folder / "broken.pt").unlink()
    (folder / "cnn.pt").unlink()
    manifest_path(good).unlink()
    shown = json.loads(gptjobs.ok(*IMPORT, "checkpoints", "--json"))
    assert [(each["name"], each["step"]) for each in shown["imported"]] == [(f"checkpoints/{SEED_NAME}", 1000)]


def test_one_from_outside_is_copied_once_however_often_it_is_named(gptjobs: Commands, tmp_path: Path) -> None:
    outside = trained(tmp_path, "ckpt.pt")
    first, second = (json.loads(gptjobs.ok(*IMPORT, str(outside), "--json"))["imported"] for _ in range(2))
    assert first == second
    assert "its copy for all hosts is" in gptjobs(*DRY_RESUME, str(outside)).stderr
    copies = list((gptjobs.layout.checkpoints / "imported").iterdir())
    assert {path.suffix for path in copies} == {".pt", ".json"}
    assert len(copies) == 2
    assert not manifest_path(outside).exists()


@pytest.mark.parametrize("lies_outside", [True, False])
def test_a_dry_run_leaves_nothing(gptjobs: Commands, tmp_path: Path, lies_outside: bool) -> None:
    path = trained(tmp_path if lies_outside else gptjobs.layout.checkpoints)
    before = tree(gptjobs.layout)
    done = gptjobs(*DRY_RESUME, str(path))
    assert done.returncode == 0, done.stderr
    assert tree(gptjobs.layout) == before


def test_the_contract_says_what_was_read_and_what_the_file_does_not_say(gptjobs: Commands) -> None:
    path = trained(gptjobs.layout.checkpoints)
    said = gptjobs(*DRY_RESUME, str(path), "--learning-rate", "1e-4", "--batch-size", "32").stderr
    for words in (
        "READS\n  state dict with its training state\n",
        "step 1000  (step)",
        "2 layers of width 32, 4 heads  (config.n_head)",
        "exact GELU  (as nanoGPT has it; --activation)",
        "encoding bytes  (a table of 256 rows)",
        "weights of step 1000, validation loss 2.7500 at context 16",
        "the optimizer's moments",
        "steps: 1000 → 3000, 128,000 tokens so far",
        "batch_size     8 → 32  (--batch-size)",
        "learning_rate  0.01 → 0.0001  (--learning-rate)",
        "the place in the data: the file does not tell it",
        "LEARNING RATE of the first update: 0.01 before, 0.0001 after",
    ):
        assert words in said
    bare = gptjobs.layout.checkpoints / "bare.pt"
    torch.save(PlainGPT(bias=False, tied=False, rows=288).state_dict(), bare)
    gptjobs.ok(*IMPORT, str(bare), "--n-head", "4", "--activation", "gelu_tanh")
    said = gptjobs(*DRY_RESUME, str(bare)).stderr
    for words in (
        "bare state dict",
        "4 heads  (--n-head)",
        "GELU by its tanh approximation  (--activation)",
        "kept: no biases, a head of its own, 32 rows beyond the vocabulary",
        "no validation loss",
        "the optimizer's moments: the file has none that fit",
        "not said → 1e-05",
        "LEARNING RATE of the first update: unknown before, 1e-05 after",
    ):
        assert words in said


def test_imported_checkpoints_are_listed_and_shown(gptjobs: Commands) -> None:
    path = trained(gptjobs.layout.checkpoints)
    looked_at = gptjobs("checkpoints", "show", str(path))
    assert "not imported yet" in looked_at.stderr
    assert not manifest_path(path).exists()
    gptjobs.ok(*IMPORT, str(path))
    listed = json.loads(gptjobs.ok("checkpoints", "list", "--json"))["checkpoints"]
    assert [(each["name"], each["job"], each["step"], each["has_moments"]) for each in listed] == [
        (f"checkpoints/{SEED_NAME}", None, 1000, True)
    ]
    assert f"checkpoints/{SEED_NAME}" in gptjobs.ok("checkpoints", "list")
    shown = gptjobs.ok("checkpoints", "show", f"checkpoints/{SEED_NAME}")
    assert shown == looked_at.stdout.strip()
    for words in ("step 1000, 128,000 tokens, of state dict", "val loss 2.7500 at context 16", "moments: there"):
        assert words in shown
    manifest = json.loads(gptjobs.ok("checkpoints", "show", str(path), "--json"))["manifest"]
    assert manifest["sources"]["data"] == "the file's name"


def test_damage_is_refused_at_submit_before_anything_is_queued(gptjobs: Commands) -> None:
    path = trained(gptjobs.layout.checkpoints)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    done = gptjobs("submit", "resume", "--data", "sources/text.md", "--from", str(path))
    assert_refused(gptjobs, done, 3, path.name, hint=None)
    assert not manifest_path(path).exists()


def test_what_is_not_there_is_not_found(gptjobs: Commands) -> None:
    assert_error(gptjobs(*IMPORT, "none.pt"), 4, "there is no file or folder none.pt")
    assert_error(gptjobs(*IMPORT, "sources"), 4, "no checkpoint lies in sources", hint=".safetensors")


def test_clients_that_import_one_file_at_once_all_succeed(gptjobs: Commands, tmp_path: Path) -> None:
    outside, inside = trained(tmp_path, "outside.pt"), trained(gptjobs.layout.checkpoints)
    clients = [gptjobs.start(*IMPORT, str(outside), str(inside)) for _ in range(3)]
    assert [each.wait() for each in clients] == [0, 0, 0]
    brought = checkpoint.brought(gptjobs.layout)
    assert len(brought) == 2
    for each in brought:
        checkpoint.verify(gptjobs.layout, each)


def test_the_six_variables_resume_a_bare_file_and_its_checkpoints_resume(gptjobs: Commands, workers: Workers) -> None:
    path = trained(gptjobs.layout.checkpoints)
    content = path.read_bytes()
    workers.start()
    job = gptjobs.ok(
        "submit", "resume", "-q",
        CHECKPOINT_PATH=f"checkpoints/{SEED_NAME}", BATCH_SIZE="4", BLOCK_SIZE="8", LEARNING_RATE="1e-4",
        RESUME_STEPS="6", TRAINING_DATA_SOURCE="sources/text.md",
    )  # fmt: skip
    gptjobs.ok("wait", job)
    assert path.read_bytes() == content
    (last,) = checkpoint.counting(gptjobs.layout, job)
    train = last.manifest.settled.train
    assert (last.manifest.step, last.manifest.tokens) == (1006, 1000 * 8 * 16 + 6 * 4 * 8)
    assert (train.batch_size, train.block_size, train.learning_rate) == (4, 8, 1e-4)
    steps = {entry["step"].item() for entry in torch.load(gptjobs.layout.path(last.name))["optimizer"].values()}
    assert steps == {2 + 6}, "Adam's own count goes on"
    again = gptjobs.ok("submit", "resume", "-q", "--from", f"{job}@last", "--steps", "3")
    gptjobs.ok("wait", again)
    assert checkpoint.counting(gptjobs.layout, again)[-1].manifest.step == 1009


def test_a_client_without_the_root_names_a_bare_file_and_the_worker_adopts_it(
    gptjobs: Commands, workers: Workers, tmp_path: Path
) -> None:
    layout = gptjobs.layout
    good, half = trained(layout.checkpoints), trained(layout.checkpoints, "half.pt")
    weights = torch.load(half)
    del weights["model_state_dict"]["module.transformer.ln_f.weight"]
    torch.save(weights, half)
    (tmp_path / "laptop").mkdir()
    workers.start()
    jobs = [
        gptjobs.ok(
            "submit", "resume", "-q", "--from", f"checkpoints/{path.name}", "--data", "sources/text.md",
            "--steps", "2", "--block-size", "8", GPTJOBS_ROOT=str(tmp_path / "laptop"),
        )
        for path in (good, half)
    ]  # fmt: skip
    gptjobs.ok("wait", jobs[0])
    assert checkpoint.counting(layout, jobs[0])[-1].manifest.step == 1002
    assert checkpoint.read(layout, f"checkpoints/{good.name}").manifest.job is None
    failed = gptjobs("wait", jobs[1])
    assert failed.returncode == 1
    assert "no whole GPT-2: it has no tensor transformer.ln_f.weight" in gptjobs.ok("show", jobs[1])
    assert "Traceback" not in workers.log()
    assert list((tmp_path / "laptop").iterdir()) == []


def test_text_from_outside_and_a_checkpoint_from_outside_both_come_along(gptjobs: Commands, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    trained(folder, "ckpt.pt")
    (folder / "book.md").write_text(english(9000))
    gptjobs.ok("submit", "resume", "-q", "--from", str(folder / "ckpt.pt"), "--data", str(folder / "book.md"))
    (brought,) = checkpoint.brought(gptjobs.layout)
    assert brought.name.startswith("checkpoints/imported/ckpt-")
    shutil.rmtree(folder)
    checkpoint.verify(gptjobs.layout, brought)
    assert (gptjobs.layout.shared_data / "book.md").is_file()


def test_importing_makes_no_storage_root_of_any_folder(gptjobs: Commands, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = gptjobs("--root", str(elsewhere), *IMPORT, str(trained(tmp_path)))
    assert_refused(gptjobs, done, 4, "is no storage root", hint="gptjobs up makes one")
    assert not list(elsewhere.iterdir())
