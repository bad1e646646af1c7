"""What exists in the emulated cloud, as plain records that go to the state folder and come back."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Purchase:
    """Something that costs money from `created` to `ended` (seconds since 1970; None = still)."""

    kind: str
    id: str
    name: str
    created: float
    hourly_price: str
    currency: str = "CNY"
    owner: str = ""
    ended: float | None = None


@dataclass
class Instance:
    """A Compute Nest service instance. `stage` counts the steps of `began`'s deployment or deletion."""

    id: str
    name: str
    service_region: str
    parameters: dict[str, Any]
    tags: dict[str, str]
    created: float
    began: float
    stack_id: str
    status: str = "Created"
    status_detail: str = ""
    progress: int = 0
    stage: int = 0
    cluster_id: str = ""
    updated: float = 0.0
    logs: list[dict[str, str]] = field(default_factory=list)


@dataclass
class Cluster:
    """An ACK cluster. `ids` are the ids of what it consists of (vpc, vswitch, nat, ...), by what it is."""

    id: str
    name: str
    owner: str
    region: str
    zone: str
    created: float
    worker_type: str
    worker_count: int
    disk_category: str
    disk_gib: int
    tags: dict[str, str]
    ids: dict[str, str]
    network: dict[str, str]
    state: str = "initial"
    updated: float = 0.0
    workers: list[str] = field(default_factory=list)
    namespaces: list[str] = field(default_factory=list)
    eip_id: str = ""
    #: The loopback port of the public API server, kept so that it comes back at the same place.
    port: int | None = None
    deletion_protection: bool = False


@dataclass
class Eip:
    """An elastic IP address. `due` is when a transition (Releasing) is over."""

    id: str
    ip: str
    name: str
    region: str
    created: float
    bandwidth: str
    charge: str
    tags: dict[str, str]
    status: str = "Available"
    instance_id: str = ""
    instance_type: str = ""
    due: float = 0.0


@dataclass
class Task:
    """An asynchronous task of a cluster: bind_eip or unbind_eip, over `began` + its duration."""

    id: str
    cluster_id: str
    kind: str
    began: float
    eip_id: str = ""
    state: str = "running"
    updated: float = 0.0
    error: str = ""


@dataclass
class Token:
    """A ClientToken that was used: the digest of the request's arguments, and its answer."""

    digest: str
    answer: dict[str, Any]


@dataclass
class World:
    """Everything that exists, by id, and everything that was ever bought, oldest first."""

    account_id: str
    user_id: str
    instances: dict[str, Instance] = field(default_factory=dict)
    clusters: dict[str, Cluster] = field(default_factory=dict)
    eips: dict[str, Eip] = field(default_factory=dict)
    tasks: dict[str, Task] = field(default_factory=dict)
    tokens: dict[str, Token] = field(default_factory=dict)
    purchases: list[Purchase] = field(default_factory=list)

    def end_purchases(self, now: float, *, id: str = "", owner: str = "") -> None:
        """Stop paying for one thing, or for all that belongs to an owner."""
        for purchase in self.purchases:
            mine = purchase.id == id if id else purchase.owner == owner
            if mine and purchase.ended is None:
                purchase.ended = now

    def running_task(self, cluster_id: str) -> Task | None:
        """The task that a cluster is busy with, if any."""
        for task in self.tasks.values():
            if task.cluster_id == cluster_id and task.state == "running":
                return task
        return None

    def dump(self) -> dict[str, Any]:
        """This world as JSON values."""
        return asdict(self)

    @classmethod
    def load(cls, saved: dict[str, Any]) -> World:
        """The world that `dump` gave. Raises TypeError or KeyError for one of another version."""
        return cls(
            account_id=saved["account_id"],
            user_id=saved["user_id"],
            instances={key: Instance(**value) for key, value in saved["instances"].items()},
            clusters={key: Cluster(**value) for key, value in saved["clusters"].items()},
            eips={key: Eip(**value) for key, value in saved["eips"].items()},
            tasks={key: Task(**value) for key, value in saved["tasks"].items()},
            tokens={key: Token(**value) for key, value in saved["tokens"].items()},
            purchases=[Purchase(**value) for value in saved["purchases"]],
        )
