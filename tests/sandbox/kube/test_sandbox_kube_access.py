"""Authentication by client certificate and token, authorization, and the paths of requests."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from raynest_pipeline.sandbox.kube.access import Target, target_of
from raynest_pipeline.sandbox.kube.authority import ADMINS, Authority

PODS = "/api/v1/namespaces/default/pods"


def context_of(
    authority: Authority, folder: Path, *, minutes: float = 5, admin: bool = True
) -> ssl.SSLContext:
    """What a client with a certificate of this authority uses."""
    certificate, key, _ = authority.issue_certificate("someone", (ADMINS,) if admin else (), minutes=minutes)
    path = folder / "client.pem"
    path.write_bytes(certificate + key)
    context = ssl.create_default_context(cadata=authority.ca_pem.decode())
    context.load_cert_chain(path)
    return context


async def get(
    bench: Any, path: str, context: ssl.SSLContext | None = None, token: str = ""
) -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    connector = aiohttp.TCPConnector(ssl=context or bench.trust())
    session = aiohttp.ClientSession(bench.url, connector=connector, headers=headers)
    async with session, session.get(path) as answer:
        is_json = answer.content_type == "application/json"
        return answer.status, await (answer.json() if is_json else answer.text())


def test_a_client_certificate_opens_the_door(serving: Callable[..., Any], tmp_path: Path) -> None:
    async def run() -> None:
        async with serving() as bench:
            assert (await get(bench, PODS, context_of(bench.authority, tmp_path)))[0] == 200

    asyncio.run(run())


def test_an_expired_certificate_is_401_and_not_a_broken_handshake(
    serving: Callable[..., Any], tmp_path: Path
) -> None:
    async def run() -> None:
        async with serving() as bench:
            status, body = await get(bench, PODS, context_of(bench.authority, tmp_path, minutes=-1))
            assert (status, body["reason"]) == (401, "Unauthorized")

    asyncio.run(run())


def test_a_certificate_of_nobody_special_is_403(serving: Callable[..., Any], tmp_path: Path) -> None:
    async def run() -> None:
        async with serving() as bench:
            status, body = await get(bench, PODS, context_of(bench.authority, tmp_path, admin=False))
            assert status == 403
            assert 'User "someone" cannot list resource "pods"' in body["message"]

    asyncio.run(run())


def test_a_certificate_of_another_cluster_is_refused(serving: Callable[..., Any], tmp_path: Path) -> None:
    async def run() -> None:
        async with serving() as bench:
            (tmp_path / "other").mkdir()
            context = context_of(Authority(tmp_path / "other", name="c2"), tmp_path)
            context.load_verify_locations(cadata=bench.authority.ca_pem.decode())
            with pytest.raises(aiohttp.ClientError):
                await get(bench, PODS, context)

    asyncio.run(run())


def test_the_server_can_be_verified_by_its_own_ca_only(serving: Callable[..., Any]) -> None:
    async def run() -> None:
        async with serving() as bench:
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await get(bench, "/version", ssl.create_default_context())
            assert (await get(bench, "/version"))[0] == 200
            bench.url = bench.url.replace("127.0.0.1", "localhost")
            assert (await get(bench, "/version"))[0] == 200

    asyncio.run(run())


def test_the_certificates_pass_a_strict_client(serving: Callable[..., Any], tmp_path: Path) -> None:
    """Python 3.13 checks RFC 5280 to the letter by default."""

    async def run() -> None:
        async with serving() as bench:
            context = context_of(bench.authority, tmp_path)
            context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
            assert (await get(bench, PODS, context))[0] == 200

    asyncio.run(run())


def test_tokens_expire_and_can_be_unknown(serving: Callable[..., Any]) -> None:
    async def run() -> None:
        async with serving() as bench:
            old = bench.authority.issue_token("x", (ADMINS,), minutes=-1)
            assert (await get(bench, PODS, token=old))[0] == 401
            assert (await get(bench, PODS, token="unknown"))[0] == 401
            assert (await get(bench, PODS, token=bench.token))[0] == 200

    asyncio.run(run())


def test_revoking_stops_what_was_issued_and_not_what_comes_after(
    serving: Callable[..., Any], tmp_path: Path
) -> None:
    async def run() -> None:
        async with serving() as bench:
            before = context_of(bench.authority, tmp_path)
            bench.authority.revoke_issued()
            assert (await get(bench, PODS, before))[0] == 401
            assert (await get(bench, PODS, token=bench.token))[0] == 401
            after = context_of(bench.authority, tmp_path)
            assert (await get(bench, PODS, after))[0] == 200
            bench.authority.restore_issued()
            assert (await get(bench, PODS, before))[0] == 200

    asyncio.run(run())


def test_credentials_survive_a_restart_and_revocations_too(tmp_path: Path) -> None:
    first = Authority(tmp_path, name="c")
    token = first.issue_token("x", (ADMINS,), minutes=5)
    second = Authority(tmp_path, name="c")
    assert second.ca_pem == first.ca_pem
    assert second.by_token(token) is not None
    second.revoke_issued()
    assert Authority(tmp_path, name="c").by_token(token) is None


def test_no_secret_is_kept_in_clear(tmp_path: Path) -> None:
    token = Authority(tmp_path, name="c").issue_token("x", (), minutes=5)
    assert token not in (tmp_path / "credentials.json").read_text()
    assert {path.stat().st_mode & 0o077 for path in tmp_path.iterdir()} == {0}


@pytest.mark.parametrize(
    ("path", "anonymous", "known"),
    [
        ("/version", 200, 200),
        ("/healthz", 200, 200),
        ("/readyz", 200, 200),
        ("/api", 403, 200),
        ("/apis/ray.io/v1", 403, 200),
        ("/openapi/v3", 403, 200),
        ("/metrics", 403, 403),
        (PODS, 403, 403),
        ("/api/v1/nodes", 403, 403),
        ("/api/v1/namespaces/default/pods/p/log", 403, 403),
    ],
)
def test_who_may_see_what(serving: Callable[..., Any], path: str, anonymous: int, known: int) -> None:
    async def run() -> tuple[int, int]:
        async with serving() as bench:
            token = bench.authority.issue_token("known", (), minutes=5)
            return (await get(bench, path))[0], (await get(bench, path, token=token))[0]

    assert asyncio.run(run()) == (anonymous, known)


@pytest.mark.parametrize(
    ("method", "path", "said"),
    [
        ("GET", "/api/v1/nodes", 'cannot list resource "nodes" in API group "" at the cluster scope'),
        ("GET", f"{PODS}?watch=1", 'cannot watch resource "pods" in API group "" in the namespace "default"'),
        ("GET", f"{PODS}/p/log", 'cannot get resource "pods/log" in API group ""'),
        ("POST", PODS, 'cannot create resource "pods"'),
        ("DELETE", PODS, 'cannot deletecollection resource "pods"'),
        ("GET", "/metrics", 'cannot get path "/metrics"'),
    ],
)
def test_a_refusal_says_what_was_refused(
    serving: Callable[..., Any], method: str, path: str, said: str
) -> None:
    async def run() -> Any:
        async with serving() as bench:
            token = bench.authority.issue_token("known", (), minutes=5)
            return await bench.call(method, path, Authorization=f"Bearer {token}")

    status, body = asyncio.run(run())
    assert (status, body["reason"]) == (403, "Forbidden")
    assert said in body["message"]


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/api", None),
        ("/api/v1", None),
        ("/apis/ray.io/v1", None),
        ("/version", None),
        ("/api/v1/pods", Target("", "v1", "", "pods")),
        ("/api/v1/namespaces", Target("", "v1", "", "namespaces")),
        ("/api/v1/namespaces/demo", Target("", "v1", "", "namespaces", "demo")),
        ("/api/v1/namespaces/demo/status", Target("", "v1", "", "namespaces", "demo", "status")),
        ("/api/v1/namespaces/demo/pods", Target("", "v1", "demo", "pods")),
        ("/api/v1/namespaces/demo/pods/p/log", Target("", "v1", "demo", "pods", "p", "log")),
        ("/apis/ray.io/v1/rayservices", Target("ray.io", "v1", "", "rayservices")),
        (
            "/apis/ray.io/v1/namespaces/demo/rayservices/s/status",
            Target("ray.io", "v1", "demo", "rayservices", "s", "status"),
        ),
        ("/api/v1/namespaces/d/services/s%3A80/proxy", Target("", "v1", "d", "services", "s:80", "proxy")),
        (
            "/api/v1/namespaces/d/services/s:80/proxy/",
            Target("", "v1", "d", "services", "s:80", "proxy", "/"),
        ),
        (
            "/api/v1/namespaces/d/services/proxy/proxy/a%20b/proxy",
            Target("", "v1", "d", "services", "proxy", "proxy", "/a%20b/proxy"),
        ),
    ],
)
def test_paths(path: str, target: Target | None) -> None:
    assert target_of(path) == target
