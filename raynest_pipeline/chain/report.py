"""The state of the chain as a document for scripts: `raynest status --json`."""

from datetime import timedelta
from decimal import Decimal

from pydantic import BaseModel, Field

from raynest_pipeline.chain.chain import Chain
from raynest_pipeline.chain.intent import is_wanted
from raynest_pipeline.chain.kubeconfig import kubeconfig_path
from raynest_pipeline.chain.link import Fact, Observation, State
from raynest_pipeline.errors import RaynestError
from raynest_pipeline.settings import Settings

SCHEMA_VERSION = 1


class LinkStatus(BaseModel):
    """One link."""

    name: str = Field(description="cluster, public_ip, kubeconfig or ray_service.")
    state: State = Field(description="missing, pending, ready, broken or unknown.")
    cause: str = Field(description="Why it is not ready, in words; empty when there is nothing to say.")
    facts: dict[str, str | int | float | bool] = Field(description="What is known of it; no secrets.")


class StatusReport(BaseModel):
    """What `raynest status --json` prints."""

    schema_version: int = Field(SCHEMA_VERSION, description="Changes only when a field changes its meaning.")
    profile: str = Field(description="sandbox, alibaba or kubeconfig.")
    name: str = Field(description="The chain's name.")
    wanted: bool = Field(description="Whether it was provisioned and not torn down since.")
    ready: bool = Field(description="Whether every link is ready.")
    links: list[LinkStatus] = Field(description="In chain order.")
    kubeconfig: str = Field(description="Path of the kubeconfig file; it exists once that link is ready.")
    endpoint: str | None = Field(
        description="Base URL of the Serve endpoint; needs the kubeconfig's credentials."
    )
    dashboard: str | None = Field(description="Base URL of the Ray dashboard; needs the same credentials.")


def status_report(chain: Chain, observations: list[Observation]) -> StatusReport:
    """The document for these observations."""
    ready = all(seen.ready for seen in observations)
    return StatusReport(
        profile=chain.settings.profile.value,
        name=chain.settings.name,
        wanted=chain.wanted,
        ready=ready,
        links=[
            LinkStatus(name=seen.link, state=seen.state, cause=seen.cause, facts=plain_facts(seen))
            for seen in observations
        ],
        kubeconfig=str(chain.kubeconfig_path),
        endpoint=_address(chain, "endpoint") if ready else None,
        dashboard=_address(chain, "dashboard") if ready else None,
    )


def absent_report(settings: Settings, cause: str) -> StatusReport:
    """The document of a sandbox that isn't running: nothing is there."""
    names = ("cluster", "public_ip", "kubeconfig", "ray_service")
    return StatusReport(
        profile=settings.profile.value,
        name=settings.name,
        wanted=is_wanted(settings),
        ready=False,
        links=[LinkStatus(name=name, state=State.MISSING, cause=cause, facts={}) for name in names],
        kubeconfig=str(kubeconfig_path(settings)),
        endpoint=None,
        dashboard=None,
    )


def _address(chain: Chain, what: str) -> str | None:
    try:
        with chain.endpoint() if what == "endpoint" else chain.dashboard() as route:
            return route.target.base_url
    except RaynestError:
        # Between the look at the links and this one, it went away.
        return None


def plain_facts(seen: Observation) -> dict[str, str | int | float | bool]:
    """The facts as JSON scalars."""
    return {key: plain(fact) for key, fact in seen.facts.items() if fact is not None}


def plain(fact: Fact) -> str | int | float | bool:
    """A fact as a JSON scalar: durations in seconds, prices as numbers."""
    if isinstance(fact, timedelta):
        return fact.total_seconds()
    if isinstance(fact, Decimal):
        return float(fact)
    if isinstance(fact, tuple):
        return ", ".join(fact)
    return "" if fact is None else fact
