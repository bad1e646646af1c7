"""The second link: a public address on the cluster's API server.

The address (EIP) is bound with the cluster's own ModifyCluster, never with AssociateEipAddress: binding
triggers a rolling update of the API server, and the cluster must not be touched meanwhile.
"""

import uuid
from dataclasses import dataclass
from urllib.parse import urlsplit

from raynest_pipeline.alibaba.cloud import Cloud
from raynest_pipeline.alibaba.cs import Cluster
from raynest_pipeline.alibaba.vpc import Egress, Eip
from raynest_pipeline.chain.cluster import TERMINAL_STATES, ClusterLink
from raynest_pipeline.chain.journal import Journal
from raynest_pipeline.chain.link import (
    REUSED,
    UNSEEN,
    Change,
    Fact,
    Facts,
    Observation,
    OnStep,
    State,
    Step,
    silent,
)
from raynest_pipeline.chain.parameters import address_tags
from raynest_pipeline.chain.purchase import nothing_was_sold, was_sold_before
from raynest_pipeline.errors import NotReadyError, RefusedError, RemoteError
from raynest_pipeline.settings import Settings
from raynest_pipeline.waiting import Backoff, Deadline, Done, Waiting, wait_for

_POLL = Backoff(first=0.5, factor=1.5, most=8.0)
_LISTING_SECONDS = 60.0
"""How long an address whose purchase was interrupted may take to be listed."""
_SETTLE_SECONDS = 120.0
"""How long the address and the API server may tell different stories."""


@dataclass(frozen=True)
class Found:
    """The cluster, and the addresses that carry our tag (the one in use first)."""

    cluster: Cluster | None
    addresses: tuple[Eip, ...]

    @property
    def bound(self) -> Eip | None:
        """Our address that the API server answers on; None also when somebody else's is bound."""
        if self.cluster is None or not self.cluster.api_server_endpoint:
            return None
        host = urlsplit(self.cluster.api_server_endpoint).hostname
        return next((eip for eip in self.addresses if eip.ip == host and eip.status == "InUse"), None)


class PublicIpLink:
    """Allocates, binds, adopts, unbinds and releases the API server's address."""

    name = "public_ip"

    def __init__(self, settings: Settings, cloud: Cloud, journal: Journal, cluster: ClusterLink) -> None:
        self._settings = settings
        self._cloud = cloud
        self._journal = journal
        self._cluster = cluster

    # -- observe ---------------------------------------------------------------------------------

    def find(self) -> Found:
        """The cluster and our addresses, as they are now.

        Raises:
            CloudError: The cloud could not be asked.
            RefusedError: The cluster isn't ours.
        """
        eips = self._cloud.network.find_eips(address_tags(self._settings.name))
        order = {"InUse": 0, "Associating": 1, "Available": 2}
        ours = sorted((e for e in eips if e.status != "Releasing"), key=lambda e: order.get(e.status, 3))
        return Found(self._cluster.find().cluster, tuple(ours))

    def observe(self) -> Observation:
        try:
            found = self.find()
            egress = self.egress() if found.cluster else None
        except RemoteError as error:
            return Observation(self.name, State.UNKNOWN, f"{error.what} {error.why}".strip())
        except RefusedError as error:
            return Observation(self.name, State.BROKEN, str(error))
        return self._judge(found, egress)

    def endpoint(self) -> str:
        """The API server's public address now, `https://HOST:PORT`; "" when there is none."""
        cluster = self._cluster.find().cluster
        return cluster.api_server_endpoint if cluster else ""

    def egress(self) -> Egress:
        """Whether the workers reach the internet, which pulling images and models depends on.

        The API server's address is inbound only; workers go out through the VPC's NAT gateway.
        """
        cluster = self._cluster.find().cluster
        if cluster is None:
            return Egress(None, "there is no cluster")
        try:
            return self._cloud.network.egress(cluster.vpc_id, cluster.vswitch_ids)
        except RemoteError as error:
            return Egress(None, f"it could not be looked up: {error.what}")

    def _judge(self, found: Found, egress: Egress | None = None) -> Observation:
        cluster = found.cluster
        facts = self._facts(found, egress)
        if cluster is None:
            cause = "there is no cluster"
            if found.addresses:
                cause += f", but the address {found.addresses[0].ip} is still held"
            return Observation(self.name, State.MISSING, cause, facts)
        if cluster.api_server_endpoint:
            return Observation(self.name, State.READY, "", facts)
        if not found.addresses:
            return Observation(
                self.name, State.MISSING, "no public address is bound to the API server", facts
            )
        first = found.addresses[0]
        if first.status in ("Associating", "InUse"):
            cause = f"the address {first.ip} is {first.status}, the API server does not show it yet"
            return Observation(self.name, State.PENDING, cause, facts)
        return Observation(self.name, State.MISSING, f"the address {first.ip} is allocated, not bound", facts)

    def _facts(self, found: Found, egress: Egress | None) -> Facts:
        eip = found.bound or (found.addresses[0] if found.addresses else None)
        others = [f"{other.ip} ({other.id}, {other.status})" for other in found.addresses if other != eip]
        facts: dict[str, Fact] = {"also_paid": tuple(others)}
        if found.cluster is not None:
            facts["api_server"] = found.cluster.api_server_endpoint
            facts["cluster_id"] = found.cluster.id
        if eip is not None:
            facts |= {"eip_id": eip.id, "ip": eip.ip, "eip_status": eip.status}
        elif found.cluster and found.cluster.api_server_endpoint:
            facts["adopted"] = "an address that raynest did not allocate"
        if egress is not None:
            words = {True: "yes", False: f"no: {egress.cause}", None: f"unknown: {egress.cause}"}
            facts["worker_egress"] = words[egress.ok]
        return {key: value for key, value in facts.items() if value}

    # -- plan and ensure -------------------------------------------------------------------------

    def plan(self) -> list[Change]:
        seen = self.observe()
        if seen.state is State.READY:
            verb = "adopt" if "adopted" in seen.facts else "none"
            return [Change(self.name, verb, f"{seen.facts['api_server']} is bound"), *_plan_spares(seen)]
        if seen.state is State.UNKNOWN:
            return [Change(self.name, UNSEEN, "could not be looked at", seen.cause)]
        if seen.state is State.PENDING:
            return [Change(self.name, "wait", seen.cause)]
        bandwidth = self._settings.alibaba.eip_bandwidth_mbps
        allocate = Change(self.name, "create", f"an EIP ({bandwidth} Mbit/s, paid by traffic)", seen.cause)
        bind = Change(self.name, "update", "bind it to the API server (a rolling update)", seen.cause)
        return [bind, *_plan_spares(seen)] if "eip_id" in seen.facts else [allocate, bind]

    def ensure(self, deadline: Deadline, on_step: OnStep = silent) -> Observation:
        at_once = self.observe().ready

        def probe() -> Done[Observation] | Waiting:
            found = self.find()
            seen = self._judge(found)
            if found.cluster is None:
                raise NotReadyError(
                    "The API server cannot get an address: there is no cluster.",
                    fix="Materialize `cluster` first (`raynest up`).",
                )
            if seen.ready:
                if at_once:
                    on_step(Step(self.name, REUSED))
                return Done(self._judge(found, self.egress()))
            if seen.state is State.PENDING:
                return Waiting(seen.cause)
            return self._advance(found, deadline, on_step)

        seen = wait_for(
            probe,
            what="The API server's public address",
            deadline=deadline,
            backoff=_POLL,
            on_progress=lambda w: on_step(Step(self.name, w.cause)),
        )
        self._release_spares(self.find(), deadline, on_step)
        return seen

    def _advance(self, found: Found, deadline: Deadline, on_step: OnStep) -> Waiting:
        """One step towards a bound address."""
        cluster = found.cluster
        assert cluster is not None, "the caller has looked"
        if cluster.state != "running":
            return Waiting(f"the cluster is {cluster.state}")
        usable = next((eip for eip in found.addresses if eip.status == "Available"), None)
        if usable is None:
            usable = self._allocate(on_step)
        if usable is None:
            return Waiting("the address on record is not listed (yet), or was released")
        on_step(Step(self.name, f"binding {usable.ip} to the API server"))
        # A token of its own for each attempt: an old one would be answered with the old attempt's task.
        task = self._cloud.clusters.bind_eip(cluster.id, usable.id, f"raynest-bind-{uuid.uuid4()}")
        self._follow(task, "Binding the address", deadline, on_step)
        return Waiting(f"{usable.ip} is bound, the API server does not show it yet")

    def _allocate(self, on_step: OnStep) -> Eip | None:
        """Buy the address, or learn which one the interrupted purchase got. None: look again."""
        alibaba = self._settings.alibaba
        account = self._cloud.identity.caller().account_id
        earlier = self._journal.read(self.name)
        if earlier is not None:
            earlier.refuse_elsewhere(region=alibaba.region_id, account=account)
        intent = self._journal.begin(self.name, region=alibaba.region_id, account=account)
        try:
            eip = self._cloud.network.allocate_eip(
                region=alibaba.region_id,
                bandwidth_mbps=alibaba.eip_bandwidth_mbps,
                name=f"{self._settings.name}-api-server",
                tags=address_tags(self._settings.name),
                client_token=intent.token,
            )
        except RemoteError as error:
            if was_sold_before(error):
                on_step(Step(self.name, "an address was bought already, with other settings; looking for it"))
                self._forget_if_released(intent.remote_id)
                return None
            if nothing_was_sold(error, fresh=earlier is None):
                self._journal.end(self.name)
            raise
        if intent.remote_id == eip.id:
            self._forget_if_released(eip.id)
            if self._journal.read(self.name) is None:
                return None
        self._journal.record(self.name, eip.id)
        on_step(Step(self.name, f"allocated {eip.ip} ({eip.id})"))
        return eip

    def _forget_if_released(self, eip_id: str) -> None:
        """Forget the token of an address that has been released since: the next one has its own."""
        if eip_id and self._cloud.network.get_eip(eip_id) is None:
            self._journal.end(self.name)

    def _follow(self, task_id: str, what: str, deadline: Deadline, on_step: OnStep) -> None:
        def probe() -> Done[None] | Waiting:
            task = self._cloud.clusters.task(task_id)
            if task.state == "success":
                return Done(None)
            if task.state in ("fail", "failed"):
                raise NotReadyError(
                    f"{what} failed.",
                    why=task.message or f"task {task_id} gives no reason",
                    fix="Run the same command again; the address is kept and used.",
                )
            return Waiting(f"task {task_id} is {task.state}")

        wait_for(
            probe,
            what=what,
            deadline=deadline,
            backoff=_POLL,
            on_progress=lambda w: on_step(Step(self.name, w.cause)),
        )

    def _release_spares(self, found: Found, deadline: Deadline, on_step: OnStep) -> None:
        """Addresses of ours that nothing uses: each costs, and none is needed beside a bound one."""
        for eip in found.addresses:
            if eip.status == "Available" and found.cluster and found.cluster.api_server_endpoint:
                on_step(Step(self.name, f"releasing the unused address {eip.ip}"))
                self._release(eip, deadline, on_step)

    # -- remove ----------------------------------------------------------------------------------

    def remove(self, deadline: Deadline, on_step: OnStep = silent) -> list[Change]:
        self._settle_purchase(deadline)
        found = self._settled(deadline, on_step)
        changes = []
        if found.bound and found.cluster:
            on_step(Step(self.name, f"unbinding {found.bound.ip} from the API server"))
            self._unbind(found.cluster.id, deadline, on_step)
            changes.append(Change(self.name, "update", f"unbound {found.bound.ip}"))
        for eip in found.addresses:
            self._release(eip, deadline, on_step)
            changes.append(Change(self.name, "delete", f"EIP {eip.ip} ({eip.id})"))
        self._journal.end(self.name)
        return changes

    def _settle_purchase(self, deadline: Deadline) -> None:
        """Wait until an interrupted purchase is listed under our tag: one that isn't cannot be released.

        Without an id on record it may never have been sold; what has not shown up after a minute wasn't.
        """
        intent = self._journal.read(self.name)
        if intent is None:
            return
        region = self._settings.alibaba.region_id
        intent.refuse_elsewhere(region=region)
        eip_id = intent.remote_id

        def probe() -> Done[None] | Waiting:
            listed = self._cloud.network.find_eips(address_tags(self._settings.name))
            if listed and not eip_id:
                self._journal.record(self.name, listed[0].id)
            if any(eip.id == eip_id or not eip_id for eip in listed):
                return Done(None)
            if eip_id and self._cloud.network.get_eip(eip_id) is None:
                # Gone, unless it is another account's.
                account = self._cloud.identity.caller().account_id
                intent.refuse_elsewhere(region=region, account=account)
                return Done(None)
            return Waiting(f"{eip_id or 'the address'} is not listed under its tag yet")

        try:
            within = deadline.at_most(_LISTING_SECONDS)
            wait_for(probe, what="The listing of the address", deadline=within, backoff=_POLL)
        except NotReadyError:
            if eip_id:
                raise
            intent.refuse_elsewhere(region=region, account=self._cloud.identity.caller().account_id)

    def _settled(self, deadline: Deadline, on_step: OnStep) -> Found:
        """What is there once nothing is being bound or unbound: only then it shows what must be undone."""
        shown_until = deadline.clock.monotonic() + _SETTLE_SECONDS

        def probe() -> Done[Found] | Waiting:
            found = self.find()
            shown = found.cluster is None or bool(found.cluster.api_server_endpoint)
            # One that is bound to something else is never shown.
            shown = shown or deadline.clock.monotonic() >= shown_until
            for eip in found.addresses:
                if eip.status.endswith("ssociating") or (eip.status == "InUse" and not shown):
                    return Waiting(f"{eip.ip} is {eip.status}")
            return Done(found)

        return wait_for(
            probe,
            what="The API server's address",
            deadline=deadline,
            backoff=_POLL,
            on_progress=lambda w: on_step(Step(self.name, w.cause)),
        )

    def _unbind(self, cluster_id: str, deadline: Deadline, on_step: OnStep) -> None:
        def probe() -> Done[str] | Waiting:
            cluster = self._cloud.clusters.get_cluster(cluster_id)
            if cluster is None or not cluster.api_server_endpoint:
                return Done("")
            if cluster.state in TERMINAL_STATES:
                raise NotReadyError(
                    f"The address cannot be taken off the API server: the cluster is {cluster.state}.",
                    fix="`raynest down` deletes the cluster, and then the address.",
                )
            if cluster.state != "running":
                return Waiting(f"the cluster is {cluster.state}")
            return Done(self._cloud.clusters.unbind_eip(cluster_id))

        task = wait_for(probe, what="The cluster", deadline=deadline, backoff=_POLL)
        if task:
            self._follow(task, "Unbinding the address", deadline, on_step)

    def _release(self, eip: Eip, deadline: Deadline, on_step: OnStep) -> None:
        token = f"raynest-unassociate-{uuid.uuid4()}"
        used_until = deadline.clock.monotonic() + _SETTLE_SECONDS

        def probe() -> Done[None] | Waiting:
            now = self._cloud.network.get_eip(eip.id)
            if now is None:
                return Done(None)
            if now.status == "Available":
                self._cloud.network.release_eip(eip.id)
                return Waiting(f"{eip.ip} is being released")
            if now.status == "InUse" and self._cluster.find().cluster is None:
                # The cluster went without unbinding; nothing but the address itself is left to ask.
                self._cloud.network.unassociate_eip(eip.id, token)
            elif now.status == "InUse" and deadline.clock.monotonic() >= used_until:
                raise NotReadyError(
                    f"The address {eip.ip} ({eip.id}) is in use, and not by the API server.",
                    why=f"It is bound to {now.instance_type} {now.instance_id}".rstrip() + ".",
                    fix="It still costs money. Unbind it in the VPC console and run `raynest down` again.",
                )
            return Waiting(f"{eip.ip} is {now.status}")

        wait_for(
            probe,
            what=f"The release of {eip.ip} ({eip.id})",
            deadline=deadline,
            backoff=_POLL,
            on_progress=lambda w: on_step(Step(self.name, w.cause)),
            fix="It still costs money. Run `raynest down` again, or release it in the VPC console.",
        )
        if (intent := self._journal.read(self.name)) is not None and intent.remote_id == eip.id:
            self._journal.end(self.name)


def _plan_spares(seen: Observation) -> list[Change]:
    facts = seen.facts.get("also_paid")
    spares = facts if isinstance(facts, tuple) else ()
    why = "nothing needs it; `raynest up` releases it when it is free"
    return [Change(PublicIpLink.name, "none", f"also paid: {spare}", why) for spare in spares]
