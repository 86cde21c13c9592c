"""Every file name under the storage root, written and parsed. Names cross hosts, paths never do."""

import hashlib
import os
import re
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gptjobs import durable
from gptjobs.errors import Refused

SCHEMA = 1
JOB_ID_BYTES = 6
ROOT_ID_BYTES = 8
_DATASET_LENGTH = 128
"""characters: names of checkpoints and temporary files must stay below 255"""
_PART_LENGTH = 255
"""bytes of a file's name, at most, on the usual file systems"""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_CHECKPOINT = re.compile(
    r"checkpoint_(?P<model>[A-Za-z0-9.-]+)_(?P<dataset>.+)_step(?P<step>\d+)_(?P<stamp>\d{8}_\d{6})\.pt"
)


def new_job_id() -> str:
    return secrets.token_hex(JOB_ID_BYTES)


def job_id_of_key(key: str) -> str:
    """The id of the job that was submitted with this idempotency key, the same on every client."""
    return hashlib.sha256(key.encode()).hexdigest()[: 2 * JOB_ID_BYTES]


def is_name(text: str) -> bool:
    """Whether `text` may name a job or an encoding: it can never lead out of a folder."""
    return bool(_NAME.fullmatch(text))


def is_digest(text: str) -> bool:
    """Whether `text` is a SHA-256 in hexadecimal."""
    return bool(_DIGEST.fullmatch(text))


def dataset_name(source: str) -> str:
    """The source's file name without its ending, fit for file names: `sources/a b.md` is `a_b`."""
    name = re.sub(r"[^A-Za-z0-9.-]+", "_", Path(source).stem).strip("._")
    return name[:_DATASET_LENGTH] or "data"


def stamp(seconds: float) -> str:
    """MMDDYYYY_HHMMSS in local time, as file names carry it."""
    return time.strftime("%m%d%Y_%H%M%S", time.localtime(seconds))


def seconds_of_stamp(text: str) -> float | None:
    """Since the epoch; None for a stamp that is no date."""
    try:
        return time.mktime(time.strptime(text, "%m%d%Y_%H%M%S"))
    except (ValueError, OverflowError):
        return None


def checkpoint_name(dataset: str, step: int, seconds: float) -> str:
    return f"checkpoint_gpt2_{dataset}_step{step:06d}_{stamp(seconds)}.pt"


@dataclass(frozen=True, kw_only=True)
class CheckpointName:
    model: str
    dataset: str
    step: int
    stamp: str


def parse_checkpoint_name(name: str) -> CheckpointName | None:
    match = _CHECKPOINT.fullmatch(name)
    if match is None:
        return None
    return CheckpointName(model=match["model"], dataset=match["dataset"], step=int(match["step"]), stamp=match["stamp"])


def _really(path: Path) -> Path:
    """Where links lead; unlike Path.resolve, also for those that lead in circles."""
    return Path(os.path.realpath(path))


@dataclass(frozen=True)
class Layout:
    """The storage root's folders and files."""

    root: Path
    id: str | None = None
    """the root's, where somebody looked: see storage.py"""

    @property
    def is_there(self) -> bool:
        """Whether this folder is a storage root, not just where a client happens to stand."""
        return self.checkpoints.is_dir()

    def make(self) -> None:
        """Make this folder a storage root. Nothing else makes these folders, so that a mount point stays bare."""
        for folder in (self.checkpoints, self.shared_data, self.logs, self.outputs):
            folder.mkdir(parents=True, exist_ok=True)
        if not self.marker.exists():
            marker = durable.to_json({"schema": SCHEMA, "id": secrets.token_hex(ROOT_ID_BYTES)})
            with suppress(FileExistsError):  # made by another host at the same moment
                durable.create(self.marker, marker)

    @property
    def marker(self) -> Path:
        """Tells this root from another one, and from the bare point where its disk is not mounted."""
        return self.root / ".gptjobs-root"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def shared_data(self) -> Path:
        return self.root / "shared_data"

    @property
    def encodings(self) -> Path:
        return self.shared_data / "encodings"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def outputs(self) -> Path:
        return self.root / "outputs"

    def tokens(self, dataset: str, digest: str) -> Path:
        """The folder of a source's tokens; `digest` is the source's SHA-256 in hexadecimal. Raises Refused for what is
        none: it is a part of the name."""
        if not is_digest(digest):
            raise Refused(f"{digest!r:.80} is no SHA-256")
        return self.shared_data / "tokens" / f"{dataset}-{digest[:12]}"

    def token_file(self, dataset: str, digest: str, encoding: str) -> Path:
        """The tokens, uint16 in the machine's little-endian order; its manifest ends in .json."""
        canonical = "r50k_base" if encoding == "gpt2" else encoding
        return self.tokens(dataset, digest) / f"{canonical}.bin"

    def inspection_file(self, token_file: Path) -> Path:
        """What was found odd in the text of these tokens."""
        return token_file.with_suffix(".inspection.json")

    def analysis_file(self, job: str) -> Path:
        return self.outputs / job / "loss_plateau_analysis.md"

    def job_checkpoints(self, job: str) -> Path:
        return self.checkpoints / job

    def name_of_checkpoint(self, job: str, file: str) -> str:
        """Relative to the root, as manifests and attempts name a checkpoint."""
        return f"checkpoints/{job}/{file}"

    def job_outputs(self, job: str) -> Path:
        return self.outputs / job

    def job_file(self, job: str) -> Path:
        return self.outputs / job / "job.json"

    def sweep_file(self, sweep: str) -> Path:
        return self.outputs / sweep / "sweep.json"

    def trials(self, sweep: str) -> Path:
        return self.outputs / sweep / "trials"

    def trial_file(self, sweep: str, number: int) -> Path:
        """A sample; there is one for each number below the highest."""
        return self.trials(sweep) / f"{number}.json"

    def parallel_picture(self, sweep: str) -> Path:
        return self.outputs / sweep / "parallel.png"

    def config_file(self, job: str) -> Path:
        return self.outputs / job / "config.json"

    def arithmetic_file(self, job: str, kind_of_device: str) -> Path:
        return self.outputs / job / f"arithmetic.{kind_of_device}.json"

    def outcome_file(self, job: str) -> Path:
        return self.outputs / job / "outcome.json"

    def request_file(self, job: str, request: str) -> Path:
        """What a user asked of a job since its submission: cancel, pause or priority."""
        return self.outputs / job / f"{request}.json"

    def addresses_file(self, job: str) -> Path:
        """Where the end of a job or a sweep is told: secrets, for the owner's eyes alone."""
        return self.outputs / job / "notify.json"

    def metrics_file(self, job: str) -> Path:
        return self.outputs / job / "metrics.jsonl"

    def events_file(self, job: str) -> Path:
        return self.outputs / job / "events.jsonl"

    def summary_file(self, job: str) -> Path:
        return self.outputs / job / "summary.md"

    def loss_picture(self, job: str) -> Path:
        return self.outputs / job / "loss.png"

    def attempts(self, job: str) -> Path:
        return self.outputs / job / "attempts"

    def attempt_file(self, job: str, token: int) -> Path:
        return self.attempts(job) / f"{token}.json"

    def attempt_lines(self, job: str, token: int) -> Path:
        return self.attempts(job) / f"{token}.jsonl"

    def flight(self, job: str) -> Path:
        """The folder of a job's flight records."""
        return self.outputs / job / "flight"

    def flight_file(self, job: str, token: int, step: int) -> Path:
        """What the steps up to this one were, in the attempt `token`."""
        return self.flight(job) / f"{token}-{step:06d}.json"

    def tensorboard(self, job: str, name: str | None) -> Path:
        """TensorBoard calls the curves by their folder, relative to the one it is given."""
        return self.outputs / job / "tensorboard" / (name or "")

    def tensorboard_file(self, job: str, name: str | None, token: int) -> Path:
        """Of an attempt. TensorBoard reads a folder's files by their names, so these sort as the attempts do,
        whatever the hosts' clocks say."""
        return self.tensorboard(job, name) / f"events.out.tfevents.{token:010d}"

    def wandb_parent(self, job: str) -> Path:
        """Where Weights & Biases' package makes its folder `wandb`."""
        return self.outputs / job

    def log_file(self, kind: str, job: str, seconds: float) -> Path:
        prefix = "resume_" if kind == "resume" else ""
        return self.logs / f"{prefix}training_log_{job}_{stamp(seconds)}.log"

    def log_files(self, job: str) -> list[Path]:
        """The logs of all attempts of a job, oldest first."""
        return sorted(self.logs.glob(f"*training_log_{job}_*.log"), key=lambda path: path.stat().st_mtime)

    def inside(self, path: Path) -> str | None:
        """The name of `path` relative to the root, or None where it lies outside. A folder of the root may
        be a link to another disk; the root may be reached by another way."""
        spelled = Path(os.path.abspath(path)), Path(os.path.abspath(self.root))  # noqa: PTH100  # .. goes, links stay
        for each, root in (spelled, (_really(path), _really(self.root))):
            if each.is_relative_to(root):
                return each.relative_to(root).as_posix()
        return None

    def path(self, name: str) -> Path:
        """The path of a name that another host sent; raises Refused where it leads out of the root. The folders right
        in the root may be links to other disks, as their owner has set them up; below them no link may lead out."""
        path, parts = self.root / name, Path(name).parts
        if any(len(os.fsencode(each)) > _PART_LENGTH for each in parts):
            raise Refused(f"the name {name!r:.80} is too long")
        spelled = None if "\0" in name or ".." in parts else self.inside(path)
        if spelled is None:
            raise Refused(f"the name {name!r:.255} leads out of the storage root {self.root}")
        top, *below = Path(spelled).parts or (".",)
        homes = [self.root, self.root / top] if below else [self.root]
        if not any(_really(path).is_relative_to(_really(each)) for each in homes):
            raise Refused(
                f"the name {name!r:.255} leads out of the storage root {self.root} by a link",
                hint="only the root's own folders may be links to other disks; or --data with the path it leads to",
            )
        return path
