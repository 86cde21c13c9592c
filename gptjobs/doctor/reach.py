"""Why Redis does not answer: its name, its port, TLS and the login told apart, each with what to type."""

import socket
import ssl
from urllib.parse import urlsplit

from gptjobs.errors import GptjobsError, RedisRefused
from gptjobs.job import plain
from gptjobs.settings import LOOPBACK, URL_FORMS, address, public

LIMIT_S = 3.0
_START = "gptjobs up starts one, in the storage root (--root); GPTJOBS_REDIS_URL names another"
_PLAIN_PING = b"PING\r\n"
_REDIS_ANSWERS = (b"+", b"-")
"""+PONG, -NOAUTH, -LOADING"""
_OTHER_SCHEME = "redis:// in the place of rediss://, or Redis's tls-port"


def why(url: str, error: GptjobsError) -> tuple[str, str]:
    """In words, and what to type. `error` is what a whole connection ended with; where the way there is free, it says
    what is known."""
    known = error.message, error.hint or _START
    try:
        where = address(url)
    except GptjobsError:
        return known  # the URL itself cannot be read
    parts = urlsplit(where.url)
    host, port = parts.hostname or "", parts.port or 6379
    at = f"Redis at {public(url)}"
    if "DENIED" in error.message:
        hint = "on its host: redis-cli config set requirepass PASSWORD; then in GPTJOBS_REDIS_URL"
        return f"{at} takes nobody from other hosts as it has no password: it is in protected mode", hint
    if isinstance(error, RedisRefused):
        return known
    try:
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as unknown:
        hint = f"getent hosts {host}; an address in the place of the name, or a line in /etc/hosts"
        return f"{at} has a name that is not known here: {unknown.strerror}", hint
    try:
        connection = socket.create_connection((host, port), LIMIT_S)
    except ConnectionRefusedError:
        return f"nothing listens at {host}:{port}, where Redis is to be", _START
    except TimeoutError:
        hint = f"ping {host}; a firewall between has to let TCP port {port} through; is Redis bound to that address?"
        return f"{host}:{port} does not answer within {LIMIT_S:g} s: it is off, or a firewall drops it", hint
    except OSError as fault:
        return f"{host}:{port} cannot be reached: {fault.strerror or fault}", f"ip route get {host}; ping {host}"
    try:
        with connection:
            return (_tls_fails if where.tls else _plain_fails)(connection, host, port) or known
    except TimeoutError:
        hint = f"redis-cli -h {host} -p {port} ping; is its process stopped, or its disk?"
        return f"{at} takes a connection and then says nothing for {LIMIT_S:g} s: it hangs", hint


def _tls_fails(connection: socket.socket, host: str, port: int) -> tuple[str, str] | None:
    """Where the server speaks something else than TLS; what else is wrong with TLS, a whole connection says."""
    try:
        _unverified().wrap_socket(connection, server_hostname=host).close()
    except OSError as error:
        if "ALERT" in str(error):
            return None  # it does: it asks for a client's certificate, for one
        if isinstance(error, TimeoutError) and not _ping(host, port).startswith(_REDIS_ANSWERS):
            raise
        return f"what listens at {host}:{port} does not speak TLS", _OTHER_SCHEME
    return None


def _plain_fails(connection: socket.socket, host: str, port: int) -> tuple[str, str] | None:
    """Where something else than Redis without TLS listens."""
    connection.close()
    said = _ping(host, port)
    if said.startswith(_REDIS_ANSWERS):
        return None
    if _speaks_tls(host, port):
        return f"what listens at {host}:{port} speaks TLS", f"rediss:// in the place of redis://: {URL_FORMS}"
    what = plain(said.partition(b"\r")[0][:20].decode(errors="replace"))
    return f"what listens at {host}:{port} is no Redis" + (f": it says {what!r}" if what else ""), URL_FORMS


def _ping(host: str, port: int) -> bytes:
    """What it says to Redis's PING."""
    with socket.create_connection((host, port), LIMIT_S) as connection:
        try:
            connection.sendall(_PLAIN_PING)
            return connection.recv(64)
        except ConnectionError:
            return b""


def _speaks_tls(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), LIMIT_S) as connection:
            _unverified().wrap_socket(connection, server_hostname=host).close()
    except OSError:
        return False
    return True


def _unverified() -> ssl.SSLContext:
    """Nothing is told through it."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def is_loopback(host: str) -> bool:
    return host in (LOOPBACK, "::1", "localhost")
