"""The service and pod proxy, against a real HTTP server behind it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

Object = dict[str, Any]

NS = "/api/v1/namespaces/default"
GO = web.AppKey("GO", asyncio.Event)
SERVE = f"{NS}/services/sd-serve-svc:8000/proxy"


async def echo(request: web.Request) -> web.Response:
    """What the backend got."""
    body = await request.read()
    headers = {key: ", ".join(request.headers.getall(key)) for key in request.headers}
    digest = hashlib.sha256(body).hexdigest()
    got = {
        "method": request.method,
        "path": request.raw_path,
        "headers": headers,
        "size": len(body),
        "sha": digest,
    }
    return web.json_response(got, headers={"X-Backend": "yes"})


async def slow(request: web.Request) -> web.StreamResponse:
    """Two pieces, the second only after the client has asked for it."""
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"first\n")
    await request.app[GO].wait()
    await response.write(b"second\n")
    return response


async def torso(request: web.Request) -> web.StreamResponse:
    """Dies in mid-answer."""
    response = web.StreamResponse()
    response.enable_chunked_encoding()
    await response.prepare(request)
    await response.write(b"half of it")
    assert request.transport is not None
    request.transport.abort()
    return response


async def moved(request: web.Request) -> web.Response:
    raise web.HTTPFound("/elsewhere?x=1")


async def socket(request: web.Request) -> web.WebSocketResponse:
    websocket = web.WebSocketResponse(protocols=("chat",))
    await websocket.prepare(request)
    async for message in websocket:
        if message.data == "bye":
            break
        await (websocket.send_str if message.type is aiohttp.WSMsgType.TEXT else websocket.send_bytes)(
            message.data
        )
    return websocket


@asynccontextmanager
async def backend() -> AsyncIterator[tuple[web.Application, int]]:
    app = web.Application(client_max_size=1 << 30)
    app[GO] = asyncio.Event()
    app.router.add_get("/slow", slow)
    app.router.add_get("/torso", torso)
    app.router.add_get("/moved", moved)
    app.router.add_get("/socket", socket)
    app.router.add_route("*", "/{tail:.*}", echo)
    runner = web.AppRunner(app, shutdown_timeout=0.5)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield app, runner.addresses[0][1]
    finally:
        await runner.cleanup()


def service(*ports: tuple[str, int]) -> Object:
    listed = [{"name": name, "port": port} for name, port in ports]
    metadata = {"name": "sd-serve-svc", "namespace": "default"}
    return {"metadata": metadata, "spec": {"selector": {"a": "b"}, "ports": listed}}


@asynccontextmanager
async def proxied(serving: Callable[..., Any]) -> AsyncIterator[tuple[Any, web.Application]]:
    """A cluster with the Service sd-serve-svc (port 8000, named serve) in front of the backend."""
    async with serving() as bench, backend() as (app, port):
        bench.store.create("services", service(("serve", 8000), ("dead", 8001)), manager="t")
        for name in ("8000", "serve"):
            bench.nodes.services["default", "sd-serve-svc", name] = ("127.0.0.1", port)
        yield bench, app


@pytest.mark.parametrize(
    "name", ["sd-serve-svc:8000", "sd-serve-svc:serve", "http:sd-serve-svc:8000", "sd-serve-svc%3A8000"]
)
def test_every_way_of_naming_the_port(serving: Callable[..., Any], name: str) -> None:
    async def run() -> Any:
        async with proxied(serving) as (bench, _):
            return await bench.call("GET", f"{NS}/services/{name}/proxy/imagine?prompt=a%20cat%26dog")

    status, got = asyncio.run(run())
    assert (status, got["path"]) == (200, "/imagine?prompt=a%20cat%26dog")


def test_the_backend_gets_no_credentials_and_learns_who_asked(serving: Callable[..., Any]) -> None:
    async def run() -> Any:
        async with proxied(serving) as (bench, _):
            headers = {"X-Ray-Authorization": "Bearer ray", "X-Forwarded-For": "10.1.1.1"}
            async with bench.session.get(f"{SERVE}/a/b?c=d", headers=headers) as answer:
                assert answer.headers["X-Backend"] == "yes"
                return bench.url, (await answer.json())["headers"]

    url, headers = asyncio.run(run())
    assert "Authorization" not in headers
    assert headers["X-Ray-Authorization"] == "Bearer ray"
    assert headers["X-Forwarded-Uri"] == f"{SERVE}/a/b"
    assert headers["X-Forwarded-For"] == "10.1.1.1, 127.0.0.1"
    assert headers["X-Forwarded-Host"] == url.removeprefix("https://")


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_every_method_and_its_body_go_through(serving: Callable[..., Any], method: str) -> None:
    async def run() -> Any:
        async with proxied(serving) as (bench, _):
            body = None if method == "GET" else '{"a": 1}'
            return await bench.call(method, f"{SERVE}/x", body)

    status, got = asyncio.run(run())
    assert (status, got["method"]) == (200, method)
    assert got["size"] == (0 if method == "GET" else 8)


@pytest.mark.parametrize("chunked", [False, True])
def test_big_bodies_are_not_cut_by_the_servers_own_limit(serving: Callable[..., Any], chunked: bool) -> None:
    body = bytes(range(256)) * 4096 * 8

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 100_000):
            yield body[start : start + 100_000]

    async def run() -> Any:
        async with proxied(serving) as (bench, _):
            data = pieces() if chunked else body
            async with bench.session.put(f"{SERVE}/upload", data=data) as answer:
                return await answer.json()

    got = asyncio.run(run())
    assert (got["size"], got["sha"]) == (len(body), hashlib.sha256(body).hexdigest())
    assert ("Transfer-Encoding" in got["headers"]) == chunked


def test_an_answer_is_passed_on_as_it_comes(serving: Callable[..., Any]) -> None:
    async def run() -> None:
        async with proxied(serving) as (bench, app), bench.session.get(f"{SERVE}/slow") as answer:
            assert await asyncio.wait_for(answer.content.readline(), 5) == b"first\n"
            app[GO].set()
            assert await asyncio.wait_for(answer.content.read(), 5) == b"second\n"

    asyncio.run(run())


def test_an_answer_that_breaks_off_breaks_off_for_the_client_too(serving: Callable[..., Any]) -> None:
    async def run() -> None:
        async with proxied(serving) as (bench, _), bench.session.get(f"{SERVE}/torso") as answer:
            with pytest.raises(aiohttp.ClientError):
                await asyncio.wait_for(answer.read(), 5)

    asyncio.run(run())


def test_a_redirect_leads_back_through_the_proxy(serving: Callable[..., Any]) -> None:
    async def run() -> Any:
        async with proxied(serving) as (bench, _):
            answer, _ = await bench.full("GET", f"{SERVE}/moved", follow=False)
            return answer.status, answer.headers["Location"]

    assert asyncio.run(run()) == (302, f"{SERVE}/elsewhere?x=1")


def test_the_root_without_a_slash_is_redirected_to_the_one_with(serving: Callable[..., Any]) -> None:
    async def run() -> Any:
        async with proxied(serving) as (bench, _):
            answer, _ = await bench.full("GET", f"{SERVE}?a=b", follow=False)
            moved_to = answer.status, answer.headers["Location"]
            return moved_to, (await bench.call("GET", f"{SERVE}/"))[1]["path"]

    assert asyncio.run(run()) == ((301, f"{SERVE}/?a=b"), "/")


def test_websockets_go_through_both_ways(serving: Callable[..., Any]) -> None:
    async def run() -> None:
        async with proxied(serving) as (bench, _):
            websocket = await bench.session.ws_connect(f"{SERVE}/socket", protocols=("chat",))
            assert websocket.protocol == "chat"
            await websocket.send_str("text")
            assert await websocket.receive_str(timeout=5) == "text"
            await websocket.send_bytes(b"\x00\x01")
            assert await websocket.receive_bytes(timeout=5) == b"\x00\x01"
            await websocket.send_str("bye")
            assert (await websocket.receive(timeout=5)).type in (
                aiohttp.WSMsgType.CLOSE,
                aiohttp.WSMsgType.CLOSED,
                aiohttp.WSMsgType.CLOSING,
            )

    asyncio.run(run())


@pytest.mark.parametrize(
    ("name", "status", "message"),
    [
        ("missing:8000", 404, 'services "missing" not found'),
        ("missing:serve", 404, 'endpoints "missing" not found'),
        ("sd-serve-svc:9", 503, 'no service port 9 found for service "sd-serve-svc"'),
        ("sd-serve-svc:dead", 503, 'no endpoints available for service "sd-serve-svc"'),
        ("sd-serve-svc", 503, 'no endpoints available for service "sd-serve-svc"'),
        ("a:b:c:d", 400, 'invalid service request "a:b:c:d"'),
        ("ftp:sd-serve-svc:8000", 400, 'invalid service request "ftp:sd-serve-svc:8000"'),
    ],
)
def test_when_there_is_nobody_to_forward_to(
    serving: Callable[..., Any], name: str, status: int, message: str
) -> None:
    async def run() -> Any:
        async with proxied(serving) as (bench, _):
            return await bench.call("GET", f"{NS}/services/{name}/proxy/")

    found, body = asyncio.run(run())
    assert (found, body["message"]) == (status, message)


def test_a_backend_that_is_gone_is_503_with_the_reason(serving: Callable[..., Any], unused_port: int) -> None:
    async def run() -> Any:
        async with serving() as bench:
            bench.store.create("services", service(("serve", 8000)), manager="t")
            for port in ("8000", "serve"):
                bench.nodes.services["default", "sd-serve-svc", port] = ("127.0.0.1", unused_port)
            only_port = await bench.call("GET", f"{NS}/services/sd-serve-svc/proxy/")
            return only_port, await bench.call("GET", f"{SERVE}/")

    for status, body in asyncio.run(run()):
        assert (status, body["reason"]) == (503, "ServiceUnavailable")
        wanted = (
            f"error trying to reach service: dial tcp 127.0.0.1:{unused_port}: connect: connection refused"
        )
        assert body["message"] == wanted


def test_pods_can_be_reached_by_name(serving: Callable[..., Any]) -> None:
    async def run() -> Any:
        async with serving() as bench, backend() as (_, port):
            container = {"name": "c", "image": "i", "ports": [{"containerPort": 8000}]}
            pod = {"metadata": {"name": "p", "namespace": "default"}, "spec": {"containers": [container]}}
            bench.store.create("pods", pod, manager="t")
            bench.nodes.pods["default", "p", "8000"] = ("127.0.0.1", port)
            named = await bench.call("GET", f"{NS}/pods/p:8000/proxy/x")
            first = await bench.call("GET", f"{NS}/pods/p/proxy/y")
            closed = await bench.call("GET", f"{NS}/pods/p:1/proxy/x")
            missing = await bench.call("GET", f"{NS}/pods/q:1/proxy/x")
            return named[1]["path"], first[1]["path"], closed[0], missing[0]

    assert asyncio.run(run()) == ("/x", "/y", 503, 404)


def test_many_at_once(serving: Callable[..., Any]) -> None:
    async def run() -> list[int]:
        async with proxied(serving) as (bench, _):
            calls = (bench.call("POST", f"{SERVE}/n/{number}", "x" * 50_000) for number in range(60))
            return [got["size"] for _, got in await asyncio.gather(*calls)]

    assert asyncio.run(run()) == [50_000] * 60


def test_a_stranger_is_not_forwarded(serving: Callable[..., Any]) -> None:
    async def run() -> Any:
        async with proxied(serving) as (bench, _):
            token = bench.authority.issue_token("known", (), minutes=5)
            return await bench.call("POST", f"{SERVE}/x", "{}", Authorization=f"Bearer {token}")

    status, body = asyncio.run(run())
    assert status == 403
    assert 'cannot create resource "services/proxy"' in body["message"]
