"""A lease while it is held: renewed by a thread of its own, whatever the task is busy with."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from gptjobs import checkpoint, record, storage
from gptjobs.errors import StorageAway
from gptjobs.job import Fruitless, JobSpec, JobState, Outcome
from gptjobs.layout import Layout
from gptjobs.leases import Fenced, Lease, LeaseStore, RecordMissing, Unreachable

BEAT_S = 2.0
PUBLISH_S = 1.0
DRAIN_LIMIT_S = 10.0
"""A worker that stops waits so long for Redis to take an attempt's end; then the lease expires by itself."""
OFFLINE_LIMIT_S = 6 * 3600.0
"""How long a job goes on without Redis: longer, and it only works in vain."""

logger = logging.getLogger(__name__)

Publish = Callable[[JobState, Mapping[str, Any]], None]


class HeldLease:
    """`state` is what Redis last said: requests to pause or cancel arrive in it, that to cancel at once in
    `is_to_end_now`. Once `lost`, nothing of this attempt counts."""

    def __init__(
        self, store: LeaseStore, lease: Lease, spec: JobSpec, layout: Layout, worker: str, device: str,
        publish: Publish,
    ) -> None:  # fmt: skip
        self._store, self.lease, self._spec, self._layout = store, lease, spec, layout
        self._worker, self._device, self._publish = worker, device, publish
        self._progress: Mapping[str, Any] = {}
        self._offline_since: float | None = None
        self._ending: JobState | None = None
        self._confirmed_at = time.monotonic()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lease {spec.id}", daemon=True)
        self.state = JobState.RUNNING
        self.is_to_end_now = False
        self.lost = False

    def __enter__(self) -> "HeldLease":
        self._thread.start()
        threading.Thread(target=self._publish_newest, name=f"events {self._spec.id}", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop_renewing()

    def _stop_renewing(self) -> None:
        self._stopped.set()
        self._thread.join()

    def show(self, progress: Mapping[str, Any]) -> None:
        """Let the next renewal carry these newest values."""
        self._progress = {**self._progress, **progress}

    @property
    def progress(self) -> Mapping[str, Any]:
        """The newest values."""
        return self._progress

    @property
    def age_s(self) -> float:
        """Seconds since Redis last confirmed a beat."""
        return time.monotonic() - self._confirmed_at

    @property
    def is_asked_to_stop(self) -> bool:
        return self.state in (JobState.PAUSING, JobState.CANCELLING)

    def _keep(self) -> None:
        try:
            while not self.lost:
                self._renew()
                if self._stopped.wait(BEAT_S):
                    return
        finally:
            # whatever ended the renewals: without them another worker takes the job
            self.lost = self.lost or not self._stopped.is_set()

    def _publish_newest(self) -> None:
        """In a thread of its own: a stalled connection for events must cost no beat."""
        published: Mapping[str, Any] = {}
        while not self._stopped.wait(PUBLISH_S) and not self.lost:
            newest = self._progress
            if newest is not published and self._offline_since is None:
                self._publish(self.state, newest)
                published = newest

    def _renew(self) -> None:
        try:
            self._beat(self._progress)
        except Fenced:
            logger.warning("job %s was fenced: another attempt has its lease", self._spec.id)
            self.lost = True
        except Unreachable as error:
            self._note_offline(error)
        except (OSError, StorageAway) as error:
            logger.warning("job %s is missing in Redis, and its record cannot be read: %s", self._spec.id, error)
        else:
            self._note_online()

    def _beat(self, progress: Mapping[str, Any]) -> None:
        try:
            self.state, self.is_to_end_now = self._store.renew(self.lease, progress)
        except RecordMissing:
            self._put_back()

    def _put_back(self) -> None:
        """Redis was flushed. The highest attempt in the storage root, and only it, restores the record, unless the job
        ended otherwise: it was cancelled while this attempt was away, say."""
        job = self._spec.id
        storage.check(self._layout)
        outcome = record.read_outcome(self._layout, job)
        ended_otherwise = outcome is not None and outcome.state is not self._ending
        if ended_otherwise or checkpoint.latest_token(self._layout, job) != self.lease.token:
            raise Fenced
        state = record.with_requests(self._layout, job, JobState.RUNNING)
        found = replace(record.read_job(self._layout, job), state=state)
        if self._store.put_back(found, self.lease, self._worker, self._device):
            logger.warning("job %s was missing in Redis; its record is back", job)

    def _note_offline(self, error: Unreachable) -> None:
        now = time.monotonic()
        if self._offline_since is None:
            self._offline_since = now
            logger.warning("Redis does not answer (%s); job %s goes on without it", error, self._spec.id)
        elif now - self._offline_since > OFFLINE_LIMIT_S:
            logger.warning("Redis has been away for too long; job %s stops here", self._spec.id)
            self.lost = True

    def _note_online(self) -> None:
        self._confirmed_at = time.monotonic()
        if self._offline_since is not None:
            logger.info("Redis answers again; job %s is still ours", self._spec.id)
            self._offline_since = None

    def finish(self, outcome: Outcome, *, fruitless: Fruitless, draining: threading.Event) -> JobState | None:
        """Tell Redis how the attempt ended, however long it takes to answer. Returns the job's state after;
        None where the lease was another's."""
        self._stop_renewing()
        self._ending = outcome.state
        began = time.monotonic()
        while time.monotonic() - began < (DRAIN_LIMIT_S if draining.is_set() else OFFLINE_LIMIT_S):
            try:
                return self._store.finish(self.lease, outcome, fruitless=fruitless, progress=self._progress)
            except Fenced:
                self.lost = True
            except RecordMissing:
                self._renew()
            except Unreachable as error:
                self._note_offline(error)
            if self.lost:
                return None
            time.sleep(BEAT_S)
        return None
