"""The Jobs API over the wire, against answers as Ray 2.60 gave them."""

from typing import Any

import pytest

from raynest_pipeline.errors import Verdict
from raynest_pipeline.images.bulk.jobs import JobsApi
from raynest_pipeline.images.bulk.package import Package
from raynest_pipeline.kube.errors import KubeError
from raynest_pipeline.kube.http import HttpTarget

PACKAGE = Package(b"PK-a-zip", "_ray_pkg_0123456789abcdef.zip")


def request(name: str, **more: Any) -> dict[str, Any]:
    return {
        "submission_id": name,
        "entrypoint": "python -m x '{}'",
        "runtime_env": {"working_dir": PACKAGE.uri},
        **more,
    }


@pytest.fixture
def api(ray_dashboard: Any) -> Any:
    with JobsApi(ray_dashboard.target) as opened:
        opened.ensure_package(PACKAGE)
        yield opened


def test_a_package_is_uploaded_once(api: JobsApi, ray_dashboard: Any) -> None:
    api.ensure_package(PACKAGE)
    assert ray_dashboard.packages == {PACKAGE.name: PACKAGE.data}
    assert [method for method, path in ray_dashboard.calls if "packages" in path] == ["GET", "PUT", "GET"]


def test_a_job_is_submitted_and_found_again(api: JobsApi) -> None:
    assert api.submit(request("one", metadata={"owner": "me"})) is True
    job = api.get("one")
    assert job is not None
    assert (job.id, job.status, job.over, job.metadata) == ("one", "PENDING", False, {"owner": "me"})
    assert [found.id for found in api.jobs()] == ["one"]


def test_the_same_id_again_is_no_second_job(api: JobsApi, ray_dashboard: Any) -> None:
    assert api.submit(request("one")) is True
    assert api.submit(request("one")) is False
    assert len(ray_dashboard.jobs) == 1


@pytest.mark.parametrize("status", ["STOPPED", "SUCCEEDED", "FAILED"])
def test_a_job_that_has_ended_is_over(api: JobsApi, ray_dashboard: Any, status: str) -> None:
    api.submit(request("one"))
    ray_dashboard.last.end(status, "why")
    job = api.get("one")
    assert job is not None
    assert (job.over, job.message) == (True, "why")


def test_what_the_cluster_does_not_know_is_none_and_no_error(api: JobsApi) -> None:
    assert api.get("nope") is None
    assert api.logs("nope") is None
    api.stop("nope")


def test_logs_and_stop(api: JobsApi, ray_dashboard: Any) -> None:
    api.submit(request("one"))
    ray_dashboard.last.print("hello")
    assert api.logs("one") == "hello\n"
    api.stop("one")
    assert ray_dashboard.last.status == "STOPPED"


def test_a_service_that_is_not_there_is_not_a_job_that_is_gone(api: JobsApi, ray_dashboard: Any) -> None:
    """The API server's own 404 has a Status; the dashboard's is plain text."""
    ray_dashboard.refuse = 404
    with pytest.raises(KubeError) as caught:
        api.get("one")
    assert caught.value.status == 404


def test_an_outage_is_retryable_and_says_so(api: JobsApi, ray_dashboard: Any) -> None:
    ray_dashboard.refuse = 503
    with pytest.raises(KubeError, match="Could not list the jobs") as caught:
        api.jobs()
    assert caught.value.verdict is Verdict.RETRYABLE
    assert "no pod is behind the service" in caught.value.why


def test_a_login_page_in_between_is_an_error_with_words(api: JobsApi, ray_dashboard: Any) -> None:
    ray_dashboard.login_page = True
    for call in (api.jobs, lambda: api.get("one"), lambda: api.logs("one")):
        with pytest.raises(KubeError, match="Could not") as caught:
            call()
        assert caught.value.why == "the answer is not Ray's JSON"


def test_a_traceback_is_cut_to_what_it_says(api: JobsApi, ray_dashboard: Any) -> None:
    api.submit(request("one"))
    ray_dashboard.deaf_logs = True
    with pytest.raises(KubeError) as caught:
        api.logs("one")
    assert "no agent" in caught.value.why
    assert "Traceback" not in caught.value.why


def test_nobody_there_is_an_error_with_a_verdict() -> None:
    with JobsApi(HttpTarget.plain("http://127.0.0.1:9")) as api, pytest.raises(KubeError) as caught:
        api.jobs()
    assert caught.value.verdict is Verdict.RETRYABLE
