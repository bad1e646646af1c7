"""The way to the cloud: credentials, endpoints, one shared client per product, one road for every call.

SDK facts behind this (facts 9, 10): a client is safe to share between threads; the SDK makes one attempt
and its own retry options don't work, so retries are ours; its exceptions hold the whole request, password
included; its loggers write to stderr; it knows HTTP_PROXY but not NO_PROXY.
"""

import importlib
import logging
import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from raynest_pipeline.alibaba.answers import Answer, answer_of
from raynest_pipeline.alibaba.error_table import NO_ANSWER, NO_CREDENTIALS, NOT_SENT
from raynest_pipeline.alibaba.errors import CloudError, Failure, classify
from raynest_pipeline.errors import AccessError, SettingsError, Verdict
from raynest_pipeline.settings import Alibaba
from raynest_pipeline.waiting import Clock, Deadline, retry

T = TypeVar("T")

SDKS = {
    "computenest": "alibabacloud_computenest20210601",
    "computenestsupplier": "alibabacloud_computenestsupplier20210521",
    "cs": "alibabacloud_cs20151215",
    "vpc": "alibabacloud_vpc20160428",
    "ecs": "alibabacloud_ecs20140526",
    "ram": "alibabacloud_ram20150501",
    "ros": "alibabacloud_ros20190910",
    "sts": "alibabacloud_sts20150401",
}
"""The SDK module of each product."""

_CONTROL_PLANE = frozenset({"computenest", "computenestsupplier"})
_CONNECT_TIMEOUT_MS = 5_000
_READ_TIMEOUT_MS = 15_000
# "credentials" logs a traceback for each provider that has none; what there is to say is in our own error.
_SDK_LOGGERS = {
    "darabonba-core": logging.WARNING,
    "alibabacloud-tea": logging.WARNING,
    "credentials": logging.CRITICAL,
}
# requests' words for "no byte of the request has left": the call cannot have had an effect.
_NEVER_SENT = ("NewConnectionError", "NameResolutionError", "ConnectTimeoutError")


@dataclass(frozen=True)
class Product:
    """A product's SDK, loaded."""

    client: Any
    """The shared client."""
    models: Any
    """The module of its request classes."""


Send = Callable[[Any, Any], Any]
"""Makes the call with (client, models) and gives the SDK's response."""


@dataclass
class CloudAccess:
    """Credentials and clients. Thread safe."""

    region_id: str
    """Where clusters, addresses and machines are."""
    control_region_id: str
    """Where Compute Nest's control plane is, which is not the same."""
    clock: Clock
    access_key_id: str | None = None
    access_key_secret: str | None = field(default=None, repr=False)
    security_token: str | None = field(default=None, repr=False)
    endpoint: str | None = None
    patience_seconds: float = 60.0
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)
    _products: dict[tuple[str, str], Product] = field(default_factory=dict, repr=False)
    _chain: Any = field(default=None, repr=False)

    @classmethod
    def from_settings(
        cls, alibaba: Alibaba, *, clock: Clock, patience_seconds: float = 60.0
    ) -> "CloudAccess":
        """Nothing is contacted yet, and no SDK imported.

        Args:
            alibaba: The settings' section.
            clock: For the pauses between attempts.
            patience_seconds: How long one operation may be retried; also the most that one attempt waits.

        Raises:
            SettingsError: The environment would make the SDK print secrets.
            AccessError: An emulator's endpoint without keys for it.
        """
        if os.environ.get("DEBUG", "").lower() == "sdk":
            raise SettingsError(
                "The environment variable DEBUG is set to 'sdk'.",
                why="It makes the cloud's SDK print every request, the workers' password included.",
                fix="Unset DEBUG.",
            )
        if alibaba.endpoint and not alibaba.access_key_id:
            raise AccessError(
                f"There are no keys for the endpoint {alibaba.endpoint}.",
                why="Your own credentials are not sent to an emulator, whose connection is not encrypted.",
                fix="Set alibaba.access_key_id and access_key_secret to the emulator's, or unset endpoint.",
            )
        secret, token = alibaba.access_key_secret, alibaba.security_token
        return cls(
            region_id=alibaba.region_id,
            control_region_id=alibaba.control_region,
            clock=clock,
            access_key_id=alibaba.access_key_id,
            access_key_secret=secret.get_secret_value() if secret else None,
            security_token=token.get_secret_value() if token else None,
            endpoint=alibaba.endpoint,
            patience_seconds=patience_seconds,
        )

    def read(self, product: str, action: str, send: Send, parse: Callable[[Answer], T], **more: Any) -> T:
        """Make a call that changes nothing, and parse its answer. Repeats it whenever that may help.

        Args:
            product: A key of `SDKS`.
            action: The API action, for messages.
            send: Makes the call.
            parse: Reads the answer; what it raises about the answer counts as a failure of the call.
            more: `region`, `secrets` as for `write`.

        Raises:
            CloudError: Classified; without secrets.
            AccessError: There are no credentials.
        """
        return self.write(product, action, send, parse, repeat_unknown=True, **more)

    def write(
        self,
        product: str,
        action: str,
        send: Send,
        parse: Callable[[Answer], T],
        *,
        repeat_unknown: bool,
        region: str | None = None,
        secrets: Iterable[str] = (),
    ) -> T:
        """As `read`, for a call that changes something.

        Args:
            product: As for `read`.
            action: As for `read`.
            send: As for `read`.
            parse: As for `read`.
            repeat_unknown: Only when it carries a ClientToken, or when doing it twice does no harm.
            region: Whose endpoint to call. Unset: the settings'.
            secrets: Values in the request that must not show up in an error.
        """
        sdk = self.product(product, region)
        operation = f"{product}:{action}"

        def once() -> T:
            return parse(answer_of(send(sdk.client, sdk.models), operation))

        return self.call(operation, once, repeat_unknown=repeat_unknown, secrets=secrets)

    def call(
        self,
        operation: str,
        fn: Callable[[], T],
        *,
        repeat_unknown: bool = False,
        secrets: Iterable[str] = (),
    ) -> T:
        """Run `fn`, which makes one SDK call, with retries.

        Args:
            operation: `product:Action`, e.g. `vpc:AllocateEipAddress`.
            fn: The call.
            repeat_unknown: Whether to repeat it when its outcome is unknown.
            secrets: Values that must not show up in an error.

        Raises:
            CloudError: Classified; without secrets.
        """
        own = (self.access_key_secret or "", self.security_token or "")
        hidden = tuple(secret for secret in (*own, *secrets) if secret)
        deadline = Deadline.after(self.patience_seconds, self.clock)
        doubtful = False

        def attempt() -> T:
            nonlocal doubtful
            try:
                return _classified(operation, fn, hidden)
            except CloudError as error:
                error.doubtful = doubtful
                doubtful = doubtful or error.verdict is Verdict.UNKNOWN
                raise

        return retry(attempt, deadline=deadline, repeat_unknown=repeat_unknown)

    def product(self, name: str, region: str | None = None) -> Product:
        """The SDK of a product, imported at the first use, with one client for everybody.

        Raises:
            AccessError: There are no credentials.
        """
        region = region or (self.control_region_id if name in _CONTROL_PLANE else self.region_id)
        with self._lock:
            known = self._products.get((name, region))
            if known is None:
                known = self._products[name, region] = self._load(name, region)
            return known

    def _load(self, name: str, region: str) -> Product:
        client_module = importlib.import_module(f"{SDKS[name]}.client")
        models = importlib.import_module(f"{SDKS[name]}.models")
        _calm_loggers()
        return Product(client=client_module.Client(self._config(region)), models=models)

    def _config(self, region: str) -> Any:
        from alibabacloud_tea_openapi.models import Config

        # Whoever has little time should not spend it on one silent server.
        most = max(1_000, int(self.patience_seconds * 1000))
        config = Config(
            region_id=region,
            connect_timeout=min(_CONNECT_TIMEOUT_MS, most),
            read_timeout=min(_READ_TIMEOUT_MS, most),
        )
        if self.endpoint:
            config.endpoint, config.protocol = self.endpoint, "HTTP"
            if os.environ.get("HTTP_PROXY") or os.environ.get("http_proxy"):
                # The SDK ignores NO_PROXY, and no setting turns a proxy off. One that is its own proxy
                # gets the requests itself, in absolute form, which every HTTP/1.1 server must accept.
                config.http_proxy = f"http://{self.endpoint}"
        if self.access_key_id:
            config.access_key_id = self.access_key_id
            config.access_key_secret = self.access_key_secret
            config.security_token = self.security_token
        else:
            config.credential = self._default_chain()
        return config

    def _default_chain(self) -> Any:
        """The SDK's chain of credential providers, after making sure that one of them has some.

        On a machine outside the cloud the last provider waits for the metadata address, 1 s per try and
        some three tries; ALIBABA_CLOUD_ECS_METADATA_DISABLED=true leaves it out.
        """
        from alibabacloud_credentials.client import Client
        from alibabacloud_credentials.exceptions import CredentialException

        _calm_loggers()
        # One for all tries: making one starts a thread of the SDK's.
        self._chain = self._chain or Client()
        try:
            self._chain.get_credential()
        except CredentialException:
            raise AccessError(
                "There are no Alibaba Cloud credentials.",
                why="Neither alibaba.access_key_id nor ALIBABA_CLOUD_ACCESS_KEY_ID and _SECRET are set, and "
                "~/.aliyun/config.json, ~/.alibabacloud/credentials.ini and an instance role have none.",
                fix="Create an access key for a RAM user and set RAYNEST_ALIBABA__ACCESS_KEY_ID and "
                "RAYNEST_ALIBABA__ACCESS_KEY_SECRET, or log in with `aliyun configure`. "
                "Without an account, use the profile `sandbox`.",
            ) from None
        return self._chain


def check_token(client_token: str) -> None:
    """Refuse a ClientToken that the cloud would not take: 1 to 64 ASCII characters. Raises ValueError."""
    if not client_token or len(client_token) > 64 or not client_token.isascii():
        raise ValueError(f"not a ClientToken (1 to 64 ASCII characters): {client_token!r}")


def _classified(operation: str, fn: Callable[[], T], secrets: tuple[str, ...]) -> T:
    from darabonba.exceptions import RetryError, ValidateException
    from Tea.exceptions import TeaException

    try:
        return fn()
    except CloudError:
        raise
    except (TeaException, RetryError, ValidateException) as raised:
        error = classify(_failure_of(raised), operation, secrets)
    # Raised out here so that the SDK's exception, which holds the request, is no context of ours.
    raise error


def _failure_of(raised: Exception) -> Failure:
    inner = getattr(raised, "inner_exception", None)
    if inner is not None:
        return _without_answer(inner)
    if getattr(raised, "status_code", None) is None:
        code = getattr(raised, "code", None)
        # Any text of these may hold the request's URL.
        return Failure(code=code if code == NO_CREDENTIALS else NO_ANSWER)
    data = getattr(raised, "data", None)
    data = data if isinstance(data, dict) else {}
    denied = data.get("AccessDeniedDetail") or data.get("accessDeniedDetail")
    return Failure(
        code=_text(data, "Code", "code"),
        status=raised.status_code,  # type: ignore[attr-defined]
        message=_text(data, "Message", "message"),
        request_id=_text(data, "RequestId", "requestId", "request_id"),
        retry_after_ms=getattr(raised, "retry_after", None),
        denied=denied if isinstance(denied, dict) else None,
    )


def _without_answer(inner: Exception) -> Failure:
    if type(inner).__name__ == "CredentialException":
        return Failure(code=NO_CREDENTIALS)
    never_sent = type(inner).__name__ == "RetryError" and any(word in str(inner) for word in _NEVER_SENT)
    return Failure(code=NOT_SENT if never_sent else NO_ANSWER)


def _text(data: dict[str, Any], *keys: str) -> str:
    return next((data[key] for key in keys if isinstance(data.get(key), str)), "")


def _calm_loggers() -> None:
    """Undo what importing the SDK does: level DEBUG and a stderr handler on each of its loggers."""
    for name, level in _SDK_LOGGERS.items():
        logger = logging.getLogger(name)
        logger.setLevel(level)
        for handler in list(logger.handlers):
            if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
                logger.removeHandler(handler)
