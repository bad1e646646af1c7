"""The engine `ray` against a scripted cluster: sent once, followed, lost, failed."""

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from images_bulk_run import PLAN, Script, run

from raynest_pipeline.errors import AccessError, NotReadyError, RefusedError, StorageError, UnreachableError
from raynest_pipeline.images.bulk.engine import LOCK_SECONDS, MAX_LOST, RayBatch
from raynest_pipeline.images.bulk.follow import OUTAGE_SECONDS
from raynest_pipeline.images.result import Failure, HourlyPrice, Progress


def test_a_job_is_sent_followed_and_its_result_comes_back(ray_dashboard: Any, script: Script) -> None:
    heard: list[Progress] = []
    lines: list[str] = []

    def plays() -> None:
        ray_dashboard.last.print("a library says hello")
        ray_dashboard.last.progress(4, reused=1)

    failure = {"id": "p3", "reason": "the image is blank", "attempts": 4}
    clock = script(plays, lambda: ray_dashboard.last.result(8, reused=1, failures=[failure]))
    result = run(ray_dashboard, clock, on_progress=heard.append, on_log=lines.append)
    assert (result.made, result.reused, result.failed, result.model) == (8, 1, 1, "tiny")
    assert result.failures == (Failure("p3", "the image is blank", 4),)
    assert result.p95_latency_ms == 20.0
    assert [p.made for p in heard] == [0, 4, 8]
    assert (heard[1].reused, heard[1].total) == (1, 10)
    assert lines == ["a library says hello"]


def test_the_request_carries_code_plan_and_owner_and_no_pip(ray_dashboard: Any, script: Script) -> None:
    run(ray_dashboard, script(lambda: ray_dashboard.last.result(1)))
    request = ray_dashboard.last.request
    (package,) = ray_dashboard.packages
    assert request["runtime_env"] == {"working_dir": f"gcs://{package}"}
    assert request["metadata"] == {"raynest_batch": "oss://bucket/out/b1"}
    assert request["entrypoint"].startswith("python -m raynest_pipeline.images.bulk.job ")
    assert ray_dashboard.last.plan["batch_id"] == "b1"
    assert request["submission_id"] == f"raynest-b1-{PLAN.digest}-1"
    assert all(headers["x-token"] == "t" for headers in ray_dashboard.headers)


def test_a_second_run_gets_the_next_id_and_does_not_upload_again(ray_dashboard: Any, script: Script) -> None:
    for made in (1, 0):
        run(ray_dashboard, script(lambda made=made: ray_dashboard.last.result(made)))
    assert list(ray_dashboard.jobs) == [f"raynest-b1-{PLAN.digest}-{n}" for n in (1, 2)]
    assert [call[0] for call in ray_dashboard.calls if "packages" in call[1]] == ["GET", "PUT", "GET"]


def test_a_run_after_a_killed_submitter_attaches_to_the_running_job(
    ray_dashboard: Any, script: Script
) -> None:
    class Killed(Exception):
        """A submitter that is gone without a word: no stop reaches the cluster."""

    def dies() -> None:
        raise Killed

    with pytest.raises(Killed):
        run(ray_dashboard, script(lambda: ray_dashboard.last.progress(3), dies))
    assert ray_dashboard.last.status == "RUNNING"
    result = run(ray_dashboard, script(lambda: ray_dashboard.last.result(10)))
    assert (ray_dashboard.submissions, result.made) == (1, 10)


def test_a_lost_answer_to_the_submission_does_not_start_a_second_job(
    ray_dashboard: Any, script: Script
) -> None:
    ray_dashboard.lose_answers = 1
    result = run(ray_dashboard, script(lambda: None, lambda: ray_dashboard.last.result(2)))
    assert (len(ray_dashboard.jobs), result.made) == (1, 2)


def test_a_running_job_of_the_same_batch_in_another_way_is_not_disturbed(
    ray_dashboard: Any, script: Script
) -> None:
    other = RayBatch(replace(PLAN, mode="actors"))

    def meanwhile() -> None:
        with pytest.raises(RefusedError, match="with other prompts or settings"):
            run(ray_dashboard, script(), other)
        ray_dashboard.last.result(1)

    run(ray_dashboard, script(meanwhile))
    assert ray_dashboard.submissions == 1


def test_another_batch_does_not_stand_in_the_way(ray_dashboard: Any, script: Script) -> None:
    other = RayBatch(replace(PLAN, batch_id="b2"))

    def meanwhile() -> None:
        first = ray_dashboard.last
        run(ray_dashboard, script(lambda: ray_dashboard.last.result(1)), other)
        first.result(1)

    run(ray_dashboard, script(meanwhile))
    assert len(ray_dashboard.jobs) == 2


def test_a_switch_of_the_cluster_sends_the_rest_again(ray_dashboard: Any, script: Script) -> None:
    heard: list[Progress] = []
    clock = script(
        lambda: ray_dashboard.last.progress(6),
        ray_dashboard.replace_cluster,
        lambda: ray_dashboard.last.progress(1, reused=6),
        lambda: ray_dashboard.last.result(4, reused=6),
    )
    result = run(ray_dashboard, clock, on_progress=heard.append)
    assert (result.made, result.reused) == (10, 0), "what the first job made counts as made by this run"
    assert [p.made for p in heard] == [0, 6, 6, 7, 10]
    assert ray_dashboard.submissions == 2
    assert len(ray_dashboard.packages) == 1, "the new cluster got the code, too"
    assert ray_dashboard.last.plan["lock_seconds"] == LOCK_SECONDS, "the old one may still hold the batch"


def test_a_driver_that_dies_in_mid_work_is_sent_again(ray_dashboard: Any, script: Script) -> None:
    def dies() -> None:
        ray_dashboard.last.end("FAILED", "The job driver was killed: out of memory")

    clock = script(
        lambda: ray_dashboard.last.progress(2), dies, lambda: ray_dashboard.last.result(8, reused=2)
    )
    assert run(ray_dashboard, clock).made == 10
    assert len(ray_dashboard.jobs) == 2


def test_a_cluster_that_keeps_losing_the_job_is_given_up(ray_dashboard: Any, script: Script) -> None:
    clock = script(*[ray_dashboard.replace_cluster] * 20)
    with pytest.raises(NotReadyError, match=f"lost the batch's job {MAX_LOST + 1} times"):
        run(ray_dashboard, clock)
    assert ray_dashboard.submissions == MAX_LOST + 1


def test_a_job_that_fails_at_once_says_why_with_the_end_of_its_log(
    ray_dashboard: Any, script: Script
) -> None:
    def fails() -> None:
        ray_dashboard.last.print("Traceback (most recent call last):")
        ray_dashboard.last.print("SyntaxError: this Python is too old")
        log = ray_dashboard.last.log
        ray_dashboard.last.end("FAILED", f"Job entrypoint command failed with exit code 1\n{log}")

    with pytest.raises(NotReadyError) as caught:
        run(ray_dashboard, script(fails))
    assert caught.value.why.splitlines() == [
        "Job entrypoint command failed with exit code 1",
        "Traceback (most recent call last):",
        "SyntaxError: this Python is too old",
    ]
    assert len(ray_dashboard.jobs) == 1, "it would fail again"


def test_a_runtime_environment_that_fails_has_no_log_but_a_message(
    ray_dashboard: Any, script: Script
) -> None:
    message = "runtime_env setup failed: Failed to set up.\nTraceback\nOSError: pip found no such package"
    with pytest.raises(NotReadyError, match="failed") as caught:
        run(ray_dashboard, script(lambda: ray_dashboard.last.end("FAILED", message)))
    assert "pip found no such package" in caught.value.why


def test_an_error_of_the_driver_arrives_as_itself(ray_dashboard: Any, script: Script) -> None:
    def full() -> None:
        words = {"what": "No space left.", "why": "the disk is full", "fix": "Free some."}
        ray_dashboard.last.say("error", error="StorageError", **words)
        ray_dashboard.last.end("FAILED", "exit code 1")

    with pytest.raises(StorageError) as caught:
        run(ray_dashboard, script(full))
    assert (caught.value.what, caught.value.why, caught.value.fix) == (
        "No space left.",
        "the disk is full",
        "Free some.",
    )


def test_an_image_that_lacks_packages_gets_them_by_pip_once(ray_dashboard: Any, script: Script) -> None:
    def lacks() -> None:
        ray_dashboard.last.say("needs", modules=["torch"])
        ray_dashboard.last.end("FAILED", "exit code 3")

    result = run(ray_dashboard, script(lacks, lambda: ray_dashboard.last.result(3)))
    assert result.made == 3
    assert ray_dashboard.last.request["runtime_env"]["pip"] == {"packages": ["torch==2.13.0", "diffusers"]}
    with pytest.raises(NotReadyError, match="lacks torch"):
        run(ray_dashboard, script(lacks, lacks))


def test_a_number_in_between_that_was_deleted_does_not_lead_to_an_old_job(
    ray_dashboard: Any, script: Script
) -> None:
    for made in (1, 2, 3):
        run(ray_dashboard, script(lambda made=made: ray_dashboard.last.result(made)))
    del ray_dashboard.jobs[f"raynest-b1-{PLAN.digest}-1"]
    result = run(ray_dashboard, script(lambda: ray_dashboard.last.result(0, reused=10)))
    assert (result.made, result.reused) == (0, 10), "and not the old 3"
    assert ray_dashboard.last.id == f"raynest-b1-{PLAN.digest}-4"


def test_the_first_job_waits_for_the_batch_too(ray_dashboard: Any, script: Script) -> None:
    """This run may be the one after a switch of the cluster, whose old job goes on for a while."""
    run(ray_dashboard, script(lambda: ray_dashboard.last.result(1)))
    assert ray_dashboard.last.plan["lock_seconds"] == LOCK_SECONDS


def test_an_answer_that_no_patience_changes_ends_at_once(ray_dashboard: Any, script: Script) -> None:
    ray_dashboard.refuse = 413
    clock = script()
    with pytest.raises(RefusedError, match="refuses. Could not list the jobs") as caught:
        run(ray_dashboard, clock)
    assert "HTTP 413" in caught.value.why
    assert clock.seconds == 0


def test_an_outage_is_waited_out_and_told(ray_dashboard: Any, script: Script) -> None:
    heard: list[Progress] = []

    def away() -> None:
        ray_dashboard.refuse = 503

    def back() -> None:
        ray_dashboard.refuse = None
        ray_dashboard.last.result(7)

    result = run(ray_dashboard, script(away, lambda: None, back), on_progress=heard.append)
    assert (result.made, ray_dashboard.submissions) == (7, 1)
    assert any("no pod is behind the service" in p.outage for p in heard)


def test_an_outage_without_end_is_given_up(ray_dashboard: Any, script: Script) -> None:
    ray_dashboard.refuse = 503
    clock = script()
    with pytest.raises(UnreachableError, match=f"has not answered for {OUTAGE_SECONDS:.0f} s"):
        run(ray_dashboard, clock)
    assert clock.seconds >= OUTAGE_SECONDS


@pytest.mark.parametrize("status", [401, 403])
def test_refused_credentials_end_the_watch_and_not_the_job(
    ray_dashboard: Any, script: Script, status: int
) -> None:
    def expires() -> None:
        ray_dashboard.refuse = status

    with pytest.raises(AccessError, match="attaches to its job"):
        try:
            run(ray_dashboard, script(lambda: ray_dashboard.last.progress(1), expires))
        except AccessError as error:
            raise AccessError(error.fix) from None
    assert (ray_dashboard.last.status, ray_dashboard.last.stops) == ("RUNNING", 0)


def test_logs_that_cannot_be_read_cost_no_image(ray_dashboard: Any, script: Script) -> None:
    def deaf() -> None:
        ray_dashboard.deaf_logs = True
        ray_dashboard.last.result(9)

    def heals() -> None:
        ray_dashboard.deaf_logs = False
        ray_dashboard.last.result(0, reused=9)

    result = run(ray_dashboard, script(lambda: ray_dashboard.last.progress(2), deaf, heals))
    assert result.total == 9, "the next job finds what the first one made"
    assert len(ray_dashboard.jobs) == 2


def test_a_log_that_was_begun_anew_is_read_anew(ray_dashboard: Any, script: Script) -> None:
    heard: list[int] = []

    def rotated() -> None:
        ray_dashboard.last.log = ""
        ray_dashboard.last.progress(5)

    def torn() -> None:
        ray_dashboard.last.log += '{"raynest":"progress","made":99'

    clock = script(
        lambda: ray_dashboard.last.print("x" * 500), rotated, torn, lambda: ray_dashboard.last.result(6)
    )

    def mends() -> None:
        ray_dashboard.last.log = ray_dashboard.last.log.rpartition("\n")[0] + "\n"
        ray_dashboard.last.result(6)

    clock.steps[-1] = mends
    run(ray_dashboard, clock, on_progress=lambda p: heard.append(p.made))
    assert heard == [0, 0, 5, 5, 6], "a torn line is not believed"


def test_time_and_cost_are_this_run_s(ray_dashboard: Any, script: Script) -> None:
    heard: list[Progress] = []
    clock = script(*[lambda: ray_dashboard.last.progress(1)] * 3, lambda: ray_dashboard.last.result(1))
    price = HourlyPrice(Decimal(36), "CNY")
    result = run(ray_dashboard, clock, on_progress=heard.append, price=price)
    assert (result.seconds, result.cost, result.currency) == (4.0, Decimal("0.0400"), "CNY")
    assert [p.cost for p in heard][:2] == [Decimal(0), Decimal("0.0100")]


def test_a_job_that_ran_before_is_counted_with_its_time(ray_dashboard: Any, script: Script) -> None:
    """Else the images of a night, attached to in the morning, would seem to have cost nothing."""

    class Killed(Exception):
        """See above."""

    def dies() -> None:
        raise Killed

    def had_run() -> None:
        ray_dashboard.last.say("progress", made=900, reused=0, failed=0, total=1000, seconds=3600.0)

    with pytest.raises(Killed):
        run(ray_dashboard, script(had_run, dies))
    heard: list[Progress] = []
    clock = script(lambda: None, lambda: ray_dashboard.last.result(1000))
    price = HourlyPrice(Decimal(36), "CNY")
    result = run(ray_dashboard, clock, on_progress=heard.append, price=price)
    assert ray_dashboard.submissions == 1
    assert (result.made, result.seconds, result.cost) == (1000, 3620.0, Decimal("36.2000"))
    assert heard[0].cost == Decimal("36.0000") and heard[0].images_per_second == 0.25


def test_the_look_s_pace_slows_down(ray_dashboard: Any, script: Script) -> None:
    clock = script(*[lambda: ray_dashboard.last.progress(1)] * 300, lambda: ray_dashboard.last.result(1))
    run(ray_dashboard, clock)
    assert clock.slept[0] == 1.0
    assert clock.slept[-1] == 10.0
