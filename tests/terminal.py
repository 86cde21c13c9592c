"""A terminal for tests: a command in a pseudo-terminal of 80 columns and 24 lines, and what it wrote there."""

import fcntl
import os
import re
import struct
import termios
import threading

from tests.conftest import Commands

COLUMNS, LINES = 80, 24
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_LEAVE_ALTERNATE_SCREEN = "\x1b[?1049l"


class Terminal:
    """Runs a command, until it ends by itself, by Ctrl-C or with its test."""

    def __init__(self, commands: Commands, *arguments: str, **variables: str) -> None:
        master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        environment = {**commands.environment, "TERM": "xterm-256color", **variables}
        self.process = commands.start(
            *arguments,
            env=environment,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(slave)
        self._master = master
        self._written = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                part = os.read(self._master, 65536)
            except OSError:  # Linux's way to say that no one writes any more
                return
            if not part:
                return
            self._written += part

    def press_ctrl_c(self) -> None:
        os.write(self._master, b"\x03")

    def end(self) -> int:
        code = self.process.wait(60)
        self._reader.join(10)
        return code

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(10)
        os.close(self._master)

    @property
    def raw(self) -> str:
        return self._written.decode(errors="replace")

    @property
    def text(self) -> str:
        """All pictures, without colours."""
        return _ESCAPES.sub("", self.raw).replace("\r", "")

    @property
    def left_behind(self) -> list[str]:
        """The lines that stay once the command has ended."""
        return _ESCAPES.sub("", self.raw.rpartition(_LEAVE_ALTERNATE_SCREEN)[2]).replace("\r", "").splitlines()


def _take_terminal() -> None:
    """Make standard input the controlling terminal, so that Ctrl-C becomes SIGINT."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
