"""What to do about what the sensor saw. Pure: facts, history and the time in, a decision out.

An incident begins with the first bad tick and ends when the chain has been ready for `settle_seconds`: a
service that dies again a minute after each redeploy is one incident, not many. A redeploy is asked for
after `bad_ticks` bad ticks in a row, again after a cool-down while the incident lasts, and no more than
`max_attempts` times: then it is a person's turn. What cannot be seen (`UNKNOWN`) is not broken, and
what is on its way (`PENDING`) gets the time that its own deadline allows. A chain that nobody wants up
(never provisioned, or torn down) is left alone. A cluster that has vanished or failed is not bought again
unless the settings say so: somebody may have deleted it to stop the bill.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from raynest_pipeline.chain.link import Observation, State

CLUSTER = "cluster"

Verdict = Literal["healthy", "idle", "unknown", "suspect", "repair", "waiting", "gave_up"]


@dataclass(frozen=True)
class Policy:
    """See `settings.Health`; durations in seconds."""

    bad_ticks: int = 2
    cooldown_seconds: float = 300
    max_attempts: int = 3
    pending_seconds: float = 3600
    """A link that stays pending longer than this without a run at work on it counts as bad."""
    settle_seconds: float = 1800
    """So long the chain must be ready for an incident to be over."""
    buy_cluster: bool = False
    """Whether a repair may buy a new cluster when there is none, or only a failed one."""


@dataclass(frozen=True)
class History:
    """What the sensor knows from earlier ticks; times are seconds since 1970, 0.0 for never."""

    incident: str = ""
    bad: int = 0
    """Bad ticks in a row, up to the last one."""
    pending: str = ""
    """The link that was pending at the last tick."""
    pending_since: float = 0.0
    attempt: int = 0
    attempted_at: float = 0.0
    ready_since: float = 0.0

    VERSION = 2

    def dump(self) -> dict[str, Any]:
        """JSON-friendly."""
        return {"v": self.VERSION, **asdict(self)}

    @classmethod
    def load(cls, data: object) -> "History":
        """From `dump`'s output; anything else is a fresh history."""
        if not isinstance(data, dict) or data.get("v") != cls.VERSION:
            return cls()
        fresh = cls()
        fields = {
            name: data[name]
            for name, value in asdict(fresh).items()
            if isinstance(data.get(name), type(value))
        }
        return cls(**fields)


@dataclass(frozen=True)
class Decision:
    """What to do now, and the history to keep."""

    verdict: Verdict
    reason: str
    history: History
    link: str = ""
    """The first link that isn't ready."""

    @property
    def run_key(self) -> str:
        """Unique per incident and attempt: Dagster never runs the same key twice."""
        return f"redeploy:{self.history.incident}:{self.history.attempt}"


def decide(
    observations: Sequence[Observation],
    history: History,
    *,
    now: float,
    wanted: bool,
    run_in_flight: bool,
    policy: Policy,
) -> Decision:
    """Judge one tick.

    Args:
        observations: One per link, in chain order.
        history: From the last tick.
        now: Seconds since 1970.
        wanted: Whether the chain was provisioned and not torn down since.
        run_in_flight: Whether a run that changes the chain is queued or running.
        policy: The limits.
    """
    first = next((o for o in observations if not o.ready), None)
    if first is None:
        return Decision("healthy", "every link is ready", _after_good(history, now, policy))
    history = replace(history, ready_since=0.0)
    reason = _words(first)
    calm = replace(history, bad=0)
    if first.state is State.UNKNOWN:
        return Decision("unknown", reason, calm, first.link)
    if run_in_flight:
        return Decision("waiting", f"{reason}; a run is at work on it", calm, first.link)
    if not wanted:
        return Decision(
            "idle", f"{reason}; nobody asked for it (run the provision job)", History(), first.link
        )
    if first.link == CLUSTER and first.state is not State.PENDING and not policy.buy_cluster:
        why = f"{reason}; a repair does not buy a cluster (health.buy_cluster: true would let it)"
        return Decision("gave_up", why, calm, first.link)
    if first.state is State.PENDING:
        since = history.pending_since if history.pending == first.link else now
        history = replace(history, pending=first.link, pending_since=since)
        if now - since < policy.pending_seconds:
            return Decision("waiting", reason, replace(history, bad=0), first.link)
        reason = f"{reason}; for {now - since:.0f} s"
    else:
        history = replace(history, pending="", pending_since=0.0)
    return _incident(first.link, reason, history, now, policy)


def _words(seen: Observation) -> str:
    return f"{seen.link} is {seen.state}" + (f": {seen.cause}" if seen.cause else "")


def _after_good(history: History, now: float, policy: Policy) -> History:
    """A good tick ends a row of bad ones at once, and the incident only in time."""
    since = history.ready_since or now
    if now - since >= policy.settle_seconds or not history.incident:
        return History()
    return replace(history, bad=0, pending="", pending_since=0.0, ready_since=since)


def _incident(link: str, reason: str, history: History, now: float, policy: Policy) -> Decision:
    if not history.incident:
        history = replace(history, incident=f"{int(now)}", attempt=0, attempted_at=0.0)
    history = replace(history, bad=history.bad + 1)
    if history.bad < policy.bad_ticks:
        return Decision("suspect", f"{reason} ({history.bad} of {policy.bad_ticks})", history, link)
    if history.attempt >= policy.max_attempts:
        why = f"{reason}; {history.attempt} redeploys did not help, a person must look"
        return Decision("gave_up", why, history, link)
    if history.attempt and now - history.attempted_at < policy.cooldown_seconds:
        return Decision("waiting", f"{reason}; cooling down after redeploy {history.attempt}", history, link)
    history = replace(
        history, attempt=history.attempt + 1, attempted_at=now, bad=0, pending="", pending_since=0.0
    )
    return Decision("repair", reason, history, link)
