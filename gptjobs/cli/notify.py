"""`gptjobs notify`: does a message arrive?"""

import socket

import click

from gptjobs import notify, settings
from gptjobs.cli import output
from gptjobs.cli.place import json_option
from gptjobs.errors import UsageError


@click.command("notify", epilog="Example: gptjobs notify ntfy://my-training")
@click.argument("urls", metavar="[URL]...", nargs=-1)
@json_option
def send(urls: tuple[str, ...], as_json: bool) -> int:
    """Send a test message from here. Exit 1 if one is not taken.

    Without a URL, to those in GPTJOBS_NOTIFY, where a worker tells of every job and sweep. A job's messages come
    from the host of its worker. docs/notify.md has the forms of URLs.
    """
    said_by, given = ("the command", urls) if urls else (settings.NOTIFY_VARIABLE, settings.notify_urls())
    if not given:
        raise UsageError("no address was named", hint=f"gptjobs notify URL; {notify.FORMS}")
    found = notify.check(given, said_by)
    notify.require()
    message = notify.Message(
        title="gptjobs: a test message",
        body=f"from {socket.gethostname()}: so a job will say that it ended",
        kind=notify.Kind.INFO,
    )
    told = []
    for url in found:
        told.append((notify.masked(url), notify.trouble(url, message)))
        if not as_json:
            output.result("{}  {}".format(told[-1][0], f"not sent: {told[-1][1]}" if told[-1][1] else "sent"))
    if as_json:
        output.as_json({"sent": [{"to": to, "trouble": why} for to, why in told]})
    return 1 if any(why for _, why in told) else 0
