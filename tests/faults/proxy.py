"""A TCP proxy between a worker, or a client, and the server: it cuts, delays and holds back what it passes on."""

import asyncio
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

_READ_BYTES = 1 << 16
_LOOK_S = 0.05


class Proxy:
    """Passes bytes on to the server of `url`, as long as a test lets it; `url` is what to give to its clients."""

    def __init__(self, server_url: str) -> None:
        parts = urlsplit(server_url)
        self._host, self._port = parts.hostname, parts.port
        self._latency_s, self._holds, self._refuses = 0.0, False, False
        self._writers: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._listening = self._do(asyncio.start_server(self._connect, "127.0.0.1", 0))
        port = self._listening.sockets[0].getsockname()[1]
        self.url = server_url.replace(f":{self._port}/", f":{port}/")

    def cut(self) -> None:
        """Close every connection that is open now; new ones are passed on."""
        self._do(self._cut())

    def refuse(self) -> None:
        """Close every connection, and each new one at once."""
        self._refuses = True
        self.cut()

    def hold(self) -> None:
        """A black hole: connections stay open and new ones are taken, but nothing comes through before it is mended."""
        self._holds = True

    def delay(self, seconds: float) -> None:
        """Hold every answer back for so long."""
        self._latency_s = seconds

    def mend(self) -> None:
        """Pass everything on again, at first what was held: it comes late, as a network brings it."""
        self._latency_s, self._holds, self._refuses = 0.0, False, False

    def close(self) -> None:
        self.refuse()
        self._do(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self._refuses:
                raise ConnectionRefusedError
            server_reader, server_writer = await asyncio.open_connection(self._host, self._port)
        except OSError:
            writer.close()
            return
        self._writers |= {writer, server_writer}
        for source, target, is_answer in ((reader, server_writer, False), (server_reader, writer, True)):
            pump = asyncio.ensure_future(self._pump(source, target, is_answer))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, is_answer: bool) -> None:
        with suppress(OSError):
            while content := await source.read(_READ_BYTES):
                if is_answer and self._latency_s:
                    await asyncio.sleep(self._latency_s)
                while self._holds:
                    await asyncio.sleep(_LOOK_S)
                target.write(content)
                await target.drain()
        target.close()

    async def _cut(self) -> None:
        for each in self._writers:
            each.transport.abort()
        self._writers.clear()

    async def _stop(self) -> None:
        self._listening.close()
        for each in self._pumps:
            each.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)
