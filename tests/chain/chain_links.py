"""Fresh links over a world, as a new process would make them."""

from dataclasses import dataclass

import pytest
from chain_clock import FakeClock
from chain_world import World

from raynest_pipeline.chain.cluster import ClusterLink
from raynest_pipeline.chain.intent import state_dir
from raynest_pipeline.chain.journal import Journal
from raynest_pipeline.chain.kubeconfig import KubeconfigLink
from raynest_pipeline.chain.link import Observation
from raynest_pipeline.chain.public_ip import PublicIpLink
from raynest_pipeline.settings import Settings
from raynest_pipeline.waiting import Deadline

LONG = 3600.0


@dataclass(frozen=True)
class Links:
    """What one process has: nothing of it outlives a kill."""

    cluster: ClusterLink
    public_ip: PublicIpLink
    kubeconfig: KubeconfigLink
    journal: Journal
    clock: FakeClock

    def deadline(self, seconds: float = LONG) -> Deadline:
        return Deadline.after(seconds, self.clock)

    def up(self) -> list[Observation]:
        """The two links that buy."""
        return [self.cluster.ensure(self.deadline()), self.public_ip.ensure(self.deadline())]

    def down(self) -> None:
        self.public_ip.remove(self.deadline())
        self.cluster.remove(self.deadline())


def make_links(world: World, settings: Settings) -> Links:
    journal = Journal(state_dir(settings) / "journal.json")
    cluster = ClusterLink(settings, world.cloud, journal)
    public_ip = PublicIpLink(settings, world.cloud, journal, cluster)
    kubeconfig = KubeconfigLink(settings, world.cloud, public_ip, world.clock)
    return Links(cluster, public_ip, kubeconfig, journal, world.clock)


def kill_at_file_writes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the killer strike also before and after a file gets its new content."""
    import os

    real = os.replace

    def replace(source: object, target: object) -> None:
        world.killer.point("before write")
        real(source, target)  # type: ignore[arg-type]
        world.killer.point("after write")

    monkeypatch.setattr("raynest_pipeline.files.os.replace", replace)
    # These tests do it thousands of times, and no machine crashes in them.
    monkeypatch.setattr("raynest_pipeline.files.os.fsync", lambda _: None)
