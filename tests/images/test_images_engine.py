import asyncio
import hashlib
import json
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from raynest_pipeline.errors import (
    AccessError,
    BatchError,
    NotReadyError,
    RefusedError,
    StorageError,
    UnreachableError,
)
from raynest_pipeline.images.engine import generate
from raynest_pipeline.images.manifest import read_manifest
from raynest_pipeline.images.prompts import Prompt
from raynest_pipeline.images.result import BatchResult, Progress, too_many_failed
from raynest_pipeline.images.store import BatchFolder
from raynest_pipeline.kube.http import HttpTarget
from raynest_pipeline.settings import Batch
from raynest_pipeline.waiting import Backoff

FAST = Backoff(first=0.01, factor=1.0, most=0.01, jitter=0.0)
SETTINGS = Batch(concurrency=4, timeout_seconds=5, attempts=3)


class Bench:
    """A batch folder and an endpoint to fill it from."""

    def __init__(self, root: Path, endpoint: Any) -> None:
        self.root = root
        self.endpoint = endpoint
        self.store = BatchFolder(root, "b")

    def run(self, prompts: Any, settings: Batch = SETTINGS, **options: Any) -> BatchResult:
        options = {"backoff": FAST, "unreachable_after": 1.0} | options
        target = options.pop("target", self.endpoint.target)
        return generate(prompts, target, self.store, settings, **options)

    def check_exact(self, prompts: list[Prompt]) -> None:
        """Every prompt has one image, recorded and whole, and nothing else is there."""
        records = {r.id: r for r in read_manifest(self.store.manifest_path)}
        assert set(records) == {p.id for p in prompts}
        for prompt in prompts:
            record = records[prompt.id]
            assert record.status in ("made", "adopted") and record.file is not None
            data = self.store.read(record.file)
            assert data is not None
            assert record.sha256 == hashlib.sha256(data).hexdigest() and record.size_bytes == len(data)
        files = {p.name for p in (self.store.path / "images").iterdir()}
        assert files == {str(r.file).removeprefix("images/") for r in records.values()}

    def settled_lines(self) -> list[dict[str, Any]]:
        lines = self.store.manifest_path.read_text().splitlines()
        return [line for line in map(json.loads, lines) if line["status"] != "failed"]


@pytest.fixture
def bench(tmp_path: Path, endpoint: Any) -> Bench:
    return Bench(tmp_path / "out", endpoint)


def answering(status: int, body: str = "{}", headers: dict[str, str] | None = None) -> Any:
    async def answer(fake: Any, request: web.Request) -> web.Response:
        return web.Response(status=status, text=body, headers=headers)

    return answer


def failing_first(times: int, bad: Any) -> Any:
    """Answer badly `times` times, then well."""
    left = [times]

    async def answer(fake: Any, request: web.Request) -> web.StreamResponse:
        if left[0] > 0:
            left[0] -= 1
            return await bad(fake, request)  # type: ignore[no-any-return]
        return await fake.good(request)  # type: ignore[no-any-return]

    return answer


async def reset(fake: Any, request: web.Request) -> web.StreamResponse:
    request.transport.abort()  # type: ignore[union-attr]
    return web.Response()


async def cut_off(fake: Any, request: web.Request) -> web.StreamResponse:
    whole = (await fake.good(request)).body
    response = web.StreamResponse(headers={"Content-Type": "image/png", "Content-Length": str(len(whole))})
    await response.prepare(request)
    await response.write(whole[:200])
    request.transport.abort()  # type: ignore[union-attr]
    return response


async def hang(fake: Any, request: web.Request) -> web.StreamResponse:
    await fake.release.wait()
    return web.Response()


async def html(fake: Any, request: web.Request) -> web.StreamResponse:
    return web.Response(text="<html>error</html>", content_type="text/html")


def test_a_batch_and_its_second_run(bench: Bench, kit: Any) -> None:
    prompts = kit.prompts(20)
    first = bench.run(prompts)
    assert (first.made, first.reused, first.failed, first.stopped) == (20, 0, 0, False)
    assert first.model == "tiny-untrained (random weights)" and first.revision == "r1"
    assert first.p50_latency_ms is not None and first.p95_latency_ms is not None
    assert 0 < first.p50_latency_ms <= first.p95_latency_ms
    bench.check_exact(prompts)
    second = bench.run(prompts)
    assert (second.made, second.reused) == (0, 20)
    assert sum(bench.endpoint.requests.values()) == 20
    assert len(bench.settled_lines()) == 20


def test_requests_in_flight_reach_the_concurrency_and_no_more(bench: Bench, kit: Any) -> None:
    async def in_company(fake: Any, request: web.Request) -> web.StreamResponse:
        while fake.in_flight < 3 and fake.served < 3:
            await asyncio.sleep(0.005)
        return await fake.good(request)  # type: ignore[no-any-return]

    bench.endpoint.answer = in_company
    assert bench.run(kit.prompts(12), Batch(concurrency=3, timeout_seconds=20)).made == 12
    assert bench.endpoint.most_in_flight == 3


def test_a_record_says_all_about_its_image(bench: Bench, kit: Any) -> None:
    bench.run([Prompt("cat", "a cat", 5, "blur", 48, 12, 3.0, {"x_tag": "pets"})])
    (record,) = read_manifest(bench.store.manifest_path)
    assert (record.batch, record.status, record.prompt, record.negative_prompt) == (
        "b",
        "made",
        "a cat",
        "blur",
    )
    assert (record.seed, record.size, record.steps, record.guidance) == (5, 48, 12, 3.0)
    assert (record.width, record.height, record.attempts, record.error) == (48, 48, 1, None)
    assert record.extra == {"x_tag": "pets"} and record.made_at.endswith("+00:00")
    assert record.latency_ms is not None and record.latency_ms > 0
    assert record.file == f"images/cat-{record.key[:16]}.png"
    assert bench.store.read(record.file) == kit.png("a cat", 5, 48)


def test_only_what_is_missing_or_damaged_is_made_again(bench: Bench, kit: Any) -> None:
    prompts = kit.prompts(6)
    bench.run(prompts)
    files = {r.id: bench.store.path / str(r.file) for r in read_manifest(bench.store.manifest_path)}
    files["p0"].unlink()
    files["p1"].write_bytes(files["p1"].read_bytes()[:-7])
    flipped = bytearray(files["p2"].read_bytes())
    flipped[100] ^= 1
    files["p2"].write_bytes(flipped)
    result = bench.run(prompts)
    assert (result.made, result.reused) == (3, 3)
    assert sum(bench.endpoint.requests.values()) == 9
    bench.check_exact(prompts)


def test_finished_files_without_a_record_are_adopted(bench: Bench, kit: Any) -> None:
    prompts = kit.prompts(5)
    bench.run(prompts)
    bench.store.manifest_path.unlink()
    result = bench.run(prompts)
    assert (result.made, result.reused) == (0, 5)
    assert sum(bench.endpoint.requests.values()) == 5
    assert {r.status for r in read_manifest(bench.store.manifest_path)} == {"adopted"}
    bench.check_exact(prompts)


def test_another_seed_size_or_model_is_another_image(bench: Bench, kit: Any) -> None:
    bench.run([Prompt("cat", "a cat", 1)])
    assert bench.run([Prompt("cat", "a cat", 2)]).made == 1
    assert bench.run([Prompt("cat", "a cat", 2, size=40)]).made == 1
    bench.endpoint.model = "trained"
    assert bench.run([Prompt("cat", "a cat", 2, size=40)]).made == 1
    assert bench.run([Prompt("cat", "a cat", 2, size=40)]).reused == 1
    assert len(list((bench.store.path / "images").iterdir())) == 4


@pytest.mark.parametrize("bad", [reset, cut_off, html, answering(503), answering(500), answering(408)])
def test_a_passing_fault_is_retried(bench: Bench, kit: Any, bad: Any) -> None:
    bench.endpoint.by_prompt["prompt 1"] = failing_first(2, bad)
    prompts = kit.prompts(4)
    result = bench.run(prompts)
    assert (result.made, result.failed) == (4, 0)
    # The HTTP client itself repeats a GET that a kept-alive connection lost; the engine's count is ours.
    attempts = {r.id: r.attempts for r in read_manifest(bench.store.manifest_path)}
    assert attempts["p0"] == 1 and 2 <= attempts["p1"] <= 3
    bench.check_exact(prompts)


def test_an_attempt_that_hangs_is_repeated(bench: Bench, kit: Any) -> None:
    bench.endpoint.by_prompt["prompt 1"] = failing_first(1, hang)
    result = bench.run(kit.prompts(3), Batch(timeout_seconds=0.4, attempts=2))
    assert (result.made, result.failed) == (3, 0)


def test_retry_after_is_honoured(bench: Bench) -> None:
    bench.endpoint.answer = failing_first(1, answering(503, headers={"Retry-After": "1"}))
    result = bench.run([Prompt("cat", "a cat", 1)])
    assert result.made == 1 and result.seconds >= 1.0


@pytest.mark.parametrize(
    ("poison", "requests", "reason"),
    [
        (
            answering(422, '{"detail": [{"loc": ["query", "prompt"], "msg": "too rude"}]}'),
            1,
            "prompt: too rude",
        ),
        (answering(400, "bad"), 1, "answered 400"),
        (answering(500, '{"detail": "NaN in latents"}'), 3, "NaN in latents"),
        (answering(503), 3, "answered 503"),
        (html, 3, "not image/png"),
        (cut_off, 3, ""),
    ],
)
def test_a_poisoned_prompt_fails_alone(
    bench: Bench, kit: Any, poison: Any, requests: int, reason: str
) -> None:
    bench.endpoint.by_prompt["prompt 3"] = poison
    prompts = kit.prompts(8)
    result = bench.run(prompts)
    assert (result.made, result.failed) == (7, 1)
    (failure,) = result.failures
    assert failure.id == "p3" and failure.attempts == requests and reason in failure.reason
    assert bench.endpoint.requests["prompt 3"] == requests
    record = {r.id: r for r in read_manifest(bench.store.manifest_path)}["p3"]
    assert record.status == "failed" and record.file is None and reason in (record.error or "")
    assert isinstance(too_many_failed(result, 0.0), BatchError) and too_many_failed(result, 0.2) is None
    del bench.endpoint.by_prompt["prompt 3"]
    again = bench.run(prompts)
    assert (again.made, again.reused, again.failed) == (1, 7, 0)
    bench.check_exact(prompts)


def test_the_stock_application(bench: Bench, kit: Any) -> None:
    bench.endpoint.openapi, bench.endpoint.model = False, None
    prompts = [Prompt("a", "a cat", 1, size=40, steps=5), Prompt("b", "a cat", 2, size=40)]
    result = bench.run(prompts, model="stabilityai/sd2")
    assert result.made == 2 and result.ignored == ("seed", "steps") and result.model == "stabilityai/sd2"
    assert all(query == {"prompt": "a cat", "img_size": "40"} for query in bench.endpoint.queries)
    records = {r.id: r for r in read_manifest(bench.store.manifest_path)}
    assert records["a"].model == "stabilityai/sd2" and records["a"].ignored == ("seed", "steps")
    assert bench.run(prompts, model="stabilityai/sd2").reused == 2


def test_nobody_there_from_the_start(bench: Bench, kit: Any) -> None:
    with kit.free_port() as port, pytest.raises(UnreachableError) as caught:
        bench.run(kit.prompts(3), target=HttpTarget.plain(f"http://127.0.0.1:{port}"), unreachable_after=0.3)
    assert "has not answered for 0 s" in str(caught.value) and "no connection" in str(caught.value)
    assert not bench.store.manifest_path.read_bytes()


@pytest.mark.parametrize("how", ["refuses", 502, 503, 404])
def test_an_endpoint_that_vanishes_ends_the_batch_and_blames_no_prompt(
    bench: Bench, kit: Any, how: str | int
) -> None:
    endpoint, prompts = bench.endpoint, kit.prompts(200)  # at least a second's work
    endpoint.delay = 0.02

    def vanish(progress: Progress) -> None:
        if progress.made >= 5 and not gone.is_set():
            gone.set()
            if how == "refuses":
                endpoint.stop_listening()
            else:
                endpoint.down_status = how

    gone = threading.Event()
    with pytest.raises(UnreachableError, match="has not answered"):
        bench.run(prompts, on_progress=vanish, progress_every=0.0, unreachable_after=0.5)
    records = read_manifest(bench.store.manifest_path)
    assert 5 <= len(records) < 200 and {r.status for r in records} == {"made"}
    endpoint.down_status = None
    if how == "refuses":
        endpoint.start(endpoint.port)
    result = bench.run(prompts)
    assert (result.made, result.reused) == (200 - len(records), len(records))
    bench.check_exact(prompts)


def test_a_short_outage_is_waited_out(bench: Bench, kit: Any) -> None:
    endpoint, prompts = bench.endpoint, kit.prompts(200)
    endpoint.delay = 0.02
    seen: list[str] = []

    def blink(progress: Progress) -> None:
        if progress.made >= 3 and not seen:
            seen.append("")
            endpoint.down_status = 503
        elif progress.outage:
            seen.append(progress.outage)
            endpoint.down_status = None

    result = bench.run(
        prompts, Batch(concurrency=4, attempts=1), on_progress=blink, progress_every=0.0, unreachable_after=20
    )
    assert (result.made, result.failed) == (200, 0) and seen[1:]
    bench.check_exact(prompts)


def test_an_endpoint_that_never_makes_an_image_ends_the_batch(bench: Bench, kit: Any) -> None:
    bench.endpoint.answer = answering(500, '{"detail": "no CUDA device"}')
    with pytest.raises(UnreachableError, match="answers, but makes no image") as caught:
        bench.run(kit.prompts(500), Batch(concurrency=2, attempts=1))
    assert "no CUDA device" in str(caught.value)
    # Ten that failed, two in work; one that failed beside another is asked for once more, alone.
    assert len(bench.endpoint.requests) <= 12
    assert max(bench.endpoint.requests.values()) <= 2


def test_bad_prompts_alone_never_end_a_batch_early(bench: Bench, kit: Any) -> None:
    bench.endpoint.answer = answering(422)
    result = bench.run(kit.prompts(60), Batch(concurrency=2))
    assert result.failed == 60 and len(read_manifest(bench.store.manifest_path)) == 60


@pytest.mark.parametrize("status", [401, 403])
def test_expired_credentials_end_the_batch_as_themselves(bench: Bench, kit: Any, status: int) -> None:
    bench.endpoint.answer = answering(status, '{"message": "Unauthorized"}')
    with pytest.raises(AccessError, match=f"refuses access .{status}") as caught:
        bench.run(kit.prompts(5))
    assert caught.value.exit_code == 3
    assert read_manifest(bench.store.manifest_path) == []


def test_a_model_that_changes_in_the_middle_ends_the_batch(bench: Bench, kit: Any) -> None:
    async def other(fake: Any, request: web.Request) -> web.StreamResponse:
        fake.model = "another"
        return await fake.good(request)  # type: ignore[no-any-return]

    prompts = kit.prompts(9)
    bench.endpoint.by_prompt["prompt 8"] = other
    with pytest.raises(BatchError, match="changed during the batch"):
        bench.run(prompts, Batch(concurrency=1))
    assert {r.model for r in read_manifest(bench.store.manifest_path)} == {"tiny-untrained (random weights)"}
    assert bench.run(prompts).made == 9


def test_an_endpoint_without_imagine(bench: Bench, kit: Any) -> None:
    async def other(request: web.Request) -> web.Response:
        return web.json_response({"paths": {}})

    bench.endpoint._openapi = other
    bench.endpoint.stop_listening()
    bench.endpoint.start()
    with pytest.raises(NotReadyError, match="has no GET /imagine"):
        bench.run(kit.prompts(1))


def test_a_full_disk_ends_the_batch_and_the_next_run_goes_on(
    bench: Bench, kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import os

    prompts, room = kit.prompts(12), [5]
    real = os.fsync

    def fsync(handle: int) -> None:
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr("raynest_pipeline.images.store.os.fsync", fsync)
        patch.setattr("raynest_pipeline.images.manifest.SYNC_SECONDS", 1e9)
        with pytest.raises(StorageError, match=r"no space left(?s:.)*files to go"):
            bench.run(prompts)
        room[0] = 10**6
    assert not list((bench.store.path / "images").glob(".part-*"))
    result = bench.run(prompts)
    assert result.made + result.reused == 12 and result.reused >= 1
    bench.check_exact(prompts)


def test_should_stop_ends_in_seconds_and_can_be_resumed(bench: Bench, kit: Any) -> None:
    prompts = kit.prompts(10)
    for i in range(4, 10):
        bench.endpoint.by_prompt[f"prompt {i}"] = hang
    result = bench.run(
        prompts, Batch(concurrency=4, timeout_seconds=60), should_stop=lambda: bench.endpoint.served >= 4
    )
    assert result.stopped and result.seconds < 5
    assert (result.made, result.failed) == (4, 0)
    bench.endpoint.by_prompt.clear()
    assert bench.run(prompts).made == 6
    bench.check_exact(prompts)


class Interrupted(BaseException):
    """As Dagster's DagsterExecutionInterruptedError."""


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, Interrupted])
def test_an_interruption_leaves_a_resumable_batch(
    bench: Bench, kit: Any, interruption: type[BaseException]
) -> None:
    prompts = kit.prompts(200)
    bench.endpoint.delay = 0.02

    def interrupt(*_: object) -> None:
        raise interruption

    def trigger(progress: Progress) -> None:
        if progress.made >= 3:
            signal.raise_signal(signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(interruption):
            bench.run(prompts, on_progress=trigger, progress_every=0.0)
    finally:
        signal.signal(signal.SIGUSR1, before)
    made = len(bench.settled_lines())
    assert 3 <= made < 200
    result = bench.run(prompts)
    assert (result.made, result.reused) == (200 - made, made)
    bench.check_exact(prompts)
    assert len(bench.settled_lines()) == 200


def test_two_runs_of_one_batch_do_not_mix(bench: Bench, kit: Any) -> None:
    refused: list[str] = []

    def second(_: Progress) -> None:
        if not refused:
            with pytest.raises(RefusedError, match="already being made") as caught:
                bench.run(kit.prompts(2))
            refused.append(str(caught.value))

    bench.endpoint.delay = 0.3
    bench.run(kit.prompts(2), on_progress=second, progress_every=0.0)
    assert refused


def test_progress_comes_in_the_callers_thread_and_ends_complete(bench: Bench, kit: Any) -> None:
    seen: list[Progress] = []
    threads: set[int] = set()

    def on_progress(progress: Progress) -> None:
        seen.append(progress)
        threads.add(threading.get_ident())

    bench.endpoint.delay = 0.1
    bench.run(kit.prompts(12), on_progress=on_progress, progress_every=0.0)
    assert threads == {threading.get_ident()}
    assert len(seen) >= 2 and seen[-1].done == seen[-1].total == 12
    assert [p.done for p in seen] == sorted(p.done for p in seen)


def test_prompts_are_taken_as_the_work_goes(bench: Bench, kit: Any) -> None:
    taken: list[int] = []

    def endless() -> Any:
        for prompt in kit.prompts(10_000):
            taken.append(1)
            yield prompt

    result = bench.run(endless(), should_stop=lambda: bench.endpoint.served >= 10)
    assert result.stopped and len(taken) <= result.made + 4


def test_an_error_in_the_prompts_comes_through(bench: Bench, kit: Any) -> None:
    def broken() -> Any:
        yield from kit.prompts(2)
        raise ValueError("bad prompts")

    with pytest.raises(ValueError, match="bad prompts"):
        bench.run(broken())


def test_it_runs_where_a_loop_is_running(bench: Bench, kit: Any) -> None:
    async def outer() -> BatchResult:
        return bench.run(kit.prompts(2))

    assert asyncio.run(outer()).made == 2


def test_an_empty_batch(bench: Bench) -> None:
    result = bench.run([])
    assert result.total == 0 and too_many_failed(result, 0.0) is None
