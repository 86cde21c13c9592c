"""Where people hear of a job's end, spike or plateau: addresses as Apprise writes them, which are secrets.

A URL holds a token or a password. It goes from the one who typed it to the worker that sends, and is shown nowhere:
requests, logs and pages have its `masked` form. What sends is a child process, `python -m worker.notify`: nothing that
a service's code does, hangs in or prints reaches a worker or a terminal.
"""

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from urllib.parse import parse_qsl, urlsplit

from gptjobs.errors import NotFound, UsageError
from gptjobs.job import MOST_ADDRESSES

LONGEST_URL = 4096
SEND_LIMIT_S = 20
"""for one message, before its child ends"""
LACKS, UNKNOWN, REFUSED, OF_FILES = 10, 11, 12, 13
"""exit codes of that child; 0 where the message was taken, 14 less than 0 where nobody answered"""
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[!-~\u00a1-\U0010ffff]+")
_HAS_HOST = ("http", "https", "json", "jsons", "xml", "xmls", "form", "forms", "mailto", "mailtos")
"""schemes whose first part is a host; of others it is a token, a topic or a number"""

_FILE_KEYS = ("template", "keyfile", "subfile")
"""parameters by which Apprise would read a file of the host that sends, or ask any address for it"""

FORMS = "ntfy://TOPIC, slack://…, discord://…, mailto://…, https://HOST/PATH: docs/notify.md"


class Kind(StrEnum):
    """By Apprise's names."""

    INFO = "info"
    SUCCESS = "success"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True, kw_only=True)
class Message:
    """Plain text, short enough for a phone."""

    title: str
    body: str
    kind: Kind


def masked(url: str) -> str:
    """The service and, where its name tells no secret, the host."""
    scheme, _, rest = url.partition("://")
    scheme = scheme.lower()
    hidden = f"{scheme}://…"
    if scheme not in _HAS_HOST:
        return hidden
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return hidden
    if not host or "@" in rest[len(parts.netloc) :]:  # a password with a slash in it: this host is a part of it
        return hidden
    return f"{scheme}://{host}{f':{port}' if port else ''}/…"


def masked_all(urls: Sequence[str]) -> tuple[str, ...]:
    return tuple(map(masked, urls))


def check(urls: Sequence[str], said_by: str) -> tuple[str, ...]:
    """These URLs, each once; raises UsageError, which shows none of them, for what cannot be one."""
    for number, each in enumerate(urls, start=1):
        if not _URL.fullmatch(each) or len(each) > LONGEST_URL:
            which = f"address {number} of {said_by}" if len(urls) > 1 else f"what {said_by} names"
            raise UsageError(f"{which} is no URL to send messages to", hint=FORMS)
        if names_a_file(each):
            raise UsageError(f"{masked(each)} names a file of the host that sends: {', '.join(_FILE_KEYS)}", hint=FORMS)
    found = tuple(dict.fromkeys(urls))
    if len(found) > MOST_ADDRESSES:
        raise UsageError(f"{said_by} names more than {MOST_ADDRESSES} addresses", hint="a group's address")
    return found


def names_a_file(url: str) -> bool:
    """Whether it would have a worker read, and send, what may be no business of the one who submits."""
    return any(name.strip().lower() in _FILE_KEYS for name, _ in parse_qsl(urlsplit(url).query, keep_blank_values=True))


def is_installed() -> bool:
    return importlib.util.find_spec("apprise") is not None


def verify(urls: Sequence[str]) -> None:
    """Raise UsageError for an address that is of no service; where Apprise is not installed, the worker tells."""
    for each in urls if is_installed() else ():
        if attempt(each) == UNKNOWN:
            raise UsageError(f"{masked(each)} is no address of a service that is known", hint=FORMS)


def require() -> None:
    if not is_installed():
        raise NotFound("Apprise, which sends messages, is not installed here", hint="pip install 'gptjobs[notify]'")


def trouble(url: str, message: Message | None = None) -> str | None:
    """Send the message, or without one see whether the address can be used; returns in words what stood against it.
    Takes up to SEND_LIMIT_S."""
    code = attempt(url, message)
    return None if code == 0 else in_words(code)


def attempt(url: str, message: Message | None = None) -> int:
    """The same; returns the child's code."""
    asked = {"url": url, "message": asdict(message) if message else None}
    return subprocess.run(
        [sys.executable, "-m", "worker.notify"],
        input=json.dumps(asked).encode(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # it sends on at Ctrl-C, and when the worker ends
        check=False,
    ).returncode


def in_words(code: int) -> str:
    known = {
        LACKS: "Apprise is not installed there: pip install 'gptjobs[notify]'",
        UNKNOWN: "it is no address of a service that is known",
        REFUSED: "it was not taken",
        OF_FILES: "it names a file of the host that sends",
    }
    return known.get(code, f"no answer within {SEND_LIMIT_S} s" if code == -14 else f"exit code {code}")
