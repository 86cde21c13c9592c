"""A worker as a launchd job: an agent of this user's, up while logged in, or a daemon of the Mac's."""

import os
import plistlib
import time
from pathlib import Path

from gptjobs.errors import GptjobsError, Refused
from gptjobs.service.service import STOP_LIMIT_S, TEMPLATES, Service, Wanted, make_folder, service_user

WITH_ENVIRONMENT = 'set -a; . "$0"; exec "$@"'
"""launchd knows of no file with variables, and shows those of a definition to everyone"""
_LOOK_S = 0.2


class Launchd(Service):
    program = "launchctl"
    prefix, suffix = "gptjobs.", ".plist"

    @property
    def folder(self) -> Path:
        return self._top / "Library/LaunchDaemons" if self.is_system else self._home / "Library/LaunchAgents"

    @property
    def label(self) -> str:
        return self.definition_file.stem

    @property
    def _domain(self) -> str:
        return "system" if self.is_system else f"gui/{os.getuid()}"

    @property
    def _target(self) -> str:
        return f"{self._domain}/{self.label}"

    @property
    def logs(self) -> Path:
        return (self._top if self.is_system else self._home) / "Library/Logs/gptjobs"

    @property
    def log_file(self) -> Path:
        return self.logs / f"{self.name}.log"

    @property
    def log_command(self) -> str:
        return f"tail -F {self.log_file}"

    def definition(self, wanted: Wanted) -> bytes:
        content = plistlib.loads((TEMPLATES / "worker.plist").read_bytes())
        command = wanted.command if "--log" in wanted.command else [*wanted.command, "--log", str(self.log_file)]
        content |= {
            "Label": self.label,
            "ProgramArguments": ["/bin/sh", "-c", WITH_ENVIRONMENT, str(self.environment_file), *command],
            "WorkingDirectory": str(wanted.root),
            "StandardErrorPath": str(self.logs / f"{self.name}.start.log"),
        }
        if self.is_system:
            content["UserName"] = service_user(wanted.root).pw_name
        return plistlib.dumps(content)

    def check(self) -> None:
        try:
            self._ask("print", self._domain)
        except Refused:
            raise
        except GptjobsError as error:
            raise Refused(
                f"launchd does not answer here: {error.message}", hint="log in at the Mac's own screen once; --system"
            ) from error

    def is_up(self) -> bool:
        try:
            return "state = running" in self._ask("print", self._target)
        except GptjobsError:
            return False

    def install(self, wanted: Wanted) -> None:
        make_folder(self.logs, owner=service_user(wanted.root) if self.is_system else None)
        super().install(wanted)

    def _load(self) -> None:
        self._unload()
        self._ask("enable", self._target)
        self._ask("bootstrap", self._domain, str(self.definition_file))

    def _unload(self) -> None:
        """Without a word where it is not loaded; launchctl may return before the worker has ended."""
        deadline = time.monotonic() + STOP_LIMIT_S
        self._is_done("bootout", self._target)
        while self._is_done("print", self._target):
            if time.monotonic() > deadline:
                raise GptjobsError(f"{self.label} does not end", hint=self.log_command)
            time.sleep(_LOOK_S)
