"""Applications that spoil, or don't, what they paint at the same time; none of them says so."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from raynest_pipeline.errors import UnreachableError
from raynest_pipeline.images.engine import generate
from raynest_pipeline.images.manifest import read_manifest
from raynest_pipeline.images.prompts import Prompt
from raynest_pipeline.images.result import BatchResult
from raynest_pipeline.images.store import BatchFolder
from raynest_pipeline.settings import Batch
from raynest_pipeline.waiting import Backoff

FAST = Backoff(first=0.01, factor=1.0, most=0.01, jitter=0.0)


class App:
    """Paints in several threads with one pipeline, as the stock application does.

    Of more than `bears` images that are in work together all are spoilt, and answered with a 500; with `lies`
    the oldest of them comes as another picture.
    """

    def __init__(self, kit: Any, *, bears: int, poisoned: Sequence[str] = (), lies: bool = False) -> None:
        self.kit, self.bears, self.poisoned, self.lies = kit, bears, poisoned, lies
        self.working: dict[object, str] = {}
        self.failing: set[object] = set()
        self.lying: set[object] = set()
        self.statuses: dict[str, list[int]] = {}
        self.levels: Counter[int] = Counter()
        self.wrong = 0

    async def __call__(self, fake: Any, request: web.Request) -> web.StreamResponse:
        prompt, me = request.query["prompt"], object()
        self.working[me] = prompt
        self.levels[len(self.working)] += 1
        if len(self.working) > self.bears:
            first, *others = self.working
            self.failing |= {*others}
            (self.lying if self.lies else self.failing).add(first)
        await asyncio.sleep(0.01)
        del self.working[me]
        bad = prompt in self.poisoned or me in self.failing
        self.statuses.setdefault(prompt, []).append(500 if bad else 200)
        if bad:
            return web.Response(status=500, text="Internal Server Error")
        if me in self.lying:
            self.wrong += 1
            return web.Response(body=self.kit.png("another picture"), content_type="image/png")
        return web.Response(body=self.kit.png(prompt), content_type="image/png")


class Bench:
    def __init__(self, endpoint: Any, root: Path, kit: Any) -> None:
        endpoint.model, endpoint.openapi = None, False
        self.endpoint, self.store, self.kit = endpoint, BatchFolder(root, "b"), kit

    def run(self, app: App, prompts: Sequence[Prompt], settings: Batch | None = None) -> BatchResult:
        self.endpoint.answer = app
        return self.generate(prompts, settings or Batch())

    def generate(self, prompts: Sequence[Prompt], settings: Batch, **options: Any) -> BatchResult:
        target = self.endpoint.target
        return generate(prompts, target, self.store, settings, backoff=FAST, unreachable_after=1.0, **options)

    def check_right(self, prompts: Sequence[Prompt], *, failed: Sequence[str] = ()) -> None:
        records = {record.prompt: record for record in read_manifest(self.store.manifest_path)}
        assert set(records) == {prompt.prompt for prompt in prompts}
        for prompt, record in records.items():
            if prompt in failed:
                assert record.status == "failed"
            else:
                assert self.store.read(str(record.file)) == self.kit.png(prompt), prompt


@pytest.fixture
def bench(endpoint: Any, tmp_path: Path, kit: Any) -> Bench:
    return Bench(endpoint, tmp_path / "out", kit)


@pytest.mark.parametrize("attempts", [1, 2, 4])
def test_one_that_bears_no_company_makes_every_image(bench: Bench, kit: Any, attempts: int) -> None:
    """With the default concurrency of 64, and few wasted."""
    app, prompts = App(kit, bears=1), kit.prompts(60)
    result = bench.run(app, prompts, Batch(attempts=attempts))
    assert (result.made, result.failed) == (60, 0)
    bench.check_right(prompts)
    assert sum(status.count(500) for status in app.statuses.values()) <= 8
    assert app.levels[1] >= 60 > 8 >= app.levels.total() - app.levels[1]


def test_an_image_that_came_while_others_failed_beside_it_is_not_believed(bench: Bench, kit: Any) -> None:
    app, prompts = App(kit, bears=1, lies=True), kit.prompts(40)
    assert bench.run(app, prompts).made == 40
    assert app.wrong > 0
    bench.check_right(prompts)


def test_one_that_bears_three_is_given_more_than_one(bench: Bench, kit: Any) -> None:
    app, prompts = App(kit, bears=3, lies=True), kit.prompts(120)
    assert bench.run(app, prompts).made == 120
    bench.check_right(prompts)
    assert app.levels[2] > 20


def test_prompts_that_fail_do_not_make_it_wary_for_ever(bench: Bench, kit: Any) -> None:
    """The first ones of the batch, so that nothing good is known of the endpoint yet."""
    poisoned = [f"prompt {n}" for n in range(4)]
    app, prompts = App(kit, bears=1000, poisoned=poisoned), kit.prompts(200)
    result = bench.run(app, prompts, Batch(attempts=3))
    assert (result.made, result.failed) == (196, 4)
    bench.check_right(prompts, failed=poisoned)
    assert max(app.levels) >= 8
    # One more than the attempts at most: alone.
    assert all(set(app.statuses[prompt]) == {500} and len(app.statuses[prompt]) <= 4 for prompt in poisoned)


def test_failing_prompts_among_many_cost_the_others_nothing(bench: Bench, kit: Any) -> None:
    poisoned = [f"prompt {n}" for n in range(50, 400, 50)]
    app, prompts = App(kit, bears=1000, poisoned=poisoned), kit.prompts(400)
    assert bench.run(app, prompts).failed == len(poisoned)
    bench.check_right(prompts, failed=poisoned)
    assert max(app.levels) >= 8
    again = [prompt for prompt, statuses in app.statuses.items() if statuses.count(200) > 1]
    assert again == []


def test_a_failing_prompt_and_no_company(bench: Bench, kit: Any) -> None:
    poisoned = ["prompt 0", "prompt 1", "prompt 30"]
    app, prompts = App(kit, bears=1, poisoned=poisoned, lies=True), kit.prompts(60)
    result = bench.run(app, prompts, Batch(attempts=3))
    assert (result.made, result.failed) == (57, 3)
    bench.check_right(prompts, failed=poisoned)


def test_one_that_fails_alone_as_well_is_broken(bench: Bench, kit: Any) -> None:
    app = App(kit, bears=0)
    with pytest.raises(UnreachableError, match="makes no image"):
        bench.run(app, kit.prompts(300), Batch(attempts=2))


def test_stopping_in_the_middle_leaves_the_rest_to_the_next_run(bench: Bench, kit: Any) -> None:
    app, prompts = App(kit, bears=1, lies=True), kit.prompts(150)
    bench.endpoint.answer = app
    first = bench.generate(prompts, Batch(), should_stop=lambda: app.levels[1] > 6)
    assert first.stopped
    second = bench.run(app, prompts)
    assert second.reused >= first.made > 0 and second.reused + second.made == 150
    bench.check_right(prompts)
