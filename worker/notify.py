"""`python -m worker.notify`: one message to one address, both from standard input. The one door to Apprise.

Prints nothing, as the address is a secret that Apprise's own log would show parts of. Its exit code tells: see
gptjobs/notify.py. It ends itself after SEND_LIMIT_S, whatever a service's code hangs in.
"""

import json
import signal
import sys
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from gptjobs.notify import LACKS, OF_FILES, REFUSED, SEND_LIMIT_S, UNKNOWN, names_a_file


def main() -> int:
    signal.alarm(SEND_LIMIT_S)
    asked = json.load(sys.stdin)
    if names_a_file(asked["url"]):
        return OF_FILES
    try:
        import apprise
    except ModuleNotFoundError:
        return LACKS
    asset = apprise.AppriseAsset(app_id="gptjobs", app_desc="gptjobs", app_url="")
    service = None
    for url in (asked["url"], as_webhook(asked["url"])):
        service = service or apprise.Apprise.instantiate(url, asset=asset)
    if service is None:
        return UNKNOWN
    return 0 if asked["message"] is None else _send(apprise, service, asked["message"])


def as_webhook(url: str) -> str:
    """A plain web address, which no service claims as its own, takes a POST of JSON. Apprise takes a URL's parameters
    for its own options, but for those that begin with a dash."""
    scheme, _, rest = url.partition("://")
    plain = {"http": "json", "https": "jsons"}.get(scheme.lower())
    if plain is None:
        return url
    query = urlsplit(url).query
    marked = urlencode([(f"-{name}", value) for name, value in parse_qsl(query, keep_blank_values=True)])
    address = rest.partition("#")[0].partition("?")[0]
    return f"{plain}://{address}{'?' if marked else ''}{marked}"


def _send(apprise: Any, service: Any, message: dict[str, str]) -> int:
    """A service that takes the message and says nothing is not asked again, so as to tell no one twice: it runs into
    this process's limit."""
    service.socket_read_timeout = 2.0 * SEND_LIMIT_S
    post = apprise.Apprise()
    post.add(service)
    taken = post.notify(
        title=message["title"],
        body=message["body"],
        notify_type=message["kind"],
        body_format=apprise.NotifyFormat.TEXT,
    )
    return 0 if taken else REFUSED


if __name__ == "__main__":
    sys.exit(main())
