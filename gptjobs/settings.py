"""Where things live: the storage root and the Redis URL. The only module that reads the environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from gptjobs.errors import RedisUnreachable, UsageError

ROOT_VARIABLE = "GPTJOBS_ROOT"
REDIS_VARIABLE = "GPTJOBS_REDIS_URL"
REDIS_FILE_VARIABLE = "GPTJOBS_REDIS_URL_FILE"
NOTIFY_VARIABLE = "GPTJOBS_NOTIFY"
SAFE_PATH_VARIABLE = "PYTHONSAFEPATH"

LOOPBACK = "127.0.0.1"
FLOWER_PORT = 5555

DEFAULT_REDIS_URL = "redis://127.0.0.1:6379/0"
URL_FORMS = "GPTJOBS_REDIS_URL=redis://USER:PASSWORD@HOST:6379/0, or rediss://…?ssl_ca_certs=FILE for TLS"
"""what to type where a URL is no good"""
METRICS_FORMS = "--metrics 5556, for this host alone; --metrics 0.0.0.0:5556 for others too"
_HIGHEST_PORT = 65535
_OF_WORKERS = (
    REDIS_VARIABLE, REDIS_FILE_VARIABLE, NOTIFY_VARIABLE, "TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR",
    "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "PATH",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
    "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE",
    "WANDB_API_KEY", "WANDB_PROJECT", "WANDB_ENTITY", "WANDB_BASE_URL", "WANDB_MODE",
)  # fmt: skip
"""what a worker, and the programs that it starts, go by"""
_TLS_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_VERIFICATION = ("required", "optional", "none")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """`redis_url_given` tells a URL from the environment apart from one found in the root or assumed."""

    root: Path
    redis_url: str
    redis_url_given: bool

    @property
    def home(self) -> Path:
        """The folder in the root for what belongs to its own server: URL, passwords, its data."""
        return self.root / ".gptjobs"

    @property
    def redis_url_file(self) -> Path:
        return self.home / "redis-url"

    @property
    def flower_auth_file(self) -> Path:
        return self.home / "flower-auth"


def load(root: Path | None = None) -> Settings:
    """Settle the root (argument, else GPTJOBS_ROOT, else the working directory) and the Redis URL
    (GPTJOBS_REDIS_URL, else what stands in the file GPTJOBS_REDIS_URL_FILE, else that of the root's own server, else
    Redis's usual port)."""
    where = Path(root or os.environ.get(ROOT_VARIABLE) or ".").absolute()
    given = os.environ.get(REDIS_VARIABLE) or _url_in_file(os.environ.get(REDIS_FILE_VARIABLE))
    found = Settings(root=where, redis_url=given or DEFAULT_REDIS_URL, redis_url_given=bool(given))
    if not given and found.redis_url_file.is_file():
        return Settings(root=where, redis_url=found.redis_url_file.read_text().strip(), redis_url_given=False)
    return found


def metrics_address(text: str) -> tuple[str, int]:
    """[HOST:]PORT to serve metrics on; this host alone unless one is named. Port 0 is any that is free."""
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdigit()) or int(port) > _HIGHEST_PORT:
        raise UsageError(f"'{text}' is no [HOST:]PORT to serve metrics on", hint=METRICS_FORMS)
    return host.strip("[]") or LOOPBACK, int(port)


def notify_urls() -> list[str]:
    """Where a worker tells of every job and sweep, besides the addresses that came with them."""
    return os.environ.get(NOTIFY_VARIABLE, "").split()


def _url_in_file(name: str | None) -> str:
    """A password in a file is in no process list, no `docker inspect` and no shell's history; empty without a name."""
    if not name:
        return ""
    try:
        return Path(name).read_text().strip()
    except OSError as error:
        raise RedisUnreachable(
            f"{REDIS_FILE_VARIABLE} names a file that cannot be read: {name}: {error.strerror}", hint=URL_FORMS
        ) from error


@dataclass(frozen=True, kw_only=True)
class Address:
    """A Redis URL taken apart: `url` is without its parameters. `tls` is what redis-py takes for TLS, and through
    Celery's `broker_use_ssl` kombu and Flower: one spelling for all, since each reads a URL's parameters in its own
    way, and kombu verifies no certificate where it is told nothing. Empty without TLS."""

    url: str
    tls: Mapping[str, Any]


def address(url: str) -> Address:
    """Raises RedisUnreachable for a URL that cannot mean a Redis; a server's certificate is verified unless
    `ssl_cert_reqs=none` says otherwise."""
    try:
        parts = urlsplit(url)
        is_whole = parts.scheme in ("redis", "rediss") and parts.hostname and parts.port != 0
    except ValueError:
        is_whole = False
    if not is_whole:
        raise RedisUnreachable(f"the Redis URL cannot be read: {public(url)}", hint=URL_FORMS)
    parameters = dict(parse_qsl(parts.query, keep_blank_values=True))
    unknown = [each for each in parameters if each not in (*_TLS_FILES, "ssl_cert_reqs")]
    if unknown or (parameters and parts.scheme == "redis"):
        why = f"{unknown[0]!r} is not known" if unknown else "ssl_… is for rediss://"
        raise RedisUnreachable(f"the Redis URL {public(url)} has parameters that mean nothing: {why}", hint=URL_FORMS)
    for name in _TLS_FILES:
        if name in parameters and not Path(parameters[name]).is_file():
            raise RedisUnreachable(f"{name} of the Redis URL {public(url)} names no file", hint=URL_FORMS)
    plain_url = parts._replace(query="", fragment="").geturl()
    return Address(url=plain_url, tls=_tls(parameters) if parts.scheme == "rediss" else {})


def _tls(parameters: dict[str, str]) -> dict[str, Any]:
    said = parameters.pop("ssl_cert_reqs", "required")
    wanted = said.removeprefix("CERT_").lower()  # as Celery's documentation writes it
    if wanted not in _VERIFICATION:
        raise RedisUnreachable(
            "ssl_cert_reqs of the Redis URL is none of required, optional, none", hint="leave it out: required"
        )
    return {**parameters, "ssl_cert_reqs": wanted, "ssl_check_hostname": wanted != "none"}


def public(url: str) -> str:
    """A URL without its user, password and parameters."""
    try:
        parts = urlsplit(url)
        port = parts.port or 6379
    except ValueError:
        return "an address that cannot be read"
    if not parts.hostname:
        return "an address without a host"
    return f"{parts.scheme}://{parts.hostname}:{port}{parts.path}"


def child_environment(settings: Settings, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment for a child that is to use these settings."""
    return environment_with({ROOT_VARIABLE: str(settings.root), REDIS_VARIABLE: settings.redis_url, **(extra or {})})


def environment_with(extra: Mapping[str, str]) -> dict[str, str]:
    return {**os.environ, **extra}


def service_environment(settings: Settings) -> dict[str, str]:
    """What a worker that a service manager starts is to find there, of what is said here. A URL that the root's own
    server has is not among it: that is looked up at each start."""
    said = {name: os.environ[name] for name in _OF_WORKERS if os.environ.get(name)}
    if said.get(REDIS_FILE_VARIABLE):
        said[REDIS_FILE_VARIABLE] = str(Path(said[REDIS_FILE_VARIABLE]).absolute())
    return {**said, ROOT_VARIABLE: str(settings.root), SAFE_PATH_VARIABLE: "1"}


def wandb_environment(folder: Path) -> dict[str, str]:
    """This process's environment for a child that logs to Weights & Biases, whose package takes all else from there:
    what the user did not set is a project's name and that it writes nothing outside `folder`."""
    ours = {"WANDB_PROJECT": "gptjobs", "WANDB_DIR": str(folder), "WANDB_CACHE_DIR": str(folder / "wandb" / "cache")}
    return {**ours, **os.environ}


def import_nothing_from_here() -> None:
    """Let no child of this process import what lies in its working directory: that may be the storage root, where
    others write."""
    os.environ[SAFE_PATH_VARIABLE] = "1"


def share_cores(shares: int) -> None:
    """Let each child of this process compute with its share of the cores, unless the user said with how many threads:
    two that compute with all of them wait for each other's."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // shares)))


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def no_colour() -> bool:
    """Whether the user wants none (no-color.org)."""
    return bool(os.environ.get("NO_COLOR"))


def tiktoken_cache_folder() -> Path | None:
    """Where tiktoken keeps downloaded encodings, if the user told it so."""
    folder = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    return Path(folder) if folder else None
