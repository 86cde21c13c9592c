"""From a request to a plan: what is refused before anything is queued or trained."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gptjobs.data import tokens
from gptjobs.errors import NotFound, Refused, UsageError
from gptjobs.job import JobSpec
from gptjobs.layout import Layout
from gptjobs.planning import plan, token_file_of
from tests.unit.conftest import begin, commit, typed

TEXT = "sources/text.md"
SPEC = JobSpec(
    id="3f9a01", kind="train", overrides=typed(model="nano", data=TEXT, block_size=64, steps=400), submitted_at=1.0
)


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def train(**values: Any) -> JobSpec:
    return replace(SPEC, overrides={**SPEC.overrides, **typed(**values)})


def resume(layout: Layout, **values: Any) -> JobSpec:
    """A request to resume the job `first` from step 200, trained on text.md as it is now."""
    begin(layout, "first", 1)
    name = commit(layout, "first", 1, 200, data_digest=digest_of(layout.root / TEXT))
    return replace(SPEC, kind="resume", parent=name, overrides=typed(**values))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def make_binary(path: Path) -> None:
    path.write_bytes(b"GIF89a\0" + bytes(5000))


def make_latin1(path: Path) -> None:
    path.write_text("Bücher\n" * 1000, encoding="latin-1")


def shorten(path: Path) -> None:
    path.write_text("x" * (10 * 65 - 1))


def remove(path: Path) -> None:
    path.unlink()


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def test_a_plan_says_all_that_an_attempt_needs(layout: Layout):
    made, parent = plan(layout, SPEC)
    assert parent is None
    assert (made.job, made.kind, made.parent, made.data_name) == ("3f9a01", "train", None, "text")
    assert made.data_digest == digest_of(layout.root / TEXT)
    assert made.settled.end_step == 400
    assert token_file_of(layout, made).name == "bytes.bin"


def test_a_resume_takes_checkpoint_and_data_from_its_parent(layout: Layout):
    spec = resume(layout, batch_size=32)
    made, parent = plan(layout, spec)
    assert parent is not None
    assert made.parent == parent.name == spec.parent
    assert (made.settled.train.data, made.settled.start_step) == (TEXT, 200)


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (empty, Refused, "empty"),
        (make_binary, Refused, "no text: byte 6"),
        (make_latin1, Refused, "no UTF-8 text: byte 1 "),
        (shorten, Refused, "too short"),
        (remove, NotFound, "no data file"),
        (make_folder, NotFound, "no data file"),
    ],
)
def test_data_that_cannot_be_trained_on_is_refused(
    layout: Layout, spoil: Callable[[Path], None], error: type[Exception], words: str
):
    spoil(layout.root / TEXT)
    with pytest.raises(error, match=words) as refusal:
        plan(layout, SPEC)
    assert refusal.value.hint


@pytest.mark.parametrize(
    ("spoil", "error"), [(empty, Refused), (make_binary, Refused), (remove, NotFound), (make_folder, NotFound)]
)
def test_data_that_was_spoilt_after_it_was_submitted_is_refused_too(
    layout: Layout, spoil: Callable[[Path], None], error: type[Exception]
):
    spec = replace(SPEC, data_digest=digest_of(layout.root / TEXT))
    spoil(layout.root / TEXT)
    with pytest.raises(error):
        plan(layout, spec)


def test_just_enough_data_is_enough(layout: Layout):
    (layout.root / TEXT).write_text("x" * (10 * 65))
    plan(layout, SPEC)


def test_data_is_measured_in_tokens_where_they_are_there(layout: Layout):
    made, _ = plan(layout, SPEC)
    tokens.prepare(layout, layout.root / TEXT, made.data_digest, "bytes")
    plan(layout, SPEC)
    size = (layout.root / TEXT).stat().st_size
    with pytest.raises(Refused, match=rf"{size:,} tokens; block size {size // 10} needs"):
        plan(layout, train(block_size=size // 10))


def test_no_data_at_all_is_a_usage_error(layout: Layout):
    with pytest.raises(UsageError, match="no data was named"):
        plan(layout, replace(SPEC, overrides=typed(model="nano")))


def test_data_outside_the_root_is_refused(layout: Layout, tmp_path: Path):
    (tmp_path / "outside.md").write_text("x" * 5000)
    with pytest.raises(Refused, match="leads out"):
        plan(layout, train(data="../outside.md"))


def test_data_that_is_to_be_copied_into_the_root_is_read_where_it_is(layout: Layout, tmp_path: Path):
    outside = tmp_path / "outside.md"
    outside.write_text("x" * 5000)
    made, _ = plan(layout, train(data="shared_data/outside.md"), outside)
    assert (made.data_name, made.data_digest) == ("outside", digest_of(outside))


@pytest.mark.parametrize("encoding", ["r50k_base", "gpt2"])
def test_a_missing_encoding_is_said_with_the_command_that_brings_it(layout: Layout, encoding: str):
    with pytest.raises(NotFound) as error:
        plan(layout, train(encoding=encoding))
    assert error.value.hint == "gptjobs data encoding"


def test_a_quarantined_checkpoint_is_not_resumed_from(layout: Layout):
    digest = digest_of(layout.root / TEXT)
    name = commit(layout, "first", 1, 200, data_digest=digest, status="quarantined", reason="poisoned")
    with pytest.raises(Refused, match="quarantined: poisoned"):
        plan(layout, replace(SPEC, kind="resume", parent=name, overrides={}))


def test_changed_data_is_refused(layout: Layout):
    spec = resume(layout)
    with (layout.root / TEXT).open("a") as file:
        file.write("one more line\n")
    with pytest.raises(Refused, match="not what the checkpoint was trained on") as refusal:
        plan(layout, spec)
    assert "--accept-data-change" in (refusal.value.hint or "")


def test_other_data_is_refused_and_can_be_accepted(layout: Layout):
    other = layout.root / "sources" / "other.md"
    other.write_text("another text\n" * 500)
    spec = resume(layout, data="sources/other.md")
    with pytest.raises(Refused):
        plan(layout, spec)
    made, _ = plan(layout, replace(spec, accept_data_change=True))
    assert (made.data_name, made.data_digest) == ("other", digest_of(other))


def test_the_same_text_under_another_name_is_no_change(layout: Layout):
    (layout.root / "sources" / "copy.md").write_bytes((layout.root / TEXT).read_bytes())
    made, _ = plan(layout, resume(layout, data="sources/copy.md"))
    assert made.data_name == "copy"


def test_a_digest_from_the_client_is_held_against_the_checkpoint(layout: Layout):
    with pytest.raises(Refused, match="not what the checkpoint was trained on"):
        plan(layout, replace(resume(layout), data_digest="e" * 64))


def test_a_resume_goes_on_with_its_tokens_when_the_text_is_gone(layout: Layout):
    spec, source = resume(layout), layout.root / TEXT
    digest = digest_of(source)
    tokens.prepare(layout, source, digest, "bytes")
    source.unlink()
    made, _ = plan(layout, spec)
    assert made.data_digest == digest
    with pytest.raises(NotFound):
        plan(layout, replace(spec, overrides=typed(data="elsewhere/text.md")))


def test_hyperparameters_are_checked_before_data_is_read(layout: Layout):
    with pytest.raises(UsageError, match="--batch-size"):
        plan(layout, train(batch_size=0, data="sources/none.md"))
