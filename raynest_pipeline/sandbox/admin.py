"""The administration listener: health, faults, ledger, call log, processes, stop. All need the token."""

from __future__ import annotations

import asyncio
import hmac
import os
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any, Protocol

from aiohttp import web
from aiohttp.typedefs import Middleware

from raynest_pipeline.sandbox import VERSION
from raynest_pipeline.sandbox.cloud.context import Cloud
from raynest_pipeline.sandbox.cloud.gateway import Gateway
from raynest_pipeline.sandbox.faults import Faults, UnknownFaultError

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Administered(Protocol):
    """What can be asked of a running sandbox."""

    faults: Faults
    cloud: Cloud
    gateway: Gateway

    def processes(self) -> list[dict[str, Any]]:
        """The processes that were started for clusters and are alive."""
        ...


class Admin:
    """The administration API of a sandbox; POST /stop sets `stopping`."""

    def __init__(self, token: str, sandbox: Administered, stopping: asyncio.Event) -> None:
        self._token = token
        self._sandbox = sandbox
        self._stopping = stopping

    def app(self) -> web.Application:
        """The application that answers it."""
        app = web.Application(middlewares=[self._authorize()])
        app.add_routes(
            [
                web.get("/health", self._health),
                web.get("/faults", self._list_faults),
                web.post("/faults", self._set_fault),
                web.delete("/faults", self._clear_faults),
                web.get("/ledger", self._ledger),
                web.get("/calls", self._calls),
                web.get("/processes", self._processes),
                web.post("/stop", self._stop),
            ]
        )
        return app

    def _authorize(self) -> Middleware:
        expected = f"Bearer {self._token}".encode()

        @web.middleware
        async def authorize(request: web.Request, handler: _Handler) -> web.StreamResponse:
            given = request.headers.get("Authorization", "").encode()
            if not hmac.compare_digest(given, expected):
                return web.Response(status=401, text="the administration token is missing or wrong")
            try:
                return await handler(request)
            except UnknownFaultError as error:
                return web.Response(status=400, text=str(error))

        return authorize

    async def _health(self, request: web.Request) -> web.Response:
        if self._stopping.is_set():
            # It still answers while it closes, but whoever asks wants one that stays.
            return web.Response(status=503, text="stopping")
        return web.json_response({"pid": os.getpid(), "version": VERSION})

    async def _list_faults(self, request: web.Request) -> web.Response:
        return web.json_response(self._sandbox.faults.dump())

    async def _set_fault(self, request: web.Request) -> web.Response:
        body = await request.json()
        parameters: dict[str, Any] = body.get("parameters", {})
        return web.json_response(self._sandbox.faults.set(str(body.get("name")), **parameters))

    async def _clear_faults(self, request: web.Request) -> web.Response:
        body = await request.json()
        self._sandbox.faults.clear(body.get("name"))
        return web.json_response({})

    async def _ledger(self, request: web.Request) -> web.Response:
        return web.json_response([asdict(each) for each in self._sandbox.cloud.world.purchases])

    async def _calls(self, request: web.Request) -> web.Response:
        return web.json_response(list(self._sandbox.gateway.calls))

    async def _processes(self, request: web.Request) -> web.Response:
        return web.json_response(self._sandbox.processes())

    async def _stop(self, request: web.Request) -> web.Response:
        self._stopping.set()
        return web.json_response({})
