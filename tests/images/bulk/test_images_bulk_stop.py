"""The engine `ray` against a scripted cluster: stopped and interrupted from here, or stopped by others."""

import sys
import weakref
from typing import Any

import pytest
from images_bulk_run import Script, run


def test_should_stop_stops_the_job_and_tells_what_there_is(ray_dashboard: Any, script: Script) -> None:
    clock = script(lambda: ray_dashboard.last.progress(3, reused=2))
    asked: list[int] = []
    result = run(ray_dashboard, clock, should_stop=lambda: bool(asked.append(1)) or len(asked) > 1)
    assert result.stopped
    assert (result.made, result.reused) == (3, 2)
    assert (ray_dashboard.last.status, ray_dashboard.last.stops) == ("STOPPED", 1)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interruption_stops_the_job_and_goes_through(
    ray_dashboard: Any, script: Script, interruption: type[BaseException]
) -> None:
    def interrupts() -> None:
        raise interruption

    with pytest.raises(interruption):
        run(ray_dashboard, script(lambda: ray_dashboard.last.progress(3), interrupts))
    assert ray_dashboard.last.status == "STOPPED"


def test_an_interruption_while_the_cluster_is_away_still_goes_through(
    ray_dashboard: Any, script: Script
) -> None:
    def interrupts() -> None:
        ray_dashboard.refuse = 503
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(ray_dashboard, script(interrupts))


def test_an_interruption_in_the_middle_of_the_submission_stops_what_was_sent(
    ray_dashboard: Any, script: Script
) -> None:
    """Its answer was lost; while we pause to ask again, the user gives up."""
    ray_dashboard.lose_answers = 1

    def interrupts() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(ray_dashboard, script(interrupts))
    assert ray_dashboard.last.status == "STOPPED"


def test_an_interruption_that_python_ignores_still_stops_the_job(ray_dashboard: Any, script: Script) -> None:
    """As seen in the e2e test: the signal came while a weak reference of somebody else's was called back."""

    class Referred:
        pass

    def interrupts(ref: object) -> None:
        raise KeyboardInterrupt

    def collected() -> None:
        referred = Referred()
        ref = weakref.ref(referred, interrupts)
        del referred
        assert ref() is None

    before = sys.unraisablehook
    with pytest.raises(KeyboardInterrupt):
        run(ray_dashboard, script(lambda: ray_dashboard.last.progress(3), collected))
    assert ray_dashboard.last.status == "STOPPED"
    assert sys.unraisablehook is before


def test_a_mere_error_that_python_ignores_is_shown_as_ever(
    ray_dashboard: Any, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: shown.append(unraisable.exc_value))

    class Clumsy:
        def __del__(self) -> None:
            raise ValueError("in __del__")

    def collected() -> None:
        Clumsy()
        ray_dashboard.last.result(3)

    assert run(ray_dashboard, script(collected)).made == 3
    assert [str(error) for error in shown] == ["in __del__"]


def test_a_lost_request_to_stop_is_sent_again(ray_dashboard: Any, script: Script) -> None:
    def interrupts() -> None:
        ray_dashboard.refuse = 503
        raise KeyboardInterrupt

    def back() -> None:
        ray_dashboard.refuse = None

    with pytest.raises(KeyboardInterrupt):
        run(ray_dashboard, script(interrupts, back))
    assert ray_dashboard.last.status == "STOPPED"


def test_a_job_that_could_not_be_stopped_is_told(ray_dashboard: Any, script: Script) -> None:
    lines: list[str] = []

    def interrupts() -> None:
        ray_dashboard.refuse = 503
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(ray_dashboard, script(interrupts), on_log=lines.append)
    (line,) = lines
    assert f"{ray_dashboard.last.id} may go on" in line
    assert "Stop it on the Ray dashboard" in line


def test_a_job_that_somebody_else_stopped_ends_the_run_as_stopped(ray_dashboard: Any, script: Script) -> None:
    clock = script(
        lambda: ray_dashboard.last.progress(5), lambda: ray_dashboard.last.end("STOPPED", "by hand")
    )
    result = run(ray_dashboard, clock)
    assert (result.stopped, result.made) == (True, 5)
    assert ray_dashboard.submissions == 1
