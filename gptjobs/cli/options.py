"""The options of `submit`, made from config.py, and what the user said in all places, merged."""

import tomllib
from collections.abc import Callable, Container, Sequence
from dataclasses import Field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar

import click
from click.core import ParameterSource

from gptjobs import notify
from gptjobs.config import (
    HYPERPARAMETERS,
    MODEL_FIELDS,
    OF_RESUME,
    PRESET,
    PRESETS,
    Given,
    Overrides,
    merge,
    option,
    switch,
)
from gptjobs.errors import NotFound, UsageError
from gptjobs.layout import Layout

Command = TypeVar("Command", bound=Callable[..., Any])

# the names that users' older scripts set
ENVIRONMENT = {
    "batch_size": "BATCH_SIZE",
    "block_size": "BLOCK_SIZE",
    "learning_rate": "LEARNING_RATE",
    "data": "TRAINING_DATA_SOURCE",
}
RESUME_ENVIRONMENT = {**ENVIRONMENT, "steps": "RESUME_STEPS"}
CHECKPOINT_VARIABLE = "CHECKPOINT_PATH"
FILE_NAME = "gptjobs.toml"
NOTIFY = "notify"
"""beside hyperparameters in such a file"""
_DERIVED = ("vocab_size", "rewarm_start", "rewarm_steps", "eval_start")


_HIDDEN = {"train": OF_RESUME, "resume": tuple(MODEL_FIELDS), "sweep": ()}
"""hyperparameters that have no meaning there"""


def hyperparameters(*, of: Literal["train", "resume", "sweep"]) -> Callable[[Command], Command]:
    """Add an option for each hyperparameter; none has a default, which would override the checkpoint's."""
    resume = of != "train"
    environment = RESUME_ENVIRONMENT if resume else ENVIRONMENT

    def add(command: Command) -> Command:
        for name, each in reversed(HYPERPARAMETERS.items()):
            if name in _DERIVED or name in _HIDDEN[of]:
                continue
            command = _option(name, each, environment.get(name), resume)(command)
        help = "Must be the checkpoint's." if of == "resume" else "Size of the model; each can be changed."
        return click.option("--model", type=click.Choice(list(PRESETS)), help=help)(command)

    return add


def _option(name: str, each: "Field[Any]", variable: str | None, resume: bool) -> Callable[[Command], Command]:
    bounds = each.metadata
    kind = type(each.default)
    if bounds["choices"]:
        type_: Any = click.Choice(bounds["choices"])
    else:
        type_ = {int: click.INT, float: click.FLOAT, str: click.STRING, bool: click.BOOL}[kind]
    default = bounds["shown"] or each.default
    if resume and name not in OF_RESUME:
        default = f"what was left, or {each.default}" if name == "steps" else ""  # the checkpoint's, says the help
    shown = "" if default == "" or kind is bool else f"  [default: {default}]"
    return click.option(
        f"{switch(name, True)}/{switch(name, False)}" if each.default is True else option(name),
        name,
        type=type_,
        is_flag=kind is bool,
        default=None,
        envvar=variable,
        show_envvar=variable is not None,
        metavar=bounds["metavar"] or (None if bounds["choices"] or kind is bool else kind.__name__.upper()),
        help=bounds["help"] + shown,
    )


def said(context: click.Context, layout: Layout, file: Path | None, tables: Container[str] = ()) -> dict[str, Given]:
    """gptjobs.toml < --config FILE < environment < flags, each value with its origin. `tables` of the file are no
    hyperparameters."""
    layers: list[Overrides] = []
    root_file = layout.root / FILE_NAME
    if root_file.is_file():
        layers.append(_from_file(root_file, ()))
    if file is not None:
        layers.append(_from_file(file, tables))
    layers.append(_from_command(context, ParameterSource.ENVIRONMENT))
    layers.append(_from_command(context, ParameterSource.COMMANDLINE))
    return merge(*layers)


def _from_command(context: click.Context, source: ParameterSource) -> dict[str, Given]:
    found = {}
    for parameter in context.command.params:
        name = parameter.name or ""
        if name not in HYPERPARAMETERS and name != PRESET:
            continue
        if context.get_parameter_source(name) is source:
            said_by = parameter.envvar if source is ParameterSource.ENVIRONMENT else option(name)
            found[name] = Given(context.params[name], str(said_by))
    return found


notify_option = click.option(
    "--notify", multiple=True, metavar="URL",
    help="Tell there of its end, spikes and a plateau: Slack, Discord, ntfy, mail, a webhook; several times too.",
)  # fmt: skip


def addresses(context: click.Context, layout: Layout, file: Path | None) -> tuple[str, ...]:
    """What --notify names, else `notify` in --config FILE, else in gptjobs.toml; raises UsageError for what can be no
    address, without showing it."""
    if context.params[NOTIFY]:
        return _addresses(context.params[NOTIFY], "--notify")
    for path in (file, layout.root / FILE_NAME):
        if path is not None and path.is_file() and NOTIFY in (values := read_toml(path)):
            given = values[NOTIFY]
            return _addresses(given if isinstance(given, list) else [given], f"{NOTIFY} in {path.name}")
    return ()


def _addresses(urls: Sequence[Any], said_by: str) -> tuple[str, ...]:
    found = notify.check([str(each) for each in urls], said_by)
    notify.verify(found)
    return found


def read_toml(path: Path) -> dict[str, Any]:
    """Raises NotFound or UsageError for what is none."""
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise NotFound(f"there is no file {path}", hint="--config takes a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no TOML: {error}", hint="lines like: batch_size = 32") from error


def _from_file(path: Path, tables: Container[str]) -> dict[str, Given]:
    """`tables` of it are read elsewhere."""
    values = {name: value for name, value in read_toml(path).items() if name not in tables and name != NOTIFY}
    names = [each for each in (*HYPERPARAMETERS, PRESET) if each not in _DERIVED]
    for name in values:
        if name not in names:
            close = get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]}?" if close else "names as in the options, with underscores"
            raise UsageError(f"{path}: there is no hyperparameter '{name}'", hint=hint)
    nested = [name for name, value in values.items() if isinstance(value, dict)]
    if nested:
        raise UsageError(f"{path}: [{nested[0]}] is a table", hint="one line a value, with no tables")
    return {name: Given(value, path.name) for name, value in values.items()}
