"""POST /v1/images on a real local Ray: full batches, order, clients that go away, deadlines, a full queue."""

import concurrent.futures
import http.client
import json
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import ray
from ray import serve

from raynest_pipeline.serving.app import build

pytestmark = pytest.mark.ray
PATIENCE_S = 60
BATCH, PLACES = 4, 76
Read = Callable[[str, bytes], Any]


@pytest.fixture(scope="module")
def port(port: int) -> int:
    """On the Ray of our own two applications, with short and long patience."""
    common = {"model": "tiny-untrained", "cpu_threads": 1, "max_steps": 1000}
    main = build({**common, "max_batch_size": BATCH, "queue_size": PLACES - BATCH})
    hasty = build({**common, "max_batch_size": 1, "queue_size": 20, "deadline_s": 3.0})
    serve.run_many(
        [
            serve.RunTarget(main, name="main", route_prefix="/"),
            serve.RunTarget(hasty, name="hasty", route_prefix="/hasty"),
        ]
    )
    return port


@pytest.fixture(scope="module")
def client(port: int) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=300, trust_env=False) as opened:
        yield opened


def health(client: httpx.Client, prefix: str = "") -> dict[str, Any]:
    told: dict[str, Any] = client.get(f"{prefix}/health").json()
    return told


def until(condition: Callable[[], bool], what: str) -> None:
    give_up = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up, what
        time.sleep(0.05)


def images(count: int, **more: object) -> dict[str, list[dict[str, object]]]:
    return {"images": [{"prompt": "x", "seed": seed, **more} for seed in range(count)]}


def test_one_request_fills_the_batches_and_streams_as_they_are_painted(
    client: httpx.Client, read_parts: Read
) -> None:
    body, arrivals = b"", 0
    with client.stream("POST", "/v1/images", json=images(64, steps=4)) as answer:
        assert answer.status_code == 200
        assert answer.headers["transfer-encoding"] == "chunked"
        for chunk in answer.iter_raw():
            body += chunk
            if b"X-Raynest-Index" in chunk and not body.endswith(b"--\r\n"):
                arrivals += 1
        content_type = answer.headers["content-type"]
    parts = read_parts(content_type, body)
    assert parts.complete
    assert sorted(parts.parts) == list(range(64))
    assert set(parts.statuses.values()) == {200}
    batches = Counter(int(headers["x-raynest-batch"]) for headers, _ in parts.parts.values())
    # All but a few at either end: 64 single requests do no better.
    assert batches[BATCH] >= 56
    assert arrivals > 8


def test_an_item_is_the_image_that_imagine_paints(client: httpx.Client, read_parts: Read) -> None:
    answer = client.post("/v1/images", json=images(1, steps=3))
    (headers, data) = read_parts(answer.headers["content-type"], answer.content).parts[0]
    alone = client.get("/imagine", params={"prompt": "x", "seed": 0, "steps": 3})
    assert data == alone.content
    told = {key: value for key, value in alone.headers.items() if key.startswith("x-raynest-")}
    assert {key: headers[key] for key in told} | {"x-raynest-seconds": ""} == told | {"x-raynest-seconds": ""}


def test_items_beside_bad_ones_are_painted(client: httpx.Client, read_parts: Read) -> None:
    wanted = {"images": [{"prompt": "x", "steps": 1}, {"prompt": ""}, {"prompt": "x", "img_size": 65}]}
    answer = client.post("/v1/images", json=wanted)
    parts = read_parts(answer.headers["content-type"], answer.content)
    assert parts.statuses == {0: 200, 1: 422, 2: 422}
    assert client.post("/v1/images", content=b"{").status_code == 422
    assert client.post("/v1/images", json=images(65)).status_code == 422


def test_a_single_request_waits_for_those_before_it_and_not_for_those_behind(client: httpx.Client) -> None:
    """Two requests that keep the queue busy, and a GET between them: it is answered before the second is."""
    before = health(client)["images_painted"]
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        first = pool.submit(client.post, "/v1/images", json=images(32, steps=12))
        until(lambda: health(client)["waiting"] >= 20, "the first request is in the queue")
        single = pool.submit(client.get, "/imagine", params={"prompt": "x", "steps": 12})
        until(lambda: health(client)["queue_depth"] >= 21 or single.done(), "the single one is in the queue")
        second = pool.submit(client.post, "/v1/images", json=images(32, steps=12))
        assert single.result(PATIENCE_S * 2).status_code == 200
        painted = health(client)["images_painted"] - before
        assert {first.result(PATIENCE_S * 2).status_code, second.result(PATIENCE_S * 2).status_code} == {200}
    # 32 before it, its own batch, and what was taken up until the answer came through.
    assert painted <= 32 + 4 * BATCH


@pytest.mark.parametrize("after_parts", [0, 1])
def test_a_client_that_goes_away_stops_costing_device_time(
    client: httpx.Client, port: int, after_parts: int
) -> None:
    """Before the answer began, and in the midst of it."""
    before = health(client)["images_painted"]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    body = json.dumps(images(60, steps=60 if after_parts else 120))
    connection.request("POST", "/v1/images", body, {"Content-Type": "application/json"})
    until(lambda: health(client)["waiting"] >= 40, "the request is in the queue")
    if after_parts:
        assert connection.getresponse().read(100)
    connection.sock.shutdown(socket.SHUT_RDWR) if connection.sock else None
    connection.close()
    until(lambda: health(client)["queue_depth"] == 0, "the queue is empty")
    assert client.get("/imagine", params={"prompt": "x", "steps": 1}).status_code == 200
    assert health(client)["images_painted"] - before < 40


def test_a_single_request_that_goes_away_stops_too(client: httpx.Client, port: int) -> None:
    before = health(client, "/hasty")["images_painted"]
    connections = [http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S) for _ in range(6)]
    for connection in connections:
        connection.request("GET", "/hasty/imagine?prompt=x&steps=60")
    until(lambda: health(client, "/hasty")["waiting"] >= 3, "they are in the queue")
    for connection in connections:
        connection.close()
    until(lambda: health(client, "/hasty")["queue_depth"] == 0, "the queue is empty")
    assert health(client, "/hasty")["images_painted"] - before < 6


def test_what_cannot_make_its_deadline_costs_no_device_time(client: httpx.Client, read_parts: Read) -> None:
    paces: list[float] = []

    def painted_one() -> bool:
        answer = client.get("/hasty/imagine", params={"prompt": "x", "steps": 5})
        if answer.status_code == 200:
            paces.append(float(answer.headers["x-raynest-seconds"]) / 5)
        return bool(paces)

    until(painted_one, "the device is free")
    before = health(client, "/hasty")["images_painted"]
    # Each is a call of its own that takes about a third of the deadline.
    steps = min(1000, max(1, int(1 / paces[0])))
    answer = client.post("/hasty/v1/images", json=images(20, steps=steps))
    parts = read_parts(answer.headers["content-type"], answer.content)
    assert parts.complete
    statuses = Counter(parts.statuses.values())
    assert set(statuses) <= {200, 504}
    assert statuses[504] >= 10
    until(lambda: health(client, "/hasty")["queue_depth"] == 0, "the queue is empty")
    # What was on the device when its deadline passed was not delivered.
    assert health(client, "/hasty")["images_painted"] - before <= statuses[200] + 3


def test_what_the_queue_cannot_take_is_refused_item_by_item_or_as_a_whole(
    client: httpx.Client, read_parts: Read
) -> None:
    """A second request of 60 fits in part, a third not at all."""
    blocking = images(BATCH, steps=300)["images"] + images(60 - BATCH, steps=1)["images"]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(client.post, "/v1/images", json={"images": blocking})
        until(lambda: health(client)["queue_depth"] >= 60, "the first is in the queue")
        second = pool.submit(client.post, "/v1/images", json=images(60, steps=1))
        until(lambda: health(client)["queue_depth"] > 60, "the second is in the queue")
        # What is refused is counted only until it is.
        until(lambda: health(client)["queue_depth"] == PLACES, "its refusals are in")
        for count, reason in ((20, "76 images are in work or waiting"), (60, "120 images of other requests")):
            third = client.post("/v1/images", json=images(count, steps=1))
            assert third.status_code == 503
            assert int(third.headers["retry-after"]) >= 1
            assert reason in third.json()["detail"]
        single = client.get("/imagine", params={"prompt": "x"})
        assert (single.status_code, "retry-after" in single.headers) == (503, True)
        answer = second.result(PATIENCE_S * 3)
        parts = read_parts(answer.headers["content-type"], answer.content)
        assert first.result(PATIENCE_S * 3).status_code == 200
    assert parts.complete
    statuses = Counter(parts.statuses.values())
    assert statuses == {200: PLACES - 60, 503: 120 - PLACES}
    for headers, body in parts.parts.values():
        if headers["x-raynest-status"] == "503":
            assert int(headers["retry-after"]) >= 1
            assert "the queue is full" in json.loads(body)["detail"]


def test_a_replica_that_dies_leaves_no_item_unanswered_and_another_comes(
    client: httpx.Client, read_parts: Read
) -> None:
    replica = health(client)["replica"]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.post, "/v1/images", json=images(BATCH * 5, steps=200))
        until(lambda: health(client)["waiting"] >= BATCH * 2, "the request is in the queue")
        ray.kill(ray.get_actor(f"SERVE_REPLICA::main#Painter#{replica}", namespace="serve"))
        answer = asked.result(PATIENCE_S * 2)
    if answer.status_code == 503:
        assert int(answer.headers["retry-after"]) >= 1
    else:
        parts = read_parts(answer.headers["content-type"], answer.content)
        assert parts.complete
        assert set(parts.statuses.values()) == {200, 503}
    # It waits for the new replica.
    assert client.get("/imagine", params={"prompt": "x", "steps": 1}).status_code == 200
    told = health(client)
    assert told["replica"] != replica
    assert (told["status"], told["queue_depth"]) == ("ok", 0)


def test_the_service_is_none_the_worse(client: httpx.Client) -> None:
    """Last in the file."""
    told = health(client)
    assert (told["status"], told["queue_depth"], told["waiting"], told["device_failure"]) == (
        "ok",
        0,
        0,
        None,
    )
    assert client.get("/imagine?prompt=a%20red%20circle").status_code == 200
