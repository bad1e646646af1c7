"""One writer at a time on a store that has no locks: an object that its owner renews while it lives.

What it promises: a second process finds the lease, sees it renewed within `RENEW_SECONDS`, and goes away.
A lease that has not changed for `LEASE_SECONDS`, by the second process's own clock (clocks of machines
differ), is of a dead process and is taken over; on the same machine a look at the process says so at once.
An owner that finds another's lease in the place of its own stops writing.

What it cannot promise, on a store without conditional puts: that of two processes starting within the same
second exactly one wins before either writes; and an owner that was suspended for longer than the lease may
finish one write before it notices. Neither harms a batch: images have the same names and the same bytes
whoever writes them, and manifest segments of two writers are both read. Only work is done twice.
"""

import json
import os
import socket
import threading
import uuid
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from raynest_pipeline.errors import RefusedError, StorageError
from raynest_pipeline.images.objects import Objects
from raynest_pipeline.waiting import Backoff, Clock, Deadline, Done, SystemClock, Waiting, wait_for

LEASE = ".lease"
LEASE_SECONDS = 30.0
RENEW_SECONDS = 8.0
SETTLE_SECONDS = 1.0
"""So long after taking a lease its owner looks whether it still has it."""

_held: set[str] = set()
"""Tokens of the leases that this process holds."""


@dataclass(frozen=True)
class Owner:
    """Who holds a lease."""

    token: str
    """Of this one holding."""
    host: str
    """Machine and process namespace: where `pid` means something."""
    pid: int
    renewed: int = 0
    expires: str = ""
    """For people; nothing is decided by it."""

    @classmethod
    def me(cls) -> "Owner":
        """This process."""
        return cls(token=uuid.uuid4().hex, host=_host(), pid=os.getpid())

    @property
    def dead(self) -> bool:
        """Whether it is known to be gone: only a process of this machine can be looked at."""
        if self.host != _host():
            return False
        if self.pid == os.getpid():
            # Not of this process's own: of one before it, that had the same number (1, in a container).
            return self.token not in _held
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False


class Lease:
    """The lease of one batch; `take`, then `close`."""

    def __init__(
        self,
        objects: Objects,
        *,
        seconds: float | None = None,
        renew: float | None = None,
        settle: float | None = None,
        clock: Clock | None = None,
    ) -> None:
        """
        Args:
            objects: Of the batch.
            seconds: A lease that has not changed for so long is of a dead process; default LEASE_SECONDS.
            renew: How often it is renewed; default RENEW_SECONDS.
            settle: How long after taking it its owner looks again; default SETTLE_SECONDS.
            clock: For all of these but the renewals.
        """
        self._objects = objects
        self._seconds = LEASE_SECONDS if seconds is None else seconds
        self._renew = RENEW_SECONDS if renew is None else renew
        self._settle = SETTLE_SECONDS if settle is None else settle
        self._clock = clock or SystemClock()
        self._me = Owner.me()
        self._lost = ""
        self._renewed_at = 0.0
        self._renewals = 0
        self._renewing = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="raynest-lease", daemon=True)

    def take(self) -> None:
        """Become the owner; waits up to `seconds` for one that may be dead.

        Raises:
            RefusedError: Another process is at work on the batch.
            StorageError: The store cannot be read or written.
        """
        found = self._read()
        if found is not None and found.token in _held:
            self._refuse(found)
        if found is not None and not found.dead:
            self._wait_until_stale(found)
        if found is not None and self._read() == found:
            self._objects.remove(LEASE)
        if not self._objects.create(LEASE, self._data()):
            now = self._read()
            # It is ours when an answer was lost on the way and the put was made again.
            if now is None or now.token != self._me.token:
                self._refuse(now)
        self._renewed_at = self._clock.monotonic()
        # Another that saw the old lease at the same moment may remove ours right after we put it.
        self._clock.sleep(self._settle)
        now = self._read()
        if now is None or now.token != self._me.token:
            self._refuse(now)
        _held.add(self._me.token)
        self._thread.start()

    def check(self) -> None:
        """Raise when the batch is not ours any more.

        Raises:
            RefusedError: Another process has taken it over, or the lease could not be renewed in time.
        """
        if self._overdue:
            # This process was suspended, or the network away: whose the batch is now has to be looked up.
            self._renew_once()
        if self._lost:
            raise RefusedError(
                f"The batch at {self._objects.url} is not this process's any more.",
                why=self._lost,
                fix="If no other process is making it, run again: what is finished is kept.",
            )

    def close(self) -> None:
        """Give it back."""
        _held.discard(self._me.token)
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()
        if not self._lost:
            found = self._read()
            if found is not None and found.token == self._me.token:
                self._objects.remove(LEASE)

    def _wait_until_stale(self, found: Owner) -> None:
        """Return once the lease has not changed for its whole length."""

        def probe() -> Done[None] | Waiting:
            now = self._read()
            if now is None or now.dead:
                return Done(None)
            if now != found:
                self._refuse(now)
            return Done(None) if deadline.passed else Waiting("its owner has not renewed it yet")

        deadline = Deadline.after(self._seconds, self._clock)
        pauses = Backoff(first=self._renew / 4, factor=1.0, most=self._renew / 4)
        wait_for(probe, what="The lease", deadline=deadline, backoff=pauses)

    def _refuse(self, owner: Owner | None) -> None:
        who = f"process {owner.pid} on {owner.host.split('/')[0]}" if owner else "another process"
        raise RefusedError(
            f"The batch at {self._objects.url} is already being made by {who}.",
            fix="Wait for it to end, or stop it; then run again: what it finished is kept.",
        )

    def _keep(self) -> None:
        """In a thread of its own: renew until the end, or until the lease is lost."""
        while not self._lost and not self._ended.wait(self._renew):
            try:
                self._renew_once()
            except StorageError:
                # As long as it has not run out nobody else takes it, and the network may come back; after
                # that `check` speaks up.
                continue

    @property
    def _overdue(self) -> bool:
        return self._clock.monotonic() - self._renewed_at > self._seconds

    def _renew_once(self) -> None:
        with self._renewing:
            found = self._read()
            if found is None or found.token != self._me.token:
                self._lost = "Another process has taken it over."
                return
            self._renewals += 1
            self._objects.put(LEASE, self._data())
            self._renewed_at = self._clock.monotonic()

    def _read(self) -> Owner | None:
        data = self._objects.get(LEASE)
        if data is None:
            return None
        try:
            values = json.loads(data)
            return Owner(**values)
        except (ValueError, TypeError):
            # Of a release that wrote it otherwise: alive as long as it changes.
            return Owner(token=data[:200].decode("utf-8", "replace"), host="", pid=0)

    def _data(self) -> bytes:
        expires = (datetime.now(UTC) + timedelta(seconds=self._seconds)).isoformat(timespec="seconds")
        me = asdict(self._me) | {"renewed": self._renewals, "expires": expires}
        return json.dumps(me).encode()


def _host() -> str:
    """This machine and, in containers, this set of process numbers."""
    parts = [socket.gethostname()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        file = Path(path)
        if file.is_symlink():
            parts.append(os.readlink(file))
        elif file.is_file():
            parts.append(file.read_text(encoding="ascii").strip())
    return "/".join(parts)
