"""One real Ray node: the `ray start --block` behind a head or a worker pod.

A pod's nvidia.com/gpu becomes a LOGICAL Ray GPU and its CPUs logical CPUs: Ray schedules by them, but no
device and no core is set aside, so that a cluster of big machines can be played on a small one. The object
store is small whatever the pod's memory. Serve's replicas listen on all interfaces for calls between each
other, which Ray gives no setting for; everything else stays on loopback.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from raynest_pipeline.sandbox.kuberay import ledger, ray_start
from raynest_pipeline.sandbox.kuberay.pods import AGENT_PORT, HEAD_PORTS
from raynest_pipeline.sandbox.orphans import MARK_VARIABLE

OBJECT_STORE_BYTES = 200_000_000
_HEAD_PORTS = ("gcs", "dashboard", "client", "serve")
_NODE_PORTS = ("agent", "agent-grpc", "runtime-env", "node-manager", "object-manager", "metrics")
#: Container ports to the real ones; all Serve proxies of a cluster share one port here, the head's.
_CONTAINER_PORTS = {
    HEAD_PORTS["gcs-server"]: "gcs",
    HEAD_PORTS["dashboard"]: "dashboard",
    HEAD_PORTS["client"]: "client",
    HEAD_PORTS["metrics"]: "metrics",
    HEAD_PORTS["serve"]: "serve",
    AGENT_PORT: "agent",
}
# What a pod may inherit from the machine: how to find programs and libraries, never credentials or proxies.
_INHERITED = (
    "PATH",
    "LANG",
    "LC_ALL",
    "TZ",
    "USER",
    "LOGNAME",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "SSL_CERT_FILE",
    MARK_VARIABLE,
)
_FIXED_ENV = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # loopback: see ray_start
    "RAY_memory_monitor_refresh_ms": "0",  # the machine's memory pressure is not the pod's
    "RAY_prestart_worker_first_driver": "0",  # not one idle worker for each logical CPU
    "RAY_enable_worker_prestart": "0",
    "PYTHONUNBUFFERED": "1",
    "NO_PROXY": "*",
}


@dataclass
class RayNode:
    """A running `ray start`. `ports`: real port numbers on 127.0.0.1 by what listens there."""

    process: subprocess.Popen[bytes]
    leader: ledger.Leader
    ports: dict[str, int]
    env: dict[str, str] = field(repr=False)

    def port(self, container_port: int) -> int | None:
        """The real port behind a container port, or None when nothing listens on it here."""
        return self.ports.get(_CONTAINER_PORTS.get(container_port, ""))

    def exit_code(self) -> int | None:
        """None while it runs; 128 + signal for one that was killed, as a container runtime reports it."""
        code = self.process.poll()
        return 128 - code if code is not None and code < 0 else code

    @property
    def token(self) -> str | None:
        """The token that this node's dashboard asks for, or None without token authentication."""
        return self.env["RAY_AUTH_TOKEN"] if self.env.get("RAY_AUTH_MODE") == "token" else None


def start(
    folder: Path,
    log: Path,
    env: Mapping[str, str],
    resources: Mapping[str, str],
    head: RayNode | None,
) -> RayNode:
    """Start a head (`head` None) or a worker of that head. Returns at once: probe its ports for readiness.

    folder: the pod's own; log: gets the container's output; env: the container's variables; resources:
    num-cpus, num-gpus, memory (bytes) as text.
    """
    ports = free_ports(_NODE_PORTS if head else _NODE_PORTS + _HEAD_PORTS)
    if head:
        ports["serve"] = head.ports["serve"]
    # Socket paths are limited to about 100 bytes, and Ray appends 70 of its own.
    temp_dir = Path(tempfile.mkdtemp(prefix="rn-", dir="/tmp" if os.access("/tmp", os.W_OK) else None))
    (folder / "home").mkdir(parents=True, exist_ok=True)
    (folder / "work").mkdir(exist_ok=True)
    full_env = _environment(folder, env, head)
    if head is None:
        full_env["RAY_ADDRESS"] = f"127.0.0.1:{ports['gcs']}"
    # -P: this package's own folder must not be searched for modules (it has an operator.py).
    command = [sys.executable, "-P", ray_start.__file__, *_arguments(ports, resources, temp_dir, head)]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder / "work",
            env=full_env,
            start_new_session=True,
        )
    return RayNode(process, ledger.leader_of(process.pid, folder, temp_dir), ports, full_env)


def _environment(folder: Path, env: Mapping[str, str], head: RayNode | None) -> dict[str, str]:
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    # A job's entrypoint says `python`: it must be this one, as it is the image's in a container.
    inherited["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), inherited.get("PATH", os.defpath)])
    found = {**_FIXED_ENV, **inherited, **env, ledger.MARK: str(folder), "HOME": str(folder / "home")}
    # Never left to Ray: with a token in the user's home, 2.60 would turn authentication on by itself.
    found["RAY_AUTH_MODE"] = env.get("RAY_AUTH_MODE", "disabled")
    for name in ("RAY_PORT", "RAY_IP", "FQ_RAY_IP", "CUDA_VISIBLE_DEVICES"):
        found.pop(name, None)
    if head:
        found["RAY_ADDRESS"] = f"127.0.0.1:{head.ports['gcs']}"
    return found


def _arguments(
    ports: Mapping[str, int], resources: Mapping[str, str], temp_dir: Path, head: RayNode | None
) -> Sequence[str]:
    values: dict[str, str | int] = {
        "--node-ip-address": "127.0.0.1",
        "--temp-dir": str(temp_dir),
        "--object-store-memory": OBJECT_STORE_BYTES,
        "--dashboard-agent-listen-port": ports["agent"],
        "--dashboard-agent-grpc-port": ports["agent-grpc"],
        "--runtime-env-agent-port": ports["runtime-env"],
        "--node-manager-port": ports["node-manager"],
        "--object-manager-port": ports["object-manager"],
        "--metrics-export-port": ports["metrics"],
        # Any free ports: the default range would be fought over by the nodes of one machine.
        "--min-worker-port": 0,
        "--max-worker-port": 0,
        "--log-color": "false",
        **{f"--{name}": value for name, value in resources.items()},
    }
    if head:
        values["--address"] = f"127.0.0.1:{head.ports['gcs']}"
        role = []
    else:
        role = ["--head"]
        values |= {
            "--port": ports["gcs"],
            "--dashboard-host": "127.0.0.1",
            "--dashboard-port": ports["dashboard"],
            "--ray-client-server-port": ports["client"],
        }
    flags = [f"{name}={value}" for name, value in values.items()]
    return ["start", *role, "--block", "--disable-usage-stats", *flags]


def free_ports(names: Sequence[str]) -> dict[str, int]:
    """A free loopback port for each name, all different. Another program may take one before Ray does."""
    held = []
    try:
        found = {}
        for name in names:
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            held.append(listener)
            listener.bind(("127.0.0.1", 0))
            found[name] = int(listener.getsockname()[1])
        return found
    finally:
        for listener in held:
            listener.close()


def clean(leader: ledger.Leader) -> None:
    """Remove the short temporary folder of a node that has ended."""
    shutil.rmtree(leader.temp_dir, ignore_errors=True)
