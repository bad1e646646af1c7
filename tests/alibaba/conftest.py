"""A cloud on loopback that plays canned answers, odd ones included, and records what it was asked."""

import json
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from raynest_pipeline.alibaba.cloud import Cloud
from raynest_pipeline.settings import Alibaba, Settings

# The SDK reads it when it is imported.
os.environ["ALIBABA_CLOUD_ECS_METADATA_DISABLED"] = "true"

SECRET = "access-key-secret-zzz"
OK = {"RequestId": "4EC47282-1B74-4534-BD0E-403F3EE64CAF"}


@dataclass(frozen=True)
class Reply:
    """What the server answers: an object as JSON, bytes as they are, or nothing but a closed connection."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False

    def content(self) -> bytes:
        return (
            self.body if isinstance(self.body, bytes) else json.dumps(self.body, ensure_ascii=False).encode()
        )


@dataclass(frozen=True)
class Call:
    """A request as it arrived."""

    action: str
    version: str
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


class FakeCloud:
    """Answers by action (RPC) or by "METHOD /path" (ROA); the last answer of a queue stays."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._replies: dict[str, list[Reply]] = defaultdict(list)
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    def answer(self, action: str, *replies: Any) -> None:
        """Queue answers; anything that is no Reply is a body with status 200."""
        self._replies[action] = [r if isinstance(r, Reply) else Reply(r) for r in replies]

    def asked(self, action: str) -> list[Call]:
        return [call for call in self.calls if action in (call.action, f"{call.method} {call.path}")]

    def forget(self) -> None:
        """All calls and all answers."""
        self.calls.clear()
        self._replies.clear()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def take(self, call: Call) -> Reply:
        with self._lock:
            self.calls.append(call)
            queue = self._replies.get(f"{call.method} {call.path}") or self._replies.get(call.action)
            if not queue:
                return error(
                    404, "InvalidAction.NotFound", f"nothing is canned for {call.action} {call.path}"
                )
            return queue.pop(0) if len(queue) > 1 else queue[0]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        cloud = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Head and body in one packet: in two, the second waits 40 ms for the first's acknowledgement.
            wbufsize = -1

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                url = urlsplit(self.path)
                reply = cloud.take(
                    Call(
                        action=self.headers.get("x-acs-action", ""),
                        version=self.headers.get("x-acs-version", ""),
                        method=self.command,
                        path=url.path,
                        query=dict(parse_qsl(url.query, keep_blank_values=True)),
                        headers={name.lower(): value for name, value in self.headers.items()},
                        body=json.loads(body) if body else None,
                    )
                )
                if reply.drop:
                    self.close_connection = True
                    return
                content = reply.content()
                self.send_response(reply.status)
                for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_DELETE = handle_any

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler


def error(status: int, code: str, message: str = "No.", **more: Any) -> Reply:
    """An error answer of the RPC products."""
    return Reply({**OK, "HostId": "h", "Code": code, "Message": message, **more}, status=status)


class TurnedClock:
    """A clock that only moves when somebody sleeps."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.sleeps: list[float] = []

    def monotonic(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.seconds += seconds


@dataclass(frozen=True)
class Bench:
    """Everything that a test of this room needs."""

    server: FakeCloud
    clock: TurnedClock
    cloud: Cloud
    error: Callable[..., Reply] = error
    reply: type[Reply] = Reply
    ok: dict[str, str] = field(default_factory=lambda: dict(OK))
    secret: str = SECRET

    def with_settings(self, **alibaba: Any) -> Cloud:
        """Another cloud on the same server."""
        return Cloud.from_settings(settings_for(self.server.endpoint, **alibaba), self.clock)


def settings_for(server: str, **alibaba: Any) -> Settings:
    keys = {"access_key_id": "LTAItest", "access_key_secret": SECRET}
    return Settings(alibaba=Alibaba(**{"endpoint": server, **keys, **alibaba}))


@pytest.fixture(autouse=True)
def _no_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Nothing of this machine's proxies, settings or credentials takes part."""
    for name in list(os.environ):
        if name.lower() in ("http_proxy", "https_proxy", "debug") or name.startswith("RAYNEST_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture(scope="session")
def _server() -> Iterator[FakeCloud]:
    server = FakeCloud()
    yield server
    server.close()


@pytest.fixture
def bench(_server: FakeCloud) -> Bench:
    _server.forget()
    clock = TurnedClock()
    return Bench(_server, clock, Cloud.from_settings(settings_for(_server.endpoint), clock))
