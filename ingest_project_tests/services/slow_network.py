"""A TCP proxy that delays each response by an adjustable time."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

CHUNK = 65_536


class SlowWay:
    """Listens on a port of its own.

    Args:
        port: of the server that it leads to, on this machine.
    """

    def __init__(self, port: int) -> None:
        self.delay_seconds = 0.0
        self.port = 0
        self._target = port
        self._loop = asyncio.new_event_loop()
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))
        self._thread.start()
        assert self._listening.wait(30)

    def close(self) -> None:
        """Listen no more, and cut what is connected."""
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()
        self._loop.close()

    async def _serve(self) -> None:
        self._end = asyncio.Event()
        connections: set[asyncio.Task[None]] = set()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connections.add(asyncio.ensure_future(self._lead(reader, writer)))

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._listening.set()
        await self._end.wait()
        server.close()
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _lead(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        with contextlib.closing(writer), contextlib.closing(far_writer):
            await asyncio.gather(self._pass_on(reader, far_writer), self._pass_on(far_reader, writer, slowly=True))

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, slowly: bool = False
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(CHUNK):
                if slowly:
                    await asyncio.sleep(self.delay_seconds)
                writer.write(chunk)
                await writer.drain()
        writer.close()


@contextmanager
def slow_way(port: int) -> Iterator[SlowWay]:
    """A way to a port of this machine, closed at the end."""
    way = SlowWay(port)
    try:
        yield way
    finally:
        way.close()
