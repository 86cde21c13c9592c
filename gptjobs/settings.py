"""Where things live: the storage root and the Redis URL. The only module that reads the environment."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

ROOT_VARIABLE = "GPTJOBS_ROOT"
REDIS_VARIABLE = "GPTJOBS_REDIS_URL"

DEFAULT_REDIS_URL = "redis://127.0.0.1:6379/0"


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
    (GPTJOBS_REDIS_URL, else that of the root's own server, else Redis's usual port)."""
    where = Path(root or os.environ.get(ROOT_VARIABLE) or ".").absolute()
    given = os.environ.get(REDIS_VARIABLE, "")
    found = Settings(root=where, redis_url=given or DEFAULT_REDIS_URL, redis_url_given=bool(given))
    if not given and found.redis_url_file.is_file():
        return Settings(root=where, redis_url=found.redis_url_file.read_text().strip(), redis_url_given=False)
    return found


def public(url: str) -> str:
    """A URL without its password."""
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


def no_colour() -> bool:
    """Whether the user wants none (no-color.org)."""
    return bool(os.environ.get("NO_COLOR"))


def tiktoken_cache_folder() -> Path | None:
    """Where tiktoken keeps downloaded encodings, if the user told it so."""
    folder = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    return Path(folder) if folder else None
