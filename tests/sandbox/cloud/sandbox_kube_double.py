"""A Kubernetes side that answers nothing: what the cloud side needs, without any Kubernetes or Ray.

It keeps one real child process, and a marker file that outlives it, so that tests can see both go.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any


class KubeDouble:
    """Records what is done to it in `log`; listens with a server that closes every connection."""

    def __init__(self, *, cluster_id: str, directory: Path, nodes: list[Any], **_: Any) -> None:
        self.cluster_id = cluster_id
        self.directory = directory
        self.nodes = nodes
        self.namespaces: list[str] = []
        self.log: list[str] = []
        self._server: asyncio.Server | None = None
        self._child: subprocess.Popen[bytes] | None = None

    async def open(self) -> None:
        self.log.append("open")
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "opened").touch()
        code = "import signal; signal.pause()"
        self._child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)

    async def listen(self, port: int | None) -> int:
        self.log.append("listen")
        if self._server is None:
            self._server = await asyncio.start_server(
                lambda _, writer: writer.close(), "127.0.0.1", port or 0
            )
        return int(self._server.sockets[0].getsockname()[1])

    async def unlisten(self) -> None:
        self.log.append("unlisten")
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None

    async def create_namespace(self, name: str) -> None:
        self.namespaces.append(name)

    def issue_kubeconfig(self, *, server: str, minutes: int) -> tuple[str, datetime]:
        return f"server: {server}\n", datetime.now(UTC) + timedelta(minutes=minutes)

    def processes(self) -> list[int]:
        return [self._child.pid] if self._child is not None else []

    async def close(self, *, remove: bool) -> None:
        self.log.append(f"close remove={remove}")
        await self.unlisten()
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None
        if remove:
            shutil.rmtree(self.directory, ignore_errors=True)
