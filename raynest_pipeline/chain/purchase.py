"""Buying the service instance so that no crash, lost answer or changed setting buys it twice."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from raynest_pipeline.alibaba.cloud import Cloud
from raynest_pipeline.alibaba.errors import CloudError
from raynest_pipeline.alibaba.password import generate_password
from raynest_pipeline.chain.instances import KEY
from raynest_pipeline.chain.journal import Intent, Journal
from raynest_pipeline.chain.link import OnStep, Step
from raynest_pipeline.chain.parameters import PASSWORD, owner_tags, template_parameters
from raynest_pipeline.chain.preflight import Report, describe_price, run_preflight
from raynest_pipeline.errors import RemoteError, Verdict
from raynest_pipeline.settings import Settings

_SOLD_BEFORE = ("IdempotentParameterMismatch", "TokenVerfiy.Failed")
"""Codes that say: this token was used before, with other arguments (facts, section 9)."""


def was_sold_before(error: RemoteError) -> bool:
    """Whether the error proves that the token has bought something already."""
    return error.code.startswith(_SOLD_BEFORE)


def nothing_was_sold(error: RemoteError, *, fresh: bool) -> bool:
    """Whether the error proves that its token has bought nothing, so that it can be forgotten.

    Args:
        error: What the purchase raised.
        fresh: Whether the token was drawn for this very call. An older one may have bought already, and
            this call was refused before anybody looked at the token (e.g. for expired credentials).
    """
    if not fresh or error.verdict is not Verdict.PERMANENT or was_sold_before(error):
        return False
    return not (isinstance(error, CloudError) and (error.access or error.doubtful))


class ClusterPurchase:
    """Buys the cluster that the settings describe, with the journal."""

    def __init__(self, settings: Settings, cloud: Cloud, journal: Journal) -> None:
        self._settings = settings
        self._cloud = cloud
        self._journal = journal

    def buy(self, is_listed: Callable[[], bool], on_step: OnStep) -> None:
        """Buy it, or learn what the interrupted purchase on record has bought.

        Settings that have changed since are sent with the old token all the same: if that has bought
        nothing, the new ones are bought; if it has, the cloud says so, and the first is waited for.

        Args:
            is_listed: Waits a moment for the interrupted purchase to be listed, and says whether it is.
            on_step: Hears of progress.

        Raises:
            RefusedError: The preflight says no, or the interrupted purchase was made elsewhere.
            CloudError: It was not sold, or nobody knows; the next call goes on from here.
        """
        earlier = self._journal.read(KEY)
        report = run_preflight(self._settings, self._cloud)
        account = report.caller.account_id if report.caller else ""
        region = self._settings.alibaba.region_id
        if earlier is not None:
            earlier.refuse_elsewhere(region=region, account=account)
            if report.refusals and is_listed():
                # What is refused now (sold out, say) may be the very thing that it got.
                return
        report.raise_if_refused()
        order = self._order(report, earlier)
        if earlier is None:
            password = generate_password()
            intent = self._journal.begin(KEY, region=region, account=account, secret=password, order=order)
        else:
            intent = earlier if earlier.order == order else self._journal.amend(KEY, order)
        on_step(Step(KEY, f"buying the cluster: {price_text(report)}"))
        self._send(report, intent, on_step, fresh=earlier is None)

    def _order(self, report: Report, earlier: Intent | None) -> dict[str, Any]:
        """What to ask for. What the settings leave open stays as it was asked for the first time."""
        assert report.service is not None
        asked: Mapping[str, Any] = earlier.order if earlier else {}
        before: Mapping[str, Any] = asked.get("parameters") or {}
        alibaba = self._settings.alibaba
        zone_id = alibaba.zone_id or before.get("ZoneId") or report.zone_id
        parameters = template_parameters(alibaba, zone_id=zone_id, password="")
        kept = alibaba.service_version is None and asked.get("service_id") == report.service.service_id
        order = {
            "service_id": report.service.service_id,
            "version": asked["version"] if kept else report.service.version,
            "parameters": {key: value for key, value in parameters.items() if key != PASSWORD},
        }
        # As it comes back from the journal, so that the two can be compared.
        normal: dict[str, Any] = json.loads(json.dumps(order, default=str))
        return normal

    def _send(self, report: Report, intent: Intent, on_step: OnStep, *, fresh: bool) -> None:
        assert report.service is not None
        order = intent.order
        password = {PASSWORD: intent.secret} if order["parameters"]["CsOptions"] == "NewAck" else {}
        try:
            instance_id = self._cloud.instances.create_instance(
                self._settings.name,
                replace(report.service, service_id=order["service_id"], version=order["version"]),
                {**order["parameters"], **password},
                owner_tags(self._settings.name),
                intent.token,
            )
        except RemoteError as error:
            if was_sold_before(error):
                on_step(Step(KEY, "it was bought already, with other settings; waiting for it to be listed"))
                return
            if nothing_was_sold(error, fresh=fresh):
                self._journal.end(KEY)
            elif error.verdict is Verdict.PERMANENT and not (isinstance(error, CloudError) and error.access):
                # The token stays, but not the zone and version that were refused.
                self._journal.amend(KEY, {})
            raise
        self._journal.record(KEY, instance_id)
        on_step(Step(KEY, f"service instance {instance_id} is being deployed (about 10 minutes)"))


def price_text(report: Report) -> str:
    """The price of a report, in words."""
    return describe_price(report.price) if report.price else "price unknown"
