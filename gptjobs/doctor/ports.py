"""What other hosts can reach here: Redis and Flower, asked at this host's own addresses, as they would."""

import http.client
import socket
from collections.abc import Iterator
from contextlib import suppress

from gptjobs.doctor import reach
from gptjobs.doctor.check import Check, problem, warning
from gptjobs.settings import FLOWER_PORT

LIMIT_S = 2.0
_ELSEWHERE = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))
"""of documentation: nothing is sent, the system only says from which address it would be"""
_LOOPBACK = ("127.", "::1")


def checks(url: str) -> Iterator[Check]:
    host, port = reach.place_of(url) or ("", 0)
    is_here = reach.is_loopback(host)
    asked = f"Redis's {port} and Flower's {FLOWER_PORT}" if is_here else f"Flower's {FLOWER_PORT}"
    addresses = own_addresses()
    if not addresses:
        yield Check(name="ports", says="this host has no address but loopback")
        return
    found = [made for each in addresses if (made := flower(each, FLOWER_PORT))]
    found += [made for each in addresses if is_here and (made := redis(each, port))]
    yield from found
    if not found:
        yield Check(name="ports", says=f"{asked} cannot be reached at {', '.join(addresses)}")


def own_addresses() -> list[str]:
    """Under which other hosts know this one: those that it would write to them from, and those of its name."""
    found = []
    for family, there in _ELSEWHERE:
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((there, 9))
            found.append(probe.getsockname()[0])
    with suppress(OSError):
        found += [each[4][0] for each in socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)]
    return [each for each in dict.fromkeys(map(str, found)) if not each.startswith(_LOOPBACK)]


def flower(host: str, port: int) -> Check | None:
    """None where none is reached, or something else is."""
    connection = http.client.HTTPConnection(host, port, timeout=LIMIT_S)
    try:
        connection.request("GET", "/workers")
        answer = connection.getresponse()
        if not (answer.getheader("Server") or "").startswith("TornadoServer"):
            return None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    at = f"Flower can be reached from other hosts, at {host}:{port}"
    if answer.status == http.HTTPStatus.OK:
        says = f"{at}, and asks for no login: who reaches it can stop workers"
        return problem("ports", says, "FLOWER_ADDRESS=127.0.0.1 FLOWER_BASIC_AUTH=USER:PASSWORD, or gptjobs up")
    hint = f"FLOWER_ADDRESS=127.0.0.1; from elsewhere: ssh -L {port}:127.0.0.1:{port} {host}"
    return warning("ports", f"{at}, where its login passes without TLS", hint)


def redis(host: str, port: int) -> Check | None:
    """None where none is reached, or one that answers only through TLS, or only on loopback."""
    try:
        with socket.create_connection((host, port), LIMIT_S) as connection:
            connection.sendall(b"PING\r\n")
            said = connection.recv(64)
    except OSError:
        return None
    at = f"Redis can be reached from other hosts, at {host}:{port}"
    bind = f"redis-cli -p {port} config set bind 127.0.0.1"
    if said.startswith(b"+PONG"):
        return problem("ports", f"{at}, and asks for no password", f"{bind}; or config set requirepass PASSWORD")
    if said.startswith(b"-NOAUTH"):
        return warning("ports", f"{at}, where passwords pass without TLS", f"{bind}; or TLS: docs/security.md")
    return None
