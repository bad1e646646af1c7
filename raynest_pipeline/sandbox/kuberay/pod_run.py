"""What the kubelet knows of one pod beyond its object."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raynest_pipeline.sandbox.kuberay.container import Mounts
from raynest_pipeline.sandbox.kuberay.ray_node import RayNode

#: Starts a Ray node: (pod's folder, log, environment, resources, its head or None). See `ray_node.start`.
Launch = Callable[[Path, Path, Mapping[str, str], Mapping[str, str], "RayNode | None"], RayNode]


@dataclass(frozen=True)
class Timing:
    """How fast the kubelet's slow things are, in seconds of real time."""

    pull: float = 1.0
    pull_retry: float = 2.0
    backoff: float = 1.0
    backoff_limit: float = 10.0


@dataclass
class PodRun:
    """The state of one pod. Times are of time.monotonic.

    node: its running container; joined: the head that a worker's node joined; last: lastState.
    """

    folder: Path
    node: RayNode | None = None
    joined: RayNode | None = None
    mounts: Mounts = field(default_factory=lambda: Mounts({}))
    volumes_at: float = 0.0
    initialized: bool = False
    init_started_at: str = ""
    started_at: str = ""
    started: float = 0.0
    ready: bool = False
    failures: int = 0
    restarts: int = 0
    last: dict[str, Any] = field(default_factory=dict)
    crashes: int = 0
    not_before: float = 0.0
    killed_with: int | None = None
    pulled: bool = False
    pull_until: float | None = None
    pull_failures: int = 0

    @property
    def log(self) -> Path:
        """The container's output; it goes on over restarts."""
        return self.folder / "container.log"

    def exit_code(self) -> int | None:
        """None while the container runs or where there is none."""
        if self.killed_with is not None or self.node is None:
            return self.killed_with
        return self.node.exit_code()
