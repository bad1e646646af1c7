"""The first link: the Compute Nest service instance and the ACK cluster inside it."""

import re
import uuid
from collections.abc import Callable

from raynest_pipeline.alibaba.cloud import Cloud
from raynest_pipeline.alibaba.computenest import (
    STATUS_DELETE_FAILED,
    STATUS_DELETED,
    STATUS_DELETING,
    STATUS_DEPLOYED,
    STATUS_FAILED,
    STATUS_START_FAILED,
    STATUS_STOPPED,
    ServiceInstance,
)
from raynest_pipeline.chain.instances import KEY, Found, Instances
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
from raynest_pipeline.chain.parameters import drift
from raynest_pipeline.chain.preflight import run_preflight
from raynest_pipeline.chain.purchase import ClusterPurchase, price_text
from raynest_pipeline.errors import NotReadyError, RefusedError, RemoteError
from raynest_pipeline.settings import Settings
from raynest_pipeline.waiting import Backoff, Deadline, Done, Waiting, wait_for

TERMINAL_STATES = ("failed", "unavailable", "inactive", "deleting", "deleted", "delete_failed")
"""States of an ACK cluster that no waiting ends."""
_FAILED = (STATUS_FAILED, STATUS_DELETE_FAILED)
_STOPPED = (STATUS_STOPPED, STATUS_START_FAILED)
_STALE_SECONDS = 30.0
"""How long after asking for a deletion the failure of an earlier one may still show."""
_LISTING_SECONDS = 60.0
"""How long a purchase whose answer was lost may take to be listed."""
_LAG_SECONDS = 10.0
"""How long the cloud may deny an instance that it has just sold."""
_POLL = Backoff(first=1.0, factor=1.5, most=10.0)
"""At most a call every few seconds: no rate limits are published for Compute Nest."""


class ClusterLink:
    """Creates, adopts, watches and deletes the service instance called `settings.name`."""

    name = KEY

    def __init__(self, settings: Settings, cloud: Cloud, journal: Journal) -> None:
        self._settings = settings
        self._cloud = cloud
        self._journal = journal
        self._instances = Instances(settings, cloud, journal)
        self._purchase = ClusterPurchase(settings, cloud, journal)

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
            RefusedError: An instance of this name exists that isn't ours, or ours is in another region.
        """
        return self._instances.find()

    def _judge(self, found: Found) -> Observation:
        instance, cluster = found.instance, found.cluster
        if instance is None:
            return Observation(self.name, State.MISSING, "no service instance of this name")
        facts = self._facts(found, instance)
        if instance.status == STATUS_DEPLOYED:
            if cluster is None:
                return Observation(self.name, State.BROKEN, found.cause, facts)
            if cluster.state in TERMINAL_STATES:
                return Observation(self.name, State.BROKEN, f"the ACK cluster is {cluster.state}", facts)
            return Observation(self.name, State.READY, _also_paid(found), facts)
        if instance.status in _FAILED:
            return Observation(self.name, State.BROKEN, self._failure(instance), facts)
        if instance.status in _STOPPED:
            cause = f"the service instance is {instance.status}: start it in the console"
            return Observation(self.name, State.BROKEN, cause, facts)
        percent = "" if instance.progress is None else f" {instance.progress}%"
        return Observation(
            self.name, State.PENDING, f"{instance.status}{percent} {instance.status_detail}".strip(), facts
        )

    def _facts(self, found: Found, instance: ServiceInstance) -> Facts:
        facts: dict[str, Fact] = {
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
            "differs": "; ".join(drift(instance.parameters, self._settings.alibaba)),
            "also_paid": tuple(f"{other.id} ({other.status})" for other in found.others),
        }
        if found.cluster is not None:
            facts |= {
                "cluster_id": found.cluster.id,
                "cluster_state": found.cluster.state,
                "kubernetes_version": found.cluster.version,
                "vpc_id": found.cluster.vpc_id,
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
            return self._plan_ready(seen)
        if seen.state is State.UNKNOWN:
            return [Change(self.name, UNSEEN, "could not be looked at", seen.cause)]
        if seen.state is State.PENDING:
            return [Change(self.name, "wait", seen.cause)]
        if seen.state is State.BROKEN and seen.facts.get("instance_status") not in _FAILED:
            return [Change(self.name, "none", "nothing: it is left to a person", seen.cause)]
        report = run_preflight(self._settings, self._cloud)
        verb = "recreate" if seen.state is State.BROKEN else "create"
        what = (
            f"service instance {self._settings.name} in {report.zone_id or self._settings.alibaba.region_id}"
        )
        refused = "".join(f"; refused: {check.message}" for check in report.refusals)
        return [Change(self.name, verb, f"{what} ({price_text(report)})", f"{seen.cause}{refused}")]

    def _plan_ready(self, seen: Observation) -> list[Change]:
        differs = seen.facts.get("differs", "")
        why = f"it differs from the settings: {differs}; only `raynest down`, then `up`, changes it"
        ready = f"service instance {seen.facts['instance_id']} is ready"
        also = [Change(self.name, "none", seen.cause, "nobody needs it")] if seen.cause else []
        return [Change(self.name, "none", ready, why if differs else ""), *also]

    def ensure(self, deadline: Deadline, on_step: OnStep = silent, *, may_buy: bool = True) -> Observation:
        """See `Link`. Without `may_buy` it adopts and waits, but raises RefusedError instead of buying."""
        seen = self._judge(self.find())
        if seen.state is State.READY:
            on_step(Step(self.name, REUSED))
            return seen
        if seen.state is State.BROKEN:
            seen = self._clear_broken(seen, deadline, on_step, may_buy=may_buy)
        if seen.state is State.PENDING and seen.facts.get("instance_status") == STATUS_DELETING:
            _refuse_purchase(may_buy, "the service instance is being deleted")
            self._wait_gone(str(seen.facts["instance_id"]), deadline, on_step)
            seen = Observation(self.name, State.MISSING)
        if seen.state is State.MISSING:
            self._create(deadline, on_step, may_buy=may_buy)
        return self._wait_ready(deadline, on_step)

    def _clear_broken(
        self, seen: Observation, deadline: Deadline, on_step: OnStep, *, may_buy: bool
    ) -> Observation:
        """A deployment that failed earlier is deleted, since it costs and cannot be mended; then anew."""
        if seen.facts.get("instance_status") not in _FAILED:
            raise _left_to_a_person(seen)
        _refuse_purchase(may_buy, seen.cause)
        on_step(Step(self.name, f"deleting the failed service instance: {seen.cause}"))
        self._delete(self._ours_or_recorded(deadline), deadline, on_step)
        return Observation(self.name, State.MISSING)

    def _create(self, deadline: Deadline, on_step: OnStep, *, may_buy: bool) -> None:
        intent = self._journal.read(KEY)
        if intent is not None and intent.remote_id:
            if self._is_there(intent.remote_id, deadline):
                return
            self._refuse_other_account()
            _refuse_purchase(may_buy, f"{intent.remote_id} is gone")
            # It was bought and has been deleted behind our back: a new purchase needs a new token.
            self._journal.end(KEY)
        elif intent is not None and not may_buy and self._settle(deadline):
            return
        _refuse_purchase(may_buy, "there is none")
        self._purchase.buy(lambda: self._settle(deadline), on_step)

    def _is_there(self, instance_id: str, deadline: Deadline) -> bool:
        def probe() -> Done[None] | Waiting:
            seen = self._cloud.instances.get_instance(instance_id)
            return Waiting(f"{instance_id} is not known (yet)") if seen is None else Done(None)

        return _comes_true(probe, deadline.at_most(_LAG_SECONDS))

    def _refuse_other_account(self) -> None:
        """Before what is on record counts as gone: it may be another account's."""
        intent = self._journal.read(KEY)
        if intent is not None and intent.account:
            account = self._cloud.identity.caller().account_id
            intent.refuse_elsewhere(region=self._settings.alibaba.region_id, account=account)

    def _wait_ready(self, deadline: Deadline, on_step: OnStep) -> Observation:
        def probe() -> Done[Observation] | Waiting:
            seen = self._judge(self.find())
            if seen.state is State.READY:
                return Done(seen)
            status = seen.facts.get("instance_status")
            if seen.state is State.BROKEN and status in _FAILED:
                raise NotReadyError(
                    f"The deployment of {self._settings.name} failed.",
                    why=seen.cause,
                    fix="Correct the cause and run the same command again: it deletes the failed instance "
                    "first. `raynest down` removes it for good.",
                )
            if status in _STOPPED:
                raise _left_to_a_person(seen)
            return Waiting(seen.cause or "the service instance is not listed yet", _percent(seen.cause))

        return wait_for(
            probe,
            what=f"The service instance {self._settings.name}",
            deadline=deadline,
            backoff=_POLL,
            on_progress=lambda w: on_step(Step(self.name, w.cause, w.fraction)),
        )

    # -- remove ----------------------------------------------------------------------------------

    def remove(self, deadline: Deadline, on_step: OnStep = silent) -> list[Change]:
        """See `Link`. Actions `left` and `keep` name what the deletion does not take along."""
        instances = self._ours_or_recorded(deadline)
        survivors = [change for instance in instances for change in self._instances.survivors(instance)]
        return [*self._delete(instances, deadline, on_step), *survivors]

    def _delete(self, instances: list[ServiceInstance], deadline: Deadline, on_step: OnStep) -> list[Change]:
        changes = []
        for instance in instances:
            if instance.status != STATUS_DELETING:
                on_step(Step(self.name, f"deleting service instance {instance.id}"))
                # A new token each time: an old one would be answered with a deletion that has failed.
                self._cloud.instances.delete_instance(instance.id, f"raynest-delete-{uuid.uuid4()}")
            self._wait_gone(instance.id, deadline, on_step, status_before=instance.status)
            changes.append(Change(self.name, "delete", f"service instance {instance.id}"))
        self._journal.end(KEY)
        return changes

    def _ours_or_recorded(self, deadline: Deadline) -> list[ServiceInstance]:
        """Ours by tag or by record; also what a lost answer to a purchase may have left."""
        intent = self._journal.read(KEY)
        if intent is not None and not intent.remote_id and not self._settle(deadline):
            self._refuse_other_account()
        ours = self._instances.ours()
        intent = self._journal.read(KEY)
        if intent and intent.remote_id and all(i.id != intent.remote_id for i in ours):
            recorded = self._cloud.instances.get_instance(intent.remote_id)
            if recorded is None:
                self._refuse_other_account()
            else:
                ours.append(recorded)
        return ours

    def _settle(self, deadline: Deadline) -> bool:
        """Whether an interrupted purchase took place is seen by its name and tag, which may take a moment.

        One that is still on its way after a minute could appear later; the audit at the end of a teardown
        looks once more.
        """

        def probe() -> Done[None] | Waiting:
            ours = self._instances.ours()
            if not ours:
                return Waiting("no purchase is listed (yet)")
            self._journal.record(KEY, ours[0].id)
            return Done(None)

        return _comes_true(probe, deadline.at_most(_LISTING_SECONDS))

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
        intent = self._journal.read(KEY)
        if intent is not None and intent.remote_id in ("", instance_id):
            self._journal.end(KEY)


def _comes_true(probe: Callable[[], Done[None] | Waiting], deadline: Deadline) -> bool:
    try:
        wait_for(probe, what="The purchase on record", deadline=deadline, backoff=_POLL)
    except NotReadyError:
        return False
    return True


def _refuse_purchase(may_buy: bool, why: str) -> None:
    if not may_buy:
        raise RefusedError(
            "A repair does not buy a cluster.",
            why=why,
            fix="Run `raynest up`, or set health.buy_cluster: true to let repairs buy one.",
        )


def _left_to_a_person(seen: Observation) -> NotReadyError:
    status = seen.facts.get("instance_status", "unknown")
    return NotReadyError(
        f"The service instance is {str(status).lower()}, but not usable: {seen.cause}.",
        fix="Look at it in the console (the `console` link in its facts); `raynest down` removes it.",
    )


def _also_paid(found: Found) -> str:
    ids = ", ".join(other.id for other in found.others)
    return (
        f"also paid: {ids} (another instance of this name and tag; `raynest down` deletes all)" if ids else ""
    )


def _percent(cause: str) -> float | None:
    match = re.search(r"(\d+)%", cause)
    return int(match.group(1)) / 100 if match else None
