"""How long each request took, told to the meter: plain ASGI, so that a streamed answer counts to its end."""

from __future__ import annotations

import asyncio
import sys
import time

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raynest_pipeline.serving.front import FaceMeter

CLIENT_CLOSED = 499
"""nginx' status for a client that went away before its answer was complete."""


class Timed:
    """Middleware that reports path, status and seconds of each request."""

    def __init__(self, app: ASGIApp, meter: FaceMeter) -> None:
        self._app = app
        self._meter = meter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        status, complete = CLIENT_CLOSED, False

        async def watch(message: Message) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)
            complete = message["type"] == "http.response.body" and not message.get("more_body", False)

        try:
            await self._app(scope, receive, watch)
        finally:
            # The route, not the path: paths that do not exist would make a series each.
            path = getattr(scope.get("route"), "path", "other")
            seconds = time.monotonic() - started
            if not complete:
                error = sys.exception()
                gone = error is None or isinstance(error, asyncio.CancelledError | ClientDisconnect)
                status = CLIENT_CLOSED if gone else 500
            self._meter.request(path, status, seconds)
