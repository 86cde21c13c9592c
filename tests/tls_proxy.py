"""A TLS-terminating proxy before a server that has none, as a process of its own:
`python tests/tls_proxy.py PORT TARGET_PORT CERTIFICATE [AUTHORITY]`. With an authority, clients must show a certificate
that it signed."""

import asyncio
import ssl
import sys
from contextlib import suppress

LOOPBACK = "127.0.0.1"


async def serve(port: int, target: int, context: ssl.SSLContext) -> None:
    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection(LOOPBACK, target)
        await asyncio.gather(pump(reader, to_server), pump(from_server, writer))

    server = await asyncio.start_server(connect, LOOPBACK, port, ssl=context)
    await server.serve_forever()


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


if __name__ == "__main__":
    port, target, certificate, *authority = sys.argv[1:]
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    if authority:
        context.load_verify_locations(authority[0])
        context.verify_mode = ssl.CERT_REQUIRED
    asyncio.run(serve(int(port), int(target), context))
