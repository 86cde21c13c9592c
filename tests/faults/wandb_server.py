"""What Weights & Biases' package asks of a server, as far as it was seen to ask; it keeps the rows of each run."""

import gzip
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from gptjobs.local import LOOPBACK

PROJECT = {"id": "project", "name": "gptjobs", "entity": {"id": "user", "name": "user"}}


class WandbServer(ThreadingHTTPServer):
    """Answers on loopback until it is closed."""

    def __init__(self) -> None:
        super().__init__((LOOPBACK, 0), _Request)
        self.rows: dict[str, list[str]] = {}
        self.summaries: dict[str, str] = {}
        self.begun: dict[str, dict[str, Any]] = {}
        """what each run said of itself, by its id"""
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.server_port}"

    def losses(self, run: str) -> list[tuple[int, float]]:
        return [(row["_step"], row["train/loss"]) for row in map(json.loads, self.rows.get(run, []))]

    def take_rows(self, run: str, files: dict[str, dict[str, Any]]) -> None:
        if summary := files.get("wandb-summary.json"):
            self.summaries[run] = summary["content"][-1]
        if history := files.get("wandb-history.jsonl"):
            rows = self.rows.setdefault(run, [])
            rows[history["offset"] :] = history["content"]

    def answer(self, operation: str, given: dict[str, Any]) -> dict[str, Any]:
        name = given.get("name") or ""
        if operation == "RunResumeStatus":
            return {"model": {**PROJECT, "bucket": self._bucket(name) if name in self.rows else None}}
        if operation == "UpsertBucket":
            self.begun.setdefault(name, given)
            return {"upsertBucket": {"bucket": self._bucket(name), "inserted": name not in self.rows}}
        if operation == "CreateRunFiles":
            files = [{"name": each, "uploadUrl": f"{self.url}/{each}"} for each in given["files"]]
            return {"createRunFiles": {"runID": "run", "uploadHeaders": [], "files": files}}
        return {"viewer": {"id": "user", "entity": "user", "username": "user", "flags": "{}", "teams": {"edges": []}}}

    def _bucket(self, name: str) -> dict[str, Any]:
        rows = self.rows.get(name, [])
        return {
            "id": name, "name": name, "displayName": name, "description": "", "sweepName": None, "project": PROJECT,
            "config": "{}", "tags": [], "notes": "", "wandbConfig": '{"t": {"1": [1]}}', "logLineCount": 0,
            "eventsLineCount": 0, "eventsTail": "[]", "historyLineCount": len(rows),
            "historyTail": json.dumps(rows[-1:]), "summaryMetrics": self.summaries.get(name, "{}"),
        }  # fmt: skip


class _Request(BaseHTTPRequestHandler):
    server: WandbServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self._body()
        if self.path.endswith("/graphql"):
            asked = json.loads(body)
            found = re.search(r"(?:query|mutation)\s*(\w+)", asked["query"])
            self._answer({"data": self.server.answer(found[1] if found else "", asked.get("variables") or {})})
            return
        if self.path.endswith("/file_stream"):
            self.server.take_rows(self.path.split("/")[-2], json.loads(body).get("files") or {})
        self._answer({"exitcode": None, "limits": {}})

    def do_PUT(self) -> None:
        self._body()
        self._answer({})

    def do_GET(self) -> None:
        self._answer({})

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _answer(self, what: dict[str, Any]) -> None:
        body = json.dumps(what).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        """Silent."""
