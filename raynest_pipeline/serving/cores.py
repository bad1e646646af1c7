"""How many CPU cores are ours: a container sees all cores of its node, but may use only some."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def usable_cores(cgroup: Path = CGROUP) -> int:
    """Cores that this process may use: its affinity, and the CPU limit of its container.

    More torch threads than that wait for each other at every operation, and make it several times slower.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:
        # Not on Mac.
        cores = os.cpu_count() or 1
    quota = cpu_quota(cgroup)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def cpu_quota(cgroup: Path) -> float | None:
    """The container's CPU limit in cores, from cgroup v2's cpu.max or v1's cfs files; None: no limit."""
    v2, v1 = cgroup / "cpu.max", cgroup / "cpu"
    if v2.is_file():
        quota, period = v2.read_text(encoding="ascii").split()
    elif (v1 / "cpu.cfs_quota_us").is_file():
        quota = (v1 / "cpu.cfs_quota_us").read_text(encoding="ascii").strip()
        period = (v1 / "cpu.cfs_period_us").read_text(encoding="ascii").strip()
    else:
        return None
    return None if quota in ("max", "-1") else int(quota) / int(period)


def wait_asleep() -> None:
    """Let OpenMP's threads sleep while they wait for each other. Only before torch is imported; who has set
    OMP_WAIT_POLICY keeps it.

    By default they spin, and use up their time slices with it: with anything else on the cores (here the HTTP
    proxy, the ingress, the PNG encoders) two threads took ten times as long as one, asleep they don't.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def set_threads(cpu_threads: int) -> None:
    """torch's thread count for the calling thread: with OpenMP each thread has its own."""
    import torch

    torch.set_num_threads(cpu_threads)
