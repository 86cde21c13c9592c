"""What systemd and launchd have in common: a worker's service has a definition, which anyone may read, and a file
with its environment, which only its user can, as there may be a password in it."""

import os
import pwd
import shlex
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gptjobs import durable
from gptjobs.errors import GptjobsError, NotFound, Refused

TEMPLATES = Path(__file__).with_name("templates")
ANSWER_LIMIT_S = 20.0
STOP_LIMIT_S = 345.0
"""a worker that drains takes up to 330, as the definitions allow"""
_OWNER_ONLY = 0o600
_OTHERWISE = "gptjobs worker start; in a container its restart policy keeps one up, as in docker-compose.yml"
"""what to type where nothing keeps a worker up"""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """`command` runs the worker in the foreground, in the folder `root`."""

    command: list[str]
    environment: Mapping[str, str]
    root: Path


class Service(ABC):
    """`home` is the user's, `top` that of the host's own files."""

    program: str
    """that answers for the service manager"""
    prefix: str
    suffix: str
    """of the definitions' names"""

    def __init__(self, name: str, *, is_system: bool, home: Path | None = None, top: Path = Path("/")) -> None:
        self.name, self.is_system, self._home, self._top = name, is_system, home or Path.home(), top

    @property
    def environment_file(self) -> Path:
        folder = self._top / "etc" if self.is_system else self._home / ".config"
        return folder / "gptjobs" / f"{self.name}.env"

    @property
    @abstractmethod
    def folder(self) -> Path:
        """Of the definitions."""

    @property
    def definition_file(self) -> Path:
        return self.folder / f"{self.prefix}{self.name}{self.suffix}"

    @property
    @abstractmethod
    def log_command(self) -> str:
        """What to type to see its log."""

    @abstractmethod
    def definition(self, wanted: Wanted) -> bytes: ...

    @abstractmethod
    def check(self) -> None:
        """Raises Refused where the service manager is not there, or not for this user."""

    @abstractmethod
    def is_up(self) -> bool: ...

    @abstractmethod
    def _load(self) -> None:
        """Start it, or again, by its new definition; at every start of the host too."""

    @abstractmethod
    def _unload(self) -> None:
        """Stop it, for ever; returns once it has ended."""

    def install(self, wanted: Wanted) -> None:
        """Over what was installed under this name."""
        owner = service_user(wanted.root) if self.is_system else None
        make_folder(self.environment_file.parent, owner=None)
        durable.write(self.environment_file, environment_text(wanted.environment).encode(), mode=_OWNER_ONLY)
        if owner is not None:
            os.chown(self.environment_file, owner.pw_uid, owner.pw_gid)
        self.folder.mkdir(parents=True, exist_ok=True)
        durable.write(self.definition_file, self.definition(wanted), mode=0o644)
        self._load()

    def uninstall(self) -> None:
        """Raises NotFound where it is not installed. What is left of an uninstall that was cut off goes too."""
        if not self.definition_file.exists():
            there = ", ".join(self.installed())
            raise NotFound(
                f"no worker '{self.name}' is installed for {'this host' if self.is_system else 'this user'}",
                hint=f"--name: {there}" if there else "--system, for one of the whole host; gptjobs worker list",
            )
        self._unload()
        self.definition_file.unlink()
        self.environment_file.unlink(missing_ok=True)

    def installed(self) -> list[str]:
        """The names of all workers that are installed so."""
        found = self.folder.glob(f"{self.prefix}*{self.suffix}") if self.folder.is_dir() else ()
        return sorted(each.name.removeprefix(self.prefix).removesuffix(self.suffix) for each in found)

    def _ask(self, *words: str, limit_s: float = ANSWER_LIMIT_S) -> str:
        """What the service manager answers; raises GptjobsError with its words where it does not do so."""
        command = shutil.which(self.program)
        if command is None:
            raise Refused(f"nothing here keeps a worker up: there is no {self.program}", hint=_OTHERWISE)
        try:
            told = subprocess.run([command, *words], capture_output=True, text=True, timeout=limit_s)
        except subprocess.TimeoutExpired as error:
            raise GptjobsError(f"{shlex.join([self.program, *words])} took over {limit_s:.0f} s") from error
        if told.returncode != 0:
            said = (told.stderr or told.stdout).strip() or f"exit code {told.returncode}"
            raise GptjobsError(f"{shlex.join([self.program, *words])}: {said}", hint=self.log_command)
        return told.stdout

    def _is_done(self, *words: str) -> bool:
        with suppress(GptjobsError):
            self._ask(*words)
            return True
        return False


def service_user(root: Path) -> pwd.struct_passwd:
    """Whom the host's own worker runs as: what it writes is to belong to the owner of the storage root."""
    try:
        owner = pwd.getpwuid(root.stat().st_uid)
    except KeyError:
        owner = None
    if owner is None or owner.pw_uid == 0:
        whose = "root's, and no worker is to run as root" if owner else "nobody's whom this host knows"
        raise Refused(
            f"the storage root {root} is {whose}", hint=f"chown -R USER {shlex.quote(str(root))}, whom it is to run as"
        )
    return owner


def make_folder(folder: Path, *, owner: pwd.struct_passwd | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if owner is not None:
        os.chown(folder, owner.pw_uid, owner.pw_gid)


def environment_text(variables: Mapping[str, str]) -> str:
    """As both a shell and systemd read it."""
    return "".join(f"{name}={shlex.quote(value)}\n" for name, value in sorted(variables.items()))
