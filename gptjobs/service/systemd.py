"""A worker as a systemd unit: of this user, whom lingering keeps it up for when logged out, or of the host."""

import getpass
import re
import shutil
import subprocess
from pathlib import Path

from gptjobs.errors import GptjobsError, Refused
from gptjobs.service.service import ANSWER_LIMIT_S, STOP_LIMIT_S, TEMPLATES, Service, Wanted, service_user

_PLAIN = re.compile(r"[A-Za-z0-9_@+=:,./-]+")


class Systemd(Service):
    program = "systemctl"
    prefix, suffix = "gptjobs-", ".service"

    @property
    def folder(self) -> Path:
        return self._top / "etc/systemd/system" if self.is_system else self._home / ".config/systemd/user"

    @property
    def unit(self) -> str:
        return self.definition_file.name

    @property
    def log_command(self) -> str:
        return f"journalctl {'' if self.is_system else '--user '}--unit {self.unit} --lines 50 --follow"

    def definition(self, wanted: Wanted) -> bytes:
        """Sections that come twice are one to systemd."""
        kind = "system" if self.is_system else "user"
        text = "\n".join((TEMPLATES / name).read_text() for name in ("worker.service", f"worker.{kind}.service"))
        user = service_user(wanted.root).pw_name if self.is_system else ""
        return text.format(
            name=self.name,
            command=" ".join(_word(each, in_command=True) for each in wanted.command),
            environment_file=_path(self.environment_file),
            root=_path(wanted.root),
            quoted_root=_word(str(wanted.root)),
            user=user,
        ).encode()

    def check(self) -> None:
        try:
            self._tell("show", "--property=Version")
        except Refused:
            raise
        except GptjobsError as error:
            hint = (
                "gptjobs worker start" if self.is_system else "log in as this user itself, not by su or sudo; --system"
            )
            raise Refused(f"systemd does not answer here: {error.message}", hint=hint) from error

    def is_up(self) -> bool:
        return self._is_done(*self._words("is-active", "--quiet", self.unit))

    def _load(self) -> None:
        self._tell("daemon-reload")
        self._tell("enable", self.unit)
        self._tell("restart", self.unit, limit_s=STOP_LIMIT_S)

    def _unload(self) -> None:
        self._tell("disable", self.unit)
        self._tell("stop", self.unit, limit_s=STOP_LIMIT_S)

    def uninstall(self) -> None:
        super().uninstall()
        self._tell("daemon-reload")
        self._is_done(*self._words("reset-failed", self.unit))  # which an unknown unit is not

    def _words(self, *words: str) -> tuple[str, ...]:
        return words if self.is_system else ("--user", *words)

    def _tell(self, *words: str, limit_s: float = ANSWER_LIMIT_S) -> str:
        return self._ask(*self._words(*words), limit_s=limit_s)


def linger() -> str | None:
    """Have this user's units run from the host's start on, logged in or not; returns what to type where that is not
    granted."""
    user = getpass.getuser()
    command = shutil.which("loginctl")
    try:
        if command is not None:
            subprocess.run([command, "enable-linger", user], capture_output=True, timeout=ANSWER_LIMIT_S, check=True)
            return None
    except subprocess.SubprocessError:
        pass
    return f"sudo loginctl enable-linger {user}"


def _path(path: Path) -> str:
    return str(path).replace("%", "%%")


def _word(text: str, *, in_command: bool = False) -> str:
    """As systemd takes apart a line of several; in a command it also puts in variables."""
    if _PLAIN.fullmatch(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped.replace("$", "$$") if in_command else escaped}"'
