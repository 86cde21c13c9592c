"""The launcher of a job on several devices: a process for each, its rank, and one end for all of them.

The ranks are in the launcher's process group, so what kills that kills all. Each has a leash that the launcher holds:
it ends with it. Imports no torch.
"""

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from worker.child import Report, Stop, log

POLL_S = 0.1
LEASH_S = 2.0
PEER_LOST = 75
"""the exit code of a rank that only ends because another one is gone"""


class PeerLost(Exception):
    """Another rank is gone; how that ended is the truth."""


def launch(command: Sequence[str], size: int, report: Report, stop: Stop) -> int:
    """Run `command`, what follows `python`, as so many ranks. Returns 0 once all have ended so, else how the first one
    ended that did not: its exit code, or the signal as a negative number. The others are killed then."""
    with tempfile.TemporaryDirectory(prefix="gptjobs-") as folder:
        ranks = [
            subprocess.Popen(
                [sys.executable, *command, "--rank", str(rank), "--meet", str(Path(folder) / "ranks")],
                stdin=subprocess.PIPE,
                stdout=report.descriptor,
                bufsize=0,
            )
            for rank in range(size)
        ]
        try:
            return _watch(ranks, stop)
        finally:
            for each in ranks:
                each.kill()
                each.wait()


def _watch(ranks: "Sequence[subprocess.Popen[bytes]]", stop: Stop) -> int:
    is_told, leashed_at = False, 0.0
    while True:
        codes = [each.poll() for each in ranks]
        failed = {rank: code for rank, code in enumerate(codes) if code}
        if failed:
            # what ends for the loss of another may be seen before it
            rank, code = min(failed.items(), key=lambda each: each[1] == PEER_LOST)
            if code != PEER_LOST or None not in codes:
                log(f"rank {rank} of {len(ranks)} ended: {_in_words(code)}; with it all others")
                return code
        if codes == [0] * len(ranks):
            return 0
        if stop.requested and not is_told:
            is_told = True
            for each in ranks:
                each.terminate()
        now = time.monotonic()
        if now - leashed_at >= LEASH_S:
            leashed_at = now
            for each in ranks:
                assert each.stdin is not None
                with suppress(BrokenPipeError):
                    each.stdin.write(b".")
        time.sleep(POLL_S)


def _in_words(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    return f"signal {signal.Signals(-code).name}" if -code in set(signal.Signals) else f"signal {-code}"
