"""A line for people in a job's log, of what goes on beside its attempt."""

from contextlib import suppress

from gptjobs.layout import Layout


def add(layout: Layout, job: str, line: str) -> None:
    """To the newest attempt's log; one that ended early has none."""
    with suppress(OSError, IndexError), layout.log_files(job)[-1].open("ab", buffering=0) as log:
        log.write(f"{line}\n".encode())
