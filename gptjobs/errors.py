"""What a user can act on: every error that may reach the command line, with its exit code.

Raise these with a sentence that says what happened and why, and a hint that says what to type.
"""


class GptjobsError(Exception):
    """The job could not be done."""

    exit_code = 1

    def __init__(self, message: str | None = None, *, hint: str | None = None) -> None:
        self.message = message or (self.__doc__ or "").strip()
        self.hint = hint
        super().__init__(self.message)


class JobFailed(GptjobsError):
    """The job failed or diverged."""


class UsageError(GptjobsError):
    """The command's words or values are off."""

    exit_code = 2


class Refused(GptjobsError):
    """What was asked for would do harm: a corrupt checkpoint, changed data, no space."""

    exit_code = 3


class NoSpace(Refused):
    """There is no space left."""


class OutOfMemory(GptjobsError):
    """The device has too little memory."""

    remedy = "a smaller --block-size or --micro-batch, or another --device"


class StorageAway(GptjobsError):
    """The storage root does not work here."""


class UnsafePickle(Refused):
    """The file is a pickle that names code to run."""


class NotFound(GptjobsError):
    """There is no such thing."""

    exit_code = 4


class RedisUnreachable(GptjobsError):
    """Redis does not answer."""

    exit_code = 5


class RedisRefused(RedisUnreachable):
    """Redis does not take the command: nothing was changed."""


class NoWorker(GptjobsError):
    """No worker can take the job."""

    exit_code = 6


class JobCancelled(GptjobsError):
    """The job was cancelled."""

    exit_code = 10


class WaitedTooLong(GptjobsError):
    """The time to wait is over."""

    exit_code = 124
