"""A text file that a user names, and its tokens, prepared with bars where they are not there."""

from dataclasses import dataclass
from pathlib import Path

from gptjobs.cli import output
from gptjobs.cli.place import Place
from gptjobs.data import tokens
from gptjobs.data.tokens import TokensManifest
from gptjobs.errors import NotFound
from gptjobs.layout import dataset_name


@dataclass(frozen=True, kw_only=True)
class Prepared:
    source: Path
    digest: str
    size: int
    """bytes"""
    manifest: TokensManifest
    token_file: Path


def prepared(place: Place, file: Path, encoding: str) -> Prepared:
    """Raises NotFound where the file is neither here nor in the storage root; makes the root one."""
    place.check_root()
    place.layout.make()
    source = file if file.is_file() else place.layout.root / file
    if not source.is_file():
        raise NotFound(f"there is no file {file}", hint="it is looked for here and in the storage root")
    size = source.stat().st_size
    with output.bytes_bar(size, f"reading {source.name}") as advance:
        digest = tokens.digest_of(source, advance)
    with output.bytes_bar(size, f"encoding {source.name}") as advance:
        manifest = tokens.prepare(place.layout, source, digest, encoding, advance)
    token_file = place.layout.token_file(dataset_name(source.name), digest, encoding)
    return Prepared(source=source, digest=digest, size=size, manifest=manifest, token_file=token_file)
