"""A loopback address that leads to a service through the API server's proxy.

What `kubectl port-forward` is used for, without a tunnel that can die: every request is its own HTTPS
request with the kubeconfig's credentials.
"""

from collections.abc import Awaitable, Callable

from aiohttp import ClientError, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector, web
from yarl import URL

from raynest_pipeline.kube.http import HttpTarget

_HOP_BY_HOP = frozenset(
    ("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "upgrade")
    + ("transfer-encoding", "host", "content-length", "content-encoding", "accept-encoding")
)
"""Belong to one connection (RFC 9110, 7.6.1), or are made anew by the client and the server here."""


async def serve_forward(
    target: HttpTarget, *, port: int = 0, ready: Callable[[str], Awaitable[None]]
) -> None:
    """Serve `target` on 127.0.0.1 until cancelled.

    Args:
        target: Where requests go.
        port: On 127.0.0.1; 0 for a free one.
        ready: Told the address, once it answers, and awaited: return from it to end.

    Raises:
        OSError: The port is taken.
    """
    connector = TCPConnector(ssl=target.ssl if target.ssl is not None else True)
    timeout = ClientTimeout(total=None, sock_connect=10)
    async with ClientSession(
        connector=connector, timeout=timeout, cookie_jar=DummyCookieJar(), trust_env=not target.loopback
    ) as session:

        async def forward(request: web.Request) -> web.StreamResponse:
            return await _forward(session, target, request)

        app = web.Application(client_max_size=64 << 20)
        app.router.add_route("*", "/{path:.*}", forward)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", port)
            await site.start()
            host, bound = runner.addresses[0][:2]
            await ready(f"http://{host}:{bound}")
        finally:
            await runner.cleanup()


async def _forward(session: ClientSession, target: HttpTarget, request: web.Request) -> web.StreamResponse:
    headers = {k: v for k, v in request.headers.items() if k.lower() not in _HOP_BY_HOP}
    # The target's own headers last: its credentials are not the browser's to set.
    headers.update(target.headers)
    try:
        async with session.request(
            request.method,
            URL(target.base_url + request.rel_url.raw_path_qs, encoded=True),
            headers=headers,
            data=await request.read() or None,
            allow_redirects=False,
            server_hostname=target.server_hostname,
        ) as answer:
            kept = {k: v for k, v in answer.headers.items() if k.lower() not in _HOP_BY_HOP}
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            await response.write_eof()
            return response
    except ClientError as error:
        return web.Response(
            status=502, text=f"The API server's proxy does not answer: {type(error).__name__}\n"
        )
