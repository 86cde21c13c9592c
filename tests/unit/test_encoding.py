"""GPT-2's encoding put in place: from the first source that has it, and only the right one."""

import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest

from gptjobs.data import encoding
from gptjobs.errors import GptjobsError, Refused
from gptjobs.layout import Layout

CONTENT = b"IQ== 0\nIg== 1\n"
CACHED = hashlib.sha1(b"https://openaipublic.blob.core.windows.net/encodings/r50k_base.tiktoken").hexdigest()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of tiktoken's; no source reaches a network, and CONTENT is the encoding."""
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
    monkeypatch.setattr(encoding, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    for source in ("_from_download", "_from_package_index"):
        monkeypatch.setattr(encoding, source, failing(f"no network for {source}"))
    return folder


def failing(text: str) -> object:
    def fetch() -> bytes:
        raise OSError(text)

    return fetch


def test_it_comes_from_tiktokens_cache(layout: Layout, cache: Path) -> None:
    (cache / CACHED).write_bytes(CONTENT)
    said: list[str] = []
    place = encoding.install(layout, said.append)
    assert place == layout.root / "shared_data" / "encodings" / "r50k_base.tiktoken"
    assert place.read_bytes() == CONTENT
    assert said == ["r50k_base from tiktoken's cache; its SHA-256 is right"]
    assert [path.name for path in place.parent.iterdir()] == ["r50k_base.tiktoken"]


def test_the_older_name_of_the_cache_variable_counts_too(
    layout: Layout, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR")
    monkeypatch.setenv("DATA_GYM_CACHE_DIR", str(cache))
    (cache / CACHED).write_bytes(CONTENT)
    assert encoding.install(layout, str).read_bytes() == CONTENT


def test_a_wrong_file_in_the_cache_is_passed_over_for_the_next_source(
    layout: Layout, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cache / CACHED).write_bytes(CONTENT + b"more")
    monkeypatch.setattr(encoding, "_from_download", lambda: CONTENT)
    said: list[str] = []
    assert encoding.install(layout, said.append).read_bytes() == CONTENT
    assert said == ["r50k_base from tiktoken's download; its SHA-256 is right"]


def test_the_package_index_is_the_last_source(layout: Layout, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "_from_package_index", lambda: CONTENT)
    said: list[str] = []
    encoding.install(layout, said.append)
    assert said == ["r50k_base from a package that carries it, mlx-whisper==0.4.3; its SHA-256 is right"]


def test_a_wheel_of_the_package_index_is_unpacked(
    layout: Layout, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    monkeypatch.setattr(encoding, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(encoding, "_from_download", failing("no network"))
    with zipfile.ZipFile(tmp_path / "mlx_whisper-0.4.3-py3-none-any.whl", "w") as wheel:
        wheel.writestr("mlx_whisper/assets/gpt2.tiktoken", CONTENT)
        wheel.writestr(
            "mlx_whisper-0.4.3.dist-info/METADATA", "Metadata-Version: 2.1\nName: mlx-whisper\nVersion: 0.4.3\n"
        )
        wheel.writestr("mlx_whisper-0.4.3.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("mlx_whisper-0.4.3.dist-info/RECORD", "")
    assert encoding.install(layout, str).read_bytes() == CONTENT


def test_where_no_source_works_the_error_names_each_and_what_helps(
    layout: Layout, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch() -> bytes:
        raise subprocess.CalledProcessError(1, "pip", stderr="a warning\nERROR: no matching distribution\n")

    monkeypatch.setattr(encoding, "_from_package_index", fetch)
    with pytest.raises(GptjobsError) as caught:
        encoding.install(layout, str)
    assert "tiktoken's cache: [Errno 2]" in caught.value.message
    assert "tiktoken's download: no network for _from_download" in caught.value.message
    assert "mlx-whisper==0.4.3: ERROR: no matching distribution" in caught.value.message
    assert "--encoding bytes" in (caught.value.hint or "")
    assert list(layout.encodings.iterdir()) == []


def test_a_damaged_wheel_is_a_source_that_does_not_work(
    layout: Layout, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch() -> bytes:
        raise zipfile.BadZipFile("File is not a zip file")

    monkeypatch.setattr(encoding, "_from_package_index", fetch)
    with pytest.raises(GptjobsError, match="File is not a zip file"):
        encoding.install(layout, str)


def test_what_is_in_place_is_not_fetched_again(layout: Layout, cache: Path) -> None:
    encoding.file(layout).parent.mkdir()
    encoding.file(layout).write_bytes(CONTENT)
    said: list[str] = []
    assert encoding.install(layout, said.append) == encoding.file(layout)
    assert said == ["r50k_base is in place"]


def test_a_wrong_file_in_place_is_refused_and_named(layout: Layout, cache: Path) -> None:
    encoding.file(layout).parent.mkdir()
    encoding.file(layout).write_bytes(CONTENT[:-1])
    for use in (lambda: encoding.install(layout, str), lambda: encoding.encoder(layout, "r50k_base")):
        with pytest.raises(Refused, match=r"r50k_base\.tiktoken is not the encoding r50k_base: its SHA-256 differs"):
            use()


def test_bytes_need_no_file(layout: Layout) -> None:
    (encoded,) = encoding.encoder(layout, "bytes")(["é!".encode()])
    assert (list(encoded.tokens), list(encoded.lengths)) == ([0xC3, 0xA9, 0x21], [1, 1, 1])
