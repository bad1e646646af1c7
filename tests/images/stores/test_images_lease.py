"""Who may write, on a store without locks."""

import json
import os
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

import pytest

from raynest_pipeline.errors import RefusedError, StorageError
from raynest_pipeline.images.batch_store import open_batch
from raynest_pipeline.images.lease import LEASE, Lease, Owner
from raynest_pipeline.images.objects import Objects


class Turned:
    """A clock that moves when somebody sleeps, and lets things happen then."""

    def __init__(self) -> None:
        self.time = 100.0
        self.then: Any = None

    def monotonic(self) -> float:
        return self.time

    def now(self) -> datetime:
        return datetime.now(UTC)

    def sleep(self, seconds: float) -> None:
        self.time += seconds
        if self.then is not None:
            self.then()


@pytest.fixture
def objects(objects_root: str) -> Objects:
    return Objects(f"{objects_root}/b")


@pytest.fixture
def clock() -> Turned:
    return Turned()


def put(objects: Objects, owner: Owner) -> None:
    objects.put(LEASE, json.dumps(asdict(owner)).encode())


def owner_of(objects: Objects) -> Owner | None:
    data = objects.get(LEASE)
    return None if data is None else Owner(**json.loads(data))


STRANGER = Owner(token="t", host="elsewhere", pid=7)


def test_a_free_batch_is_taken_and_given_back(objects: Objects, clock: Turned) -> None:
    lease = Lease(objects, clock=clock)
    lease.take()
    owner = owner_of(objects)
    assert owner is not None and owner.pid == os.getpid() and owner.expires
    lease.check()
    lease.close()
    assert owner_of(objects) is None


def test_an_owner_elsewhere_that_renews_is_left_alone(objects: Objects, clock: Turned) -> None:
    put(objects, STRANGER)
    clock.then = lambda: put(objects, replace(STRANGER, renewed=1)) if clock.time > 105 else None
    with pytest.raises(RefusedError, match="process 7 on elsewhere"):
        Lease(objects, seconds=30, renew=8, clock=clock).take()
    assert clock.time < 120
    left = owner_of(objects)
    assert left is not None and left.token == "t"


def test_a_lease_that_nobody_renews_is_taken_after_its_time(objects: Objects, clock: Turned) -> None:
    put(objects, replace(STRANGER, expires="2000-01-01T00:00:00+00:00"))
    lease = Lease(objects, seconds=30, renew=8, settle=1, clock=clock)
    lease.take()
    # By this clock alone: what the other's clock says in `expires` decides nothing.
    assert 130 <= clock.time < 140
    owner = owner_of(objects)
    assert owner is not None and owner.host != "elsewhere"
    lease.close()


def test_a_lease_that_is_given_back_while_one_waits_is_taken(objects: Objects, clock: Turned) -> None:
    put(objects, STRANGER)

    def given_back() -> None:
        clock.then = None
        objects.remove(LEASE)

    clock.then = given_back
    lease = Lease(objects, seconds=30, renew=8, clock=clock)
    lease.take()
    assert clock.time < 110
    lease.close()


def test_a_dead_process_of_this_machine_is_not_waited_for(objects: Objects, clock: Turned) -> None:
    script = "import os; print(os.getpid())"
    gone = int(subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout)
    put(objects, replace(Owner.me(), pid=gone))
    lease = Lease(objects, settle=0, clock=clock)
    lease.take()
    assert clock.time == 100
    lease.close()


def test_one_before_us_with_our_own_number_is_dead(objects: Objects, clock: Turned) -> None:
    put(objects, Owner.me())
    lease = Lease(objects, settle=0, clock=clock)
    lease.take()
    assert clock.time == 100
    lease.close()


def test_this_process_itself_is_refused_at_once(objects: Objects, clock: Turned) -> None:
    lease = Lease(objects, clock=clock)
    lease.take()
    before = clock.time
    with pytest.raises(RefusedError, match=f"process {os.getpid()}"):
        Lease(objects, clock=clock).take()
    assert clock.time == before
    lease.close()


@pytest.mark.parametrize("conditional", [True, False])
def test_of_two_at_the_same_moment_the_later_sees_the_earlier(
    objects: Objects, clock: Turned, bucket: Any, conditional: bool
) -> None:
    """Both have found a stale lease; the second removes the first's new one, and the first withdraws."""
    bucket.conditional = conditional
    put(objects, replace(Owner.me(), pid=2**22 - 1))
    clock.then = lambda: put(objects, STRANGER)
    with pytest.raises(RefusedError, match="elsewhere"):
        Lease(objects, settle=1, clock=clock).take()
    left = owner_of(objects)
    assert left is not None and left.token == "t"


def test_one_that_is_created_in_between_wins(objects: Objects, clock: Turned, bucket: Any) -> None:
    def fault(operation: str, path: str) -> None:
        if operation == "put":
            bucket.fault = None
            put(objects, STRANGER)

    bucket.fault = fault
    with pytest.raises(RefusedError, match="elsewhere"):
        Lease(objects, clock=clock).take()


def test_an_owner_renews_until_it_ends(objects: Objects, kit: Any) -> None:
    lease = Lease(objects, renew=0.01)
    lease.take()

    def renewed() -> bool:
        owner = owner_of(objects)
        return owner is not None and owner.renewed >= 3

    kit.eventually(renewed, 40)
    lease.close()
    assert owner_of(objects) is None


def test_an_owner_that_was_replaced_stops_writing(objects_root: str, objects: Objects, kit: Any) -> None:
    lease = Lease(objects, renew=0.01)
    lease.take()
    put(objects, STRANGER)

    def lost() -> bool:
        try:
            lease.check()
        except RefusedError:
            return True
        return False

    kit.eventually(lost, 40)
    with pytest.raises(RefusedError, match="not this process's any more") as caught:
        lease.check()
    assert "taken it over" in caught.value.why
    lease.close()
    left = owner_of(objects)
    assert left is not None and left.token == "t", "the other's lease was removed"


def test_a_store_writes_nothing_once_its_batch_is_lost(objects_root: str) -> None:
    store = open_batch(objects_root, "b")
    with store.exclusive():
        store.write("images/a.png", b"x")
        store._lease._lost = "Another process has taken it over."  # type: ignore[attr-defined]
        uses: list[Any] = [
            lambda: store.write("images/b.png", b"x"),
            lambda: store.remove("images/a.png"),
            lambda: store.take_over("other", "images/a.png", "images/b.png", size=1, sha256="0" * 64),
        ]
        for use in uses:
            with pytest.raises(RefusedError):
                use()
    assert [entry.name for entry in store.entries()] == ["images/a.png"]


def test_after_a_long_sleep_an_owner_looks_before_it_writes(objects: Objects, clock: Turned) -> None:
    lease = Lease(objects, seconds=30, renew=1000, clock=clock)
    lease.take()
    clock.time += 3600
    lease.check()
    owner = owner_of(objects)
    assert owner is not None and owner.renewed == 1
    put(objects, STRANGER)
    lease.check()
    clock.time += 3600
    with pytest.raises(RefusedError):
        lease.check()
    lease.close()


def test_without_a_network_an_overdue_owner_does_not_go_on(
    objects: Objects, clock: Turned, bucket: Any
) -> None:
    lease = Lease(objects, seconds=30, renew=1000, clock=clock)
    lease.take()

    def lost(operation: str, path: str) -> None:
        raise ConnectionError("no route to host")

    bucket.fault = lost
    lease.check()
    clock.time += 31
    with pytest.raises(StorageError, match="cannot be read"):
        lease.check()
    bucket.fault = None
    lease.check()
    lease.close()


def test_a_renewal_that_fails_is_made_up_for(objects: Objects, bucket: Any, kit: Any) -> None:
    failed = threading.Event()

    def lost(operation: str, path: str) -> None:
        failed.set()
        raise PermissionError("for a moment")

    lease = Lease(objects, renew=0.01)
    lease.take()
    bucket.fault = lost
    assert failed.wait(40)
    bucket.fault = None
    before = owner_of(objects)

    def renewed() -> bool:
        owner = owner_of(objects)
        return owner is not None and before is not None and owner.renewed > before.renewed

    kit.eventually(renewed, 40)
    lease.check()
    lease.close()


def test_a_lease_of_another_release_is_respected(objects: Objects, clock: Turned) -> None:
    objects.put(LEASE, b"some other format")
    clock.then = lambda: objects.put(LEASE, b"some other format, renewed")
    with pytest.raises(RefusedError, match="already being made"):
        Lease(objects, clock=clock).take()
