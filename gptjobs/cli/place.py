"""Where a command works: its settings, its storage root, its doors, opened when they are needed."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import click

from gptjobs.errors import NotFound
from gptjobs.layout import Layout
from gptjobs.settings import Settings

if TYPE_CHECKING:
    from gptjobs.store import Store


@dataclass(frozen=True)
class Place:
    settings: Settings

    @cached_property
    def layout(self) -> Layout:
        if not self.settings.root.is_dir():
            raise NotFound(f"there is no folder {self.settings.root}", hint="--root; gptjobs --root DIR up makes it")
        return Layout(self.settings.root)

    @cached_property
    def store(self) -> "Store":
        from gptjobs.store import Store

        return Store(self.settings.redis_url)


pass_place = click.make_pass_decorator(Place)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
