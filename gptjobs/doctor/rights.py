"""What this host's user in Redis may do: each command that a client or a worker needs, without carrying it out."""

from collections.abc import Iterator
from urllib.parse import urlsplit

from gptjobs.doctor.check import Check, problem, warning
from gptjobs.store import ASKED, JOB, JOBS, LEASED, NOTIFY, ROOT, SWEEPS, WAITING, WORKER, Store

NOBODY = "doctor"
OF_A_CLIENT = (
    "TIME", "SCAN 0", f"EVALSHA 0 1 {JOB}{NOBODY}", f"HGETALL {JOB}{NOBODY}", f"HSET {JOB}{NOBODY} a b",
    f"HINCRBY {JOB}{NOBODY} a 1", f"EXISTS {JOB}{NOBODY}", f"ZADD {JOBS} 1 a", f"ZRANGE {JOBS} 0 1",
    f"SADD {WAITING} a", f"SREM {WAITING} a", f"SMEMBERS {LEASED}", f"SADD {LEASED} a", f"GET {ROOT}",
    f"MGET {WORKER}{NOBODY}", f"SET {ASKED}{NOBODY} a", f"HSET {SWEEPS} a b", f"HDEL {SWEEPS} a",
    f"HSETNX {NOTIFY} a b", "LPUSH any a", "LPUSH cpu a", "SADD _kombu.binding.any a",
    "PUBLISH /{database}.celeryev/task.sent a",
)  # fmt: skip
OF_A_WORKER = (
    f"SET {WORKER}{NOBODY} a", f"SET {ROOT} a", f"GETDEL {ASKED}{NOBODY}", f"HGET {NOTIFY} a", "BRPOP any 1",
    "HSET unacked a b", "ZADD unacked_index 1 a", "PUBLISH /{database}.celeryev/task.progress a",
)  # fmt: skip
HINT = "the lines of deploy/redis-users.acl have all that each user needs: docs/security.md; redis-cli acl load"


def checks(store: Store, url: str, *, trains: bool) -> Iterator[Check]:
    """Only what is not well."""
    database = urlsplit(url).path.strip("/") or "0"
    if said := store.refused(_words(OF_A_CLIENT, database)):
        yield problem("rights", f"this user of Redis may not do what a client does: {said}", HINT)
    elif trains and (said := store.refused(_words(OF_A_WORKER, database))):
        says = f"this user of Redis submits jobs, but no worker can work with it: {said}"
        yield warning("rights", says, "for a worker, the user worker: GPTJOBS_REDIS_URL=redis://worker:PASSWORD@HOST/0")


def _words(commands: tuple[str, ...], database: str) -> list[list[str]]:
    return [each.format(database=database).split() for each in commands]
