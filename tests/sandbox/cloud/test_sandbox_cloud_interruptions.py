"""A sandbox that is killed loses nothing and buys nothing twice, whenever it happens.

Two ways to show it: go on from every state that was ever saved during a story, and let hypothesis choose
calls, waits and restarts while the ledger is held against what exists.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sandbox_account import REGION, Account, QuietKube, Refused

from raynest_pipeline.sandbox.cloud.world import World


class Recorder(Account):
    """Keeps every state that is saved, with its time."""

    def __init__(self, directory: Path) -> None:
        self.snapshots: list[tuple[float, dict[str, Any]]] = []
        super().__init__(directory)

    def _save(self) -> None:
        super()._save()
        self.snapshots.append((self.now, json.loads(json.dumps(self.cloud.world.dump()))))


def revive(directory: Path, now: float, saved: dict[str, Any]) -> Account:
    """An account that a new process opens from what another had saved."""
    account = Account(directory)
    account.now = now
    account._open(World.load(saved))
    asyncio.run(account.engine.resume())
    return account


def story(account: Account) -> None:
    """Deploy, bind, unbind, release, delete."""
    instance_id = account.create(token="order")
    account.pass_time(3.2)
    cluster_id = account.cloud.world.instances[instance_id].cluster_id
    eip_id = account.allocate(ClientToken="eip")
    account.bind(cluster_id, eip_id)
    account.pass_time(1.2)
    account.unbind(cluster_id)
    account.pass_time(1.2)
    account.ask("vpc", "ReleaseEipAddress", RegionId=REGION, AllocationId=eip_id)
    account.pass_time(0.3)
    account.delete(instance_id)
    account.pass_time(2)


def check_ledger(account: Account) -> None:
    """What is paid for is what exists, once each."""
    world = account.cloud.world
    paid = Counter(each.id for each in world.purchases if each.ended is None)
    assert not paid or max(paid.values()) == 1
    expected = set(world.eips)
    for cluster in world.clusters.values():
        expected |= {cluster.id, cluster.ids["api_slb"], cluster.ids["ingress_slb"], *cluster.workers}
        expected |= {cluster.ids["nat"], cluster.ids["nat_eip"]} - {""}
    optional = {cluster.ids["dashboard_slb"] for cluster in world.clusters.values()}
    assert expected <= set(paid) <= expected | optional


def test_every_saved_state_of_a_story_can_be_gone_on_from(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "first")
    story(recorder)
    assert len(recorder.snapshots) > 10
    for number, (now, saved) in enumerate(recorder.snapshots):
        account = revive(tmp_path / str(number), now, saved)
        check_ledger(account)
        account.pass_time(4)
        check_ledger(account)
        world = account.cloud.world
        assert all(each.status in ("Deployed", "Deleted") for each in world.instances.values())
        assert all(each.state == "success" for each in world.tasks.values())
        # What was bought by then was bought once.
        kinds = Counter(each.kind for each in world.purchases)
        assert kinds["cluster"] <= 1 and kinds["worker"] <= 1 and kinds["eip"] <= 2


def test_every_saved_state_can_be_torn_down_to_nothing(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "first")
    story(recorder)
    for number, (now, saved) in enumerate(recorder.snapshots):
        account = revive(tmp_path / str(number), now, saved)
        for instance in list(account.cloud.world.instances):
            account.delete(instance)
        account.pass_time(4)
        for eip in list(account.cloud.world.eips):
            account.ask("vpc", "ReleaseEipAddress", RegionId=REGION, AllocationId=eip)
        account.pass_time(0.5)
        assert account.owned() == []
        assert account.cloud.world.clusters == account.cloud.world.eips == {}


def test_a_repeated_call_after_any_saved_state_buys_nothing_again(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "first")
    first = recorder.create(token="order")
    eip_id = recorder.allocate(ClientToken="eip")
    recorder.pass_time(3.2)
    # The second snapshot is the first that holds both calls.
    for number, (now, saved) in enumerate(recorder.snapshots):
        if eip_id not in saved["eips"]:
            continue
        account = revive(tmp_path / str(number), now, saved)
        assert account.create(token="order") == first
        assert account.allocate(ClientToken="eip") == eip_id
        account.pass_time(3.5)
        assert Counter(account.owned()) == Counter(
            {"cluster": 1, "worker": 1, "eip": 2, "load_balancer": 3, "nat_gateway": 1}
        )


class SlowKube(QuietKube):
    """A Kubernetes side that takes its time: every step waits for `go`."""

    go: asyncio.Event
    waiting: asyncio.Event

    async def open(self) -> None:
        await self._pause()

    async def create_namespace(self, name: str) -> None:
        await self._pause()
        await super().create_namespace(name)

    async def _pause(self) -> None:
        self.waiting.set()
        await self.go.wait()
        self.go.clear()


@pytest.mark.parametrize("pauses", [1, 2], ids=["while it opens", "while its namespace is made"])
def test_a_deletion_in_the_middle_of_a_slow_step_wins(tmp_path: Path, pauses: int) -> None:
    account = Account(tmp_path, kube=SlowKube)
    instance_id = account.create()

    deleted = False

    async def let_time_pass() -> None:
        while not deleted:
            account.now += 0.1
            await account.engine.tick()
            await asyncio.sleep(0)

    async def run() -> None:
        nonlocal deleted
        SlowKube.go, SlowKube.waiting = asyncio.Event(), asyncio.Event()
        passing = asyncio.ensure_future(let_time_pass())
        for number in range(1, pauses + 1):
            await asyncio.wait_for(SlowKube.waiting.wait(), 10)
            SlowKube.waiting.clear()
            if number == pauses:
                account.delete(instance_id)
                deleted = True
            SlowKube.go.set()
        await passing

    asyncio.run(run())
    assert account.cloud.world.instances[instance_id].status == "Deleting"
    account.pass_time(2)
    assert account.cloud.world.instances == account.cloud.world.clusters == {}
    assert account.owned() == []


INDEX = st.integers(0, 5)


class Chaos(RuleBasedStateMachine):
    """Any calls, waits, faults and restarts, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.account = Account(Path(self._folder.name))

    def teardown(self) -> None:
        self.account.faults.clear()
        self.account.pass_time(5, step=0.25)
        for instance_id, instance in list(self.account.cloud.world.instances.items()):
            if instance.status != "Deleted":
                self.account.delete(instance_id)
        self.account.pass_time(5, step=0.25)
        for eip_id in list(self.account.cloud.world.eips):
            self.account.ask("vpc", "ReleaseEipAddress", RegionId=REGION, AllocationId=eip_id)
        self.account.pass_time(1, step=0.25)
        owned, tasks = self.account.owned(), self.account.cloud.world.tasks.values()
        self._folder.cleanup()
        assert owned == []
        assert all(task.state != "running" for task in tasks)

    @staticmethod
    def pick(things: Mapping[str, Any], choice: int) -> str:
        """By position, because ids are random and a failure must be repeatable."""
        return list(things)[choice % len(things)]

    def attempt(self, call: Any, *codes: str) -> None:
        """A call that may be refused, but only for these reasons."""
        try:
            call()
        except Refused as error:
            assert error.code in codes, error

    @rule(name=st.sampled_from(["ray-a", "ray-b", "Bad_Name"]), token=st.sampled_from(["", "t1", "t2"]))
    def create(self, name: str, token: str) -> None:
        self.attempt(lambda: self.account.create(name, token), "IdempotentParameterMismatch")

    @rule(token=st.sampled_from(["", "e1", "e2"]))
    def allocate(self, token: str) -> None:
        self.account.allocate(ClientToken=token)

    @precondition(lambda self: self.account.cloud.world.clusters and self.account.cloud.world.eips)
    @rule(choice=INDEX, other=INDEX)
    def bind(self, choice: int, other: int) -> None:
        cluster_id = self.pick(self.account.cloud.world.clusters, choice)
        eip_id = self.pick(self.account.cloud.world.eips, other)
        self.attempt(lambda: self.account.bind(cluster_id, eip_id), "OperationConflict", "IncorrectEipStatus")

    @precondition(lambda self: self.account.cloud.world.clusters)
    @rule(choice=INDEX)
    def unbind(self, choice: int) -> None:
        cluster_id = self.pick(self.account.cloud.world.clusters, choice)
        codes = ("OperationConflict", "ErrorApiServerEipNotBound")
        self.attempt(lambda: self.account.unbind(cluster_id), *codes)

    @precondition(lambda self: self.account.cloud.world.eips)
    @rule(choice=INDEX)
    def release(self, choice: int) -> None:
        eip_id = self.pick(self.account.cloud.world.eips, choice)
        given = {"RegionId": REGION, "AllocationId": eip_id}
        codes = ("IncorrectEipStatus", "InvalidAllocationId.NotFound")
        self.attempt(lambda: self.account.ask("vpc", "ReleaseEipAddress", **given), *codes)

    @precondition(lambda self: self.account.cloud.world.instances)
    @rule(choice=INDEX)
    def delete(self, choice: int) -> None:
        instance_id = self.pick(self.account.cloud.world.instances, choice)
        self.account.delete(instance_id)

    @precondition(lambda self: self.account.cloud.world.clusters)
    @rule(choice=INDEX)
    def delete_cluster(self, choice: int) -> None:
        cluster_id = self.pick(self.account.cloud.world.clusters, choice)
        self.attempt(lambda: self.account.roa("DELETE", f"/clusters/{cluster_id}"), "OperationConflict")

    @rule(name=st.sampled_from(["sold_out", "failed_deployment"]))
    def break_something(self, name: str) -> None:
        self.account.faults.set(name)

    @rule(mode=st.sampled_from(["unbound", "released"]))
    def lose_the_endpoint(self, mode: str) -> None:
        self.account.faults.set("lost_endpoint", mode=mode)

    @rule()
    def mend(self) -> None:
        self.account.faults.clear()

    @rule(seconds=st.sampled_from([0.1, 0.4, 1.1, 3.3]))
    def wait(self, seconds: float) -> None:
        self.account.pass_time(seconds, step=0.2)

    @rule()
    def restart(self) -> None:
        self.account.restart()

    @invariant()
    def the_ledger_is_right(self) -> None:
        check_ledger(self.account)

    @invariant()
    def bound_addresses_and_clusters_agree(self) -> None:
        world = self.account.cloud.world
        bound = [each.eip_id for each in world.clusters.values() if each.eip_id]
        assert len(bound) == len(set(bound))
        for eip in world.eips.values():
            if eip.instance_type == "SlbInstance":
                assert eip.id in bound
        for eip_id in bound:
            assert world.eips[eip_id].status in ("InUse", "Unassociating")


TestChaos = Chaos.TestCase
TestChaos.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_a_state_of_another_shape_is_refused_and_not_half_read() -> None:
    with pytest.raises(KeyError):
        World.load({"account_id": "1", "user_id": "2"})
    whole = World(account_id="1", user_id="2").dump()
    with pytest.raises(TypeError):
        World.load({**whole, "eips": {"eip-1": {"colour": "red"}}})
    assert World.load(whole).dump() == whole
