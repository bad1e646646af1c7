"""HttpTarget, for httpx and for aiohttp, plain and through the API server's proxy."""

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raynest_pipeline.errors import InputError
from raynest_pipeline.kube.client import KubeClient
from raynest_pipeline.kube.http import HttpTarget

PROXIED = "/api/v1/namespaces/demo/services/svc:8000/proxy/imagine"


@pytest.mark.parametrize("url", ["http://h:8000", "https://h/base/", "http://[::1]:80"])
def test_plain_targets(url: str) -> None:
    target = HttpTarget.plain(url)
    assert target.base_url == url.rstrip("/")
    assert (dict(target.headers), target.ssl) == ({}, None)


@pytest.mark.parametrize(
    "url", ["", "h:8000", "ftp://h", "http://", "http://h:99999999", "http://[::1", "http://h:x"]
)
def test_not_a_url(url: str) -> None:
    with pytest.raises(InputError, match="not an http"):
        HttpTarget.plain(url)


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("http://127.0.0.1:1", True),
        ("http://localhost", True),
        ("http://[::1]:2", True),
        ("http://10.0.0.1", False),
    ],
)
def test_loopback(url: str, loopback: bool) -> None:
    assert HttpTarget.plain(url).loopback is loopback


def test_urls_are_joined_and_percent_encoded() -> None:
    target = HttpTarget.plain("http://h/proxy/")
    assert target.url("/imagine") == "http://h/proxy/imagine"
    assert (
        target.url("x", {"prompt": "a cat&dog+é", "n": 2})
        == "http://h/proxy/x?prompt=a%20cat%26dog%2B%C3%A9&n=2"
    )


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_prompt_survives_the_query(prompt: str) -> None:
    import httpx

    url = httpx.URL(HttpTarget.plain("http://h").url("/imagine", {"prompt": prompt}))
    assert url.params["prompt"] == prompt


def test_more_headers_make_a_new_target() -> None:
    first = HttpTarget("http://h", headers={"a": "1"})
    second = first.with_headers({"b": "2"})
    assert dict(first.headers) == {"a": "1"}
    assert dict(second.headers) == {"a": "1", "b": "2"}


def test_httpx_through_the_proxy(config_file: Path, api: Any, tools: Any) -> None:
    api.on(f"GET {PROXIED}", tools.Answer(body=b"png", headers={"Content-Type": "image/png"}))
    with KubeClient.from_file(config_file) as client:
        target = client.service_proxy("demo", "svc", 8000)
        assert target.base_url == f"{api.url}/api/v1/namespaces/demo/services/svc:8000/proxy"
        with target.client(5) as http:
            answer = http.get(target.url("/imagine", {"prompt": "a cat"}))
    assert (answer.status_code, answer.content) == (200, b"png")
    asked = api.calls(f"GET {PROXIED}")[0]
    assert asked.raw_query == "prompt=a%20cat"
    assert asked.headers["authorization"] == f"Bearer {tools.token}"


def test_aiohttp_through_the_proxy_after_the_client_is_closed(
    config_file: Path, api: Any, tools: Any
) -> None:
    api.on(f"GET {PROXIED}", tools.Answer(body=b"png", headers={"Content-Type": "image/png"}))
    with KubeClient.from_file(config_file) as client:
        target = client.service_proxy("demo", "svc", 8000)

    async def fetch() -> bytes:
        connector = aiohttp.TCPConnector(ssl=target.ssl or True)
        async with (
            aiohttp.ClientSession(connector=connector, headers=dict(target.headers)) as session,
            session.get(
                target.url("/imagine", {"prompt": "x"}), server_hostname=target.server_hostname
            ) as answer,
        ):
            return await answer.read()

    assert asyncio.run(fetch()) == b"png"


def test_a_proxy_in_the_environment_is_left_out_for_loopback(
    config_file: Path, api: Any, tools: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    api.on(f"GET {PROXIED}", {})
    with KubeClient.from_file(config_file) as client:
        target = client.service_proxy("demo", "svc", 8000)
        with target.client(5) as http:
            assert http.get(target.url("/imagine")).status_code == 200
