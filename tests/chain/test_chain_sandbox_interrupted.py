"""Killed at any remote call and run again, by the sandbox's own books: nothing twice, nothing left.

The real SDKs, HTTP, TLS and client code run here; only the end of the process is played, by an exception
that nothing catches, thrown right before or right after the n-th cloud call.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raynest_pipeline.alibaba.access import CloudAccess
from raynest_pipeline.chain.chain import Chain
from raynest_pipeline.chain.profile import open_chain
from raynest_pipeline.sandbox import control
from raynest_pipeline.settings import Settings
from raynest_pipeline.waiting import SystemClock

LINKS = ("cluster", "public_ip", "kubeconfig")
MOST_CALLS = 200
"""More than a whole chain needs: a test that gets here does not come to an end."""


STEP = 6
"""Every sixth call here; every single one in test_chain_interrupted.py, on an in-memory cloud."""


class HastyClock(SystemClock):
    """The real clock, with pauses that are never longer than the sandbox's own short times."""

    def sleep(self, seconds: float) -> None:
        super().sleep(min(seconds, 0.03))


class KilledError(BaseException):
    """Stands for the end of the process: no `except Exception` holds it."""


@pytest.fixture(scope="module")
def sandbox_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("interrupted")
    control.start(home / "sandbox", options=control.SandboxOptions(time_scale=0.02))
    yield home
    control.stop(home / "sandbox")


@pytest.fixture
def kill_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None, str], list[str]]:
    """Kill at the n-th call from now, `before` it is sent or `after` it was answered; lists the calls."""
    real = CloudAccess.write
    state: dict[str, Any] = {"left": None, "when": "before", "calls": []}

    def write(self: CloudAccess, product: str, action: str, *args: Any, **more: Any) -> Any:
        state["calls"].append(action)
        hit = state["left"] is not None and len(state["calls"]) == state["left"]
        if hit and state["when"] == "before":
            raise KilledError(action)
        answer = real(self, product, action, *args, **more)
        if hit:
            raise KilledError(action)
        return answer

    monkeypatch.setattr(CloudAccess, "write", write)

    def arm(n: int | None, when: str = "before") -> list[str]:
        calls: list[str] = []
        state.update(left=n, when=when, calls=calls)
        return calls

    return arm


def chain_named(home: Path, name: str) -> Chain:
    """A fresh chain, as a new process would build it."""
    return open_chain(Settings(name=name, home=home), HastyClock(), start_sandbox=False)


def bought(home: Path, name: str, kind: str) -> list[dict[str, Any]]:
    """Everything of a kind that was ever bought for this chain."""
    return [
        p for p in control.purchases(home / "sandbox") if p["kind"] == kind and p["name"].startswith(name)
    ]


def bring_up(home: Path, name: str) -> None:
    chain = chain_named(home, name)
    for link in LINKS:
        chain.ensure(link)
    assert [seen.state for seen in chain.observe()[:3]] == ["ready"] * 3


def take_down(home: Path, name: str) -> None:
    chain = chain_named(home, name)
    for link in reversed(LINKS):
        chain.link(link).remove(chain.deadline(link))
    assert chain.audit() == ()


def calls_of(act: Callable[[], None], kill_at: Callable[..., list[str]]) -> int:
    calls = kill_at(None)
    act()
    assert 5 < len(calls) < MOST_CALLS
    return len(calls)


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_while_going_up_buys_one_of_each(
    sandbox_home: Path, kill_at: Callable[..., list[str]], when: str
) -> None:
    whole = calls_of(lambda: bring_up(sandbox_home, f"whole-{when}"), kill_at)
    take_down(sandbox_home, f"whole-{when}")
    for n in range(1, whole + 1, STEP):
        name = f"up-{when}-{n}"
        kill_at(n, when)
        # How often it polls varies, so the last kills may come too late: then it simply is up.
        try:
            bring_up(sandbox_home, name)
        except KilledError:
            kill_at(None)
            bring_up(sandbox_home, name)
        kill_at(None)
        clusters = bought(sandbox_home, name, "cluster")
        addresses = [p for p in bought(sandbox_home, name, "eip") if p["owner"] == ""]
        assert len(clusters) == 1, f"killed {when} call {n}"
        assert len(addresses) == 1, f"killed {when} call {n}"
        take_down(sandbox_home, name)
    assert control.ledger(sandbox_home / "sandbox") == []


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_while_going_down_leaves_nothing(
    sandbox_home: Path, kill_at: Callable[..., list[str]], when: str
) -> None:
    bring_up(sandbox_home, "whole-down")
    whole = calls_of(lambda: take_down(sandbox_home, "whole-down"), kill_at)
    for n in range(1, whole + 1, STEP):
        name = f"down-{when}-{n}"
        kill_at(None)
        bring_up(sandbox_home, name)
        kill_at(n, when)
        try:
            take_down(sandbox_home, name)
        except KilledError:
            kill_at(None)
            take_down(sandbox_home, name)
        kill_at(None)
        assert [p for p in control.ledger(sandbox_home / "sandbox") if p["name"].startswith(name)] == []


def test_an_answer_that_is_lost_is_asked_for_again_with_the_same_token(sandbox_home: Path) -> None:
    for action in ("CreateServiceInstance", "AllocateEipAddress", "ModifyCluster"):
        control.set_fault(sandbox_home / "sandbox", "lost_response", action=action, count=1)
        name = f"lost-{action.lower()}"[:40]
        bring_up(sandbox_home, name)
        assert len(bought(sandbox_home, name, "cluster")) == 1
        assert len([p for p in bought(sandbox_home, name, "eip") if p["owner"] == ""]) == 1
        take_down(sandbox_home, name)
    assert control.ledger(sandbox_home / "sandbox") == []
