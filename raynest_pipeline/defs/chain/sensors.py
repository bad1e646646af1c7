"""The health of the chain, every tick: on record as checks, and one redeploy when it is broken."""

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime

import dagster as dg

from raynest_pipeline.chain.chain import Chain
from raynest_pipeline.chain.intent import is_wanted
from raynest_pipeline.chain.link import Observation, State
from raynest_pipeline.chain.repair import Decision, History, Policy, decide
from raynest_pipeline.chain.watch import observe_within
from raynest_pipeline.dagster_home import end_dead_runs
from raynest_pipeline.defs.chain.assets import HEALTHY, INCIDENT_TAG
from raynest_pipeline.defs.chain.jobs import CHANGES_CHAIN, REDEPLOY
from raynest_pipeline.defs.metadata import observation_metadata
from raynest_pipeline.defs.resources import RaynestResource
from raynest_pipeline.errors import RaynestError
from raynest_pipeline.settings import Settings

IN_FLIGHT = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def build_cluster_health_sensor(settings: Settings) -> dg.SensorDefinition:
    """The `cluster_health` sensor for these settings."""

    @dg.sensor(
        name="cluster_health",
        job_name=REDEPLOY,
        minimum_interval_seconds=settings.health.interval_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Looks at every link and the endpoint each tick, keeps the `healthy` checks true, and "
        f"after {settings.health.bad_ticks} bad ticks in a row requests one redeploy from the first broken "
        "link on.",
    )
    def cluster_health(context: dg.SensorEvaluationContext, raynest: RaynestResource) -> dg.SensorResult:
        history = History.load(_json(context.cursor))
        end_dead_runs(context.instance)
        wanted = is_wanted(raynest.settings())
        try:
            # A sandbox that died with the machine comes back with its state, if somebody wants it.
            chain = raynest.chain(start_sandbox=wanted, patience_seconds=settings.health.tick_seconds / 2)
        except RaynestError as error:
            return _unseen(context, history, error)
        observations = observe_within(chain.links, settings.health.tick_seconds)
        return _result(context, chain, observations, history)

    return cluster_health


def _unseen(context: dg.SensorEvaluationContext, history: History, error: RaynestError) -> dg.SensorResult:
    """The chain cannot even be opened: no sandbox, no kubeconfig. Nothing to record, nothing to repair."""
    context.log.info(f"unknown: {error.what}")
    return dg.SensorResult(cursor=json.dumps(history.dump()), skip_reason=f"unknown: {error.what}")


def _result(
    context: dg.SensorEvaluationContext, chain: Chain, observations: Sequence[Observation], history: History
) -> dg.SensorResult:
    health = chain.settings.health
    decision = decide(
        observations,
        history,
        now=time.time(),
        wanted=chain.wanted,
        run_in_flight=_run_in_flight(context.instance),
        policy=Policy(
            bad_ticks=health.bad_ticks,
            cooldown_seconds=health.cooldown_seconds,
            max_attempts=health.max_attempts,
            settle_seconds=health.settle_seconds,
            pending_seconds=chain.settings.deadlines.ray_service,
            buy_cluster=health.buy_cluster,
        ),
    )
    # The UI shows "0 runs requested" for a tick and no word of its events.
    context.log.info(f"{decision.verdict}: {decision.reason}")
    requests = [_request(decision, observations)] if decision.verdict == "repair" else []
    return dg.SensorResult(
        run_requests=requests,
        skip_reason=None if requests else f"{decision.verdict}: {decision.reason}",
        cursor=json.dumps(decision.history.dump()),
        asset_events=evaluations(observations) if chain.wanted else [],
    )


def evaluations(observations: Sequence[Observation]) -> list[dg.AssetCheckEvaluation]:
    """The `healthy` check of each link. What could not be seen, or is on its way, is a warning."""
    at = datetime.now(UTC).isoformat(timespec="seconds")
    return [
        dg.AssetCheckEvaluation(
            asset_key=dg.AssetKey(seen.link),
            check_name=HEALTHY,
            passed=seen.ready,
            severity=_severity(seen.state),
            metadata={**observation_metadata(seen), "seen_at": at},
            description=seen.cause or "ready",
        )
        for seen in observations
    ]


def _severity(state: State) -> dg.AssetCheckSeverity:
    soft = state in (State.UNKNOWN, State.PENDING)
    return dg.AssetCheckSeverity.WARN if soft else dg.AssetCheckSeverity.ERROR


def _request(decision: Decision, observations: Sequence[Observation]) -> dg.RunRequest:
    names = [seen.link for seen in observations]
    rest = names[names.index(decision.link) :]
    return dg.RunRequest(
        run_key=decision.run_key,
        asset_selection=[dg.AssetKey(name) for name in rest],
        tags={
            **CHANGES_CHAIN,
            INCIDENT_TAG: decision.history.incident,
            "raynest/attempt": str(decision.history.attempt),
            "raynest/broken": decision.link,
        },
    )


def _run_in_flight(instance: dg.DagsterInstance) -> bool:
    filters = dg.RunsFilter(statuses=IN_FLIGHT, tags=CHANGES_CHAIN)
    return bool(instance.get_run_ids(filters, limit=1))


def _json(cursor: str | None) -> object:
    try:
        return json.loads(cursor or "null")
    except json.JSONDecodeError:
        return None
