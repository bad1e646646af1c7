"""The API server's proxy to services and pods: HTTP both ways as a stream, and WebSockets."""

from __future__ import annotations

from collections.abc import Iterable

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from raynest_pipeline.sandbox.kube import errors
from raynest_pipeline.sandbox.kube.access import Target
from raynest_pipeline.sandbox.kube.backends import Address, Backends
from raynest_pipeline.sandbox.kube.pumps import until_either_ends
from raynest_pipeline.sandbox.kube.store import Store

# RFC 9110 section 7.6.1: these end at each hop. Authorization is the API server's, not the backend's.
_HOP_BY_HOP = (
    "Connection",
    "Keep-Alive",
    "Proxy-Authenticate",
    "Proxy-Authorization",
    "Proxy-Connection",
    "TE",
    "Trailer",
    "Transfer-Encoding",
    "Upgrade",
)
_NOT_FORWARDED = ("Authorization", "Expect", "Host", *_HOP_BY_HOP)

_NOT_RETURNED = frozenset(name.lower() for name in _HOP_BY_HOP)

_CHUNK = 64 * 1024


class Proxy:
    """Forwards `…/services/NAME:PORT/proxy/…` and `…/pods/NAME:PORT/proxy/…`."""

    def __init__(self, store: Store, backends: Backends) -> None:
        self._store = store
        self._backends = backends
        # A backend may take as long as it likes over one image: only connecting has a limit.
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
            connector=aiohttp.TCPConnector(limit=0),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        )

    async def close(self) -> None:
        """Drop the connections to all backends."""
        await self._session.close()

    async def answer(self, request: web.Request, target: Target) -> web.StreamResponse:
        """Forward a request; 404 and 503 as a real API server answers when there's nobody to forward to."""
        scheme, name, port = _split(target.name)
        if target.resource == "services":
            address = self._service(target.namespace, name, port)
        else:
            address = self._pod(target.namespace, name, port)
        path, mark, query = request.raw_path.partition("?")
        if not target.rest:
            # A backend's relative links only work below a folder.
            raise web.HTTPMovedPermanently(f"{path}/{mark}{query}")
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        # Encoded as it came: a backend must get the query that its client sent.
        url = URL(f"{scheme or 'http'}://{host}:{address[1]}{target.rest}{mark}{query}", encoded=True)
        headers = _forwarded(request)
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return await self._websocket(request, url, headers)
        return await self._http(request, url, headers, path.removesuffix(target.rest))

    def _service(self, namespace: str, name: str, port: str) -> Address:
        service = self._store.live("services", namespace, name)
        if service is None:
            # A port number is looked up in the service, a name straight in its endpoints.
            raise errors.not_found("services" if port.isdigit() else "endpoints", "", name)
        ports = service["spec"].get("ports", [])
        numbers = {str(one["port"]) for one in ports}
        if port.isdigit() and port not in numbers:
            raise errors.unavailable(f'no service port {port} found for service "{name}"')
        if not port:
            port = str(ports[0]["port"]) if len(ports) == 1 else ""
        address = self._backends.resolve(namespace, name, port) if port else None
        if address is None:
            raise errors.unavailable(f'no endpoints available for service "{name}"')
        return address

    def _pod(self, namespace: str, name: str, port: str) -> Address:
        pod = self._store.live("pods", namespace, name)
        if pod is None:
            raise errors.not_found("pods", "", name)
        if not port:
            declared = [one for each in pod["spec"]["containers"] for one in each.get("ports", ())]
            port = str(declared[0]["containerPort"]) if declared else "80"
        address = self._backends.pod_address(namespace, name, port)
        if address is None:
            where = f"{pod.get('status', {}).get('podIP', '')}:{port}"
            raise _unreachable(f"dial tcp {where}: connect: connection refused")
        return address

    async def _http(
        self, request: web.Request, url: URL, headers: CIMultiDict[str], prefix: str
    ) -> web.StreamResponse:
        data = request.content if request.can_read_body else None
        try:
            upstream = await self._session.request(
                request.method, url, headers=headers, data=data, allow_redirects=False
            )
        except aiohttp.ClientConnectorError as error:
            raise _unreachable(f"dial tcp {url.host}:{url.port}: connect: connection refused") from error
        except aiohttp.ClientError as error:
            raise _unreachable(str(error) or type(error).__name__) from error
        async with upstream:
            response = web.StreamResponse(status=upstream.status, reason=upstream.reason)
            for key, value in upstream.headers.items():
                if key.lower() not in _NOT_RETURNED:
                    response.headers.add(key, value)
            _rewrite_location(response, prefix)
            await response.prepare(request)
            try:
                async for chunk in upstream.content.iter_chunked(_CHUNK):
                    await response.write(chunk)
                await response.write_eof()
            except aiohttp.ClientPayloadError:
                # The backend died in mid-answer. Ending properly would pass the torso off as the whole.
                if request.transport is not None:
                    request.transport.abort()
            return response

    async def _websocket(
        self, request: web.Request, url: URL, headers: CIMultiDict[str]
    ) -> web.StreamResponse:
        offered = request.headers.get("Sec-WebSocket-Protocol", "")
        protocols = tuple(part.strip() for part in offered.split(",") if part.strip())
        for name in [name for name in headers if name.lower().startswith("sec-websocket-")]:
            del headers[name]
        try:
            upstream = await self._session.ws_connect(
                url, headers=headers, protocols=protocols, max_msg_size=0
            )
        except aiohttp.ClientError as error:
            raise _unreachable(str(error)) from error
        chosen = (upstream.protocol,) if upstream.protocol else ()
        downstream = web.WebSocketResponse(protocols=chosen, max_msg_size=0)
        await downstream.prepare(request)
        try:
            await until_either_ends(_pump(downstream, upstream), _pump(upstream, downstream))
        finally:
            await upstream.close(code=downstream.close_code or 1000)
            await downstream.close(code=upstream.close_code or 1000)
        return downstream


_Socket = web.WebSocketResponse | aiohttp.ClientWebSocketResponse


async def _pump(source: _Socket, sink: _Socket) -> None:
    async for message in source:
        if message.type is aiohttp.WSMsgType.TEXT:
            await sink.send_str(message.data)
        elif message.type is aiohttp.WSMsgType.BINARY:
            await sink.send_bytes(message.data)


def _split(named: str) -> tuple[str, str, str]:
    """(scheme, name, port) of `name`, `name:port` or `scheme:name:port`. 400 for anything else."""
    parts = named.split(":")
    if len(parts) == 3 and parts[0] in ("", "http", "https"):
        return parts[0], parts[1], parts[2]
    if len(parts) > 2:
        raise errors.bad_request(f'invalid service request "{named}"')
    return "", parts[0], parts[1] if len(parts) == 2 else ""


def _forwarded(request: web.Request) -> CIMultiDict[str]:
    headers = CIMultiDict(request.headers)
    for name in _NOT_FORWARDED:
        headers.popall(name, None)
    came_from = [*_listed(request.headers.getall("X-Forwarded-For", ())), request.remote or "127.0.0.1"]
    headers["X-Forwarded-For"] = ", ".join(came_from)
    headers["X-Forwarded-Host"] = request.host
    headers["X-Forwarded-Proto"] = request.scheme
    headers["X-Forwarded-Uri"] = request.raw_path.partition("?")[0]
    return headers


def _listed(values: Iterable[str]) -> list[str]:
    return [part.strip() for value in values for part in value.split(",") if part.strip()]


def _rewrite_location(response: web.StreamResponse, prefix: str) -> None:
    """A backend's redirect to its own root leads back through the proxy."""
    location = response.headers.get("Location", "")
    if location.startswith("/") and not location.startswith("//"):
        response.headers["Location"] = prefix + location


def _unreachable(why: str) -> errors.ApiError:
    return errors.unavailable(f"error trying to reach service: {why}")
