"""The decision what to do about a tick: every branch, and what must hold whatever happens."""

from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from raynest_pipeline.chain.link import Observation, State
from raynest_pipeline.chain.repair import Decision, History, Policy, decide

LINKS = ("cluster", "public_ip", "kubeconfig", "ray_service")
NOW = 1_000_000.0
POLICY = Policy(bad_ticks=2, cooldown_seconds=300, max_attempts=3, pending_seconds=3600, settle_seconds=600)


def seen(*states: State) -> list[Observation]:
    """Observations of the whole chain; links not given are ready."""
    filled = [*states, *[State.READY] * (len(LINKS) - len(states))]
    return [Observation(link, state, "why") for link, state in zip(LINKS, filled, strict=True)]


def service(state: State) -> list[Observation]:
    return seen(State.READY, State.READY, State.READY, state)


def at(observations: list[Observation], history: History | None = None, **more: Any) -> Decision:
    arguments: dict[str, Any] = {
        "now": NOW,
        "wanted": True,
        "run_in_flight": False,
        "policy": POLICY,
        **more,
    }
    return decide(observations, history or History(), **arguments)


BAD_ONCE = History(incident="1", bad=1)


class TestTable:
    def test_all_ready_is_healthy_and_ends_the_incident_in_time(self) -> None:
        repaired = History(incident="1", bad=1, attempt=2, attempted_at=NOW)
        first = at(seen(), repaired)
        assert (first.verdict, first.link) == ("healthy", "")
        assert first.history == replace(repaired, bad=0, ready_since=NOW)
        assert at(seen(), first.history, now=NOW + 599).history == first.history
        assert at(seen(), first.history, now=NOW + 600).history == History()

    def test_what_dies_again_soon_is_the_same_incident(self) -> None:
        repaired = History(incident="1", attempt=3, attempted_at=NOW - 10_000)
        good = at(seen(), repaired)
        bad = at(service(State.BROKEN), good.history, now=NOW + 30)
        again = at(service(State.BROKEN), bad.history, now=NOW + 60)
        assert again.verdict == "gave_up", "three redeploys did not help; a moment of health changes nothing"
        assert bad.history.ready_since == 0.0, "its good time begins anew"

    def test_a_healthy_chain_has_no_history(self) -> None:
        assert at(seen(), History()).history == History()

    def test_no_links_at_all_is_healthy(self) -> None:
        assert at([]).verdict == "healthy"

    def test_the_first_bad_tick_is_suspect(self) -> None:
        decision = at(service(State.BROKEN))
        assert (decision.verdict, decision.link) == ("suspect", "ray_service")
        assert decision.history == History(incident=str(int(NOW)), bad=1)
        assert "1 of 2" in decision.reason and "why" in decision.reason

    def test_the_second_is_repaired(self) -> None:
        decision = at(service(State.BROKEN), BAD_ONCE)
        assert decision.verdict == "repair"
        assert decision.history == replace(BAD_ONCE, bad=0, attempt=1, attempted_at=NOW)
        assert decision.run_key == "redeploy:1:1"

    def test_one_bad_tick_is_enough_where_the_policy_says_so(self) -> None:
        assert at(service(State.BROKEN), policy=replace(POLICY, bad_ticks=1)).verdict == "repair"

    def test_missing_is_repaired_as_broken_is(self) -> None:
        assert at(service(State.MISSING), BAD_ONCE).verdict == "repair"

    def test_the_first_link_that_is_not_ready_is_named(self) -> None:
        decision = at(seen(State.READY, State.MISSING, State.BROKEN, State.MISSING), BAD_ONCE)
        assert decision.link == "public_ip"

    @pytest.mark.parametrize("history", [History(), BAD_ONCE])
    def test_unknown_is_not_broken_and_ends_the_row(self, history: History) -> None:
        decision = at(service(State.UNKNOWN), history)
        assert (decision.verdict, decision.history) == ("unknown", replace(history, bad=0))

    def test_a_run_at_work_is_waited_for(self) -> None:
        decision = at(service(State.BROKEN), BAD_ONCE, run_in_flight=True)
        assert (decision.verdict, decision.history) == ("waiting", replace(BAD_ONCE, bad=0))
        assert "a run is at work" in decision.reason

    def test_what_nobody_wants_is_left_alone_and_forgotten(self) -> None:
        decision = at(service(State.BROKEN), BAD_ONCE, wanted=False)
        assert (decision.verdict, decision.history) == ("idle", History())

    @pytest.mark.parametrize("state", [State.MISSING, State.BROKEN])
    def test_a_vanished_or_failed_cluster_is_not_bought_again(self, state: State) -> None:
        decision = at(seen(state, State.MISSING, State.MISSING, State.MISSING), BAD_ONCE)
        assert decision.verdict == "gave_up"
        assert "health.buy_cluster" in decision.reason

    def test_unless_the_policy_allows_it(self) -> None:
        policy = replace(POLICY, buy_cluster=True)
        assert at(seen(State.MISSING), BAD_ONCE, policy=policy).verdict == "repair"
        assert at(seen(State.BROKEN), BAD_ONCE, policy=policy).verdict == "repair"

    def test_pending_gets_its_time(self) -> None:
        first = at(service(State.PENDING))
        assert (first.verdict, first.history.pending_since) == ("waiting", NOW)
        later = at(service(State.PENDING), first.history, now=NOW + 3599)
        assert (later.verdict, later.history) == ("waiting", first.history)

    def test_pending_for_too_long_counts_as_bad(self) -> None:
        history = History(pending="ray_service", pending_since=NOW - 3600)
        first = at(service(State.PENDING), history)
        assert first.verdict == "suspect"
        assert "for 3600 s" in first.reason
        second = at(service(State.PENDING), first.history, now=NOW + 30)
        assert second.verdict == "repair"
        assert second.history.pending_since == 0.0, "the redeployed one gets its own time"

    def test_a_pending_that_broke_does_not_count_from_the_earlier_pending(self) -> None:
        waited = History(pending="ray_service", pending_since=NOW - 5000)
        broken = at(service(State.BROKEN), waited)
        pending = at(service(State.PENDING), broken.history, now=NOW + 30)
        assert pending.verdict == "waiting", "it is on its way again: its time begins anew"

    def test_each_link_has_its_own_time_to_be_pending(self) -> None:
        waited = History(pending="public_ip", pending_since=NOW - 5000)
        assert at(service(State.PENDING), waited).verdict == "waiting"

    @pytest.mark.parametrize("between", [State.PENDING, State.UNKNOWN, State.READY])
    def test_bad_ticks_count_only_in_a_row(self, between: State) -> None:
        other = at(service(between), BAD_ONCE)
        assert at(service(State.BROKEN), other.history, now=NOW + 30).verdict == "suspect"

    def test_the_cool_down_is_kept(self) -> None:
        history = History(incident="1", bad=1, attempt=1, attempted_at=NOW - 299)
        waiting = at(service(State.BROKEN), history)
        assert waiting.verdict == "waiting" and "cooling down" in waiting.reason
        assert at(service(State.BROKEN), waiting.history, now=NOW + 1).verdict == "repair"

    def test_after_the_attempts_it_is_a_persons_turn(self) -> None:
        history = History(incident="1", bad=1, attempt=3, attempted_at=NOW - 10_000)
        decision = at(service(State.BROKEN), history)
        assert decision.verdict == "gave_up" and "3 redeploys did not help" in decision.reason
        assert at(service(State.BROKEN), decision.history, now=NOW + 10_000).verdict == "gave_up"

    def test_a_new_incident_has_another_run_key(self) -> None:
        first = at(service(State.BROKEN), BAD_ONCE)
        healed = at(seen(), at(seen(), first.history).history, now=NOW + 600)
        again = at(service(State.BROKEN), healed.history, now=NOW + 660)
        second = at(service(State.BROKEN), again.history, now=NOW + 690)
        assert second.verdict == "repair" and second.run_key != first.run_key

    def test_a_link_without_a_cause_still_reads_well(self) -> None:
        bare = [Observation("ray_service", State.BROKEN)]
        assert at(bare).reason.startswith("ray_service is broken (")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
KEYS = st.sampled_from([*asdict(History()), "v", "more"])


class TestHistory:
    @given(data=JSON | st.dictionaries(KEYS, JSON))
    def test_anything_loads(self, data: object) -> None:
        history = History.load(data)
        for name, value in asdict(History()).items():
            assert type(getattr(history, name)) is type(value)
        assert at(service(State.BROKEN), history).verdict in ("suspect", "repair", "waiting", "gave_up")

    @given(
        history=st.builds(
            History,
            incident=st.text(max_size=12),
            bad=st.integers(0, 9),
            pending=st.sampled_from(["", *LINKS]),
            pending_since=st.floats(0, 1e12),
            ready_since=st.floats(0, 1e12),
            attempt=st.integers(0, 9),
            attempted_at=st.floats(0, 1e12),
        )
    )
    def test_what_was_dumped_loads_again(self, history: History) -> None:
        import json

        assert History.load(json.loads(json.dumps(history.dump()))) == history

    def test_another_version_is_a_fresh_start(self) -> None:
        assert History.load({**BAD_ONCE.dump(), "v": 99}) == History()

    def test_one_bad_field_does_not_spoil_the_others(self) -> None:
        assert History.load({**BAD_ONCE.dump(), "bad": "two"}) == replace(BAD_ONCE, bad=0)


class Ticks(RuleBasedStateMachine):
    """Any sequence of ticks: what must hold for each and for all of them together."""

    @initialize(
        bad_ticks=st.integers(1, 3),
        attempts=st.integers(1, 3),
        cooldown=st.sampled_from([0, 60, 300]),
        buy=st.booleans(),
    )
    def begin(self, bad_ticks: int, attempts: int, cooldown: int, buy: bool) -> None:
        self.policy = Policy(bad_ticks, cooldown, attempts, pending_seconds=120, buy_cluster=buy)
        self.history = History()
        self.now = NOW
        self.repairs: list[tuple[str, str, float]] = []

    @rule(
        states=st.lists(st.sampled_from(State), min_size=4, max_size=4)
        | st.sampled_from([[State.READY] * 3 + [State.BROKEN]]),
        seconds=st.integers(10, 200),
        wanted=st.sampled_from([True, True, True, False]),
        flight=st.sampled_from([False, False, False, True]),
    )
    def tick(self, states: list[State], seconds: int, wanted: bool, flight: bool) -> None:
        self.now += seconds
        observations = seen(*states)
        first = next((o for o in observations if not o.ready), None)
        decision = at(
            observations, self.history, now=self.now, wanted=wanted, run_in_flight=flight, policy=self.policy
        )
        # Through the cursor and back, as the sensor does it.
        self.history = History.load(decision.history.dump())
        assert self.history == decision.history
        if decision.verdict != "repair":
            return
        assert first is not None and decision.link == first.link
        assert wanted and not flight
        assert first.state is not State.UNKNOWN
        assert first.link != "cluster" or first.state is State.PENDING or self.policy.buy_cluster
        self.repairs.append((decision.history.incident, decision.run_key, self.now))

    @invariant()
    def run_keys_are_never_used_twice(self) -> None:
        keys = [key for _, key, _ in getattr(self, "repairs", [])]
        assert len(keys) == len(set(keys))

    @invariant()
    def an_incident_is_repaired_only_so_often_and_not_too_soon(self) -> None:
        times: dict[str, list[float]] = {}
        for incident, _, when in getattr(self, "repairs", []):
            times.setdefault(incident, []).append(when)
        for whens in times.values():
            assert len(whens) <= self.policy.max_attempts
            gaps = [later - earlier for earlier, later in zip(whens, whens[1:], strict=False)]
            assert all(gap >= self.policy.cooldown_seconds for gap in gaps)


TestTicks = Ticks.TestCase
TestTicks.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
