"""The one door to Redis: the live record of jobs, the lease, and which workers are there.

Key schema
    gptjobs:job:<id>      hash    spec       the JobSpec, JSON
                                  state      a JobState
                                  serial     of the doorbell that counts; others are ignored
                                  token      of the lease; only grows
                                  nonce      of the lease's holder, empty without one
                                  beat       of the lease; grows with each renewal
                                  attempt    attempts so far
                                  ended      nonce and state of the newest attempt that ended: said again, it
                                             is answered again
                                  cause      of the newest attempt's end, while the job goes on
                                  fruitless  attempts since the last new checkpoint, by their cause, JSON
                                  worker, device   of the newest attempt
                                  reason     why it is in its state
                                  priority   where it was changed after submission
                                  unpaused   1 where it was since it was paused, also by a client without a root
                                  now        1 where a cancelling job is not to write a checkpoint
                                  progress   the newest values of the trainer's lines, JSON
    gptjobs:jobs          zset    id by the time of its submission, for lists
    gptjobs:waiting       set     ids that are queued
    gptjobs:leased        set     ids that are running, pausing or cancelling
    gptjobs:sweeps        hash    what was asked for of each sweep that goes on, by its id, JSON
    gptjobs:notify        hash    where the end of a job or a sweep is told, by its id: URLs, JSON; secrets, which
                                  workers read
    gptjobs:worker:<name> string  what a worker offers, JSON; expires when the worker is gone
    gptjobs:root          string  the id of the storage root that has the jobs' files
    gptjobs:asked:<name>  string  drain or stop, for that worker; expires when nobody heard it

Nothing here is decided by a clock. A worker's key expires, but that is for people.
"""

import json
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from gptjobs import scripts
from gptjobs.errors import NotFound, RedisRefused, RedisUnreachable, Refused
from gptjobs.job import (
    HIGHEST_PRIORITY,
    Cause,
    Fruitless,
    Job,
    JobSpec,
    JobState,
    new_job,
    newest_values,
    plain,
    whole,
)
from gptjobs.presence import Presence
from gptjobs.settings import URL_FORMS, address, public
from gptjobs.sweep import Sweep

JOB = "gptjobs:job:"
JOBS = "gptjobs:jobs"
WAITING = "gptjobs:waiting"
LEASED = "gptjobs:leased"
SWEEPS = "gptjobs:sweeps"
NOTIFY = "gptjobs:notify"
WORKER = "gptjobs:worker:"
ASKED = "gptjobs:asked:"
ROOT = "gptjobs:root"

CLIENT_TIMEOUT_S = 5.0
WORKER_PRESENCE_S = 15
_BATCH = 500


@dataclass(frozen=True, kw_only=True)
class Server:
    """What Redis says of itself. `eviction` is its maxmemory-policy, `syncs` its appendfsync, None where the user may
    not ask; `seconds` its clock, since the epoch. Memory is in bytes, its limit 0 where there is none."""

    version: str
    eviction: str
    evicted: int
    appendonly: bool
    syncs: str | None
    log_is_written: bool
    snapshot_is_written: bool
    memory: int
    memory_limit: int
    clients: int
    clients_limit: int
    is_replica: bool
    ping_s: float
    seconds: float


class Store:
    """For clients: an answer within CLIENT_TIMEOUT_S or RedisUnreachable."""

    def __init__(self, url: str, *, timeout: float = CLIENT_TIMEOUT_S) -> None:
        self._url = url
        where = address(url)
        self._redis = redis.Redis.from_url(
            where.url,
            decode_responses=True,
            encoding_errors="replace",
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 0),
            **where.tls,
        )

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except redis.RedisError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> Exception:
        at, said = f"Redis at {public(self._url)}", str(error)
        if isinstance(error, redis.AuthenticationError) or "NOAUTH" in said:
            return RedisRefused(f"{at} refuses the user or the password", hint=URL_FORMS)
        if isinstance(error, redis.exceptions.NoPermissionError):
            return RedisRefused(f"{at} forbids this to its user: {error}", hint="docs/security.md: who may do what")
        if isinstance(error, redis.ResponseError):
            return RedisRefused(
                f"{at} does not take the command: {error}", hint="gptjobs doctor; GPTJOBS_REDIS_URL names another"
            )
        if "CERTIFICATE_VERIFY_FAILED" in said:
            why = said.partition("certificate verify failed: ")[2].partition(" (_ssl")[0]
            return RedisUnreachable(
                f"{at} shows a certificate that is not trusted: {why}",
                hint="GPTJOBS_REDIS_URL=rediss://…?ssl_ca_certs=FILE, the authority that signed it",
            )
        hint = "gptjobs up starts one, in the storage root (--root); GPTJOBS_REDIS_URL names another"
        if self._url.startswith("rediss:"):
            hint = "does it listen for TLS there? Where it asks for a client's certificate: ssl_certfile=, ssl_keyfile="
        return RedisUnreachable(f"{at} does not answer: {error}", hint=hint)

    def _run(self, script: str, keys: list[str], *arguments: Any) -> Any:
        with self._reaching():
            return self._redis.register_script(script)(keys=keys, args=arguments)

    def ping(self) -> None:
        with self._reaching():
            self._redis.ping()

    def server(self) -> Server:
        with self._reaching():
            said = self._redis.info()
            began = time.monotonic()
            seconds, _ = self._redis.time()  # that, as one that cannot write refuses PING
            ping_s = time.monotonic() - began
        return Server(
            version=said["redis_version"],
            eviction=said["maxmemory_policy"],
            evicted=said["evicted_keys"],
            appendonly=bool(said["aof_enabled"]),
            syncs=self._syncs(),
            log_is_written=said.get("aof_last_write_status", "ok") == "ok",
            snapshot_is_written=said["rdb_last_bgsave_status"] == "ok",
            memory=said["used_memory"],
            memory_limit=said["maxmemory"],
            clients=said["connected_clients"],
            clients_limit=said["maxclients"],
            is_replica=said["role"] != "master",
            ping_s=ping_s,
            seconds=float(seconds),
        )

    def _syncs(self) -> str | None:
        """How often the append-only file is synced. Users of their own, as deploy/redis-users.acl has them, may not
        ask; they are not let try, as Redis logs that."""
        if urlsplit(self._url).username not in (None, "", "default"):
            return None
        with suppress(redis.RedisError):
            return self._redis.config_get("appendfsync").get("appendfsync")
        return None

    def refused(self, commands: Iterable[Sequence[str]]) -> str | None:
        """The first of the commands that this user may not give, with Redis's words; None where it may give all. None
        is carried out: they are queued in a transaction, which is then left."""
        with self._reaching():
            connection = self._redis.connection_pool.get_connection()
            try:
                for each in (("MULTI",), *commands):
                    connection.send_command(*each)  # type: ignore[no-untyped-call]
                    try:
                        connection.read_response()
                    except redis.exceptions.NoPermissionError as error:
                        return f"{' '.join(each)}: {error}"
                    except redis.ResponseError as error:  # full, say, which others tell
                        if each == ("MULTI",):
                            return f"MULTI: {error}"
                return None
            finally:
                connection.disconnect()  # type: ignore[no-untyped-call]
                self._redis.connection_pool.release(connection)

    def submit(self, spec: JobSpec) -> bool:
        """Record a queued job; False where the id is there already."""
        return self.restore(new_job(spec))

    def restore(self, job: Job, *, nonce: str = "") -> bool:
        """Record a job as the storage root has it, with its holder's nonce if it has one; False where the id is there
        already."""
        values: dict[str, Any] = {
            "spec": encoded(job.spec.to_dict()),
            "nonce": nonce,
            "token": job.token,
            "attempt": job.attempt,
            "worker": job.worker or "",
            "device": job.used_device or "",
            "reason": job.reason or "",
            "cause": job.cause or "",
            "priority": job.priority,
            "progress": encoded(job.progress),
        }
        pairs = [each for pair in values.items() for each in pair]
        keys = [JOB + job.spec.id, WAITING, LEASED, JOBS]
        return bool(self._run(scripts.ADD, keys, job.spec.id, job.spec.submitted_at, job.state.value, *pairs))

    def get(self, job: str) -> Job:
        with self._reaching():
            record = cast(dict[str, str], self._redis.hgetall(JOB + job))
        if not record:
            raise NotFound(f"Redis has no job {job}", hint="gptjobs list")
        return _job(job, record)

    def find(self, reference: str) -> Job:
        """The job that a user means; raises NotFound, or UsageError where it could be several."""
        with self._reaching():
            record = cast(dict[str, str], self._redis.hgetall(JOB + reference))
        if record:
            return _job(reference, record)
        from gptjobs.reference import Known, pick

        jobs = self.all()
        known_jobs = [Known(each.spec.id, each.spec.name, each.spec.submitted_at) for each in jobs]
        chosen = pick(reference, known_jobs)
        return next(each for each in jobs if each.spec.id == chosen)

    def ids(self) -> set[str]:
        """Of every job."""
        with self._reaching():
            return set(cast(list[str], self._redis.zrange(JOBS, 0, -1)))

    def all(self, but: Collection[str] = ()) -> list[Job]:
        """Every job, oldest first, but those with these ids."""
        with self._reaching():
            ids = cast(list[str], self._redis.zrange(JOBS, 0, -1))
        return self._many([each for each in ids if each not in but])

    def waiting(self) -> list[Job]:
        with self._reaching():
            ids = sorted(cast(set[str], self._redis.smembers(WAITING)))
        return [each for each in self._many(ids) if each.state is JobState.QUEUED]

    def leased(self) -> list[Job]:
        with self._reaching():
            ids = sorted(cast(set[str], self._redis.smembers(LEASED)))
        return self._many(ids)

    def _many(self, ids: list[str]) -> list[Job]:
        found: list[Any] = []
        with self._reaching():
            for first in range(0, len(ids), _BATCH):
                pipeline = self._redis.pipeline(transaction=False)
                for each in ids[first : first + _BATCH]:
                    pipeline.hgetall(JOB + each)
                found += pipeline.execute(raise_on_error=False)
            for error in found:
                if isinstance(error, redis.RedisError) and "WRONGTYPE" not in str(error):
                    raise error
        jobs = []
        for id, record in zip(ids, found, strict=True):
            if isinstance(record, dict) and record:
                with suppress(Refused):  # of a later version, or no job's: it hides no other
                    jobs.append(_job(id, record))
        return jobs

    def ask(self, way: str, job: str, reason: str, *, now: bool = False) -> JobState:
        """Cancel, pause or unpause a job; returns the state after, which is that before where no such way leads on.
        Cancelled `now`, a trainer is killed without a checkpoint."""
        return self._known(job, self._run(scripts.ASK[way], [JOB + job, WAITING, LEASED], job, reason, "1" * now))

    def prioritize(self, job: str, priority: int) -> JobState:
        """Give a job another priority; a waiting one needs a new doorbell then."""
        return self._known(job, self._run(scripts.PRIORITIZE, [JOB + job], job, priority))

    def _known(self, job: str, state: str | None) -> JobState:
        if state is None:
            raise NotFound(f"Redis has no job {job}", hint="gptjobs repair, if Redis was flushed; gptjobs list")
        return JobState(state)

    def begin_sweep(self, sweep: Sweep) -> None:
        """Let idle workers see to it."""
        with self._reaching():
            self._redis.hset(SWEEPS, sweep.id, encoded(sweep.to_dict()))

    def end_sweep(self, sweep: str) -> bool:
        """Whether it went on until now: of all who say that it has ended, one is told so."""
        with self._reaching():
            return bool(self._redis.hdel(SWEEPS, sweep))

    def sweeps(self) -> list[Sweep]:
        """Those that go on."""
        with self._reaching():
            records = cast(dict[str, str], self._redis.hgetall(SWEEPS))
        found = []
        for each in records.values():
            with suppress(
                Refused, ValueError, TypeError, KeyError, AttributeError, RecursionError
            ):  # of a later version, or no sweep's: it hides no other
                found.append(Sweep.from_dict(_strict.decode(each)))
        return found

    def keep_addresses(self, id: str, urls: Sequence[str]) -> None:
        """Where the end of a job or a sweep is told; what was said first counts, as of the request itself."""
        with self._reaching():
            self._redis.hsetnx(NOTIFY, id, json.dumps(list(urls)))

    def forget_addresses(self, id: str) -> None:
        """Once all was told; the storage root keeps them."""
        with self._reaching():
            self._redis.hdel(NOTIFY, id)

    def addresses(self, id: str) -> tuple[str, ...]:
        with self._reaching():
            found = cast(str | None, self._redis.hget(NOTIFY, id))
        with suppress(ValueError):
            urls = json.loads(found or "[]")
            return tuple(each for each in urls if isinstance(each, str)) if isinstance(urls, list) else ()
        return ()

    def root(self, own: str | None = None) -> str | None:
        """The id of the storage root that has the jobs' files; a worker's `own` where nobody has said so yet."""
        with self._reaching():
            if own is not None:
                self._redis.set(ROOT, own, nx=True)
            return cast(str | None, self._redis.get(ROOT))

    def ask_worker(self, worker: str, what: str) -> None:
        with self._reaching():
            self._redis.set(ASKED + worker, what, ex=WORKER_PRESENCE_S)

    def asked_of_worker(self, worker: str) -> str | None:
        """What it was asked for since the last time."""
        with self._reaching():
            return cast(str | None, self._redis.getdel(ASKED + worker))

    def announce(self, presence: Presence) -> None:
        with self._reaching():
            self._redis.set(WORKER + presence.name, encoded(presence.to_dict()), ex=WORKER_PRESENCE_S)

    def withdraw(self, worker: str) -> None:
        with self._reaching():
            self._redis.delete(WORKER + worker)

    def workers(self) -> list[Presence]:
        with self._reaching():
            keys = sorted(self._redis.scan_iter(WORKER + "*", count=_BATCH))
            values = cast(list[str | None], self._redis.mget(keys)) if keys else []
        return self._presences(values)

    def workers_among(self, names: Iterable[str]) -> list[Presence]:
        """Those of these names that are there: for one who may not list keys."""
        with self._reaching():
            values = [cast(str | None, self._redis.get(WORKER + each)) for each in sorted(names)]
        return self._presences(values)

    def _presences(self, values: list[str | None]) -> list[Presence]:
        found = []
        for each in filter(None, values):
            # of another version, or no worker's: it hides no other
            with suppress(ValueError, TypeError, RecursionError):
                found.append(Presence.from_dict(json.loads(each)))
        return found

    def seen_s(self, workers: Sequence[Presence]) -> list[float | None]:
        """Seconds since each worker announced itself, by Redis's clock: what its key has lived of its time. None for
        one that is gone meanwhile, and where the user may not ask."""
        with self._reaching():
            pipeline = self._redis.pipeline(transaction=False)
            for each in workers:
                pipeline.pttl(WORKER + each.name)
            left = pipeline.execute(raise_on_error=False)
        return [_lived_s(each) for each in left]


def _lived_s(left_ms: object) -> float | None:
    if not isinstance(left_ms, int) or left_ms < 0:
        return None
    return max(0.0, round(WORKER_PRESENCE_S - left_ms / 1000, 3))


def encoded(value: Mapping[Any, Any] | None) -> str:
    return "" if value is None else json.dumps(value, separators=(",", ":"), allow_nan=False)


def _fruitless(record: str) -> Fruitless:
    counts = json.loads(record)
    return {Cause(name): whole(str(count)) for name, count in counts.items() if name in set(Cause)}


def _priority(text: str) -> int:
    if whole(text) > HIGHEST_PRIORITY:
        raise ValueError(f"{text:.20} is no priority")
    return int(text)


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


_strict = json.JSONDecoder(parse_constant=_no_number)


def _job(id: str, record: Mapping[str, str]) -> Job:
    """Raises Refused for a record that this version cannot read, or that is another job's."""
    try:
        spec = _strict.decode(record["spec"])
        if spec["id"] != id:
            raise Refused(f"the record of job {plain(id)} is another job's")
        request = JobSpec.from_dict(spec)
        return Job(
            spec=request,
            state=JobState(record["state"]),
            serial=whole(record["serial"]),
            token=whole(record["token"]),
            beat=whole(record["beat"]),
            attempt=whole(record["attempt"]),
            fruitless=_fruitless(record["fruitless"]),
            priority=_priority(record.get("priority", str(request.priority))),
            worker=plain(record.get("worker", "")) or None,
            used_device=plain(record.get("device", "")) or None,
            is_unpaused=bool(record.get("unpaused")),
            reason=plain(record.get("reason", "")) or None,
            cause=Cause(record["cause"]) if record.get("cause") in set(Cause) else None,
            progress=newest_values(json.loads(record.get("progress") or "{}")),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Refused(f"a job's record in Redis cannot be read: {error!r:.200}") from error
