"""A server of the test's own on a loopback port, in a thread with an event loop of its own."""

import asyncio
import threading
from typing import Any

from aiohttp import web


class Loopback:
    """What the endpoints and dashboards that tests play are made of."""

    def __init__(self) -> None:
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._runner: web.AppRunner | None = None

    def serve(self, app: web.Application, port: int = 0, **options: Any) -> None:
        """Answer on `port`, or a free one; `options` are AppRunner's."""
        if not self._thread.is_alive():
            self._thread.start()
        self._do(self._serve(app, port, options))

    async def _serve(self, app: web.Application, port: int, options: dict[str, Any]) -> None:
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, **options)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port, reuse_address=True).start()
        self.port = self._runner.addresses[0][1]

    def stop_listening(self) -> None:
        """The server vanishes: connections are refused from now on."""
        self._do(self._stop())

    async def _stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def close(self) -> None:
        self.stop_listening()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)
