"""`gptjobs data inspect, clean`: what is odd in a text, and a copy without it."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import Any

import click

from gptjobs.cli import output
from gptjobs.cli.complete import complete_checkpoint
from gptjobs.cli.place import Place, json_option, pass_place
from gptjobs.cli.source import Prepared, prepared
from gptjobs.cli.tensors import committed
from gptjobs.config import VOCABULARY
from gptjobs.data import clean as cleaning
from gptjobs.data import inspect as inspecting
from gptjobs.data.clean import Cut
from gptjobs.data.encoding import NAME as R50K
from gptjobs.data.inspect import KINDS, PASSES, WINDOW, Anomaly, Inspection
from gptjobs.data.locate import shortened
from gptjobs.errors import GptjobsError, UsageError
from gptjobs.job import plain

_WIDTH = 70
"""characters of a range that are shown"""
_READ_BYTES = 4000
"""of a range, at most, for its text"""
_SHOWN = 3
"""ranges in what to type next"""

_file = click.argument("file", type=click.Path(path_type=Path))
_window = click.option(
    "--window", type=click.IntRange(64, 1 << 16),
    help=f"Tokens that are scored together.  [default: {WINDOW}; more for over a billion tokens]",
)  # fmt: skip


@click.command(epilog="Example: gptjobs data inspect sources/book.md --picture odd.png")
@_file
@click.option("--encoding", type=click.Choice(list(VOCABULARY)), help=f"[default: that of --loss, else {R50K}]")
@_window
@click.option(
    "--loss", metavar="REF", shell_complete=complete_checkpoint,
    help="Add this checkpoint's loss on each window: JOB@best. Needs torch.",
)  # fmt: skip
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path), help="Draw the scores to this PNG.")
@click.option("-n", "--limit", type=click.IntRange(1), default=20, show_default=True, help="Ranges to show.")
@json_option
@pass_place
def inspect(
    place: Place, file: Path, encoding: str | None, window: int | None, loss: str | None, picture: Path | None,
    limit: int, as_json: bool,
) -> None:  # fmt: skip
    """What is odd in a text: ranges that are no text, repeat themselves or others, or are unlike the rest.

    All of it is scored by windows of tokens; ranges whose scores are far from the file's median are listed, the oddest
    first, with why. Encodes the text where that was not done. docs/data.md says what is measured.
    """
    if picture is not None and picture.suffix.lower() != ".png":
        raise UsageError(f"{picture} is no name of a PNG", hint="--picture FILE.png")
    checkpoint = committed(place, loss) if loss else None
    if checkpoint is not None:
        trained_on = checkpoint.manifest.settled.train.encoding
        if encoding not in (None, trained_on):
            raise UsageError(f"{loss} was trained on {trained_on}", hint=f"--encoding {trained_on}, or leave it out")
        encoding = trained_on
    text = prepared(place, file, encoding or R50K)
    found = _inspected(place, text, window, checkpoint.name if checkpoint else None)
    if picture is not None:
        _draw(picture, text.source.name, found)
    if as_json:
        output.as_json(_as_dict(file, text, found))
        return
    _print(text, found, limit)
    if picture is not None:
        output.result(str(picture))
    if found.anomalies:
        words = [] if text.manifest.encoding == R50K else [f"--encoding {text.manifest.encoding}"]
        _say_next(quote(str(file)), _clean_name(file), found, words, [f"--window {window}"] if window else [])


def _inspected(place: Place, text: Prepared, window: int | None, loss_of: str | None) -> Inspection:
    with output.bytes_bar(text.size * (PASSES + bool(loss_of)), f"inspecting {text.source.name}") as advance:
        return inspecting.inspect(
            place.layout, text.source, text.token_file, text.manifest.encoding, window=window, loss_of=loss_of,
            advance=advance,
        )  # fmt: skip


def _draw(path: Path, title: str, found: Inspection) -> None:
    from gptjobs import picture

    try:
        picture.draw_inspection(path, title, found)
    except ModuleNotFoundError as error:
        raise GptjobsError(
            "a PNG needs matplotlib, which is not installed here", hint="pip install 'gptjobs[worker]'"
        ) from error
    except OSError as error:
        raise GptjobsError(f"{path} cannot be written: {error.strerror}", hint="--picture elsewhere") from error


def _as_dict(file: Path, text: Prepared, found: Inspection) -> dict[str, Any]:
    anomalies = [{**asdict(each), "text": _sample(text.source, each)} for each in found.anomalies]
    return {
        "source": str(file), "sha256": text.digest, "encoding": text.manifest.encoding, **asdict(found),
        "anomalies": anomalies,
    }  # fmt: skip


def _sample(source: Path, anomaly: Anomaly) -> str:
    with source.open("rb") as file:
        file.seek(anomaly.first_byte)
        text = file.read(min(_READ_BYTES, anomaly.last_byte - anomaly.first_byte))
    return plain(shortened(text.decode(errors="replace"), _WIDTH))


def _print(text: Prepared, found: Inspection, limit: int) -> None:
    rows = []
    for each in found.anomalies[:limit]:
        why = [*each.reasons, _sample(text.source, each)]
        where = (_span(each.first, each.last), _span(each.first_byte, each.last_byte), f"{each.first_line:,}")
        rows.append((*where, f"{each.score:.1f}", why[0]))
        rows += [("", "", "", "", line) for line in why[1:]]
    if rows:
        output.table(("TOKENS", "BYTES", "LINE", "SCORE", "WHY"), rows, right=(0, 1, 2, 3))
    kinds = f"{found.token_count:,} tokens in windows of {found.window:,}"
    count = len(found.anomalies)
    output.say(f"{count or 'no'} odd range{'s' if count != 1 else ''} in {kinds}")
    output.say(
        f"entropy of the tokens' frequencies: {found.unigram:.3f} nats; a higher loss knows nothing of their order"
    )
    if count > limit:
        output.say(f"{limit} of {count} are shown; -n shows more")


def _span(first: int, last: int) -> str:
    return f"{first:,} to {last:,}"


def _say_next(file: str, out: str, found: Inspection, encoding: list[str], window: list[str]) -> None:
    skipped = ",".join(f"{each.first}:{each.last}" for each in found.anomalies[:_SHOWN])
    output.say(f"next: {' '.join(['gptjobs data clean', file, *encoding, *window, '--out', out, '--dry-run'])}")
    output.say(f"      {' '.join(['gptjobs submit train --data', file, *encoding, '--skip-tokens', skipped])}")


def _clean_name(file: Path) -> str:
    return quote(f"{file.stem}.clean{file.suffix}")


@click.command(epilog="Example: gptjobs data clean sources/book.md --out sources/book.clean.md --dry-run")
@_file
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="The copy to write.")
@click.option("--encoding", type=click.Choice(list(VOCABULARY)), default=R50K, help=f"[default: {R50K}]")
@_window
@click.option(
    "--drop", "kinds", type=click.Choice([kind for kind in KINDS if kind != "loss"]), multiple=True,
    default=cleaning.DROPPED,
    help=f"What goes; may be given again.  [default: {', '.join(cleaning.DROPPED)}]",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Say what would go, and write nothing.")
@json_option
@pass_place
def clean(
    place: Place, file: Path, out: Path | None, encoding: str, window: int | None, kinds: tuple[str, ...],
    dry_run: bool, as_json: bool,
) -> None:  # fmt: skip
    """Write a copy of a text without what is odd in it, and a report of what went and why.

    What goes is what `data inspect` finds, of these kinds, in whole lines. OUT must not be there; its report is
    OUT's name with .report.md.
    """
    if out is None and not dry_run:
        raise UsageError("the copy needs a name", hint=f"--out {_clean_name(file)}, or --dry-run")
    if out is not None:
        cleaning.check_out(out)
    text = prepared(place, file, encoding)
    found = _inspected(place, text, window, None)
    gone = cleaning.cuts(text.source, found, kinds)
    if out is not None and not dry_run:
        report = cleaning.as_markdown(text.source, text.digest, found, gone, text.size)
        with output.bytes_bar(text.size, f"writing {out.name}") as advance:
            cleaning.write(text.source, text.digest, out, gone, report, advance)
    if as_json:
        _print_json(file, out, text, found, gone, dry_run)
        return
    _print_gone(out, text, found, gone, dry_run)
    left = {kind for each in found.anomalies if set(kinds).isdisjoint(each.kinds) for kind in each.kinds}
    if left:
        output.say(f"left in: {', '.join(kind for kind in KINDS if kind in left)}; --drop KIND takes them out")
    if out is not None and not dry_run:
        output.say(f"next: gptjobs submit train --data {quote(str(out))}")


def _print_json(
    file: Path, out: Path | None, text: Prepared, found: Inspection, gone: Sequence[Cut], dry_run: bool
) -> None:
    bytes_gone, tokens_gone = sum(each.size for each in gone), sum(each.tokens for each in gone)
    output.as_json({
        "source": str(file), "sha256": text.digest, "out": None if out is None else str(out), "dry_run": dry_run,
        "bytes_before": text.size, "bytes_after": text.size - bytes_gone, "tokens_before": found.token_count,
        "tokens_after_about": found.token_count - tokens_gone, "dropped": [asdict(each) for each in gone],
    })  # fmt: skip


def _print_gone(out: Path | None, text: Prepared, found: Inspection, gone: Sequence[Cut], dry_run: bool) -> None:
    rows = []
    for each in gone:
        where = (_span(each.first_byte, each.last_byte), _span(each.first_line, each.last_line), f"{each.tokens:,}")
        rows.append((*where, each.reasons[0]))
        rows += [("", "", "", reason) for reason in each.reasons[1:]]
    if rows:
        output.table(("BYTES", "LINES", "TOKENS", "WHY"), rows, right=(0, 1, 2))
    lost = sum(each.size for each in gone)
    words = f"{text.size:,} bytes, {lost:,} of them {'would go' if dry_run else 'left out'}: {text.size - lost:,}"
    output.say(f"{words} (about {found.token_count - sum(each.tokens for each in gone):,} tokens)")
    if out is not None and not dry_run:
        output.result(str(out))
        output.result(str(cleaning.report_of(out)))
