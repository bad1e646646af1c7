"""`raynest open`: a loopback address in front of a target, over real sockets."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import ClientSession, web

from raynest_pipeline.kube.forward import serve_forward
from raynest_pipeline.kube.http import HttpTarget

Scene = Callable[[ClientSession, str], Awaitable[None]]


class Upstream:
    """A server that remembers what arrived, at /base."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.bodies: list[bytes] = []
        self.go_on = asyncio.Event()

    async def echo(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request)
        self.bodies.append(await request.read())
        headers = {"X-Model": "tiny", "Keep-Alive": "timeout=5", "Set-Cookie": "a=b"}
        return web.Response(status=201, body=b"\x89PNG\x00\xff", headers=headers, content_type="image/png")

    async def slow(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"first\n")
        await self.go_on.wait()
        await response.write(b"last\n")
        return response

    async def away(self, request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound("/elsewhere")


def through(scene: Callable[[ClientSession, str, Upstream], Awaitable[None]], **target: Any) -> None:
    """Run `scene` with a client, the forward's address and the server behind it."""

    async def run() -> None:
        upstream = Upstream()
        app = web.Application()
        app.router.add_get("/base/slow", upstream.slow)
        app.router.add_get("/base/away", upstream.away)
        app.router.add_route("*", "/base/{path:.*}", upstream.echo)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        given = {"base_url": f"http://127.0.0.1:{port}/base", **target}

        async def ready(url: str) -> None:
            assert url.startswith("http://127.0.0.1:")
            async with ClientSession() as client:
                await asyncio.wait_for(scene(client, url, upstream), 20)

        try:
            await serve_forward(HttpTarget(**given), ready=ready)
        finally:
            await runner.cleanup()

    asyncio.run(run())


def test_path_query_method_and_body_arrive_as_sent() -> None:
    async def scene(client: ClientSession, url: str, upstream: Upstream) -> None:
        from yarl import URL

        asked = URL(f"{url}/imagine?prompt=a%20red%2Fapple&x=%2B", encoded=True)
        async with client.post(asked, data=b"\x00body") as answer:
            assert answer.status == 201
        (request,) = upstream.asked
        assert request.method == "POST"
        assert request.raw_path == "/base/imagine?prompt=a%20red%2Fapple&x=%2B"
        assert upstream.bodies == [b"\x00body"]

    through(scene)


def test_the_answer_comes_back_as_it_is() -> None:
    async def scene(client: ClientSession, url: str, upstream: Upstream) -> None:
        async with client.get(f"{url}/x") as answer:
            assert await answer.read() == b"\x89PNG\x00\xff"
            assert answer.headers["X-Model"] == "tiny"
            assert answer.headers["Content-Type"] == "image/png"
            assert "Keep-Alive" not in answer.headers, "belongs to the other connection"

    through(scene)


def test_the_targets_credentials_are_added_and_not_the_browsers_to_set() -> None:
    async def scene(client: ClientSession, url: str, upstream: Upstream) -> None:
        headers = {"Authorization": "Bearer mine", "X-Own": "kept", "TE": "trailers"}
        async with client.get(f"{url}/x", headers=headers):
            pass
        (request,) = upstream.asked
        assert request.headers["Authorization"] == "Bearer s3cr3t"
        assert request.headers["X-Own"] == "kept"
        assert "TE" not in request.headers
        assert request.headers.getall("Host") == [request.host]

    through(scene, headers={"Authorization": "Bearer s3cr3t"})


def test_a_header_in_another_case_does_not_get_through_beside_ours() -> None:
    async def scene(client: ClientSession, url: str, upstream: Upstream) -> None:
        async with client.get(f"{url}/x", headers={"authorization": "Bearer mine"}):
            pass
        (request,) = upstream.asked
        assert request.headers.getall("Authorization") == ["Bearer s3cr3t"]

    through(scene, headers={"Authorization": "Bearer s3cr3t"})


def test_a_stream_arrives_piece_by_piece() -> None:
    async def scene(client: ClientSession, url: str, upstream: Upstream) -> None:
        async with client.get(f"{url}/slow") as answer:
            assert await answer.content.readline() == b"first\n"
            upstream.go_on.set()
            assert await answer.content.readline() == b"last\n"

    through(scene)


def test_redirects_are_the_browsers_to_follow() -> None:
    async def scene(client: ClientSession, url: str, upstream: Upstream) -> None:
        async with client.get(f"{url}/away", allow_redirects=False) as answer:
            assert (answer.status, answer.headers["Location"]) == (302, "/elsewhere")

    through(scene)


def test_cookies_are_the_browsers_to_keep() -> None:
    async def scene(client: ClientSession, url: str, upstream: Upstream) -> None:
        client.cookie_jar.clear()
        async with client.get(f"{url}/x") as answer:
            assert "a=b" in answer.headers["Set-Cookie"]
        client.cookie_jar.clear()
        async with client.get(f"{url}/x"):
            pass
        assert "Cookie" not in upstream.asked[1].headers

    through(scene)


def test_a_server_that_is_gone_is_502_without_secrets() -> None:
    async def scene(client: ClientSession, url: str, upstream: Upstream) -> None:
        async with client.get(f"{url}/x") as answer:
            text = await answer.text()
            assert answer.status == 502
            assert "does not answer" in text and "s3cr3t" not in text

    through(scene, base_url="http://127.0.0.1:9", headers={"Authorization": "Bearer s3cr3t"})


def test_a_proxy_of_the_machine_is_left_out_for_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")

    async def scene(client: ClientSession, url: str, upstream: Upstream) -> None:
        async with client.get(f"{url}/x") as answer:
            assert answer.status == 201

    through(scene)


def test_a_port_that_is_taken_is_an_os_error() -> None:
    async def scene(client: ClientSession, url: str, upstream: Upstream) -> None:
        port = int(url.rpartition(":")[2])

        async def never(_: str) -> None:
            raise AssertionError("it cannot be ready")

        with pytest.raises(OSError, match="address"):
            await serve_forward(HttpTarget.plain(url), port=port, ready=never)

    through(scene)
