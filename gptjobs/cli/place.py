"""Where a command works: its settings, its storage root, its doors, opened when they are needed."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gptjobs import settings, storage
from gptjobs.cli import output
from gptjobs.errors import GptjobsError, NotFound, RedisUnreachable
from gptjobs.job import Job
from gptjobs.layout import Layout
from gptjobs.settings import Settings

if TYPE_CHECKING:
    from gptjobs.broker import App
    from gptjobs.store import Store


@dataclass(frozen=True, kw_only=True)
class Found:
    """A job that a user named. Where Redis does not have it, `missing` says why, and `job` is as the storage
    root has it on record."""

    job: Job
    missing: GptjobsError | None = None


@dataclass(frozen=True)
class Place:
    settings: Settings

    @cached_property
    def layout(self) -> Layout:
        if not self.settings.root.is_dir():
            raise NotFound(f"there is no folder {self.settings.root}", hint="--root; gptjobs up --root DIR makes it")
        return Layout(self.settings.root)

    @cached_property
    def store(self) -> "Store":
        from gptjobs.store import Store

        if not self.settings.redis_url_given:
            _ = self.layout  # the URL lies in the root: a mistyped one is said, not a Redis that was never there
        return Store(self.settings.redis_url)

    @cached_property
    def app(self) -> "App":
        from gptjobs import broker

        return broker.connect(self.settings.redis_url)

    def check_root(self) -> None:
        """Before something is written to the root: raise Refused where Redis, if it answers, knows another one."""
        with suppress(RedisUnreachable):
            storage.expect(self.layout, self.store.root())

    def find(self, reference: str) -> Found:
        """The job that `reference` means: as Redis has it, else as it is on record, which is said."""
        try:
            return Found(job=self.store.find(reference))
        except (NotFound, RedisUnreachable) as error:
            missing = error
        from gptjobs import record
        from gptjobs.reference import jobs_on_record, pick

        on_record = jobs_on_record(self.layout)
        try:
            id = pick(reference, on_record)
        except NotFound as error:
            raise (error if on_record and isinstance(missing, NotFound) else missing) from None
        why = missing.message if isinstance(missing, RedisUnreachable) else "Redis has no such job"
        output.say(f"{why}; this is the record in {self.layout.root}")
        return Found(job=record.read_job(self.layout, id), missing=missing)


def _set_place(context: click.Context, option: click.Parameter, root: Path | None) -> None:
    if root is not None or context.obj is None:
        context.obj = Place(settings.load(root))


root_option = click.option(
    "--root",
    type=click.Path(file_okay=False, path_type=Path),
    expose_value=False,
    callback=_set_place,
    help=f"The storage root.  [env: {settings.ROOT_VARIABLE}; default: the working directory]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def pass_place(command: Callable[..., Any]) -> Callable[..., Any]:
    """Hand the command its place, which its own `--root` may name as well as that before the command."""
    return root_option(click.make_pass_decorator(Place)(command))
