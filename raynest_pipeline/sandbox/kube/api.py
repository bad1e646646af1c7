"""The API server's front: every request authenticated, authorized, and led to who answers it."""

from __future__ import annotations

import asyncio
import logging
import ssl

from aiohttp import web

from raynest_pipeline.sandbox.kube import access, discovery, pod_logs, port_forward, responses, watching
from raynest_pipeline.sandbox.kube.authority import Authority, Identity
from raynest_pipeline.sandbox.kube.backends import Backends
from raynest_pipeline.sandbox.kube.errors import ApiError
from raynest_pipeline.sandbox.kube.proxying import Proxy
from raynest_pipeline.sandbox.kube.resources import Resources
from raynest_pipeline.sandbox.kube.store import Store

log = logging.getLogger(__name__)

_HEALTH = ("/healthz", "/livez", "/readyz")


class ApiServer:
    """Serves one store over TLS on loopback; can be closed and opened again."""

    def __init__(self, store: Store, authority: Authority, backends: Backends) -> None:
        self._store = store
        self._authority = authority
        self._backends = backends
        self._resources = Resources(store)
        self._proxy: Proxy | None = None
        self._runner: web.AppRunner | None = None
        self._closing = asyncio.Event()
        self._context: ssl.SSLContext | None = None

    @property
    def listening(self) -> bool:
        """Is the socket open?"""
        return self._runner is not None

    async def open(self, port: int | None) -> int:
        """Listen on 127.0.0.1; returns the port (any free one for None). OSError if it is taken."""
        self._closing = asyncio.Event()
        self._context = self._context or self._authority.server_context()
        app = web.Application(client_max_size=responses.LIMIT)
        app.router.add_route("*", "/{tail:.*}", self._answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port or 0, ssl_context=self._context)
        try:
            await site.start()
        except OSError:
            await runner.cleanup()
            raise
        self._runner = runner
        self._proxy = Proxy(self._store, self._backends)
        return int(runner.addresses[0][1])

    async def close(self) -> None:
        """Stop listening and end every stream."""
        runner, proxy = self._runner, self._proxy
        self._runner = self._proxy = None
        self._closing.set()
        if runner is not None:
            await runner.cleanup()
        if proxy is not None:
            await proxy.close()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        try:
            identity = access.authenticated(request, self._authority)
            target = access.target_of(request.raw_path.partition("?")[0])
            access.authorize(request, identity, target)
            if target is None:
                return self._outside(request)
            return await self._resource(request, target, identity)
        except ApiError as error:
            if error.code >= 500:
                log.warning("%s %s: %s", request.method, request.path, error.message)
            return responses.failure(error)

    def _outside(self, request: web.Request) -> web.Response:
        """Health, version and discovery."""
        path = request.path
        if path in _HEALTH:
            return web.Response(text="ok", headers=responses.HEADERS)
        if path == "/openapi/v2" and "protobuf" in request.headers.get("Accept", ""):
            kind = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
            return web.Response(body=discovery.openapi_v2_protobuf(), headers={"Content-Type": kind})
        document = discovery.answer(self._store.registry, path, request.host)
        return responses.page_not_found() if document is None else responses.answer(document)

    async def _resource(
        self, request: web.Request, target: access.Target, identity: Identity
    ) -> web.StreamResponse:
        kind = self._store.registry.find(target.group, target.version, target.resource)
        if kind is None or (target.subresource and target.subresource not in kind.subresources):
            return responses.page_not_found()
        if target.subresource == "proxy" and self._proxy is not None:
            return await self._proxy.answer(request, target)
        if not target.ends:
            return responses.page_not_found()
        if target.subresource == "log":
            return await pod_logs.answer(self._store, self._backends, request, target)
        if target.subresource == "portforward":
            return await port_forward.answer(self._store, self._backends, request, target)
        if request.method == "GET" and access.is_watch(request):
            return await watching.stream(self._store, kind, target, request, self._closing)
        return await self._resources.answer(request, kind, target, identity)
