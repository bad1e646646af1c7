"""A loopback port that leads to a pod's port through the API server, for what is not HTTP: Ray Client.

Each connection is a WebSocket of its own (`v4.channel.k8s.io`; facts: kubernetes-api.md), with back-pressure
both ways. It ends with its pod: good for a probe of seconds; everything long goes through the service proxy.
"""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import aiohttp
from yarl import URL

from raynest_pipeline.errors import UnreachableError
from raynest_pipeline.kube.http import HttpTarget

PROTOCOL = "v4.channel.k8s.io"
START_SECONDS = 10.0
_CHUNK = 64 * 1024
_DATA, _ERROR = 0, 1


@contextmanager
def forwarded(api: HttpTarget, namespace: str, pod: str, port: int) -> Iterator[int]:
    """The loopback port, open while the context lasts.

    Args:
        api: The API server's root, with its credentials.
        namespace: Of the pod.
        pod: Its name.
        port: The pod's port.

    Raises:
        UnreachableError: No port is free on this machine.
    """
    forward = _Forward(api, f"/api/v1/namespaces/{namespace}/pods/{pod}/portforward?ports={port}")
    thread = threading.Thread(target=forward.run, name="port-forward", daemon=True)
    thread.start()
    try:
        if not forward.started.wait(START_SECONDS) or not forward.port:
            raise UnreachableError("No loopback port could be opened for a port-forward.")
        yield forward.port
    finally:
        forward.stop()
        thread.join(START_SECONDS)


class _Forward:
    def __init__(self, api: HttpTarget, path: str) -> None:
        self._api = api
        self._url = api.url(path)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended: asyncio.Event | None = None
        self.started = threading.Event()
        self.port = 0

    def run(self) -> None:
        try:
            asyncio.run(self._serve())
        finally:
            self.started.set()

    def stop(self) -> None:
        if self._loop is not None and self._ended is not None:
            # The loop may have ended by itself.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._ended.set)

    async def _serve(self) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        api = self._api
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=api.ssl if api.ssl is not None else True),
            headers=dict(api.headers),
            trust_env=not api.loopback,
        ) as session:
            server = await asyncio.start_server(
                lambda reader, writer: self._connection(session, reader, writer), "127.0.0.1", 0
            )
            self.port = server.sockets[0].getsockname()[1]
            self.started.set()
            await self._ended.wait()
            server.close()

    async def _connection(
        self, session: aiohttp.ClientSession, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """One connection of a client; a road that is not there ends it, as a closed port would."""
        try:
            async with session.ws_connect(
                URL(self._url, encoded=True),
                protocols=(PROTOCOL,),
                max_msg_size=0,
                server_hostname=self._api.server_hostname,
            ) as socket:
                pumps = [
                    asyncio.ensure_future(_up(reader, socket)),
                    asyncio.ensure_future(_down(socket, writer)),
                ]
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        except (aiohttp.ClientError, OSError):
            return
        finally:
            writer.close()


async def _up(reader: asyncio.StreamReader, socket: aiohttp.ClientWebSocketResponse) -> None:
    while data := await reader.read(_CHUNK):
        await socket.send_bytes(bytes([_DATA]) + data)


async def _down(socket: aiohttp.ClientWebSocketResponse, writer: asyncio.StreamWriter) -> None:
    begun: set[int] = set()
    async for message in socket:
        if message.type is not aiohttp.WSMsgType.BINARY or not message.data:
            continue
        channel, data = message.data[0], message.data[1:]
        if channel not in begun:
            # The first frame of each channel repeats the port.
            begun.add(channel)
        elif channel == _ERROR:
            return
        else:
            writer.write(data)
            await writer.drain()
