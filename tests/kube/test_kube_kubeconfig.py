"""Kubeconfig texts: checked without being quoted, changed, kept private, asked for their end."""

import base64
import json
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from raynest_pipeline.errors import InputError, RaynestError
from raynest_pipeline.kube import kubeconfig

SECRET = "very-secret-token"


def document(**changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "a",
        "clusters": [
            {
                "name": "c",
                "cluster": {"server": "https://10.0.0.1:6443", "certificate-authority-data": "Q0E="},
            }
        ],
        "contexts": [
            {"name": "a", "context": {"cluster": "c", "user": "u"}},
            {"name": "b", "context": {"cluster": "c", "user": "u", "namespace": "other"}},
        ],
        "users": [{"name": "u", "user": {"token": SECRET}}],
    }
    made.update(changes)
    return made


def text(**changes: Any) -> str:
    return yaml.safe_dump(document(**changes))


def test_a_good_one_is_returned() -> None:
    assert kubeconfig.parse(text()) == document()


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ("", "not a YAML mapping"),
        ("- 1", "not a YAML mapping"),
        ("a: [1\nb: {", "line 2"),
        ("\ta", "not valid YAML"),
        (text(kind="Pod"), "kind is not Config"),
        (text(clusters=[]), "no clusters"),
        (text(users=None), "no users"),
        (text(contexts={"a": 1}), "no contexts"),
        (text(contexts=[{"context": {}}]), "contexts entry 1 has no name"),
        (text(users=[{"name": "u"}]), "users entry 1 has no user"),
        (text(clusters=[{"name": "c", "cluster": {}}]), "no http(s) server URL"),
        (text(clusters=[{"name": "c", "cluster": {"server": "ftp://x"}}]), "no http(s) server URL"),
        (text(clusters=[{"name": "c", "cluster": {"server": "https://[::1"}}]), "no http(s) server URL"),
        (text(clusters=[{"name": "other", "cluster": {"server": "https://x"}}]), "no cluster named 'c'"),
        (text(**{"current-context": "zz"}), "no context named 'zz' (there: a, b)"),
        (text(**{"current-context": None}), "sets no current-context"),
        (text(users=[{"name": "u", "user": {}}] * 2), "more than one user named 'u'"),
    ],
)
def test_a_bad_one_says_what_is_wrong(broken: str, why: str) -> None:
    with pytest.raises(InputError) as caught:
        kubeconfig.parse(broken)
    assert why in caught.value.why
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


KEYS = [
    "clusters",
    "contexts",
    "users",
    "name",
    "cluster",
    "context",
    "user",
    "server",
    "current-context",
    "kind",
]
YAML = st.recursive(
    st.none() | st.text(max_size=8) | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=25,
)


@given(YAML)
def test_any_yaml_is_accepted_or_named_wrong(value: Any) -> None:
    try:
        kubeconfig.parse(yaml.safe_dump(value))
    except InputError as error:
        assert error.why


def test_a_single_context_needs_no_current_one() -> None:
    contexts = [{"name": "only", "context": {"cluster": "c", "user": "u"}}]
    made = document(contexts=contexts)
    del made["current-context"]
    assert kubeconfig.parse(yaml.safe_dump(made))["current-context"] == "only"


def test_with_namespace_renames_the_current_context_and_keeps_the_rest() -> None:
    changed = yaml.safe_load(kubeconfig.with_namespace(text(), "raynest", "demo"))
    assert changed["current-context"] == "raynest"
    assert changed["contexts"] == [
        {"name": "raynest", "context": {"cluster": "c", "user": "u", "namespace": "demo"}},
        {"name": "b", "context": {"cluster": "c", "user": "u", "namespace": "other"}},
    ]
    assert changed["users"] == document()["users"] and changed["clusters"] == document()["clusters"]


def test_with_namespace_is_idempotent_and_replaces_a_context_of_its_name() -> None:
    once = kubeconfig.with_namespace(text(), "b", "demo")
    assert kubeconfig.with_namespace(once, "b", "demo") == once
    assert [entry["name"] for entry in yaml.safe_load(once)["contexts"]] == ["b"]


def test_exec_users_are_left_as_they_are() -> None:
    user = {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "aliyun", "args": ["a"]}}
    changed = kubeconfig.with_namespace(text(users=[{"name": "u", "user": user}]), "x", "y")
    assert yaml.safe_load(changed)["users"][0]["user"] == user
    assert kubeconfig.expires_at(changed) is None


def test_what_a_context_says() -> None:
    assert kubeconfig.namespace_of(text()) is None
    assert kubeconfig.namespace_of(text(), "b") == "other"
    assert kubeconfig.server_of(text()) == "https://10.0.0.1:6443"
    with pytest.raises(InputError):
        kubeconfig.namespace_of(text(), "nope")


def test_a_client_certificate_tells_its_end(pki: Any, tools: Any) -> None:
    config = tools.kubeconfig_text("https://x", pki, tools.client_user(pki))
    assert kubeconfig.expires_at(config) == pki.client_end


def jwt(**claims: Any) -> str:
    parts = [
        base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in ({}, claims)
    ]
    return ".".join([*parts, "sig"])


def test_a_service_account_token_tells_its_end() -> None:
    config = text(users=[{"name": "u", "user": {"token": jwt(exp=1_800_000_000)}}])
    assert kubeconfig.expires_at(config) == datetime.fromtimestamp(1_800_000_000, UTC)


def test_the_earlier_end_counts(pki: Any, tools: Any) -> None:
    user = {**tools.client_user(pki), "token": jwt(exp=1_000_000_000)}
    config = tools.kubeconfig_text("https://x", pki, user)
    assert kubeconfig.expires_at(config) == datetime.fromtimestamp(1_000_000_000, UTC)


@pytest.mark.parametrize("token", ["opaque", "a.b.c", "..", jwt(), jwt(exp="soon"), jwt(exp=1e300)])
def test_an_opaque_token_tells_nothing(token: str) -> None:
    assert kubeconfig.expires_at(text(users=[{"name": "u", "user": {"token": token}}])) is None


@pytest.mark.parametrize("data", ["@@", base64.b64encode(b"no pem").decode()])
def test_a_broken_certificate_is_an_input_error(data: str) -> None:
    with pytest.raises(InputError, match="not usable"):
        kubeconfig.expires_at(text(users=[{"name": "u", "user": {"client-certificate-data": data}}]))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00", b"a: ["])
def test_an_unreadable_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "config"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RaynestError) as caught:
        kubeconfig.load(path)
    assert isinstance(caught.value, InputError)
    assert str(path) in caught.value.what
