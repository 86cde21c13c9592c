"""What docker-compose.yml needs before its first start: passwords, Redis's users, the root's folders and marker.

Its one-shot service `setup` runs this on every `docker compose up`, and `make secrets` on the host; only what is
missing is made. A password stands in the files of those who need it and nowhere else; Redis gets the SHA-256 of each.
"""

import argparse
import hashlib
import os
import secrets
import sys
from pathlib import Path
from urllib.parse import urlsplit

from gptjobs import durable
from gptjobs.layout import Layout

USERS = ("client", "worker", "flower")
PLACEHOLDER = "#" + 64 * "0"
SINCE_7_2 = " +client|setinfo"
"""Redis 7.0 does not start with it; where it is not granted, clients go on without it"""
RULES = Path(__file__).with_name("redis-users.acl")
OWNER_ONLY = 0o600
PASSWORD_BYTES = 24
UNPRIVILEGED = 1000
"""the uid and gid that docker-compose.yml takes where .env names none"""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="setup.py", description="Make what docker-compose.yml needs, where it is not."
    )
    parser.add_argument("folder", type=Path, help="that of docker-compose.yml, which is the storage root")
    parser.add_argument("--redis-port", type=int, default=6379, help="of Redis on this host's loopback")
    parser.add_argument("--env", action="store_true", help="write your uid and gid to .env")
    arguments = parser.parse_args()
    rules = RULES.read_text().replace(SINCE_7_2, "")
    os.chdir(arguments.folder)  # which its owner may enter from here, whosever the folders above are
    become_owner(on_host=arguments.env)
    if arguments.env:
        write_owner(Path(".env"))
    make_root(Layout(Path()))
    make_secrets(Path("secrets"), rules, arguments.redis_port)


def become_owner(*, on_host: bool) -> None:
    """What containers write is to belong to the user whose folder this is. Ends where they are another's."""
    owner, me = Path().stat(), os.geteuid()
    chown = f"sudo chown -R {UNPRIVILEGED}:{UNPRIVILEGED} ."
    if on_host and owner.st_uid == 0:
        sys.exit(f"error: this folder is root's, and no container is to run as root\nhint: {chown}")
    if me == 0 and owner.st_uid != 0:
        os.setegid(owner.st_gid)
        os.seteuid(owner.st_uid)
    elif owner.st_uid != me:
        line = f"printf 'GPTJOBS_UID={owner.st_uid}\\nGPTJOBS_GID={owner.st_gid}\\n' >>.env"
        sys.exit(
            f"error: this folder is uid {owner.st_uid}'s, and the containers run as uid {me}\n"
            f"hint: {chown if owner.st_uid == 0 else f'make secrets, or {line}'}; then docker compose up again"
        )


def write_owner(env: Path) -> None:
    """For compose, which reads .env: the uid and gid of this process, unless it names others."""
    said = env.read_text() if env.is_file() else ""
    wanted = {"GPTJOBS_UID": os.geteuid(), "GPTJOBS_GID": os.getegid()}
    lines = [f"{name}={value}\n" for name, value in wanted.items() if f"{name}=" not in said]
    if lines:
        durable.write(env, (said + "".join(lines)).encode())


def make_root(layout: Layout) -> None:
    """The root's folders and its marker, also in outputs/: containers have the folders, and not the root."""
    layout.make()
    in_outputs = layout.outputs / layout.marker.name
    if not in_outputs.is_file() or in_outputs.read_bytes() != layout.marker.read_bytes():
        durable.write(in_outputs, layout.marker.read_bytes())


def make_secrets(folder: Path, rules: str, port: int) -> None:
    """A folder for each that reads one, so that none sees another's; `redis-url` is for this host's own worker."""
    for user in USERS:
        url = keep(folder / user / "redis-url", f"redis://{user}:{{password}}@redis:6379/0")
        digest = hashlib.sha256((urlsplit(url).password or "").encode()).hexdigest()
        rules = rules.replace(f"user {user} on {PLACEHOLDER}", f"user {user} on #{digest}")
    (folder / "redis").mkdir(exist_ok=True)
    # Redis runs as a user of its image's: hashes of random passwords may be read
    durable.write(folder / "redis" / "users.acl", rules.encode(), mode=0o644)
    worker = urlsplit((folder / "worker" / "redis-url").read_text())
    here = worker._replace(netloc=f"worker:{worker.password}@127.0.0.1:{port}").geturl()
    durable.write(folder / "redis-url", here.encode(), mode=OWNER_ONLY)
    keep(folder / "flower" / "login", "gptjobs:{password}")
    keep(folder / "grafana" / "password", "{password}")


def keep(file: Path, form: str) -> str:
    """What stands in the file; made with a new password where it is missing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.is_file():
        durable.write(file, form.format(password=secrets.token_urlsafe(PASSWORD_BYTES)).encode(), mode=OWNER_ONLY)
    return file.read_text().strip()


if __name__ == "__main__":
    main()
