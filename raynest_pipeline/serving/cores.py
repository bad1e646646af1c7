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


SPINS = "3000"
"""Rounds that a waiting OpenMP thread spins before it sleeps; libgomp's own default is 300,000."""


def spin_briefly() -> None:
    """Let OpenMP's threads spin only briefly while they wait for each other. Only before torch is imported;
    who has set OMP_WAIT_POLICY or GOMP_SPINCOUNT keeps it.

    Threads that spin for long use up their time slices with it when anything else wants the cores; threads
    that sleep at once need twice the time for a single small image on free ones (docs/performance.md).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def set_threads(cpu_threads: int) -> None:
    """torch's thread count for the calling thread: with OpenMP each thread has its own."""
    import torch

    torch.set_num_threads(cpu_threads)


def thread_counts(most: int) -> list[int]:
    """How many threads are worth a try: powers of two, and `most`; [1] when there is nothing to choose."""
    return sorted({*(2**power for power in range(most.bit_length())), most})
