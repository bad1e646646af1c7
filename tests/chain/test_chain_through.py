"""Long work through a road whose credentials change under it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from raynest_pipeline.chain.chain import Chain
from raynest_pipeline.chain.endpoint import Route
from raynest_pipeline.errors import AccessError
from raynest_pipeline.kube.http import HttpTarget
from raynest_pipeline.kube.rayservice.serve import RAY_TOKEN_HEADER

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Stopped:
    def now(self) -> datetime:
        return NOW


@dataclass
class Roads:
    """The parts of a chain that lead to the dashboard; the tokens that Ray takes, one after the other."""

    tokens: list[str | None]
    expiries: list[datetime | None] = field(default_factory=lambda: [None])
    used: list[str | None] = field(default_factory=list)
    clock: Any = field(default_factory=Stopped)

    def credential_expires(self) -> datetime | None:
        return self.expiries.pop(0) if len(self.expiries) > 1 else self.expiries[0]

    @contextmanager
    def dashboard(self) -> Iterator[Route]:
        token = self.tokens.pop(0) if len(self.tokens) > 1 else self.tokens[0]
        headers = {RAY_TOKEN_HEADER: f"Bearer {token}"} if token else {}
        yield Route(HttpTarget("https://api:6443", headers), "service-proxy")

    _through = Chain._through


def through(roads: Roads, work: Callable[[Route], str]) -> str:
    return Chain.through_dashboard(roads, work)  # type: ignore[arg-type]


def works_with(roads: Roads, *good: str | None) -> Callable[[Route], str]:
    def work(route: Route) -> str:
        token = route.target.headers.get(RAY_TOKEN_HEADER)
        roads.used.append(token)
        if token not in [each and f"Bearer {each}" for each in good]:
            raise AccessError("The Ray dashboard refuses access (403).")
        return "done"

    return work


def test_a_replaced_cluster_s_own_token_is_taken() -> None:
    roads = Roads(["old", "new"])
    assert through(roads, works_with(roads, "new")) == "done"
    assert roads.used == ["Bearer old", "Bearer new"]


def test_the_same_token_is_not_tried_again() -> None:
    roads = Roads(["old"])
    with pytest.raises(AccessError):
        through(roads, works_with(roads, "new"))
    assert roads.used == ["Bearer old"]


def test_tokens_that_come_and_go_end_too() -> None:
    roads = Roads(["a", "b", "b", "a"])
    with pytest.raises(AccessError):
        through(roads, works_with(roads))
    assert roads.used == ["Bearer a", "Bearer b"]


def test_without_tokens_a_refusal_is_final() -> None:
    roads = Roads([None])
    with pytest.raises(AccessError):
        through(roads, works_with(roads, "new"))
    assert roads.used == [None]


def test_a_credential_that_has_run_out_is_renewed_as_for_the_endpoint() -> None:
    roads = Roads(["old", "new"], [NOW - timedelta(seconds=1), NOW + timedelta(hours=1)])
    assert through(roads, works_with(roads, "new")) == "done"
