"""A real CUDA check on a GPU worker of the cluster, over Ray Client.

Ray Client wants the same Ray release and Python on both sides, and may hang where a network is odd: so the
check is a process of its own with a deadline, and nothing of Ray is ever loaded into this one.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from raynest_pipeline.chain.chain import Chain
from raynest_pipeline.chain.endpoint import in_cluster, resolves
from raynest_pipeline.chain.taken_up import ray_token
from raynest_pipeline.errors import NotReadyError
from raynest_pipeline.kube.client import POD, RAY_SERVICE, KubeClient
from raynest_pipeline.kube.kinds import mapping, name_of
from raynest_pipeline.kube.port_forward import forwarded
from raynest_pipeline.kube.rayservice import status

CLIENT_PORT = 10001
CHECK_SECONDS = 120.0
"""Connecting takes some 5 s, a worker that loads torch up to a minute."""
PROBE = "raynest_pipeline.chain.gpu_probe"


@dataclass(frozen=True)
class GpuCheck:
    """What the check found.

    Attributes:
        ok: Whether a GPU worker did real work with CUDA; None: the cluster has no GPU, so there is none to
            check; False: it has one that does not work, or it could not be asked.
        found: In words.
        fix: What to do about it.
        facts: What the probe itself said.
    """

    ok: bool | None
    found: str
    fix: str
    facts: Mapping[str, Any]


def check_gpu(chain: Chain, *, seconds: float = CHECK_SECONDS) -> GpuCheck:
    """Connect to the cluster by Ray Client and let a GPU worker multiply two matrices.

    Raises:
        NotReadyError: There is no RayService, or it has no head.
        KubeError: The API server could not be asked.
    """
    with chain.kube() as client, _address(client, chain) as (address, token):
        return judge(probe(address, token=token, seconds=seconds))


def probe(address: str, *, token: str | None = None, seconds: float = CHECK_SECONDS) -> dict[str, Any]:
    """What a process that connects to `address` (ray://HOST:PORT) says; a hanging one is ended in time."""
    environment = {**os.environ, "RAY_CLIENT_MAX_CONNECTION_TIMEOUT_S": "30", "RAY_USAGE_STATS_ENABLED": "0"}
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_MODE"):
        environment.pop(name, None)
    if token:
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    try:
        done = subprocess.run(
            [sys.executable, "-m", PROBE, address],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {seconds:.0f} s", "kind": "deadline"}
    for line in reversed(done.stdout.splitlines()):
        # Ray may print after it, and in braces, too.
        with suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict):
                return found
    last = (done.stderr.strip().splitlines() or ["no output"])[-1]
    return {"error": f"the probe ended with code {done.returncode}: {last[:300]}", "kind": "crash"}


def judge(facts: Mapping[str, Any]) -> GpuCheck:
    """The probe's facts in words."""
    if error := facts.get("error"):
        fixes = {
            "version": "Ray Client needs the same Ray release and Python on both sides: install "
            "ray[client] as the cluster has it, or set ray_service.ray_version. Batches don't need it.",
            "package": "pip install 'ray[client]'",
        }
        fix = fixes.get(str(facts.get("kind")), "See `raynest status` and the head pod's log.")
        return GpuCheck(False, f"Ray Client: {error}", fix, facts)
    nodes = f"Ray {facts['ray']}, {facts['nodes']} nodes"
    if not facts["gpus"]:
        return GpuCheck(None, f"{nodes}, no GPU", "", facts)
    shared = " beside a busy replica" if facts.get("beside") else ""
    where = f"{nodes}, {facts['gpus']:g} GPU"
    if not facts.get("cuda"):
        why = facts.get("why") or "no CUDA device is seen there"
        fix = "Check the NVIDIA driver and device plugin of the node, and that the image has CUDA (-gpu)."
        return GpuCheck(False, f"{where}, but on its worker: {why}", fix, facts)
    work = f"1024x1024 matmul in {facts['matmul_ms']:.1f} ms" if "matmul_ms" in facts else "driver only"
    return GpuCheck(True, f"{where}: {facts['device']}, CUDA works{shared} ({work})", "", facts)


@contextmanager
def _address(client: KubeClient, chain: Chain) -> Iterator[tuple[str, str | None]]:
    """ray:// by in-cluster DNS, else through a port-forward to the head pod; and Ray's token."""
    namespace, service = chain.ray_service.namespace, chain.ray_service.service_name
    live = client.get(RAY_SERVICE, service, namespace)
    if live is None:
        raise NotReadyError(f"There is no RayService {namespace}/{service}.", fix="Run `raynest up`.")
    token = ray_token(client, live)
    host = f"{service}-head-svc.{namespace}.svc"
    if in_cluster() and resolves(host):
        yield f"ray://{host}:{CLIENT_PORT}", token
        return
    labels = {"ray.io/cluster": status.parse(live).cluster.name, "ray.io/node-type": "head"}
    heads = [
        pod
        for pod in client.list(POD, namespace, labels=labels)
        if mapping(pod.get("status")).get("phase") == "Running"
    ]
    if not heads:
        raise NotReadyError(f"The RayService {namespace}/{service} has no head pod that runs.")
    # Any path of the API server carries its address and credentials.
    road = client.service_proxy(namespace, service, CLIENT_PORT)
    api = replace(road, base_url=client.server)
    with forwarded(api, namespace, name_of(heads[0]), CLIENT_PORT) as port:
        yield f"ray://127.0.0.1:{port}", token
