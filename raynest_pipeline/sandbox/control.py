"""Start, ask and stop a sandbox from another process. Standard library only; cheap to import.

A sandbox is one detached process that belongs to one state folder. Everything here finds it through the
information file that it keeps there (0600: it holds the sandbox's access key and administration token).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from raynest_pipeline.sandbox.state import INFO_FILE, LOG_FILE, START_LOCK_FILE, read_json

#: What the sandbox's RAM user may do unless the options say otherwise: the five policies of the walkthrough,
#: reading RAM (which the five don't include), and the provider's side of Compute Nest.
DEFAULT_POLICIES = (
    "AliyunCSFullAccess",
    "AliyunECSFullAccess",
    "AliyunVPCFullAccess",
    "AliyunROSFullAccess",
    "AliyunComputeNestUserFullAccess",
    "AliyunRAMReadOnlyAccess",
    "AliyunComputeNestSupplierFullAccess",
)

# A loaded machine may keep a healthy sandbox from answering for a while.
_HEALTH_S = 5.0

T = TypeVar("T")

# Children of this process: kept so that an ended one is reaped instead of staying a zombie.
_children: dict[int, subprocess.Popen[bytes]] = {}


class SandboxError(Exception):
    """The sandbox could not be started, asked or stopped; the message says why, with the end of its log."""


@dataclass(frozen=True)
class SandboxOptions:
    """How a sandbox behaves. They count when it is started; a running one keeps its own.

    time_scale: cloud durations are multiplied by this: 1 = a cluster in about 3 s, 200 = as slow as life.
    kuberay_version: the release whose behaviour the RayService follows: "1.3.0" (Compute Nest's) or "1.7.0".
    policies: the RAM policies attached to the user; AdministratorAccess allows everything.
    root: the access key is the account's own, not a RAM user's.
    kube_factory: "module:class" of the Kubernetes side, for tests that want none of it.
    """

    time_scale: float = 1.0
    kuberay_version: str = "1.3.0"
    policies: tuple[str, ...] = DEFAULT_POLICIES
    root: bool = False
    kube_factory: str = "raynest_pipeline.sandbox.kube.cluster:KubeCluster"

    @classmethod
    def from_json(cls, text: str) -> SandboxOptions:
        """Options from what `to_json` gave. Raises TypeError or ValueError for anything else."""
        values = json.loads(text)
        if "policies" in values:
            values["policies"] = tuple(values["policies"])
        return cls(**values)

    def to_json(self) -> str:
        """These options as text that can go on a command line (no secrets are in them)."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class SandboxInfo:
    """A running sandbox: where it listens and the access key it accepts.

    create_time: when its process was created, as `orphans.start_of` has it.
    """

    pid: int
    cloud_endpoint: str
    admin_url: str
    access_key_id: str
    access_key_secret: str = field(repr=False)
    region: str
    state_dir: Path
    log_path: Path
    version: str
    create_time: float
    admin_token: str = field(repr=False)


def start(state_dir: Path, *, options: SandboxOptions | None = None, timeout: float = 30) -> SandboxInfo:
    """The sandbox of this state folder, started if none is healthy. Safe to call from several processes.

    Raises SandboxError when it does not become healthy within `timeout` seconds.
    """
    state_dir = state_dir.absolute()
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    deadline = time.monotonic() + timeout
    with _locked(state_dir / START_LOCK_FILE, deadline):
        running = status(state_dir) or _await_old(state_dir, deadline)
        if running is not None:
            return running
        child = _spawn(state_dir, options or SandboxOptions())

        def healthy() -> SandboxInfo | None:
            _raise_if_ended(child, state_dir)
            return status(state_dir)

        info = _wait(healthy, deadline)
        if info is None:
            child.terminate()
            raise SandboxError(f"the sandbox was not healthy after {timeout:g} s\n{_log_tail(state_dir)}")
        return info


def status(state_dir: Path) -> SandboxInfo | None:
    """The sandbox that is running and healthy in this state folder, or None."""
    info = _read_info(state_dir)
    if info is None:
        return None
    try:
        health = _ask(info, "GET", "/health", timeout=_HEALTH_S)
    except SandboxError:
        return None
    return info if health.get("pid") == info.pid else None


def stop(state_dir: Path, timeout: float = 30) -> bool:
    """End the sandbox of this state folder and every process it started; False when there was nothing.

    Asks first; then signals the process, after making sure by its creation time that it is the sandbox.
    What was bought stays in the state folder and comes back at the next start.
    """
    from raynest_pipeline.sandbox import orphans

    info = _read_info(state_dir)
    stopped = False
    if info is not None and orphans.is_alive(info.pid, info.create_time):
        stopped = True
        deadline = time.monotonic() + timeout
        # One that hangs or is shutting down already can't answer; the signals below are for it.
        with contextlib.suppress(SandboxError):
            _ask(info, "POST", "/stop", timeout=min(5, timeout))

        def gone() -> bool | None:
            _reap(info.pid)
            return None if orphans.is_alive(info.pid, info.create_time) else True

        if not _wait(gone, deadline):
            orphans.end(info.pid, info.create_time, signal.SIGTERM)
            if not _wait(gone, time.monotonic() + min(5, timeout)):
                orphans.end(info.pid, info.create_time, signal.SIGKILL)
                _wait(gone, time.monotonic() + 5)
    if state_dir.exists():
        stopped = bool(orphans.sweep(state_dir)) or stopped
        (state_dir / INFO_FILE).unlink(missing_ok=True)
    return stopped


def set_fault(state_dir: Path, name: str, **params: Any) -> dict[str, Any]:
    """Set a fault (see `faults.FAULTS`) and return its record. Raises SandboxError naming what is allowed."""
    record: dict[str, Any] = _request(state_dir, "POST", "/faults", {"name": name, "parameters": params})
    return record


def clear_faults(state_dir: Path, name: str | None = None) -> None:
    """Clear one fault, or all of them."""
    _request(state_dir, "DELETE", "/faults", {"name": name})


def faults(state_dir: Path) -> dict[str, dict[str, Any]]:
    """The faults that are set, by name, with their parameters."""
    return dict(_request(state_dir, "GET", "/faults"))


def ledger(state_dir: Path) -> list[dict[str, Any]]:
    """Every resource that costs money and still exists.

    Each has kind, id, name, created (seconds since 1970), hourly_price (decimal text), currency and owner
    (the service instance that it belongs to, or "").
    """
    return [entry for entry in purchases(state_dir) if entry["ended"] is None]


def purchases(state_dir: Path) -> list[dict[str, Any]]:
    """Everything that was ever bought, as `ledger`, with `ended`: when it went away, or None."""
    return list(_request(state_dir, "GET", "/ledger"))


def calls(state_dir: Path) -> list[dict[str, Any]]:
    """The cloud calls received, oldest first: time, product, action, status, code ("" = success), fault."""
    return list(_request(state_dir, "GET", "/calls"))


def processes(state_dir: Path) -> list[dict[str, Any]]:
    """The processes that the sandbox started and that are alive: pid, create_time, name."""
    return list(_request(state_dir, "GET", "/processes"))


def _spawn(state_dir: Path, options: SandboxOptions) -> subprocess.Popen[bytes]:
    from raynest_pipeline.sandbox import orphans

    command = [sys.executable, "-m", "raynest_pipeline.sandbox", "serve"]
    command += ["--state", str(state_dir), "--options", options.to_json()]
    # -m finds the package through the working folder, whether or not raynest is installed.
    package_parent = Path(__file__).parents[2]
    with (state_dir / LOG_FILE).open("ab") as log:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=package_parent,
            # What others see of a process's environment is what it was started with.
            env={**os.environ, orphans.MARK_VARIABLE: orphans.mark_of(state_dir)},
            start_new_session=True,
        )
    _children[child.pid] = child
    return child


def _await_old(state_dir: Path, deadline: float) -> SandboxInfo | None:
    """One that is alive but doesn't answer is busy or ending: wait until it answers, or has ended (None)."""
    info = _read_info(state_dir)
    if info is None:
        return None
    from raynest_pipeline.sandbox import orphans

    def settled() -> tuple[SandboxInfo | None] | None:
        _reap(info.pid)
        if not orphans.is_alive(info.pid, info.create_time):
            return (None,)
        found = status(state_dir)
        return (found,) if found is not None else None

    outcome = _wait(settled, deadline)
    if outcome is None:
        raise SandboxError(
            f"the sandbox (pid {info.pid}) is running but does not answer; stop it and start again\n"
            + _log_tail(state_dir)
        )
    return outcome[0]


def _raise_if_ended(child: subprocess.Popen[bytes], state_dir: Path) -> None:
    if child.poll() is not None:
        del _children[child.pid]
        raise SandboxError(f"the sandbox ended with status {child.returncode}\n{_log_tail(state_dir)}")


def _reap(pid: int) -> None:
    child = _children.get(pid)
    if child is not None and child.poll() is not None:
        del _children[pid]


def _log_tail(state_dir: Path, lines: int = 15) -> str:
    path = state_dir / LOG_FILE
    if not path.exists():
        return "(no log)"
    tail = path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
    return f"the end of {path}:\n" + "\n".join(tail)


def _read_info(state_dir: Path) -> SandboxInfo | None:
    state_dir = state_dir.absolute()
    try:
        saved = read_json(state_dir / INFO_FILE)
        if saved is None:
            return None
        return SandboxInfo(**saved, state_dir=state_dir, log_path=state_dir / LOG_FILE)
    except (TypeError, ValueError):
        # A file of another version or a damaged one describes no sandbox that can be asked.
        return None


def _request(state_dir: Path, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    info = _read_info(state_dir)
    if info is None:
        raise SandboxError(f"no sandbox is running in {state_dir}")
    return _ask(info, method, path, body)


def _ask(
    info: SandboxInfo, method: str, path: str, body: dict[str, Any] | None = None, timeout: float = 30
) -> Any:
    request = urllib.request.Request(
        info.admin_url + path,
        data=None if body is None else json.dumps(body).encode(),
        method=method,
        headers={"Authorization": f"Bearer {info.admin_token}", "Content-Type": "application/json"},
    )
    # An empty ProxyHandler: a proxy of the environment must not see loopback traffic.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=timeout) as response:
            return json.loads(response.read())
    except urllib.error.HTTPError as error:
        with error:
            raise SandboxError(error.read().decode(errors="replace")) from error
    except (OSError, ValueError) as error:
        raise SandboxError(f"the sandbox at {info.admin_url} does not answer: {error}") from error


def _wait(probe: Callable[[], T | None], deadline: float) -> T | None:
    """The first true result of `probe`, or None at the deadline (of time.monotonic)."""
    while True:
        result = probe()
        if result:
            return result
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.05)


@contextlib.contextmanager
def _locked(path: Path, deadline: float) -> Iterator[None]:
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:

        def attempt() -> bool | None:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            return None

        if not _wait(attempt, deadline):
            raise SandboxError(f"another process is starting the sandbox (lock {path})")
        yield
    finally:
        os.close(handle)
