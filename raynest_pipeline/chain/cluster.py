"""The first link: the Compute Nest service instance and the ACK cluster inside it."""

import re
import uuid
from dataclasses import dataclass

from raynest_pipeline.alibaba.cloud import Cloud
from raynest_pipeline.alibaba.computenest import (
    STATUS_DELETE_FAILED,
    STATUS_DELETED,
    STATUS_DELETING,
    STATUS_DEPLOYED,
    STATUS_FAILED,
    Service,
    ServiceInstance,
)
from raynest_pipeline.alibaba.cs import Cluster
from raynest_pipeline.alibaba.password import generate_password
from raynest_pipeline.chain.journal import Intent, Journal
from raynest_pipeline.chain.link import Change, Facts, Observation, OnStep, State, Step, silent
from raynest_pipeline.chain.parameters import OWNER_TAG, owner_tags, template_parameters
from raynest_pipeline.chain.preflight import Report, describe_price, run_preflight
from raynest_pipeline.errors import NotReadyError, RefusedError, RemoteError, Verdict
from raynest_pipeline.settings import Settings
from raynest_pipeline.waiting import Backoff, Deadline, Done, Waiting, wait_for

_CLUSTER_ID = re.compile(r"c[0-9a-f]{32}")
_STALE_SECONDS = 30.0
"""How long after asking for a deletion the failure of an earlier one may still show."""
_POLL = Backoff(first=1.0, factor=1.5, most=10.0)
"""At most a call every few seconds: no rate limits are published for Compute Nest."""


@dataclass(frozen=True)
class Found:
    """What belongs to this chain in the cloud."""

    instance: ServiceInstance | None
    cluster: Cluster | None
    cause: str = ""


class ClusterLink:
    """Creates, adopts, watches and deletes the service instance called `settings.name`."""

    name = "cluster"

    def __init__(self, settings: Settings, cloud: Cloud, journal: Journal) -> None:
        self._settings = settings
        self._cloud = cloud
        self._journal = journal

    # -- observe ---------------------------------------------------------------------------------

    def observe(self) -> Observation:
        try:
            return self._judge(self.find())
        except RemoteError as error:
            return Observation(self.name, State.UNKNOWN, f"{error.what} {error.why}".strip())
        except RefusedError as error:
            return Observation(self.name, State.BROKEN, str(error))

    def find(self) -> Found:
        """The instance and its ACK cluster, as they are now.

        Raises:
            CloudError: The cloud could not be asked.
            RefusedError: An instance of this name exists that isn't ours.
        """
        instance = self._instance()
        if instance is None or instance.status != STATUS_DEPLOYED:
            return Found(instance, None)
        cluster = self._ack_cluster(instance)
        return Found(instance, cluster, "" if cluster else "its ACK cluster is not to be found")

    def _instance(self) -> ServiceInstance | None:
        ours = self._ours()
        # One that works comes before one that is on its way, and that before a failed or dying one.
        rank = {STATUS_DEPLOYED: 0, STATUS_FAILED: 2, STATUS_DELETING: 3, STATUS_DELETE_FAILED: 3}
        return min(ours, key=lambda instance: rank.get(instance.status, 1), default=None)

    def _ours(self) -> list[ServiceInstance]:
        instances = self._cloud.instances.find_instances(self._settings.name)
        ours = [i for i in instances if i.tags.get(OWNER_TAG) == self._settings.name]
        # An instance can be listed before its tags are; the id on record says that it is ours.
        intent = self._journal.read(self.name)
        ours += [i for i in instances if i not in ours and intent and i.id == intent.remote_id]
        if instances and not ours:
            raise RefusedError(
                f"A service instance named {self._settings.name} exists ({instances[0].id}), "
                f"and raynest did not make it (it has no tag {OWNER_TAG}={self._settings.name}).",
                fix=f"Set another `name`, or tag the instance {OWNER_TAG}={self._settings.name} to adopt it.",
            )
        return ours

    def _ack_cluster(self, instance: ServiceInstance) -> Cluster | None:
        """By its resources, else its ROS stack, else its name (alibaba-cloud facts 2.4)."""
        if self._settings.alibaba.existing_cluster_id:
            return self._cloud.clusters.get_cluster(self._settings.alibaba.existing_cluster_id)
        for resource in self._cloud.instances.resources(instance.id):
            if resource.product_code.lower() == "cs" and _CLUSTER_ID.fullmatch(resource.id):
                return self._cloud.clusters.get_cluster(resource.id)
        for stack_id in instance.stack_ids:
            for part in self._cloud.stacks.stack_resources(stack_id, self._settings.alibaba.region_id):
                if part.type == "ALIYUN::CS::ManagedKubernetesCluster" and part.physical_id:
                    return self._cloud.clusters.get_cluster(part.physical_id)
        named = self._cloud.clusters.find_clusters(instance.name)
        return named[0] if len(named) == 1 else None

    def _judge(self, found: Found) -> Observation:
        instance, cluster = found.instance, found.cluster
        if instance is None:
            return Observation(self.name, State.MISSING, "no service instance of this name")
        facts = self._facts(instance, cluster)
        if instance.status == STATUS_DEPLOYED:
            if cluster is None:
                return Observation(self.name, State.BROKEN, found.cause, facts)
            if cluster.state in ("failed", "unavailable", "inactive", "deleting", "deleted", "delete_failed"):
                return Observation(self.name, State.BROKEN, f"the ACK cluster is {cluster.state}", facts)
            return Observation(self.name, State.READY, "", facts)
        if instance.status in (STATUS_FAILED, STATUS_DELETE_FAILED):
            return Observation(self.name, State.BROKEN, self._failure(instance), facts)
        percent = "" if instance.progress is None else f" {instance.progress}%"
        return Observation(
            self.name, State.PENDING, f"{instance.status}{percent} {instance.status_detail}".strip(), facts
        )

    def _facts(self, instance: ServiceInstance, cluster: Cluster | None) -> Facts:
        facts = {
            "instance_id": instance.id,
            "instance_status": instance.status,
            "region": self._settings.alibaba.region_id,
            "zone": str(instance.parameters.get("ZoneId", "")),
            "worker_type": str(instance.parameters.get("WorkerInstanceType", "")),
            "worker_count": str(instance.parameters.get("WorkerInstanceCount", "")),
            "worker_disk_gib": str(instance.parameters.get("WorkerSystemDiskSize", "")),
            "service_version": instance.service_version,
            "ray_dashboard": instance.outputs.get("Instruction", "").strip(),
            "namespace": instance.name,
            "created": instance.created.isoformat() if instance.created else "",
            "console": "https://computenest.console.aliyun.com/",
        }
        if cluster is not None:
            facts |= {
                "cluster_id": cluster.id,
                "cluster_state": cluster.state,
                "kubernetes_version": cluster.version,
                "vpc_id": cluster.vpc_id,
            }
        return {key: value for key, value in facts.items() if value}

    def _failure(self, instance: ServiceInstance) -> str:
        try:
            logs = self._cloud.instances.instance_logs(instance.id)[:3]
        except RemoteError:
            # The logs are an extra; the status detail says what is known without them.
            logs = []
        told = [text for text in (instance.status_detail, *logs) if text]
        return f"{instance.status}: " + (" | ".join(dict.fromkeys(told)) or "no reason given")

    # -- plan and ensure -------------------------------------------------------------------------

    def plan(self) -> list[Change]:
        seen = self.observe()
        if seen.state is State.READY:
            return [Change(self.name, "none", f"service instance {seen.facts['instance_id']} is ready")]
        if seen.state in (State.PENDING, State.UNKNOWN):
            return [Change(self.name, "wait", seen.cause)]
        report = run_preflight(self._settings, self._cloud)
        verb = "recreate" if seen.state is State.BROKEN else "create"
        price = describe_price(report.price) if report.price else "price unknown"
        what = (
            f"service instance {self._settings.name} in {report.zone_id or self._settings.alibaba.region_id}"
        )
        refused = "".join(f"; refused: {check.message}" for check in report.refusals)
        return [Change(self.name, verb, f"{what} ({price})", f"{seen.cause}{refused}")]

    def ensure(self, deadline: Deadline, on_step: OnStep = silent) -> Observation:
        seen = self._observe_or_raise()
        if seen.state is State.READY:
            return seen
        if seen.state is State.BROKEN:
            seen = self._clear_broken(seen, deadline, on_step)
        if seen.state is State.PENDING and seen.facts.get("instance_status") == STATUS_DELETING:
            self._wait_gone(str(seen.facts["instance_id"]), deadline, on_step)
            seen = Observation(self.name, State.MISSING)
        if seen.state is State.MISSING:
            self._create(on_step)
        return self._wait_ready(deadline, on_step)

    def _observe_or_raise(self) -> Observation:
        return self._judge(self.find())

    def _clear_broken(self, seen: Observation, deadline: Deadline, on_step: OnStep) -> Observation:
        """A deployment that failed earlier is deleted, since it costs and cannot be mended; then anew."""
        if seen.facts.get("instance_status") == STATUS_DEPLOYED:
            raise NotReadyError(
                f"The service instance is deployed, but {seen.cause}.",
                fix="Look at it in the console (the `console` link in its facts); `raynest down` removes it.",
            )
        on_step(Step(self.name, f"deleting the failed service instance: {seen.cause}"))
        self._delete_all(deadline, on_step)
        return Observation(self.name, State.MISSING)

    def _create(self, on_step: OnStep) -> None:
        intent = self._journal.read(self.name)
        if intent is None or not intent.remote_id:
            report = run_preflight(self._settings, self._cloud)
            report.raise_if_refused()
            assert report.service is not None
            intent = self._journal.begin(self.name, secret=self._secret(report))
            on_step(Step(self.name, f"buying the cluster: {_price_text(report)}"))
            self._buy(report.service, intent, on_step)
            return
        if self._cloud.instances.get_instance(intent.remote_id) is None:
            # It was bought and has been deleted behind our back: a new purchase needs a new token.
            self._journal.end(self.name)
            self._create(on_step)

    @staticmethod
    def _secret(report: Report) -> str:
        """What the same ClientToken must be sent with again: the zone chosen and the password drawn."""
        return f"{report.zone_id} {generate_password()}"

    def _buy(self, service: Service, intent: Intent, on_step: OnStep) -> None:
        zone_id, _, password = intent.secret.partition(" ")
        try:
            instance_id = self._cloud.instances.create_instance(
                self._settings.name,
                service,
                template_parameters(self._settings.alibaba, zone_id=zone_id, password=password),
                owner_tags(self._settings.name),
                intent.token,
            )
        except RemoteError as error:
            if error.verdict is Verdict.PERMANENT:
                # Nothing was sold, and the next try may well have other arguments.
                self._journal.end(self.name)
            raise
        self._journal.record(self.name, instance_id)
        on_step(Step(self.name, f"service instance {instance_id} is being deployed (about 10 minutes)"))

    def _wait_ready(self, deadline: Deadline, on_step: OnStep) -> Observation:
        def probe() -> Done[Observation] | Waiting:
            seen = self._observe_or_raise()
            if seen.state is State.READY:
                return Done(seen)
            if seen.state is State.BROKEN and seen.facts.get("instance_status") != STATUS_DEPLOYED:
                raise NotReadyError(
                    f"The deployment of {self._settings.name} failed.",
                    why=seen.cause,
                    fix="Correct the cause and run the same command again: it deletes the failed instance "
                    "first. `raynest down` removes it for good.",
                )
            fraction = _percent(seen.cause)
            return Waiting(seen.cause or "the service instance is not listed yet", fraction)

        return wait_for(
            probe,
            what=f"The service instance {self._settings.name}",
            deadline=deadline,
            backoff=_POLL,
            on_progress=lambda w: on_step(Step(self.name, w.cause, w.fraction)),
        )

    # -- remove ----------------------------------------------------------------------------------

    def remove(self, deadline: Deadline, on_step: OnStep = silent) -> list[Change]:
        return self._delete_all(deadline, on_step)

    def _delete_all(self, deadline: Deadline, on_step: OnStep) -> list[Change]:
        changes = []
        for instance in self._ours_or_recorded(deadline):
            if instance.status != STATUS_DELETING:
                on_step(Step(self.name, f"deleting service instance {instance.id}"))
                # A new token each time: an old one would be answered with a deletion that has failed.
                self._cloud.instances.delete_instance(instance.id, f"raynest-delete-{uuid.uuid4()}")
            self._wait_gone(instance.id, deadline, on_step, status_before=instance.status)
            changes.append(Change(self.name, "delete", f"service instance {instance.id}"))
        self._journal.end(self.name)
        return changes

    def _ours_or_recorded(self, deadline: Deadline) -> list[ServiceInstance]:
        """Ours by tag or by record; also what a lost answer to a purchase may have left."""
        intent = self._journal.read(self.name)
        if intent is not None and not intent.remote_id:
            self._settle(deadline)
        ours = self._ours()
        intent = self._journal.read(self.name)
        if intent and intent.remote_id and all(i.id != intent.remote_id for i in ours):
            recorded = self._cloud.instances.get_instance(intent.remote_id)
            ours += [recorded] if recorded else []
        return ours

    def _settle(self, deadline: Deadline) -> None:
        """Whether an interrupted purchase took place is seen by its name and tag, which may take a moment.

        One that is still on its way after a minute could appear later; the audit at the end of a teardown
        looks once more.
        """

        def probe() -> Done[str] | Waiting:
            ours = self._ours()
            return Done(ours[0].id) if ours else Waiting("no purchase is listed (yet)")

        try:
            found = wait_for(
                probe, what="The interrupted purchase", deadline=deadline.at_most(60), backoff=_POLL
            )
        except NotReadyError:
            return
        self._journal.record(self.name, found)

    def _wait_gone(
        self, instance_id: str, deadline: Deadline, on_step: OnStep, *, status_before: str = ""
    ) -> None:
        """`status_before`: when the deletion was asked for. A failure that it shows already is no news."""
        stale_until = deadline.clock.monotonic() + _STALE_SECONDS
        old_failure = status_before == STATUS_DELETE_FAILED

        def probe() -> Done[None] | Waiting:
            nonlocal old_failure
            instance = self._cloud.instances.get_instance(instance_id)
            if instance is None or instance.status == STATUS_DELETED:
                return Done(None)
            failed = instance.status == STATUS_DELETE_FAILED
            old_failure = old_failure and failed and deadline.clock.monotonic() < stale_until
            if failed and not old_failure:
                raise NotReadyError(
                    f"The service instance {instance_id} could not be deleted; it may still cost money.",
                    why=self._failure(instance),
                    fix="Delete it in the console (is the ACK cluster's deletion protection on?).",
                )
            return Waiting(f"{instance_id} is {instance.status}")

        wait_for(
            probe,
            what=f"The deletion of {instance_id}",
            deadline=deadline,
            backoff=_POLL,
            on_progress=lambda w: on_step(Step(self.name, w.cause)),
        )
        intent = self._journal.read(self.name)
        if intent is not None and intent.remote_id in ("", instance_id):
            self._journal.end(self.name)


def _percent(cause: str) -> float | None:
    match = re.search(r"(\d+)%", cause)
    return int(match.group(1)) / 100 if match else None


def _price_text(report: Report) -> str:
    return describe_price(report.price) if report.price else "price unknown"
