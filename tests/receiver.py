"""A service that takes messages: a real HTTP server on loopback, which keeps what is posted to it, or misbehaves."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SECRET = "s3cr3t-t0ken"


class Receiver(ThreadingHTTPServer):
    """`answers` are statuses, one a post, then 200; None keeps silent until `over`."""

    daemon_threads = True

    def __init__(self, *answers: int | None) -> None:
        super().__init__(("127.0.0.1", 0), _Post)
        self.messages: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.answers = list(answers)
        self.over = threading.Event()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    @property
    def url(self) -> str:
        """With a secret in its path, its password and its parameters."""
        return f"json://user:{SECRET}@{self.host}/{SECRET}?-token={SECRET}"

    @property
    def masked(self) -> str:
        return f"json://{self.host}/…"

    @property
    def titles(self) -> list[str]:
        return [each["title"] for each in self.messages]


class _Post(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.paths.append(self.path)
        self.server.messages.append(body)
        answer = self.server.answers.pop(0) if self.server.answers else 200
        if answer is None:
            self.server.over.wait()
            return
        self.send_response(answer)
        self.end_headers()

    def log_message(self, *words: Any) -> None:
        """It keeps quiet."""


@contextmanager
def receiving(*answers: int | None) -> Iterator[Receiver]:
    with Receiver(*answers) as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        try:
            yield made
        finally:
            made.over.set()
            made.shutdown()
            thread.join()
