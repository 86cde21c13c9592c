"""Why Redis does not answer: its name, its port, TLS and the login told apart, each with what to type."""

import socket
import ssl
from urllib.parse import urlsplit

from gptjobs.errors import GptjobsError, RedisRefused
from gptjobs.job import plain
from gptjobs.settings import LOOPBACK, URL_FORMS, address, public

LIMIT_S = 3.0
_START = "gptjobs up starts one, in the storage root (--root); GPTJOBS_REDIS_URL names another"
_WITHOUT_TLS = "redis:// in the place of rediss://, or Redis's tls-port"


def why(url: str, error: GptjobsError) -> tuple[str, str]:
    """In words, and what to type. `error` is what a whole connection ended with; where the way there is free, it says
    what is known."""
    place = place_of(url)
    if place is not None and "DENIED" in error.message:
        hint = "on its host: redis-cli config set requirepass PASSWORD; then in GPTJOBS_REDIS_URL"
        return f"Redis at {public(url)} takes nobody from other hosts: it has no password, so it protects itself", hint
    if place is not None and not isinstance(error, RedisRefused):
        found = _no_way(*place) or _other_language(*place, tls=url.startswith("rediss:"))
        if found is not None:
            return found
    return error.message, error.hint or _START


def place_of(url: str) -> tuple[str, int] | None:
    """Host and port; None for a URL that cannot be read."""
    try:
        parts = urlsplit(address(url).url)
    except GptjobsError:
        return None
    return parts.hostname or "", parts.port or 6379


def _no_way(host: str, port: int) -> tuple[str, str] | None:
    """Where the name is not known, or no connection comes about."""
    try:
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as unknown:
        hint = f"getent hosts {host}; an address in the place of the name, or a line in /etc/hosts"
        return f"Redis's host {host} has a name that is not known here: {unknown.strerror}", hint
    try:
        socket.create_connection((host, port), LIMIT_S).close()
    except ConnectionRefusedError:
        return f"nothing listens at {host}:{port}, where Redis is to be", _START
    except TimeoutError:
        hint = f"ping {host}; a firewall between has to let TCP port {port} through; is Redis bound to that address?"
        return f"{host}:{port} does not answer within {LIMIT_S:g} s: it is off, or a firewall drops it", hint
    except OSError as fault:
        return f"{host}:{port} cannot be reached: {fault.strerror or fault}", f"ip route get {host}; ping {host}"
    return None


def _other_language(host: str, port: int, *, tls: bool) -> tuple[str, str] | None:
    """Where what listens is no Redis, one with TLS on one side alone, or one that is silent. What else is wrong with
    TLS, a whole connection says."""
    try:
        said = _ping(host, port)
    except TimeoutError:  # so does a server with TLS, which waits for more
        said = None
    speaks_tls = not _is_redis(said) and _speaks_tls(host, port)
    if speaks_tls if tls else _is_redis(said):
        return None
    if tls and _is_redis(said):
        return f"what listens at {host}:{port} does not speak TLS", _WITHOUT_TLS
    if speaks_tls:
        return f"what listens at {host}:{port} speaks TLS", f"rediss:// in the place of redis://: {URL_FORMS}"
    if said is None:
        hint = f"redis-cli -h {host} -p {port} ping; is its process stopped, or its disk?"
        return f"{host}:{port} takes a connection and then says nothing for {LIMIT_S:g} s: it hangs", hint
    what = plain(said.partition(b"\r")[0][:20].decode(errors="replace"))
    return f"what listens at {host}:{port} is no Redis" + (f": it says {what!r}" if what else ""), URL_FORMS


def _is_redis(said: bytes | None) -> bool:
    """+PONG, -NOAUTH, -LOADING"""
    return said is not None and said.startswith((b"+", b"-"))


def _ping(host: str, port: int) -> bytes:
    """What it says to Redis's PING."""
    with socket.create_connection((host, port), LIMIT_S) as connection:
        try:
            connection.sendall(b"PING\r\n")
            return connection.recv(64)
        except ConnectionError:
            return b""


def _speaks_tls(host: str, port: int) -> bool:
    """Whether there is a handshake, also one that asks for a client's certificate; nothing is told through it."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection((host, port), LIMIT_S) as connection:
            context.wrap_socket(connection, server_hostname=host).close()
    except OSError as error:
        return "ALERT" in str(error)
    return True


def is_loopback(host: str) -> bool:
    return host in (LOOPBACK, "::1", "localhost")
