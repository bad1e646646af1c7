"""The links as assets: to materialize one is to `ensure` it."""

import time
from collections.abc import Mapping

import dagster as dg

from raynest_pipeline.chain.chain import Chain
from raynest_pipeline.chain.link import REUSED, Fact, Observation, State, Step
from raynest_pipeline.chain.preflight import Report
from raynest_pipeline.dagster_home import pid_tag
from raynest_pipeline.defs.failures import as_failure
from raynest_pipeline.defs.metadata import metadata_of, observation_metadata
from raynest_pipeline.defs.progress import log_steps, tell
from raynest_pipeline.defs.resources import RaynestResource
from raynest_pipeline.errors import RemoteError

GROUP = "chain"
OWNERS = ["team:ml-platform"]
HEALTHY = "healthy"
"""The check on every link; the cluster_health sensor keeps it true."""
EGRESS = "worker_egress"
INCIDENT_TAG = "raynest/incident"
"""On runs that the sensor asked for: they repair what is wanted, and buy only what the settings allow."""


def _healthy_spec(asset: str) -> dg.AssetCheckSpec:
    return dg.AssetCheckSpec(
        HEALTHY,
        asset=asset,
        description="What the link itself says when it is looked at: on every materialization, and every "
        "tick of the cluster_health sensor.",
    )


@dg.asset(
    group_name=GROUP,
    kinds={"alibabacloud"},
    owners=OWNERS,
    description="Before anything is bought: identity, permissions, activation, machine spec, stock, and the "
    "price per hour against the cap. Reads only; refuses with the reason and what to do.",
)
def preflight(context: dg.AssetExecutionContext, raynest: RaynestResource) -> dg.MaterializeResult:  # type: ignore[type-arg]
    started = time.monotonic()
    with as_failure():
        chain = _opened(context, raynest)
        facts = _preflight_facts(context, chain)
    seconds = round(time.monotonic() - started, 3)
    tell(Observation("preflight", State.READY, facts={"seconds": seconds}))
    return dg.MaterializeResult(metadata=metadata_of(facts) | {"seconds": seconds})


def _preflight_facts(context: dg.AssetExecutionContext, chain: Chain) -> dict[str, Fact]:
    """The report as facts; refuses unless there is nothing to buy."""
    bought = chain.link("cluster").observe().ready
    try:
        report = chain.preflight()
    except RemoteError as error:
        if not bought:
            raise
        # What is up needs no answer to be kept.
        return {"note": f"the cluster is up; not asked again: {error.what}"}
    assert report is not None, "this profile has no preflight asset"
    for check in report.checks:
        context.log.info(f"{check.name}: {check.outcome}: {check.message}")
    if not bought:
        report.raise_if_refused()
    facts: dict[str, Fact] = {check.name: f"{check.outcome}: {check.message}" for check in report.checks}
    return {**facts, "zone_id": report.zone_id, **price_facts(report)}


def _opened(context: dg.AssetExecutionContext, raynest: RaynestResource) -> Chain:
    """The chain for this run, which is marked with its process so that its death is noticed."""
    context.instance.add_run_tags(context.run.run_id, pid_tag())
    # The sensor has started the sandbox if anybody wants it; a repair that comes late must not.
    return raynest.chain(start_sandbox=not _is_repair(context))


def _is_repair(context: dg.AssetExecutionContext) -> bool:
    return INCIDENT_TAG in context.run.tags


def price_facts(report: Report) -> dict[str, Fact]:
    """The price as it plots."""
    if report.price is None:
        return {"price": "unknown"}
    return {
        "price_per_hour": report.price.amount,
        "price_currency": report.price.currency,
        "price_is_lower_bound": report.price.lower_bound,
    }


@dg.asset(
    deps=[preflight],
    group_name=GROUP,
    kinds={"alibabacloud", "kubernetes"},
    owners=OWNERS,
    check_specs=[_healthy_spec("cluster")],
    description="The Compute Nest service instance (Ray community edition): an ACK Kubernetes cluster with "
    "KubeRay. Buys one only if there is none, under the price cap.",
)
def cluster(context: dg.AssetExecutionContext, raynest: RaynestResource) -> dg.MaterializeResult:  # type: ignore[type-arg]
    with as_failure():
        chain = _opened(context, raynest)
        price = _price_now(chain)
    return _ensure(context, chain, "cluster", price)


def _price_now(chain: Chain) -> dict[str, Fact]:
    """What it costs per hour, for the record; a cluster that is up needs no answer to be kept."""
    try:
        report = chain.preflight()
    except RemoteError:
        return {"price": "unknown"}
    return price_facts(report) if report else {}


@dg.asset(
    deps=[cluster],
    group_name=GROUP,
    kinds={"alibabacloud"},
    owners=OWNERS,
    check_specs=[
        _healthy_spec("public_ip"),
        dg.AssetCheckSpec(
            EGRESS,
            asset="public_ip",
            description="Whether the workers reach the internet (NAT and SNAT): images and models are pulled "
            "through it. The API server's address is inbound only.",
        ),
    ],
    description="The public address (EIP) of the cluster's API server: allocated and bound, or adopted.",
)
def public_ip(context: dg.AssetExecutionContext, raynest: RaynestResource) -> dg.MaterializeResult:  # type: ignore[type-arg]
    with as_failure():
        chain = _opened(context, raynest)
    result = _ensure(context, chain, "public_ip")
    return result._replace(
        check_results=[*(result.check_results or []), egress_result(result.metadata or {})]
    )


def egress_result(metadata: Mapping[str, object]) -> dg.AssetCheckResult:
    """The check on the workers' way out, from the link's own facts. "unknown" passes with a warning."""
    value = metadata.get("worker_egress")
    text = str(value.value) if isinstance(value, dg.TextMetadataValue) else str(value or "unknown")
    return dg.AssetCheckResult(
        check_name=EGRESS,
        passed=not text.startswith("no"),
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"worker_egress": text},
    )


@dg.asset(
    deps=[public_ip],
    group_name=GROUP,
    kinds={"kubernetes"},
    owners=OWNERS,
    check_specs=[_healthy_spec("kubeconfig")],
    description="A temporary credential for the cluster in a private file, verified by a call, renewed "
    "before it expires. Its text never leaves the file.",
)
def kubeconfig(context: dg.AssetExecutionContext, raynest: RaynestResource) -> dg.MaterializeResult:  # type: ignore[type-arg]
    with as_failure():
        chain = _opened(context, raynest)
    return _ensure(context, chain, "kubeconfig")


def ray_service_asset(deps: list[dg.AssetsDefinition]) -> dg.AssetsDefinition:
    """The `ray_service` asset; in profile `kubeconfig` it depends on nothing."""

    @dg.asset(
        name="ray_service",
        deps=deps,
        group_name=GROUP,
        kinds={"ray", "kubernetes"},
        owners=OWNERS,
        check_specs=[_healthy_spec("ray_service")],
        description="The KubeRay RayService: Stable Diffusion on Ray Serve. Ready when its conditions, its "
        "applications, its routes and one real small image say so.",
    )
    def ray_service(context: dg.AssetExecutionContext, raynest: RaynestResource) -> dg.MaterializeResult:  # type: ignore[type-arg]
        with as_failure():
            chain = _opened(context, raynest)
        return _ensure(context, chain, "ray_service")

    return ray_service


def _ensure(
    context: dg.AssetExecutionContext, chain: Chain, link: str, more: Mapping[str, Fact] | None = None
) -> dg.MaterializeResult:  # type: ignore[type-arg]
    started = time.monotonic()
    told = log_steps(context.log)
    reused = False

    def on_step(step: Step) -> None:
        nonlocal reused
        reused = reused or step.message == REUSED
        told(step)

    with as_failure():
        seen = chain.ensure(link, on_step, repair=_is_repair(context))
    facts: dict[str, Fact] = {"seconds": round(time.monotonic() - started, 3), "reused": reused}
    tell(Observation(seen.link, seen.state, seen.cause, {**seen.facts, **facts}))
    return dg.MaterializeResult(
        metadata=metadata_of({**seen.facts, **(more or {}), **facts}),
        check_results=[
            dg.AssetCheckResult(check_name=HEALTHY, passed=True, metadata=observation_metadata(seen))
        ],
    )
