"""GET …/pods/NAME/portforward over a WebSocket, in the form of the Python clients (`v4.channel.k8s.io`).

Each port has two channels, data (2i) and errors (2i + 1), and each begins with the port as two bytes,
little-endian (facts: kubernetes-api.md). kubectl needs SPDY frames, which are not spoken here.
"""

from __future__ import annotations

import asyncio

import aiohttp
from aiohttp import web

from raynest_pipeline.sandbox.kube import errors
from raynest_pipeline.sandbox.kube.access import Target
from raynest_pipeline.sandbox.kube.backends import Backends
from raynest_pipeline.sandbox.kube.pumps import until_either_ends
from raynest_pipeline.sandbox.kube.store import Store

PROTOCOL = "v4.channel.k8s.io"
_CHUNK = 64 * 1024


async def answer(
    store: Store, backends: Backends, request: web.Request, target: Target
) -> web.StreamResponse:
    """Forward one port of a pod until either side ends. 400 for anything but a WebSocket and one port."""
    if store.live("pods", target.namespace, target.name) is None:
        raise errors.not_found("pods", "", target.name)
    ports = request.query.get("ports", "")
    if not ports.isdigit() or not 0 < int(ports) < 65536:
        raise errors.bad_request(f"unable to parse {ports!r} as a port")
    if request.headers.get("Upgrade", "").lower() != "websocket":
        raise errors.bad_request("unable to upgrade: missing upgrade headers in request")
    address = backends.pod_address(target.namespace, target.name, ports)
    socket = web.WebSocketResponse(protocols=(PROTOCOL,), max_msg_size=0)
    await socket.prepare(request)
    number = int(ports).to_bytes(2, "little")
    for channel in (0, 1):
        await socket.send_bytes(bytes([channel]) + number)
    try:
        reader, writer = await asyncio.open_connection(*(address or ("127.0.0.1", 0)))
    except OSError as error:
        await socket.send_bytes(b"\x01" + f"error forwarding port {ports} to pod: {error}".encode())
        await socket.close()
        return socket
    try:
        await until_either_ends(_up(socket, writer), _down(reader, socket))
    finally:
        writer.close()
        await socket.close()
    return socket


async def _up(socket: web.WebSocketResponse, writer: asyncio.StreamWriter) -> None:
    async for message in socket:
        if message.type is aiohttp.WSMsgType.BINARY and message.data[:1] == b"\x00":
            writer.write(message.data[1:])
            await writer.drain()


async def _down(reader: asyncio.StreamReader, socket: web.WebSocketResponse) -> None:
    while data := await reader.read(_CHUNK):
        await socket.send_bytes(b"\x00" + data)
