import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from raynest_pipeline.errors import AccessError, RemoteError, UnreachableError, Verdict
from raynest_pipeline.images.offer import Offer
from raynest_pipeline.images.outage import Outage, ends_batch, may_be_outage
from raynest_pipeline.waiting import Backoff, SystemClock

REFUSED = RemoteError("u: no connection.", verdict=Verdict.RETRYABLE, why="refused")
WELL = Offer(documented=True)


def answered(status: int) -> RemoteError:
    return RemoteError(f"u answered {status}", verdict=Verdict.RETRYABLE, status=status)


class Endpoint:
    """Answers `describe` with what the script says, and the last of it for ever."""

    def __init__(self, *script: Offer | RemoteError) -> None:
        self.script = list(script)
        self.looks = 0

    async def describe(self) -> Offer:
        self.looks += 1
        await asyncio.sleep(0)
        answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(answer, RemoteError):
            raise answer
        return answer


def outage(endpoint: Any, limit: float = 20.0) -> Outage:
    backoff = Backoff(first=0.01, factor=1.0, jitter=0.0)
    return Outage(endpoint, "http://h", clock=SystemClock(), limit=limit, backoff=backoff)


def run(work: Callable[[], Any]) -> Any:
    return asyncio.run(work())


@pytest.mark.parametrize(
    ("error", "maybe"),
    [
        (REFUSED, True),
        (answered(503), True),
        (answered(502), True),
        (answered(504), True),
        (answered(404), True),
        (answered(500), False),
        (answered(422), False),
        (answered(429), False),
        (answered(200), False),
    ],
)
def test_which_failures_are_looked_into(error: RemoteError, maybe: bool) -> None:
    assert may_be_outage(error) is maybe


def test_a_living_endpoint_leaves_the_blame_with_the_prompt() -> None:
    endpoint = Endpoint(WELL)
    assert run(lambda: outage(endpoint).endured(REFUSED)) is False
    assert endpoint.looks == 1


def test_an_outage_that_ends_is_endured_and_named_meanwhile() -> None:
    causes: list[str] = []

    class Watched(Endpoint):
        async def describe(self) -> Offer:
            causes.append(watch.cause)
            return await super().describe()

    watch = outage(Watched(REFUSED, answered(503), WELL))
    assert run(lambda: watch.endured(REFUSED)) is True
    assert causes == ["", "refused", "u answered 503"] and watch.cause == ""


def test_an_outage_that_lasts_ends_the_batch_with_its_cause() -> None:
    watch = outage(Endpoint(answered(503)), limit=0.05)
    with pytest.raises(
        UnreachableError, match=r"http://h has not answered(?s:.)*refused(?s:.)*u answered 503"
    ):
        run(lambda: watch.endured(REFUSED))
    assert watch.cause == ""


def test_an_application_that_is_gone_behind_a_living_server() -> None:
    async def work() -> None:
        watch = outage(Endpoint(Offer(), WELL))
        watch.expect(documented=True)
        assert await watch.endured(answered(404)) is True
        stock = outage(Endpoint(Offer()))
        stock.expect(documented=False)
        assert await stock.endured(answered(404)) is False

    asyncio.run(work())


def test_one_look_answers_for_all_who_failed_at_once() -> None:
    async def work() -> None:
        living = Endpoint(WELL)
        watch = outage(living)
        assert await asyncio.gather(*(watch.endured(REFUSED) for _ in range(50))) == [False] * 50
        assert living.looks == 1
        blinking = Endpoint(REFUSED, WELL)
        watch = outage(blinking)
        assert await asyncio.gather(*(watch.endured(REFUSED) for _ in range(50))) == [True] * 50
        assert blinking.looks == 2
        assert await watch.endured(REFUSED) is False, "a later failure is looked into anew"
        assert blinking.looks == 3

    asyncio.run(work())


def test_errors_that_no_waiting_cures() -> None:
    for status in (401, 403):
        assert isinstance(ends_batch(answered(status), "u"), AccessError)
    broken = RemoteError("u: TLS failed.", verdict=Verdict.PERMANENT, why="wrong version")
    assert isinstance(ends_batch(broken, "u"), UnreachableError)
    rude = RemoteError("u answered 422", verdict=Verdict.PERMANENT, status=422)
    assert ends_batch(rude, "u") is None and ends_batch(REFUSED, "u") is None


def test_credentials_that_expire_during_an_outage_are_told_as_such() -> None:
    watch = outage(Endpoint(REFUSED, answered(401)))
    with pytest.raises(AccessError):
        run(lambda: watch.endured(REFUSED))
