"""`python -m tests.faults.worker CHANGES …`: the real worker, whose trainers follow scripts.

CHANGES is JSON: constants, by their full names, to other values, such as `{"worker.supervisor.HANG_LIMIT_S": 2}`. The
wall clock, and nothing but it, is ahead of the host's by the seconds in the file `clock-NAME` of the storage root.
"""

import json
import pkgutil
import sys
import threading
import time
from pathlib import Path

from gptjobs import settings
from worker import __main__ as worker
from worker import attempt

_LOOK_S = 0.05


def scripted(config: Path, token: int) -> list[str]:
    return ["-m", "tests.faults.trainer", str(config), "--attempt", str(token), "--leash"]


def follow_the_clock(file: Path) -> None:
    """Let time.time() be ahead by the seconds that stand in `file`, from the moment that they do."""
    real, ahead_s = time.time, 0.0

    def watch() -> None:
        nonlocal ahead_s
        while True:
            time.sleep(_LOOK_S)
            if file.exists():
                ahead_s = float(file.read_text() or 0)

    time.time = lambda: real() + ahead_s
    threading.Thread(target=watch, name="clock", daemon=True).start()


def main() -> int:
    changes = json.loads(sys.argv.pop(1))
    for name, value in changes.items():
        owner, _, constant = name.rpartition(".")
        assert hasattr(pkgutil.resolve_name(owner), constant)
        setattr(pkgutil.resolve_name(owner), constant, value)
    attempt.trainer_command = scripted
    name = sys.argv[sys.argv.index("--name") + 1]
    follow_the_clock(settings.load().root / f"clock-{name}")
    return worker.main()


if __name__ == "__main__":
    sys.exit(main())
