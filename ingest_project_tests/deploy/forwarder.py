"""Forward TCP connections, by which a host in a network namespace reaches the servers of this machine.

    python forwarder.py LISTEN_HOST TARGET_HOST PORT...

Each port is listened on and leads to the same port of the target, so that addresses which servers advertise hold.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys

CHUNK = 65_536


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while chunk := await reader.read(CHUNK):
            writer.write(chunk)
            await writer.drain()
    writer.close()


def _notice_a_cut(writer: asyncio.StreamWriter) -> None:
    """Keep-alives as a server should have them (`tcp_keepalives_idle` of PostgreSQL), only faster."""
    near: socket.socket = writer.get_extra_info("socket")
    near.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, seconds in ((socket.TCP_KEEPIDLE, 3), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 3)):
        near.setsockopt(socket.IPPROTO_TCP, option, seconds)
    near.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 6_000)


async def main(listen_host: str, target_host: str, *ports: str) -> None:
    """Serve until killed."""

    async def serve(port: int) -> asyncio.Server:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                far_reader, far_writer = await asyncio.open_connection(target_host, port)
            except OSError:
                writer.close()
                return
            _notice_a_cut(writer)
            await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))

        return await asyncio.start_server(connected, listen_host, port)

    servers = [await serve(int(port)) for port in ports]
    await asyncio.gather(*(server.serve_forever() for server in servers))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
