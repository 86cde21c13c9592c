"""Workers that stay up: a systemd unit on Linux, a launchd job on macOS, that starts a worker with the host and again
when it falls. Both are made from the files in templates/, which are here since a wheel has nothing of deploy/."""

import platform

from gptjobs.service.launchd import Launchd
from gptjobs.service.service import Service, Wanted
from gptjobs.service.systemd import Systemd

__all__ = ["Service", "Systemd", "Wanted", "on_this_host"]


def on_this_host(name: str, *, is_system: bool) -> Service:
    """The service of the worker `name`: this user's, or the whole host's."""
    kind = Launchd if platform.system() == "Darwin" else Systemd
    return kind(name, is_system=is_system)
