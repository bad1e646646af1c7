"""KubeClient against a scripted API server that answers as a real one was recorded to."""

import threading
from pathlib import Path
from typing import Any

import pytest

from raynest_pipeline.errors import InputError, Verdict
from raynest_pipeline.kube.client import CONFIG_MAP, EVENT, NAMESPACE, POD, RAY_SERVICE, Kind, KubeClient
from raynest_pipeline.kube.errors import NO_SUCH_KIND, KubeError

S1 = "/apis/ray.io/v1/namespaces/rec/rayservices/s1"


@pytest.fixture
def client(config_file: Path) -> Any:
    with KubeClient.from_file(config_file) as made:
        yield made


def test_get_returns_the_object_as_json(client: KubeClient, api: Any, tools: Any) -> None:
    recorded = tools.data("objects")["get_ready"]
    api.on(f"GET {S1}", recorded)
    assert client.get(RAY_SERVICE, "s1", "rec") == recorded


def test_get_of_a_missing_object_is_none(client: KubeClient, api: Any, tools: Any) -> None:
    recorded = tools.data("api_errors")["get_404"]
    api.on("GET /apis/ray.io/v1/namespaces/rec/rayservices/missing", tools.Answer(404, recorded["body"]))
    assert client.get(RAY_SERVICE, "missing", "rec") is None


def test_an_unknown_kind_is_not_a_missing_object(client: KubeClient) -> None:
    with pytest.raises(KubeError) as caught:
        client.get(Kind("ray.io/v1", "RayNope"), "x", "rec")
    assert caught.value.code == NO_SUCH_KIND
    assert caught.value.verdict is Verdict.PERMANENT
    assert "KubeRay" in caught.value.fix


def test_deleting_an_unknown_kind_has_nothing_to_do(client: KubeClient) -> None:
    assert client.delete(Kind("ray.io/v1", "RayNope"), "x", "rec") is False


def test_get_refused_says_who_may_not_what(client: KubeClient, api: Any, tools: Any) -> None:
    recorded = tools.data("api_errors")["forbidden_403_list"]
    api.on("GET /apis/ray.io/v1/namespaces/rec/rayservices", tools.Answer(403, recorded["body"]))
    with pytest.raises(KubeError) as caught:
        client.list(RAY_SERVICE, "rec")
    assert caught.value.status == 403
    assert "system:serviceaccount:rec:nobody" in caught.value.why
    assert caught.value.exit_code_for_verdict == 3


def test_list_selects_by_labels_and_restores_the_kind(client: KubeClient, api: Any, tools: Any) -> None:
    pods = tools.data("objects")["pods_head"]
    api.on("GET /api/v1/namespaces/rec/pods", pods)
    found = client.list(POD, "rec", labels={"ray.io/cluster": "s1-58q7q", "ray.io/node-type": "head"})
    assert [pod["kind"] for pod in found] == ["Pod"]
    assert found[0]["metadata"]["name"] == "s1-58q7q-head-mf7x4"
    asked = api.calls("GET /api/v1/namespaces/rec/pods")[0]
    assert asked.query["labelSelector"] == "ray.io/cluster=s1-58q7q,ray.io/node-type=head"


def test_list_over_all_namespaces(client: KubeClient, api: Any) -> None:
    api.on("GET /api/v1/configmaps", {"kind": "ConfigMapList", "items": []})
    assert client.list(CONFIG_MAP) == []


@pytest.mark.parametrize("status", [200, 201])
def test_apply_returns_the_object_also_when_it_is_new(
    client: KubeClient, api: Any, tools: Any, status: int
) -> None:
    # The typed client returns None on 201: a fake that always answers 200 hides it.
    recorded = tools.data("objects")["get_ready"]
    api.on(f"PATCH {S1}", tools.Answer(status, recorded))
    body = {key: recorded[key] for key in ("apiVersion", "kind", "spec")}
    body["metadata"] = {"name": "s1", "namespace": "rec"}
    assert client.apply(body)["metadata"]["uid"] == recorded["metadata"]["uid"]
    asked = api.calls(f"PATCH {S1}")[0]
    assert asked.headers["content-type"] == "application/apply-patch+yaml"
    assert asked.query["fieldManager"] == "raynest"
    assert asked.query["force"] == "true"
    assert "dryRun" not in asked.query
    assert asked.body == body


def test_a_dry_run_says_so(client: KubeClient, api: Any, tools: Any) -> None:
    api.on(
        "PATCH /api/v1/namespaces/new", tools.Answer(201, {"kind": "Namespace", "metadata": {"name": "new"}})
    )
    client.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "new"}}, dry_run=True, force=False
    )
    asked = api.calls("PATCH /api/v1/namespaces/new")[0]
    assert asked.query["dryRun"] == "All"
    assert asked.query["force"] == "false"


@pytest.mark.parametrize(
    ("recording", "verdict", "words"),
    [
        ("apply_unknown_field", Verdict.PERMANENT, ".spec.nope: field not declared in schema"),
        ("apply_missing_required", Verdict.PERMANENT, "spec.rayClusterConfig.headGroupSpec"),
        ("apply_conflict_409", Verdict.PERMANENT, ".spec.serveConfigV2"),
        ("create_in_terminating_namespace", Verdict.RETRYABLE, "is being deleted"),
        ("apply_in_missing_namespace", Verdict.GONE, 'namespaces "nons" not found'),
        ("forbidden_403_apply", Verdict.PERMANENT, "cannot patch"),
    ],
)
def test_a_refused_apply_has_the_right_verdict(
    client: KubeClient, api: Any, tools: Any, recording: str, verdict: Verdict, words: str
) -> None:
    recorded = tools.data("api_errors")[recording]
    api.on(f"PATCH {S1}", tools.Answer(recorded["status"], recorded["body"]))
    with pytest.raises(KubeError) as caught:
        client.apply(
            {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": {"name": "s1", "namespace": "rec"}}
        )
    assert caught.value.verdict is verdict
    assert words in caught.value.why
    assert len(api.calls(f"PATCH {S1}")) == 1


def test_a_write_that_the_server_broke_on_may_have_happened(client: KubeClient, api: Any, tools: Any) -> None:
    broken = tools.Answer(500, tools.status_object(500, "InternalError", "etcdserver: request timed out"))
    api.on(f"PATCH {S1}", broken)
    api.on(f"GET {S1}", broken)
    with pytest.raises(KubeError) as write:
        client.apply(
            {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": {"name": "s1", "namespace": "rec"}}
        )
    with pytest.raises(KubeError) as read:
        client.get(RAY_SERVICE, "s1", "rec")
    assert write.value.verdict is Verdict.UNKNOWN
    assert read.value.verdict is Verdict.RETRYABLE


def test_apply_needs_a_namespace_where_the_kind_has_one(client: KubeClient, api: Any) -> None:
    with pytest.raises(InputError, match="lacks a name or a namespace"):
        client.apply({"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": {"name": "s1"}})
    assert not [asked for asked in api.asked if asked.method == "PATCH"]


def test_delete_is_foreground_and_tells_whether_there_was_something(
    client: KubeClient, api: Any, tools: Any
) -> None:
    objects = tools.data("objects")
    gone = tools.Answer(404, tools.data("api_errors")["get_404"]["body"])
    api.on(f"DELETE {S1}", objects["get_while_deleting"], gone)
    assert client.delete(RAY_SERVICE, "s1", "rec") is True
    assert client.delete(RAY_SERVICE, "s1", "rec") is False
    assert api.calls(f"DELETE {S1}")[0].query["propagationPolicy"] == "Foreground"


def test_events_are_those_of_this_object_newest_last(client: KubeClient, api: Any, tools: Any) -> None:
    objects = tools.data("objects")
    service = objects["get_ready"]
    events = objects["events_of_service"]["items"]
    other = {**events[0], "involvedObject": {**events[0]["involvedObject"], "uid": "of-an-earlier-object"}}
    api.on("GET /api/v1/namespaces/rec/events", {"kind": "EventList", "items": [*reversed(events), other]})
    found = client.events(service)
    assert [event["reason"] for event in found] == [event["reason"] for event in events]
    assert (
        api.calls("GET /api/v1/namespaces/rec/events")[0].query["fieldSelector"] == "involvedObject.name=s1"
    )


def test_logs_are_text_even_when_they_look_like_json(client: KubeClient, api: Any, tools: Any) -> None:
    path = "GET /api/v1/namespaces/rec/pods/p/log"
    api.on(path, tools.Answer(body='{"level": "info"}\n', headers={"Content-Type": "text/plain"}))
    assert client.pod_logs("rec", "p", container="ray-head", tail=7, previous=True) == '{"level": "info"}\n'
    assert api.calls(path)[0].query == {"tailLines": "7", "container": "ray-head", "previous": "true"}


def test_logs_of_a_missing_pod(client: KubeClient, api: Any, tools: Any) -> None:
    recorded = tools.data("api_errors")["pod_log_missing"]
    api.on("GET /api/v1/namespaces/rec/pods/missing/log", tools.Answer(404, recorded["body"]))
    with pytest.raises(KubeError) as caught:
        client.pod_logs("rec", "missing")
    assert caught.value.verdict is Verdict.GONE


def test_server_version(client: KubeClient) -> None:
    assert client.server_version() == "v1.36.2"


def test_declares_reads_the_schema_once(client: KubeClient, api: Any) -> None:
    document = {
        "components": {
            "schemas": {
                "S": {
                    "x-kubernetes-group-version-kind": [
                        {"group": "ray.io", "version": "v1", "kind": "RayService"}
                    ],
                    "properties": {
                        "spec": {"properties": {"rayClusterConfig": {"properties": {"authOptions": {}}}}}
                    },
                }
            }
        }
    }
    api.on("GET /openapi/v3/apis/ray.io/v1", document)
    assert client.declares(RAY_SERVICE, ("spec", "rayClusterConfig", "authOptions"))
    assert not client.declares(RAY_SERVICE, ("spec", "suspend"))
    assert len(api.calls("GET /openapi/v3/apis/ray.io/v1")) == 1


def test_declares_nothing_where_there_is_no_schema(client: KubeClient) -> None:
    assert not client.declares(RAY_SERVICE, ("spec",))


def test_an_answer_that_is_not_json_is_an_error(client: KubeClient, api: Any, tools: Any) -> None:
    api.on(f"GET {S1}", tools.Answer(200, "<html>", {"Content-Type": "text/html"}))
    with pytest.raises(KubeError) as caught:
        client.get(RAY_SERVICE, "s1", "rec")
    assert "not a JSON object" in caught.value.why


def test_expired_credentials_say_what_to_do_and_leak_nothing(
    client: KubeClient, api: Any, tools: Any
) -> None:
    recorded = tools.data("api_errors")["bad_token_401"]
    api.on(f"GET {S1}", tools.Answer(401, recorded["body"]))
    with pytest.raises(KubeError) as caught:
        client.get(RAY_SERVICE, "s1", "rec")
    assert caught.value.verdict is Verdict.PERMANENT
    assert "fresh kubeconfig" in caught.value.fix
    assert tools.token not in f"{caught.value}{caught.value.__cause__}{caught.value.__context__}"


def test_a_server_that_is_gone_is_unreachable(pki: Any, tools: Any, tmp_path: Path) -> None:
    with tools.serving(pki, tmp_path) as server:
        url = server.url
    path = tmp_path / "config"
    path.write_text(tools.kubeconfig_text(url, pki))
    with KubeClient.from_file(path) as client, pytest.raises(KubeError) as caught:
        client.get(NAMESPACE, "x")
    assert caught.value.verdict is Verdict.RETRYABLE
    assert "refused" in caught.value.why
    assert caught.value.exit_code_for_verdict == 7


def test_two_clients_live_side_by_side_and_close_twice(config_file: Path, api: Any) -> None:
    api.on("GET /api/v1/namespaces/demo/events", {"items": []})
    first, second = KubeClient.from_file(config_file), KubeClient.from_file(config_file)
    assert first.list(EVENT, "demo") == []
    first.close()
    first.close()
    assert second.list(EVENT, "demo") == []
    second.close()


def test_clients_can_be_made_and_used_in_threads(config_file: Path, api: Any, tools: Any) -> None:
    api.on(f"GET {S1}", tools.data("objects")["get_ready"])
    found: list[Any] = []

    def use() -> None:
        with KubeClient.from_file(config_file) as client:
            found.append((client.get(RAY_SERVICE, "s1", "rec") or {})["metadata"]["name"])

    threads = [threading.Thread(target=use) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == ["s1"] * 6


def test_the_representation_holds_no_credentials(client: KubeClient, tools: Any) -> None:
    target = client.service_proxy("demo", "svc", 8000)
    assert target.headers["Authorization"] == f"Bearer {tools.token}"
    assert tools.token not in repr(target) + repr(client) + repr(client._link)
