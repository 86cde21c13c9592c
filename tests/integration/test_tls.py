"""Redis through TLS: certificates are verified by client, worker and Flower, and a whole job goes through."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trustme

from gptjobs.layout import Layout
from gptjobs.local import _free_port
from tests import tls_proxy
from tests.conftest import Commands, Workers, eventually
from tests.integration.test_errors import assert_error

TINY = (
    "--model", "nano", "--n-layer", "1", "--n-head", "2", "--n-embd", "32", "--batch-size", "4", "--block-size", "32",
    "--eval-tokens", "512", "--steps", "20", "--data", "sources/text.md",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Tls:
    """A way to the tests' Redis through TLS. `url` lacks its parameters; the files are certificates."""

    url: str
    authority: Path
    stranger: Path
    """an authority that signed nothing here"""
    client: Path

    @property
    def trusted(self) -> str:
        return f"{self.url}?ssl_ca_certs={self.authority}"


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((tls_proxy.LOOPBACK, port)) == 0


@pytest.fixture
def open_proxy(redis_url: str, tmp_path: Path) -> Iterator[Callable[..., Tls]]:
    processes: list[subprocess.Popen[bytes]] = []

    def opened(*, asks_client: bool = False) -> Tls:
        signer, stranger = trustme.CA(), trustme.CA()
        made = {name: tmp_path / f"{name}.pem" for name in ("authority", "stranger", "server", "client")}
        signer.cert_pem.write_to_path(made["authority"])
        stranger.cert_pem.write_to_path(made["stranger"])
        signer.issue_cert(tls_proxy.LOOPBACK).private_key_and_cert_chain_pem.write_to_path(made["server"])
        signer.issue_cert("client@host").private_key_and_cert_chain_pem.write_to_path(made["client"])
        port, target = _free_port(), str(urlsplit(redis_url).port)
        command = [sys.executable, tls_proxy.__file__, str(port), target, str(made["server"])]
        command += [str(made["authority"])] if asks_client else []
        processes.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        eventually(lambda: listens(port))
        url = f"rediss://:secret@{tls_proxy.LOOPBACK}:{port}/0"
        return Tls(url=url, authority=made["authority"], stranger=made["stranger"], client=made["client"])

    yield opened
    for each in processes:
        each.kill()
        each.wait()


def test_a_whole_job_goes_through_tls(layout: Layout, open_proxy: Callable[..., Tls], tmp_path: Path) -> None:
    tls = open_proxy()
    gptjobs = Commands(layout, tls.trusted)
    workers = Workers(gptjobs, tmp_path)
    try:
        worker = workers.start()
        job = gptjobs.ok("submit", "train", "-q", *TINY)
        gptjobs.ok("wait", job, "--timeout", "90")
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0
    finally:
        workers.stop()
    (found,) = json.loads(gptjobs.ok("list", "--json"))["jobs"]
    assert (found["id"], found["state"], found["step"]) == (job, "finished", 20)
    assert "secret" not in workers.log() and "insecure" not in workers.log()


def test_flower_shows_jobs_through_tls(layout: Layout, open_proxy: Callable[..., Tls], tmp_path: Path) -> None:
    from tests.e2e.test_flower import Flower

    gptjobs = Commands(layout, open_proxy().trusted)
    job = gptjobs.ok("submit", "train", "-q", *TINY)
    flower = Flower(gptjobs, tmp_path / "flower.log")
    try:
        eventually(lambda: job in flower.ask("/api/tasks", login=True)[1])
        queues = json.loads(flower.ask("/api/queues/length", login=True)[1])["active_queues"]
        assert all(each["messages"] >= 0 for each in queues)
        assert "broker" in flower.ask("/broker", login=True)[1]
    finally:
        flower.stop()
    assert "secret" not in (tmp_path / "flower.log").read_text()


@pytest.mark.parametrize("command", [("list",), ("worker", "start", "--device", "cpu"), ("up", "--no-worker")])
def test_a_server_that_no_trusted_authority_signed_for_is_refused(
    layout: Layout, open_proxy: Callable[..., Tls], command: tuple[str, ...]
) -> None:
    tls = open_proxy()
    for url in (tls.url, f"{tls.url}?ssl_ca_certs={tls.stranger}"):
        done = Commands(layout, url)(*command)
        assert_error(done, 5, "shows a certificate that is not trusted", hint="rediss://…?ssl_ca_certs=FILE")
        assert "secret" not in done.stderr


def test_a_certificate_for_another_host_is_refused(layout: Layout, open_proxy: Callable[..., Tls]) -> None:
    elsewhere = open_proxy().trusted.replace(tls_proxy.LOOPBACK, "localhost")
    assert_error(Commands(layout, elsewhere)("list"), 5, "is not trusted", "localhost", hint="ssl_ca_certs")


def test_only_who_says_so_verifies_nothing(layout: Layout, open_proxy: Callable[..., Tls]) -> None:
    Commands(layout, f"{open_proxy().url}?ssl_cert_reqs=none").ok("list", "--json")


def test_a_client_shows_its_certificate_where_the_server_asks(layout: Layout, open_proxy: Callable[..., Tls]) -> None:
    tls = open_proxy(asks_client=True)
    with_own = f"{tls.trusted}&ssl_certfile={tls.client}&ssl_keyfile={tls.client}"
    Commands(layout, with_own).ok("submit", "train", "-q", *TINY)
    assert_error(Commands(layout, tls.trusted)("list"), 5, "does not answer", hint="ssl_certfile")
