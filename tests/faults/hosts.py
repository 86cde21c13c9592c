"""Hosts in network namespaces, set up by the words of docs/hosts.md: addresses, names, /etc and mounts of their own.

They hang on a bridge in a namespace of its own, so nothing of this reaches the machine's network. A cut link drops what
passes, as a switch does whose uplink was pulled: nobody is told. The storage is box 1's; the others have it at paths of
their own: bound there, so that a cut takes Redis alone away, or through the link that is cut, by a network file system:
sshfs, as a kernel's NFS needs modules that not every machine has.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import pytest

from gptjobs.layout import Layout
from tests.conftest import VARIABLES, english, eventually

Made = TypeVar("Made", bound="Namespace")

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs" / "hosts.md"
CONFIGURATION = "/etc/redis/redis-gptjobs.conf"
REDIS_URL = "/etc/gptjobs/redis-url"
PORT = 6380
FILES_PORT = 7000
ADDRESSES = {"box1": "192.168.1.10", "box2": "192.168.1.11", "mac": "192.168.1.12", "laptop": "192.168.1.13"}
ROOTS = {"box1": "/srv/gpt", "box2": "/mnt/gpt", "mac": "/home/mac/gpt"}
"""where each host has the storage; the laptop has none"""
FORWARDING, DISABLED = "3", "0"
"""states of a bridge's port"""
SFTP_SERVER = "/usr/lib/openssh/sftp-server"
FILE_SERVER = """
import socket, subprocess, sys
with socket.create_server((sys.argv[1], int(sys.argv[2]))) as listener:
    while True:
        connection, _ = listener.accept()
        subprocess.Popen([sys.argv[3]], stdin=connection, stdout=connection)
        connection.close()
"""


def blocks(host: str) -> list[str]:
    """The commands that the page gives for a host, in its order; those of files to write are not among them."""
    return re.findall(rf"^```sh {host}\n(.*?)^```$", PAGE.read_text(), re.M | re.S)


def need(program: str, package: str) -> None:
    if not shutil.which(program):
        pytest.skip(f"no {Path(program).name} here (apt-get install {package})")


def file_of_page(path: str) -> str:
    """What the page says is to stand in a file."""
    (content,) = re.findall(rf"^```ini {re.escape(path)}\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    return str(content)


class Namespace:
    """Of network, host name and mounts; it is there as long as the process that holds it."""

    def __init__(self, name: str) -> None:
        self.name = name
        held = ["unshare", "-n", "-u", "-m", "sh", "-c", f"hostname {name} && echo made && exec cat"]
        self._holder = subprocess.Popen(held, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self._holder.stdout is not None and self._holder.stderr is not None
        if self._holder.stdout.readline() != b"made\n":
            pytest.skip(f"no namespaces can be made here: {self._holder.stderr.read().decode().strip()}")

    @property
    def pid(self) -> int:
        return self._holder.pid

    def inside(self, *command: str) -> list[str]:
        return ["nsenter", "-t", str(self.pid), "-n", "-u", "-m", "--wd=/", *command]

    def ok(self, *command: str) -> str:
        done = subprocess.run(self.inside(*command), capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{self.name}: {command}: {done.stderr}"
        return done.stdout

    def close(self) -> None:
        """All that is in it ends, whatever started it."""
        own = Path(f"/proc/{self.pid}/ns/net").readlink()
        assert own != Path("/proc/self/ns/net").readlink()
        for each in Path("/proc").glob("[0-9]*/ns/net"):
            with suppress(OSError):  # it ended meanwhile
                if each.readlink() == own:
                    os.kill(int(each.parts[2]), signal.SIGKILL)
        self._holder.communicate()


class Host(Namespace):
    """A machine of the page: an address on the network, an /etc of its own, and a shell in which words are typed."""

    def __init__(self, name: str, switch: Namespace, folder: Path) -> None:
        super().__init__(name)
        self._switch, self._folder = switch, folder / name
        self._folder.mkdir()
        self.root = ROOTS.get(name)
        self.processes: list[subprocess.Popen[bytes]] = []
        self._join()
        self._have_own_folders()

    def _join(self) -> None:
        """A cable to the switch."""
        switch, address = self._switch, ADDRESSES[self.name]
        switch.ok("ip", "link", "add", self.name, "type", "veth", "peer", "name", "eth0", "netns", str(self.pid))
        switch.ok("ip", "link", "set", self.name, "master", "lan", "up")
        self.ok("ip", "address", "add", f"{address}/24", "dev", "eth0")
        for link in ("lo", "eth0"):
            self.ok("ip", "link", "set", link, "up")

    def _have_own_folders(self) -> None:
        """/etc, /srv, /mnt and /home that others do not see; names of the hosts in /etc/hosts."""
        disk = self._folder / "disk"
        disk.mkdir()
        self.ok("mount", "-t", "tmpfs", "tmpfs", str(disk))
        for each in ("etc", "srv", "mnt", "home", "var/lib"):
            upper, work = (disk / each / part for part in ("upper", "work"))
            self.ok("mkdir", "-p", str(upper), str(work))
            layers = f"lowerdir=/{each},upperdir={upper},workdir={work}"
            self.ok("mount", "-t", "overlay", "overlay", "-o", layers, f"/{each}")
        names = "".join(f"{address} {name}.lan {name}\n" for name, address in ADDRESSES.items())
        self.write("/etc/hosts", f"127.0.0.1 localhost\n{names}")

    def write(self, path: str, content: str, mode: int = 0o644) -> None:
        file = self._folder / "written"
        file.write_text(content)
        self.ok("install", "-D", "-m", f"{mode:o}", str(file), path)

    def has(self, storage: Path) -> None:
        """The storage at this host's path, and nowhere else."""
        assert self.root
        self.ok("mkdir", "-p", self.root)
        self.ok("mount", "--bind", str(storage), self.root)

    def mounts(self, server: "Host") -> None:
        """The storage at this host's path, through the network. A listing may be 3 s old, as by the page's options;
        a server that is away is waited for."""
        assert self.root and server.root
        self.ok("mkdir", "-p", self.root)
        options = f"directport={FILES_PORT},dcache_timeout=3"
        mount = ["sshfs", "-f", "-o", options, f"{server.name}.lan:{server.root}", self.root]
        with self.log("mount").open("ab") as log:
            self.processes.append(subprocess.Popen(self.inside(*mount), stdout=log, stderr=log))
        eventually(lambda: f" {self.root} fuse.sshfs " in self.ok("cat", "/proc/mounts"), 20)

    def serves_files(self) -> None:
        command = (sys.executable, "-c", FILE_SERVER, ADDRESSES[self.name], str(FILES_PORT), SFTP_SERVER)
        self.processes.append(subprocess.Popen(self.inside(*command)))
        eventually(lambda: self.listens(FILES_PORT), 20)

    def listens(self, port: int) -> bool:
        return f":{port} " in self.ok("ss", "-Hltn")

    def cut(self) -> None:
        """Silently: no reset, no carrier that is lost."""
        self._switch.ok("bridge", "link", "set", "dev", self.name, "state", DISABLED)

    def mend(self) -> None:
        self._switch.ok("bridge", "link", "set", "dev", self.name, "state", FORWARDING)

    @property
    def environment(self) -> dict[str, str]:
        """Of a user who typed what the page says; the commands of this repository are on the path."""
        kept = {name: value for name, value in os.environ.items() if name not in VARIABLES and "GPTJOBS" not in name}
        kept |= {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}"}
        kept |= {"PYTHONPATH": str(REPOSITORY), "GPTJOBS_REDIS_URL_FILE": REDIS_URL}
        return kept | ({"GPTJOBS_ROOT": self.root} if self.root else {})

    def __call__(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """`gptjobs` on this host."""
        command = self.inside(sys.executable, "-m", "gptjobs", *arguments)
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=180)

    def gptjobs(self, *arguments: str) -> str:
        done = self(*arguments)
        assert done.returncode == 0, f"{self.name}: {arguments}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def types(self, commands: str) -> str:
        """Commands of the page, on box 1 in the clone; returns what they print."""
        folder = REPOSITORY if self.name == "box1" else Path("/home")
        shell = self.inside("sh", "-euc", f"cd {folder}\n{commands}")
        done = subprocess.run(shell, env=self.environment, capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, f"{self.name}: {done.stdout}{done.stderr}"
        return done.stdout

    def starts(self, what: str, *command: str) -> "subprocess.Popen[bytes]":
        """A program in the foreground of a terminal of its own."""
        with self.log(what).open("ab") as log:
            process = subprocess.Popen(
                self.inside(*command), env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        self.processes.append(process)
        return process

    def log(self, what: str) -> Path:
        return self._folder / f"{what}.log"

    def close(self) -> None:
        super().close()
        for each in self.processes:
            each.wait()


class Hosts:
    """Box 1 with Redis and the storage, box 2 and a Mac that train, and a laptop; all gone when the test ends."""

    def __init__(self, folder: Path, *, storage_by_network: bool) -> None:
        self._folder = folder
        self.layout = Layout(folder / "storage")
        (self.layout.root / "sources").mkdir(parents=True)
        (self.layout.root / "sources" / "book.md").write_text(english(9000))
        self._made: list[Namespace] = []
        try:
            self._set_up(storage_by_network)
        except BaseException:
            self.close()
            raise

    def _set_up(self, storage_by_network: bool) -> None:
        for program, package in (("unshare", "util-linux"), ("bridge", "iproute2"), ("openssl", "openssl")):
            need(program, package)
        switch = self._keep(Namespace("switch"))
        switch.ok("ip", "link", "add", "lan", "type", "bridge")
        switch.ok("ip", "link", "set", "lan", "up")
        self.box1, self.box2, self.mac, self.laptop = (
            self._keep(Host(name, switch, self._folder)) for name in ADDRESSES
        )
        self.box1.has(self.layout.root)
        if storage_by_network:
            need("sshfs", "sshfs")
            need(SFTP_SERVER, "openssh-sftp-server")
            self.box1.serves_files()
        for each in (self.box2, self.mac):
            each.mounts(self.box1) if storage_by_network else each.has(self.layout.root)
        for each in (self.box1, self.box2, self.mac, self.laptop):
            each.ok("mount", "-t", "tmpfs", "tmpfs", str(self.layout.root))  # it is nowhere but at the host's own path
        self._start_redis()
        self._hand_out()

    def _keep(self, made: Made) -> Made:
        self._made.append(made)
        return made

    def _start_redis(self) -> None:
        """As the page says, certificates and users made by its own commands."""
        box1 = self.box1
        box1.write(CONFIGURATION, file_of_page(CONFIGURATION))
        box1.ok("mkdir", "-p", "/var/lib/redis")
        for each in blocks("box1"):
            box1.types(each)
        box1.starts("redis", str(server_with_tls(self._folder)), CONFIGURATION)
        eventually(lambda: box1.listens(PORT), 20)

    def _hand_out(self) -> None:
        """What the page has copied to each host: the authority's certificate, and one user's URL."""
        given = {self.box1: "worker", self.box2: "worker", self.mac: "worker", self.laptop: "client"}
        authority = self.box1.ok("cat", "/etc/gptjobs/ca.pem")
        for host, user in given.items():
            host.write("/etc/gptjobs/ca.pem", authority)
            host.write(REDIS_URL, self.box1.ok("cat", f"/etc/gptjobs/redis-url-{user}"), 0o600)

    def start_workers(self, *hosts: Host) -> None:
        """By the page's line for the foreground; wait until they listen."""
        for each in hosts:
            each.starts("worker", "gptjobs", "worker", "start", "--name", each.name)
        for each in hosts:
            eventually(lambda each=each: f"{each.name}@{each.name} ready" in each.log("worker").read_text(), 60)

    def close(self) -> None:
        for each in reversed(self._made):
            each.close()


def server_with_tls(folder: Path) -> Path:
    """A server's program that was built with TLS: the one on the path, or Debian's, which is also in `redis-tools` by
    another name, without a service that starts."""
    names = ("redis-server", "valkey-server", "redis-check-rdb")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no redis-server with TLS here (apt-get install redis-tools)")
    server = folder / "redis-server"  # it does by its name what it is called for
    server.symlink_to(found)
    return server
