"""The sandbox's one process: the cloud listener, the administration listener, and what drives them."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib
import logging
import os
import secrets
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from aiohttp import web

from raynest_pipeline.sandbox import VERSION, orphans
from raynest_pipeline.sandbox.admin import Admin
from raynest_pipeline.sandbox.cloud import catalog
from raynest_pipeline.sandbox.cloud.clusters import ClusterFactory, Clusters
from raynest_pipeline.sandbox.cloud.context import Cloud
from raynest_pipeline.sandbox.cloud.engine import Engine
from raynest_pipeline.sandbox.cloud.gateway import Gateway
from raynest_pipeline.sandbox.cloud.world import World
from raynest_pipeline.sandbox.control import SandboxOptions
from raynest_pipeline.sandbox.faults import Faults
from raynest_pipeline.sandbox.signature import SignedRequest, Verifier
from raynest_pipeline.sandbox.state import INFO_FILE, SERVER_LOCK_FILE, WORLD_FILE, read_json, write_json

logger = logging.getLogger(__name__)

_TICK_S = 0.05
_IDLE_TICK_S = 0.5
# Looking for processes reads the whole process table. The mark finds what was started in between.
_RECORD_S = 2.0
# Every parameter of a call travels in the URL, chart values included.
_URL_LIMIT = 256 * 1024


class Server:
    """A sandbox over one state folder; `run` returns when it was told to stop."""

    def __init__(self, state_dir: Path, options: SandboxOptions) -> None:
        self._state_dir = state_dir
        saved = read_json(state_dir / WORLD_FILE) or {}
        self._keys: dict[str, str] = saved.get("keys") or _new_keys()
        self._ports: dict[str, int] = saved.get("ports", {})
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self.faults = Faults(saved.get("faults"))
        self.clusters = Clusters(
            state_dir / "clusters", self.faults, options.kuberay_version, lambda: _load(options.kube_factory)
        )
        self.cloud = Cloud(
            world=World.load(saved["world"]) if "world" in saved else _new_world(),
            faults=self.faults,
            issue_kubeconfig=self.clusters.issue_kubeconfig,
            policies=options.policies,
            root=options.root,
            time_scale=options.time_scale,
            save=self._save,
        )
        self.engine = Engine(self.cloud, self.clusters)
        self.gateway = Gateway(self.cloud, Verifier(self._keys["id"], self._keys["secret"]))
        self._admin_token = secrets.token_urlsafe(24)

    async def run(self) -> None:
        """Serve until stopped by signal or over the administration listener; state is kept."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)

        # A fault may be used up on another thread; its consequences belong on this loop.
        def fault_changed(name: str) -> None:
            loop.call_soon_threadsafe(self._fault_changed)

        self.faults.on_change(fault_changed)
        os.environ[orphans.MARK_VARIABLE] = orphans.mark_of(self._state_dir)
        runners: list[web.AppRunner] = []
        try:
            await self.engine.resume()
            runners.append(await self._listen("cloud", self._cloud_app()))
            runners.append(await self._listen("admin", Admin(self._admin_token, self, self._stopping).app()))
            self._save()
            self._publish()
            logger.info("sandbox %s is ready at 127.0.0.1:%s", VERSION, self._ports["cloud"])
            await self._let_time_pass()
        finally:
            for runner in runners:
                await runner.cleanup()
            await self.clusters.close_all()
            self._save()
            # The file goes last: while it is there, a new start waits, and the sweep can't take the next
            # sandbox, which carries the same mark, for something left of this one.
            orphans.sweep(self._state_dir)
            (self._state_dir / INFO_FILE).unlink(missing_ok=True)
            logger.info("the sandbox has stopped")

    def processes(self) -> list[dict[str, Any]]:
        """The processes that were started for clusters and are alive: pid, create_time, name."""
        return orphans.describe_all(self.clusters.processes())

    async def _let_time_pass(self) -> None:
        clock = asyncio.get_running_loop().time
        recorded: list[dict[str, Any]] = []
        due = clock()
        stopping = asyncio.ensure_future(self._stopping.wait())
        while not stopping.done():
            self._wake.clear()
            await self.engine.tick()
            if clock() >= due:
                due = clock() + _RECORD_S
                if recorded != (processes := self.processes()):
                    orphans.record(self._state_dir, processes)
                    recorded = processes
            waking = asyncio.ensure_future(self._wake.wait())
            pause = _TICK_S if self.engine.is_busy() else _IDLE_TICK_S
            await asyncio.wait((stopping, waking), timeout=pause, return_when=asyncio.FIRST_COMPLETED)
            waking.cancel()

    def _fault_changed(self) -> None:
        self._save()
        self._wake.set()

    def _cloud_app(self) -> web.Application:
        app = web.Application(client_max_size=_URL_LIMIT)
        app.router.add_route("*", "/{path:.*}", self._answer)
        return app

    async def _answer(self, request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        target = origin_form(request.raw_path)
        signed = SignedRequest(request.method, target, headers, await request.read())
        answer = self.gateway.answer(signed)
        self._wake.set()
        if answer.drop and request.transport is not None:
            request.transport.abort()
        return web.Response(
            status=answer.status,
            body=answer.body,
            headers=dict(answer.headers),
            content_type=answer.content_type,
            charset="utf-8",
        )

    async def _listen(self, name: str, app: web.Application) -> web.AppRunner:
        # No access log: passwords travel in the URLs of this API.
        runner = web.AppRunner(app, access_log=None, max_line_size=_URL_LIMIT, shutdown_timeout=2.0)
        await runner.setup()
        listener = _bind(self._ports.get(name, 0))
        self._ports[name] = listener.getsockname()[1]
        await web.SockSite(runner, listener).start()
        return runner

    def _save(self) -> None:
        saved = {
            "version": VERSION,
            "keys": self._keys,
            "ports": self._ports,
            "faults": self.faults.dump(),
            "world": self.cloud.world.dump(),
        }
        write_json(self._state_dir / WORLD_FILE, saved)

    def _publish(self) -> None:
        info = {
            "pid": os.getpid(),
            "create_time": orphans.start_of(os.getpid()),
            "cloud_endpoint": f"127.0.0.1:{self._ports['cloud']}",
            "admin_url": f"http://127.0.0.1:{self._ports['admin']}",
            "admin_token": self._admin_token,
            "access_key_id": self._keys["id"],
            "access_key_secret": self._keys["secret"],
            "region": catalog.REGION,
            "version": VERSION,
        }
        write_json(self._state_dir / INFO_FILE, info)


def serve(state_dir: Path, options: SandboxOptions) -> None:
    """Run a sandbox in this process until it is told to stop. Raises RuntimeError if one is running there."""
    with _exclusive(state_dir):
        # Relative paths and core files of whatever is started belong here, not where the caller was.
        os.chdir(state_dir)
        ended = orphans.sweep(state_dir)
        if ended:
            logger.warning("ended %d processes that a killed sandbox had left behind", len(ended))

        async def run() -> None:
            await Server(state_dir, options).run()

        asyncio.run(run())


@contextlib.contextmanager
def _exclusive(state_dir: Path) -> Iterator[None]:
    # The lock goes with the process, however it ends; its children don't inherit it.
    handle = os.open(state_dir / SERVER_LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RuntimeError(f"another sandbox is running in {state_dir}") from error
        yield
    finally:
        os.close(handle)


def origin_form(target: str) -> str:
    """Path and query of a request's target; a client with a proxy sends a whole URL (RFC 9112, 3.2.2)."""
    if target.startswith("/"):
        return target
    return "/" + target.partition("://")[2].partition("/")[2]


def _bind(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except OSError:
        # Someone else has taken the port in the meantime.
        listener.bind(("127.0.0.1", 0))
    return listener


def _new_keys() -> dict[str, str]:
    return {"id": "LTAI5tSandbox" + secrets.token_hex(4), "secret": secrets.token_urlsafe(24)}


def _new_world() -> World:
    account = str(1_000_000_000_000_000 + secrets.randbelow(10**15))
    return World(account_id=account, user_id="2" + account[1:])


def _load(reference: str) -> ClusterFactory:
    module, _, name = reference.partition(":")
    return cast(ClusterFactory, getattr(importlib.import_module(module), name))
