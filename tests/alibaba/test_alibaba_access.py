"""Credentials, clients, retries, and what never leaks."""

import io
import logging
import os
import subprocess
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from raynest_pipeline.alibaba import access as access_module
from raynest_pipeline.alibaba.access import CloudAccess, check_token
from raynest_pipeline.alibaba.cloud import Cloud
from raynest_pipeline.alibaba.computenest import Service
from raynest_pipeline.alibaba.errors import CloudError
from raynest_pipeline.errors import AccessError, SettingsError, Verdict
from raynest_pipeline.settings import Alibaba, Settings
from raynest_pipeline.waiting import SystemClock

CALLER = {"IdentityType": "RAMUser", "AccountId": "1968", "Arn": "acs:ram::1968:user/alice"}
SERVICE = Service("service-1", "3", "Ray社区版", ("容器集群版",), ())
PASSWORD = 'Pa+ss w&rd"1%'
EIP = {"AllocationId": "eip-1", "EipAddress": "47.1.2.3"}
CLUSTER = {"cluster_id": "c1", "name": "n", "state": "running"}
ROOT = Path(__file__).parents[2]


def create(cloud: Cloud, **parameters: Any) -> str:
    return cloud.instances.create_instance(
        "raynest", SERVICE, {"LoginPassword": PASSWORD, **parameters}, {"raynest": "raynest"}, "token-1"
    )


def everything_said(error: BaseException) -> str:
    """All that a log could show of an exception, contexts included."""
    text = "".join(traceback.format_exception(error)) + repr(error) + repr(error.args) + repr(vars(error))
    for linked in (error.__cause__, error.__context__):
        text += everything_said(linked) if linked is not None else ""
    return text


class TestCredentials:
    def test_explicit_keys_sign_the_request(self, bench: Any) -> None:
        bench.server.answer("GetCallerIdentity", {**bench.ok, **CALLER})
        bench.cloud.identity.caller()
        headers = bench.server.calls[0].headers
        assert headers["authorization"].startswith("ACS3-HMAC-SHA256 Credential=LTAItest,")
        assert headers["x-acs-credentials-provider"] == "static_ak"
        assert bench.secret not in str(headers)

    def test_a_security_token_goes_along(self, bench: Any) -> None:
        bench.server.answer("GetCallerIdentity", {**bench.ok, **CALLER})
        bench.with_settings(security_token=SecretStr("sts-token")).identity.caller()
        headers = bench.server.calls[0].headers
        assert headers["x-acs-security-token"] == "sts-token"
        assert headers["x-acs-credentials-provider"] == "static_sts"

    def test_own_credentials_are_not_sent_to_an_emulator(self) -> None:
        with pytest.raises(AccessError, match="no keys for the endpoint") as caught:
            CloudAccess.from_settings(Alibaba(endpoint="127.0.0.1:1"), clock=SystemClock())
        assert "access_key_id" in caught.value.fix

    def test_secrets_are_in_no_repr(self, bench: Any) -> None:
        shown = repr(bench.with_settings(security_token=SecretStr("sts-token")))
        assert bench.secret not in shown
        assert "sts-token" not in shown

    def test_none_anywhere_is_an_access_error(self, tmp_path: Path) -> None:
        done = in_new_process("cloud.identity.caller()", HOME=str(tmp_path))
        assert "AccessError" in done.stdout, done
        assert "There are no Alibaba Cloud credentials." in done.stdout
        assert "RAYNEST_ALIBABA__ACCESS_KEY_ID" in done.stdout
        assert done.stderr == ""

    def test_the_default_chain_finds_keys_in_the_environment(self, tmp_path: Path) -> None:
        done = in_new_process(
            "print(cloud.access.product('sts').client._credential.get_credential().provider_name)",
            HOME=str(tmp_path),
            ALIBABA_CLOUD_ACCESS_KEY_ID="LTAIenv",
            ALIBABA_CLOUD_ACCESS_KEY_SECRET="secret-env",
        )
        assert done.stdout.strip() == "default/env", done

    @pytest.mark.parametrize("value", ["sdk", "SDK"])
    def test_debug_output_of_the_sdk_is_refused(self, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
        monkeypatch.setenv("DEBUG", value)
        with pytest.raises(SettingsError, match="DEBUG"):
            Cloud.from_settings(Settings(), SystemClock())

    def test_another_debug_value_is_not_ours_to_judge(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DEBUG", "1")
        assert Cloud.from_settings(Settings(), SystemClock()).access.region_id == "ap-southeast-1"


def in_new_process(code: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run code with a `cloud` without explicit keys; the SDK reads the environment when it is imported."""
    program = (
        "from raynest_pipeline.alibaba.cloud import Cloud\n"
        "from raynest_pipeline.settings import Settings\n"
        "from raynest_pipeline.waiting import SystemClock\n"
        "from raynest_pipeline.errors import RaynestError\n"
        "cloud = Cloud.from_settings(Settings(), SystemClock())\n"
        f"try:\n    {code}\nexcept RaynestError as error:\n    print(type(error).__name__, error)\n"
    )
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "ALIBABA_CLOUD_ECS_METADATA_DISABLED": "true",
        **environment,
    }
    return subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class TestClients:
    def test_making_a_cloud_imports_no_sdk(self) -> None:
        done = in_new_process(
            "import sys; print([m for m in sys.modules if m.startswith(('alibabacloud', 'Tea'))])"
        )
        assert done.stdout.strip() == "[]", done

    def test_one_client_serves_all_threads(self, bench: Any) -> None:
        bench.server.answer("GetCallerIdentity", {**bench.ok, **CALLER})
        start = threading.Barrier(8)

        def ask(_: int) -> str:
            start.wait(timeout=30)
            return str(bench.cloud.identity.caller().account_id)

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(ask, range(8))) == ["1968"] * 8
        nonces = {call.headers["x-acs-signature-nonce"] for call in bench.server.calls}
        assert len(nonces) == 8
        assert len(bench.cloud.access._products) == 1

    def test_the_control_plane_has_a_region_of_its_own(self, bench: Any) -> None:
        access = bench.with_settings(region_id="cn-beijing").access
        assert access.product("computenest").client._region_id == "cn-hangzhou"
        assert access.product("vpc").client._region_id == "cn-beijing"
        assert access.product("ros", "cn-shanghai").client._region_id == "cn-shanghai"

    def test_without_an_override_each_product_has_its_own_https_endpoint(self) -> None:
        alibaba = Alibaba(access_key_id="a", access_key_secret=SecretStr("b"), region_id="ap-southeast-1")
        access = CloudAccess.from_settings(alibaba, clock=SystemClock())
        clients = {name: access.product(name).client for name in access_module.SDKS}
        assert {name: client._endpoint for name, client in clients.items()} == {
            "computenest": "computenest.ap-southeast-1.aliyuncs.com",
            "computenestsupplier": "computenestsupplier.ap-southeast-1.aliyuncs.com",
            "cs": "cs.ap-southeast-1.aliyuncs.com",
            "vpc": "vpc.ap-southeast-1.aliyuncs.com",
            "ecs": "ecs.ap-southeast-1.aliyuncs.com",
            "ram": "ram.aliyuncs.com",
            "ros": "ros.aliyuncs.com",
            "sts": "sts.ap-southeast-1.aliyuncs.com",
        }
        assert {client._protocol for client in clients.values()} == {None}

    @pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy"])
    def test_a_proxy_does_not_get_what_is_for_the_endpoint(
        self, bench: Any, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        # Nothing listens there: a call through it would fail.
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        bench.server.answer("GetCallerIdentity", {**bench.ok, **CALLER})
        assert bench.cloud.identity.caller().name == "alice"

    def test_the_loggers_of_the_sdk_are_calm(self, bench: Any) -> None:
        bench.cloud.access.product("sts")
        for name in ("darabonba-core", "alibabacloud-tea", "credentials"):
            logger = logging.getLogger(name)
            assert logger.level >= logging.WARNING
            assert not [h for h in logger.handlers if type(h) is logging.StreamHandler]

    def test_a_handler_that_somebody_else_chose_stays(self, bench: Any, tmp_path: Path) -> None:
        handler = logging.FileHandler(tmp_path / "sdk.log")
        logging.getLogger("darabonba-core").addHandler(handler)
        try:
            bench.cloud.access.product("sts")
            assert handler in logging.getLogger("darabonba-core").handlers
        finally:
            logging.getLogger("darabonba-core").removeHandler(handler)
            handler.close()


def odd_answers(reply: Any) -> dict[str, Any]:
    """What a gateway, a proxy or a broken server may send instead of an answer (facts 9.1)."""
    return {
        "html 503": reply(b"<html>busy</html>", status=503),
        "empty 200": reply(b""),
        "empty 204": reply(b"", status=204),
        "json array 400": reply([], status=400),
        "json array 200": reply([1]),
        "json text 200": reply("text"),
        "connection drop": reply(drop=True),
        "empty object": reply({}),
        "null": reply(None),
        "wrong types": reply({"RequestId": 5, "Arn": ["x"]}),
        "truncated": reply(b'{"RequestId": "4EC'),
        "error without code": reply({"oops": 1}, status=500),
    }


ODD = list(odd_answers(lambda *a, **k: None))


class TestOddAnswers:
    @pytest.mark.parametrize("odd", ODD)
    def test_a_read_is_repeated(self, bench: Any, odd: str) -> None:
        bench.server.answer("GetCallerIdentity", odd_answers(bench.reply)[odd], {**bench.ok, **CALLER})
        assert bench.cloud.identity.caller().name == "alice"
        assert len(bench.server.calls) == 2

    @pytest.mark.parametrize("odd", ODD)
    def test_a_read_that_never_works_is_unknown(self, bench: Any, odd: str) -> None:
        bench.server.answer("GetCallerIdentity", odd_answers(bench.reply)[odd])
        with pytest.raises(CloudError) as caught:
            bench.cloud.identity.caller()
        assert caught.value.verdict is Verdict.UNKNOWN
        assert (caught.value.product, caught.value.action) == ("sts", "GetCallerIdentity")
        assert caught.value.why
        assert len(bench.server.calls) == 5

    @pytest.mark.parametrize("odd", ODD)
    def test_a_write_with_a_token_is_repeated_with_the_same_token(self, bench: Any, odd: str) -> None:
        bench.server.answer(
            "CreateServiceInstance", odd_answers(bench.reply)[odd], {**bench.ok, "ServiceInstanceId": "si-1"}
        )
        assert create(bench.cloud) == "si-1"
        calls = bench.server.asked("CreateServiceInstance")
        assert [call.query["ClientToken"] for call in calls] == ["token-1", "token-1"]
        assert len({call.headers["x-acs-signature-nonce"] for call in calls}) == 2

    @pytest.mark.parametrize("odd", ODD)
    def test_a_write_without_a_token_is_not(self, bench: Any, odd: str) -> None:
        bench.server.answer("PUT /api/v2/clusters/c1", odd_answers(bench.reply)[odd], {"task_id": "T-1"})
        with pytest.raises(CloudError) as caught:
            bench.cloud.clusters.unbind_eip("c1")
        assert caught.value.verdict is Verdict.UNKNOWN
        assert len(bench.server.calls) == 1


class TestRetries:
    def test_throttling_waits_as_long_as_the_server_says(self, bench: Any) -> None:
        busy = bench.error(400, "Throttling.User")
        busy.headers["x-acs-retry-after"] = "7000"
        bench.server.answer("GetCallerIdentity", busy, {**bench.ok, **CALLER})
        bench.cloud.identity.caller()
        assert bench.clock.sleeps == [7.0]

    def test_throttling_without_the_header_backs_off(self, bench: Any) -> None:
        bench.server.answer("GetCallerIdentity", bench.error(429, "Throttling"), {**bench.ok, **CALLER})
        bench.cloud.identity.caller()
        assert len(bench.clock.sleeps) == 1
        assert 0.3 < bench.clock.sleeps[0] < 1.0

    def test_a_write_without_a_token_is_repeated_when_nothing_has_happened(self, bench: Any) -> None:
        busy = bench.reply({"code": "Throttling", "message": "m"}, status=429)
        bench.server.answer("PUT /api/v2/clusters/c1", busy, {"task_id": "T-1"})
        assert bench.cloud.clusters.unbind_eip("c1") == "T-1"

    def test_no_connection_means_that_nothing_was_done(self, bench: Any) -> None:
        cloud = bench.with_settings(endpoint="127.0.0.1:1")
        with pytest.raises(CloudError) as caught:
            cloud.clusters.unbind_eip("c1")
        assert caught.value.code == "NotSent"
        assert caught.value.verdict is Verdict.RETRYABLE
        assert len(bench.clock.sleeps) == 4

    def test_a_refusal_is_not_repeated(self, bench: Any) -> None:
        bench.server.answer("GetCallerIdentity", bench.error(400, "InvalidParameter.X"))
        with pytest.raises(CloudError) as caught:
            bench.cloud.identity.caller()
        assert caught.value.request_id == bench.ok["RequestId"]
        assert len(bench.server.calls) == 1

    def test_a_refusal_after_an_answer_that_was_lost_is_doubtful(self, bench: Any) -> None:
        bench.server.answer(
            "CreateServiceInstance",
            bench.error(500, "InternalError"),
            bench.error(400, "InsufficientBalance"),
            bench.error(400, "InsufficientBalance"),
        )
        for doubtful in (True, False):
            with pytest.raises(CloudError) as caught:
                create(bench.cloud)
            assert (caught.value.code, caught.value.doubtful) == ("InsufficientBalance", doubtful)

    def test_patience_ends(self, bench: Any) -> None:
        busy = bench.error(429, "Throttling")
        busy.headers["x-acs-retry-after"] = "3600000"
        bench.server.answer("GetCallerIdentity", busy)
        with pytest.raises(CloudError) as caught:
            bench.cloud.identity.caller()
        assert caught.value.retry_after == 3600
        assert bench.clock.seconds == pytest.approx(60)

    @pytest.mark.parametrize("token", ["", "x" * 65, "tökén"])
    def test_a_bad_token_is_refused_before_anything_is_sent(self, bench: Any, token: str) -> None:
        with pytest.raises(ValueError, match="ClientToken"):
            bench.cloud.clusters.bind_eip("c1", "eip-1", token)
        assert bench.server.calls == []

    def test_a_good_token_passes(self) -> None:
        check_token("a" * 64)

    @pytest.mark.parametrize(
        ("patience", "timeouts"), [(60.0, (5000, 15000)), (3.0, (3000, 3000)), (0.0, (1000, 1000))]
    )
    def test_an_attempt_waits_no_longer_than_the_patience(
        self, bench: Any, patience: float, timeouts: tuple[int, int]
    ) -> None:
        alibaba = Alibaba(access_key_id="a", access_key_secret=SecretStr("b"), endpoint=bench.server.endpoint)
        access = CloudAccess.from_settings(alibaba, clock=bench.clock, patience_seconds=patience)
        client = access.product("sts").client
        assert (client._connect_timeout, client._read_timeout) == timeouts


class TestSecrets:
    @pytest.mark.parametrize("odd", ODD)
    def test_the_password_is_in_no_error(self, bench: Any, odd: str) -> None:
        bench.server.answer("CreateServiceInstance", odd_answers(bench.reply)[odd])
        with pytest.raises(CloudError) as caught:
            create(bench.cloud)
        assert_clean(caught.value, bench.secret)

    def test_nor_when_nobody_listens(self, bench: Any) -> None:
        with pytest.raises(CloudError) as caught:
            create(bench.with_settings(endpoint="127.0.0.1:1"))
        assert_clean(caught.value, bench.secret)

    def test_nor_when_the_server_repeats_the_request(
        self, bench: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def echo(call: Any) -> Any:
            said = f"{call.query['Parameters']} {call.query} {bench.secret}"
            return bench.error(400, "InvalidParameter.Parameters", said)

        monkeypatch.setattr(bench.server, "take", echo)
        with pytest.raises(CloudError, match="CreateServiceInstance") as caught:
            create(bench.cloud)
        assert "***" in str(caught.value)
        assert_clean(caught.value, bench.secret)

    def test_nor_the_string_to_sign(self, bench: Any) -> None:
        said = (
            "Specified signature is not matched. server string to sign is:POST&%2F&"
            + "LoginPassword%22%3A%22abc"
        )
        bench.server.answer("CreateServiceInstance", bench.error(400, "SignatureDoesNotMatch", said))
        with pytest.raises(CloudError) as caught:
            create(bench.cloud)
        assert "abc" not in str(caught.value)
        assert caught.value.access
        assert_clean(caught.value, bench.secret)

    def test_nothing_is_printed(self, bench: Any, capfd: pytest.CaptureFixture[str]) -> None:
        stream = io.StringIO()
        handler = logging.StreamHandler(stream)
        logging.getLogger().addHandler(handler)
        try:
            bench.server.answer("CreateServiceInstance", {**bench.ok, "ServiceInstanceId": "si-1"})
            create(bench.cloud)
        finally:
            logging.getLogger().removeHandler(handler)
        out, err = capfd.readouterr()
        assert "LoginPassword" not in out + err + stream.getvalue()

    def test_a_kubeconfig_shows_up_nowhere(self, bench: Any) -> None:
        bench.server.answer(
            "GET /k8s/c1/user_config", {"config": "client-key-data: abc", "expiration": "never"}
        )
        found = bench.cloud.clusters.kubeconfig("c1", 60)
        assert found.text.get_secret_value() == "client-key-data: abc"
        assert "client-key-data" not in repr(found)


def assert_clean(error: CloudError, secret: str) -> None:
    said = everything_said(error)
    assert secret not in said
    for part in (PASSWORD, "Pa%2Bss", "Pa+ss", "w%26rd", "w&rd"):
        assert part not in said
