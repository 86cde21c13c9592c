"""File names under the storage root: written, parsed, and never leading out of it."""

import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptjobs import durable
from gptjobs.checkpoint import manifest_path
from gptjobs.errors import Refused
from gptjobs.job import JobSpec
from gptjobs.layout import (
    CheckpointName,
    Layout,
    checkpoint_name,
    dataset_name,
    is_name,
    new_job_id,
    parse_checkpoint_name,
    stamp,
)
from tests.unit.conftest import NOON

LONGEST_FILE_NAME = 255
"""bytes, on the usual file systems"""


def test_a_checkpoint_name_tells_dataset_step_and_time():
    name = checkpoint_name("training_data", 1500, NOON)
    assert name == f"checkpoint_gpt2_training_data_step001500_{stamp(NOON)}.pt"
    assert parse_checkpoint_name(name) == CheckpointName(
        model="gpt2", dataset="training_data", step=1500, stamp=stamp(NOON)
    )


def test_names_that_older_projects_gave_are_read():
    name = "checkpoint_gpt2_training_data_final_merged_step001500_11222025_112739.pt"
    assert parse_checkpoint_name(name) == CheckpointName(
        model="gpt2", dataset="training_data_final_merged", step=1500, stamp="11222025_112739"
    )


@pytest.mark.parametrize(("dataset", "step"), [("a_step7", 12), ("gpt2_x", 0), ("a.b-c", 12_345_678), ("data", 1)])
def test_a_checkpoint_name_is_parsed_into_what_it_was_made_of(dataset: str, step: int):
    parsed = parse_checkpoint_name(checkpoint_name(dataset, step, NOON))
    assert parsed is not None
    assert (parsed.dataset, parsed.step) == (dataset, step)


@pytest.mark.parametrize(
    "name",
    [
        "model.pt",
        "checkpoint_gpt2_text_step001500_11222025_112739.json",
        "checkpoint_gpt2_text_step001500_11222025.pt",
        "checkpoint_gpt2_text_stepmany_11222025_112739.pt",
        ".checkpoint_gpt2_text_step001500_11222025_112739.pt.0a1b2c3d.tmp",
        "checkpoint_gpt2_text_step001500_11222025_112739.pt\n",
    ],
)
def test_other_names_are_no_checkpoint(name: str):
    assert parse_checkpoint_name(name) is None


def test_the_stamp_is_month_day_year_and_time():
    written = stamp(NOON)
    assert (written[:2], written[4:9], len(written)) == ("11", "2025_", 15)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("sources/book.md", "book"),
        ("sources/two words (final).md", "two_words_final"),
        ("a.b.txt", "a.b"),
        ("../../etc/passwd", "passwd"),
        ("日本語.md", "data"),
        ("...", "data"),
        ("_x_.md", "x"),
    ],
)
def test_a_dataset_is_called_after_its_file(source: str, name: str):
    assert dataset_name(source) == name


def test_the_longest_source_name_still_fits_into_a_checkpoint_name():
    dataset = dataset_name("x" * (LONGEST_FILE_NAME - 3) + ".md")
    path = Path(checkpoint_name(dataset, 10**9, NOON))
    assert len(durable.temporary(manifest_path(path)).name) <= LONGEST_FILE_NAME


@pytest.mark.parametrize("text", ["first", "a", "A-1_b.c", "3f9a", "x" * 64])
def test_names_of_jobs(text: str):
    assert is_name(text)


@pytest.mark.parametrize("text", ["", ".", "..", "../up", "a/b", "-dash", ".hidden", "a b", "ü", "a\n", "x" * 65])
def test_what_is_no_name(text: str):
    assert not is_name(text)


def test_new_job_ids_are_names_and_differ():
    ids = {new_job_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(is_name(each) for each in ids)


@pytest.mark.parametrize(
    "name", ["../up.pt", "checkpoints/../../up.pt", "/etc/passwd", "../root2/up.pt", "a\0b", "x" * 256]
)
def test_a_name_that_leads_out_of_the_root_is_refused(layout: Layout, name: str):
    with pytest.raises(Refused) as refusal:
        layout.path(name)
    assert refusal.value.exit_code == 3


@pytest.mark.parametrize("id", ["../up", "", "a/b", "/etc"])
def test_a_request_whose_id_would_lead_out_of_the_root_is_refused(id: str):
    with pytest.raises(Refused):
        JobSpec.from_dict(JobSpec(id=id, kind="train", submitted_at=1.0).to_dict())


def link_to_another_disk(layout: Layout) -> Path:
    """Make `texts` in the root a link to a folder elsewhere; returns that folder."""
    disk = layout.root.parent / "disk" / "texts"
    disk.mkdir(parents=True)
    (layout.root / "texts").symlink_to(disk)
    return disk


def test_a_folder_of_the_root_may_be_a_link_to_another_disk(layout: Layout):
    (link_to_another_disk(layout) / "there.md").write_text("text")
    path = layout.path("texts/there.md")
    assert path.read_text() == "text"
    assert layout.inside(path) == "texts/there.md"


def test_dots_behind_a_link_do_not_lead_out_of_the_root(layout: Layout):
    (link_to_another_disk(layout).parent / "secret.md").write_text("text")
    with suppress(Refused):
        assert not layout.path("texts/../secret.md").exists()


@pytest.mark.parametrize("name", ["sources/link", "sources/link/secret.md", "texts/link/secret.md", "secret.md"])
def test_no_link_below_the_roots_own_folders_leads_out_of_it(layout: Layout, name: str):
    secret = link_to_another_disk(layout).parent / "secret.md"
    secret.write_text("text")
    for link, to in (("sources/link", secret.parent), ("texts/link", secret.parent), ("secret.md", secret)):
        (layout.root / link).symlink_to(to)
    assert (layout.root / name).exists()
    with pytest.raises(Refused, match="by a link"):
        layout.path(name)


def test_a_link_within_the_root_is_followed(layout: Layout):
    (layout.root / "shared_data" / "same.md").symlink_to(layout.root / "sources" / "text.md")
    assert layout.path("shared_data/same.md").read_text() == (layout.root / "sources" / "text.md").read_text()


def test_links_in_a_circle_lead_nowhere(layout: Layout):
    (layout.root / "sources" / "circle").symlink_to(layout.root / "sources" / "circle")
    assert not layout.path("sources/circle").exists()


@pytest.mark.parametrize("digest", ["", "/../../../..", "d" * 63, "D" * 64, "d" * 64 + "\n"])
def test_what_is_no_digest_names_no_folder(layout: Layout, digest: str):
    with pytest.raises(Refused):
        layout.tokens("text", digest)


@given(st.text() | st.lists(st.sampled_from(["..", ".", "", "sources", "a", "/", "text.md", "\0"])).map("/".join))
def test_whatever_name_is_sent_its_path_lies_in_the_root(name: str):
    there = Layout(Path("/nowhere/root"))
    with suppress(Refused):
        assert Path(os.path.realpath(there.path(name))).is_relative_to(there.root)


def test_a_root_behind_a_link_is_still_the_root(layout: Layout):
    link = layout.root.parent / "mounted"
    link.symlink_to(layout.root)
    there = Layout(link)
    assert there.path("sources/text.md").read_text() == layout.path("sources/text.md").read_text()
    assert there.inside(layout.root / "sources" / "text.md") == "sources/text.md"


def test_what_lies_outside_has_no_name(layout: Layout):
    assert layout.inside(layout.root.parent / "text.md") is None
    assert layout.inside(layout.root.parent / "root2" / "text.md") is None


def test_a_working_directory_is_no_storage_root_until_it_is_made(tmp_path: Path):
    layout = Layout(tmp_path)
    assert not layout.is_there
    layout.make()
    layout.make()
    assert layout.is_there


def test_gpt2_and_r50k_base_share_their_tokens(layout: Layout):
    of_gpt2, of_r50k = (layout.token_file("text", "d" * 64, name) for name in ("gpt2", "r50k_base"))
    assert of_gpt2 == of_r50k
    assert of_gpt2 != layout.token_file("text", "d" * 64, "bytes")
    assert of_gpt2 != layout.token_file("text", "e" * 64, "gpt2")


def test_a_log_is_found_by_its_job_alone(layout: Layout):
    mine = [layout.log_file("train", "ab", NOON), layout.log_file("resume", "ab", NOON + 60)]
    for path in (*mine, layout.log_file("train", "abc", NOON), layout.log_file("train", "b", NOON)):
        path.touch()
    assert set(layout.log_files("ab")) == set(mine)
    assert mine[1].name == f"resume_training_log_ab_{stamp(NOON + 60)}.log"


def test_a_checkpoint_is_named_relative_to_the_root(layout: Layout):
    name = layout.name_of_checkpoint("ab", "x.pt")
    assert layout.path(name) == layout.job_checkpoints("ab") / "x.pt"
